"""Writing of invented MR slices as real DICOM files, with headers full of invented identities.

The headers hold what a hospital's would (names, birth dates, physicians, accession numbers), so
that reading, checking and de-identification have something to work on. No name is of a person.
"""

from __future__ import annotations

import re
import struct
import uuid
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, RLELossless

from fedmed.data.phantom_fields import Image
from fedmed.data.phantom_scanner import Scanner

WHITE = 4095
"""Largest stored value: 12 bits."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "phantom.fedmed.invalid")
_FIRST_DAY = date(2019, 1, 7)
_FAMILY = (
    "Amberlake", "Bramblewood", "Coppergate", "Dewhollow", "Emberfield", "Fernmoor", "Greyharbour",
    "Heatherby", "Ivorydale", "Juniperson", "Kettlebrook", "Larkmeadow", "Mossbridge", "Nettlecomb",
    "Oakenshade", "Pebbleton", "Quillfeather", "Rushwater", "Silverbirch", "Thistledown",
)  # fmt: skip
_GIVEN = {
    "F": ("Aria", "Briony", "Clover", "Dahlia", "Elowen", "Fable", "Ginger", "Hazel", "Iris"),
    "M": ("Alder", "Basil", "Cedric", "Dorian", "Elm", "Falco", "Garnet", "Heath", "Indigo"),
}
_SPACING_BETWEEN_SLICES = 5.5
"""Millimetres."""
_META_LENGTH = struct.Struct("<HH2sHI")
# Shorter runs would save little: each costs a pass through a Python loop.
_RUN = re.compile(rb"(.)\1{7,127}", re.DOTALL)


@dataclass(frozen=True)
class Identity:
    """An invented patient and the study in which the slices were taken."""

    patient_id: str
    patient_name: str
    sex: str
    age: int
    birth_date: str
    physician: str
    accession_number: str
    institution: str
    study_date: str
    study_time: str
    unique: str
    """What the UIDs are derived from; unlike for any two patients of any two archives."""


def invent_identity(
    rng: np.random.Generator, *, patient_id: str, hospital: str, unique: str
) -> Identity:
    """Invent a patient of 18 to 92 years and a study.

    Args:
        rng: source of all randomness.
        patient_id: for the header and the manifest.
        hospital: short name of the hospital.
        unique: what the UIDs are derived from.
    """
    sex = "FM"[int(rng.integers(2))]
    age = int(np.clip(rng.normal(56, 17), 18, 92))
    study = _FIRST_DAY + timedelta(days=int(rng.integers(0, 1400)))
    birthday = date(2000, 1, 1) + timedelta(days=int(rng.integers(0, 365)))
    had_it = (birthday.month, birthday.day) <= (study.month, study.day)
    year = study.year - age - (not had_it)
    day = min(birthday.day, 28)  # 29 February is not in every year
    return Identity(
        patient_id=patient_id,
        patient_name=f"{_pick(rng, _FAMILY)}^{_pick(rng, _GIVEN[sex])}",
        sex=sex,
        age=age,
        birth_date=f"{year:04d}{birthday.month:02d}{day:02d}",
        physician=f"{_pick(rng, _FAMILY)}^{_pick(rng, _GIVEN['F'])}^^Dr",
        accession_number=f"{hospital[:3].upper()}{int(rng.integers(10**7)):07d}",
        institution=f"{hospital.capitalize()} Hospital (fictitious)",
        study_date=study.strftime("%Y%m%d"),
        study_time=f"{int(rng.integers(7, 19)):02d}{int(rng.integers(60)):02d}00",
        unique=unique,
    )


def write_slices(
    paths: list[Path], images: list[Image], identity: Identity, scanner: Scanner
) -> None:
    """Write the slices of one patient as one series, one file a slice.

    Args:
        paths: where each slice goes; replaced if there.
        images: float32 (size, size) in [0, 1], white is 1. With the file's rescaling, window and
            photometric interpretation applied, a reader gets these back to 1 part in 8190.
        identity: the patient and the study.
        scanner: how pictures are stored.
    """
    shared = _encode(_file_meta(scanner)) | _encode(_series(identity, scanner, len(images[0])))
    for number, (path, image) in enumerate(zip(paths, images, strict=True), start=1):
        own = _slice(identity, scanner, number)
        _put_pixels(own, image, scanner)
        meta = FileMetaDataset()
        meta.MediaStorageSOPInstanceUID = own.SOPInstanceUID
        elements = shared | _encode(meta) | _encode(own)
        # The first element says how long the rest of its group is (PS3.10 section 7.1).
        length = sum(len(element) for tag, element in elements.items() if tag >> 16 == 2)
        parts = [elements[tag] for tag in sorted(elements)]
        path.write_bytes(
            b"\0" * 128 + b"DICM" + _META_LENGTH.pack(2, 0, b"UL", 4, length) + b"".join(parts)
        )


def derive_uid(*parts: str) -> UID:
    """UID made of a name-based UUID (PS3.5 B.2): the same parts give the same UID."""
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(parts)).int}")


def encode_run_length(stored: NDArray[np.uint16]) -> bytes:
    """Encode one frame as RLE Lossless (PS3.5 Annex G).

    pydicom has an encoder too, in pure Python; this one is several times faster.

    Args:
        stored: values, uint16 (rows, columns).

    Returns:
        Header of 64 bytes, then the segment of the high bytes and that of the low bytes.
    """
    segments = [_pack_plane((stored >> 8).astype(np.uint8)), _pack_plane(stored.astype(np.uint8))]
    header = np.zeros(16, "<u4")
    header[:3] = len(segments), 64, 64 + len(segments[0])
    return header.tobytes() + b"".join(segments)


def _pack_plane(plane: NDArray[np.uint8]) -> bytes:
    """PackBits, each row by itself as the standard asks, padded to an even length."""
    equal = plane[:, 1:] == plane[:, :-1]
    has_runs = (equal[:, 1:] & equal[:, :-1]).any(axis=1)
    packed = bytearray()
    for row, runs in zip(plane, has_runs, strict=True):
        values = row.tobytes()
        start = 0
        for run in _RUN.finditer(values) if runs else ():
            _pack_literals(packed, values[start : run.start()])
            packed += bytes((257 - (run.end() - run.start()), values[run.start()]))
            start = run.end()
        _pack_literals(packed, values[start:])
    if len(packed) % 2:
        packed.append(0)
    return bytes(packed)


def _pack_literals(packed: bytearray, values: bytes) -> None:
    for start in range(0, len(values), 128):
        part = values[start : start + 128]
        packed.append(len(part) - 1)
        packed += part


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


# --- the parts of the header that all slices share -------------------------------------------


def _encode(dataset: Dataset) -> dict[int, bytes]:
    """Encode each element by itself, so that what all slices share is encoded once."""
    encoded = {}
    for element in dataset:
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        write_data_element(buffer, element)
        encoded[int(element.tag)] = buffer.getvalue()
    return encoded


def _file_meta(scanner: Scanner) -> FileMetaDataset:
    """File Meta Information (PS3.10 section 7.1), but for the instance's UID."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.TransferSyntaxUID = RLELossless if scanner.run_length else ExplicitVRLittleEndian
    meta.ImplementationClassUID = derive_uid("implementation")
    meta.ImplementationVersionName = "FEDMED_PHANTOM"
    return meta


def _slice(identity: Identity, scanner: Scanner, number: int) -> Dataset:
    """What sets a slice apart from the others of its series."""
    own = Dataset()
    own.SOPInstanceUID = derive_uid(identity.unique, "instance", str(number))
    own.InstanceNumber = number
    height, half = _SPACING_BETWEEN_SLICES * (number - 1), scanner.field_of_view / 2
    own.ImagePositionPatient = [-half, -half, height]
    own.SliceLocation = height
    return own


def _put_pixels(own: Dataset, image: Image, scanner: Scanner) -> None:
    stored = np.rint(image * np.float32(WHITE)).astype(np.uint16)
    if scanner.inverted:
        stored = np.uint16(WHITE) - stored
    if scanner.run_length:
        own.add_new("PixelData", "OB", encapsulate([encode_run_length(stored)]))
        own["PixelData"].is_undefined_length = True
    else:
        own.add_new("PixelData", "OW", stored.astype("<u2").tobytes())


def _series(identity: Identity, scanner: Scanner, size: int) -> Dataset:
    series = Dataset()
    _describe_patient_and_study(series, identity)
    _describe_series(series, identity, scanner)
    _describe_pixels(series, scanner, size)
    return series


def _describe_patient_and_study(series: Dataset, identity: Identity) -> None:
    series.PatientName = identity.patient_name
    series.PatientID = identity.patient_id
    series.PatientBirthDate = identity.birth_date
    series.PatientSex = identity.sex
    series.PatientAge = f"{identity.age:03d}Y"
    series.StudyInstanceUID = derive_uid(identity.unique, "study")
    series.StudyID = "1"
    series.StudyDate = identity.study_date
    series.StudyTime = identity.study_time
    series.AccessionNumber = identity.accession_number
    series.ReferringPhysicianName = identity.physician
    series.StudyDescription = "MR head (phantom)"


def _describe_series(series: Dataset, identity: Identity, scanner: Scanner) -> None:
    """General Series, Frame of Reference, Equipment and MR Image modules (PS3.3 C.7, C.8.3)."""
    series.SOPClassUID = MRImageStorage
    series.Modality = "MR"
    series.SeriesInstanceUID = derive_uid(identity.unique, "series")
    series.SeriesNumber = 1
    series.SeriesDate = series.AcquisitionDate = series.ContentDate = identity.study_date
    series.SeriesTime = series.AcquisitionTime = series.ContentTime = identity.study_time
    series.SeriesDescription = "Axial"
    series.BodyPartExamined = "HEAD"
    series.PatientPosition = "HFS"
    series.Laterality = ""
    series.FrameOfReferenceUID = derive_uid(identity.unique, "frame")
    series.PositionReferenceIndicator = ""
    series.Manufacturer = "Fedmed Phantom Works"
    series.ManufacturerModelName = scanner.model
    series.InstitutionName = identity.institution
    series.ImageType = ["ORIGINAL", "PRIMARY", "M", "SE"]
    series.ScanningSequence = "SE"
    series.SequenceVariant = "SK"
    series.ScanOptions = ""
    series.MRAcquisitionType = "2D"
    series.MagneticFieldStrength = scanner.field_strength
    series.RepetitionTime = scanner.repetition_time
    series.EchoTime = scanner.echo_time
    series.EchoTrainLength = 1


def _describe_pixels(series: Dataset, scanner: Scanner, size: int) -> None:
    spacing = round(scanner.field_of_view / size, 6)
    series.PixelSpacing = [spacing, spacing]
    series.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    series.SliceThickness = 5
    series.SpacingBetweenSlices = _SPACING_BETWEEN_SLICES
    series.SamplesPerPixel = 1
    series.PhotometricInterpretation = "MONOCHROME1" if scanner.inverted else "MONOCHROME2"
    series.Rows = series.Columns = size
    series.BitsAllocated = 16
    series.BitsStored = 12
    series.HighBit = 11
    series.PixelRepresentation = 0
    series.BurnedInAnnotation = "NO"
    series.LossyImageCompression = "00"
    series.RescaleIntercept = scanner.intercept
    series.RescaleSlope = scanner.slope
    series.RescaleType = "US"
    # The linear window function (PS3.3 C.11.2.1.2.1) that maps stored 0..4095 to black..white.
    span = scanner.slope * WHITE
    series.WindowCenter = scanner.intercept + span / 2 + 0.5
    series.WindowWidth = span + 1
