"""read_dicom against pydicom's own pipeline, synthetic cases of the standard, and hostile files."""

import logging
import socket
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.data.data_manager import DATA_ROOT
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    generate_uid,
)

from fedmed.data.codestream import codestream_size
from fedmed.data.dicom import looks_like_dicom, read_dicom
from fedmed.data.quarantine import DecodeLimits, QuarantineReason
from fedmed.errors import ConfigurationError, ImageError

# Only what lies in the wheel: get_testdata_files() would try to download the rest.
BUNDLED = sorted(path for path in (Path(DATA_ROOT) / "test_files").rglob("*") if path.is_file())
LGG = Path(__file__).parents[3] / "shared" / "data" / "lgg_mri"
ANY_SIZE = DecodeLimits(min_side=1)
LUMA = np.array([0.299, 0.587, 0.114])
MARKER = "ZZQMARKER"

# Why each file that is no image is none, from pydicom's own notes on its test files.
NO_PIXELS = {
    "ExplVR_BigEndNoMeta.dcm",
    "ExplVR_LitEndNoMeta.dcm",
    "UN_sequence.dcm",
    "empty_charset_LEI.dcm",
    "no_meta_group_length.dcm",
    "priv_SQ.dcm",
    "reportsi.dcm",
    "reportsi_with_empty_number_tags.dcm",
    "rtplan.dcm",
    "rtplan_truncated.dcm",
    "rtstruct.dcm",
    "test-SR.dcm",
    "waveform_ecg.dcm",
}
UNREADABLE = {
    "JPEG-lossy.dcm",  # misplaced marker in the codestream
    "JPEG2000-embedded-sequence-delimiter.dcm",  # codestream states 3.8 million megapixels
    "MR_truncated.dcm",
    "badVR.dcm",  # number of frames is "1A"
    "meta_missing_tsyntax.dcm",  # no rows, no columns
    "nested_priv_SQ.dcm",  # no bits allocated
}
NOT_AN_IMAGE = {
    "README",
    "README.txt",
    "crayons.icc",
    "no_meta.dcm",  # a stray byte before the first element
    "rtplan.dump",
    "rtstruct.dump",
    "test1.json",
    "test_PN.json",
    "zipMR.gz",
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a test of reading files opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def read_or_reason(path, **arguments):
    """The image and None, or None and the reason; anything but an ImageError is let through."""
    try:
        return read_dicom(path, channels=1, **arguments), None
    except ImageError as error:
        return None, error.reason


def expected_reason(path):
    if path.name.startswith("DICOMDIR") or "TINY_ALPHA" in path.parts:
        return "not-an-image" if path.name == "README" else "no-pixels"
    for names, reason in (
        (NO_PIXELS, "no-pixels"),
        (UNREADABLE, "unreadable"),
        (NOT_AN_IMAGE, "not-an-image"),
    ):
        if path.name in names:
            return reason
    return None


def reference(path, frame=None):
    """The same image by pydicom's documented path: whole file, whole array, float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dcmread(path, force=True)
        array = dataset.pixel_array
        frames = int(dataset.get("NumberOfFrames") or 1)
        if frames > 1:
            array = array[frames // 2 if frame is None else frame]
        if dataset.SamplesPerPixel == 3:
            return array @ LUMA / (2.0**dataset.BitsStored - 1)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            bits = dataset.RedPaletteColorLookupTableDescriptor[2]
            return apply_color_lut(array, dataset) @ LUMA / (2.0**bits - 1)
        values = apply_modality_lut(array, dataset).astype(np.float64)
        if "WindowWidth" in dataset:
            slope = float(dataset.get("RescaleSlope", 1))
            intercept = float(dataset.get("RescaleIntercept", 0))
            bits = dataset.BitsStored
            least = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
            bounds = [edge * slope + intercept for edge in (least, least + 2**bits - 1)]
            image = (apply_voi_lut(values, dataset) - bounds[0]) / (bounds[1] - bounds[0])
        else:
            image = None
        if image is None or image.min() == image.max():
            low, high = np.percentile(values, (0.5, 99.5))
            image = np.clip((values - low) / (high - low), 0, 1)
    return 1 - image if dataset.PhotometricInterpretation == "MONOCHROME1" else image


@pytest.mark.timeout(120)
def test_every_bundled_file_is_an_image_or_has_a_true_reason(capfd, caplog):
    caplog.set_level(logging.DEBUG)
    images = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for path in BUNDLED:
            started = time.monotonic()
            image, reason = read_or_reason(path, limits=ANY_SIZE)
            assert reason == expected_reason(path), path.name
            if image is not None:
                assert image.dtype == np.float32
                assert image.ndim == 3
                assert 0 <= image.min() < image.max() <= 1
                images += 1
            assert time.monotonic() - started < 20, path.name
    assert images > 80
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize(
    "path", [p for p in BUNDLED if expected_reason(p) is None], ids=lambda path: path.name
)
def test_equals_pydicoms_own_pipeline(path):
    image = read_dicom(path, channels=1, limits=ANY_SIZE)
    expected = reference(path)
    assert image.shape == (1, *expected.shape)
    np.testing.assert_allclose(image[0], expected, atol=2e-6)


@pytest.mark.parametrize("frame", [0, 7, 29])
def test_one_frame_of_a_compressed_series(frame):
    path = Path(DATA_ROOT) / "test_files" / "examples_ybr_color.dcm"
    image = read_dicom(path, channels=1, frame=frame)
    np.testing.assert_allclose(image[0], reference(path, frame), atol=2e-6)
    assert not np.allclose(image[0], reference(path, (frame + 11) % 30), atol=1e-2)


def test_real_archive_equals_pydicoms_own_pipeline():
    files = sorted(LGG.rglob("*.dcm"))[::40]
    if not files:
        pytest.skip("shared/data/lgg_mri is not here")
    compared, blank = 0, []
    for path in files:
        try:
            image = read_dicom(path, channels=1)
        except ImageError as error:
            blank.append((error.reason, np.ptp(dcmread(path).pixel_array)))
            continue
        np.testing.assert_allclose(image[0], reference(path), atol=2e-6)
        compared += 1
    assert compared > 40
    assert set(blank) <= {("constant", 0)}


def make(pixels, *, syntax=ExplicitVRLittleEndian, **attributes):
    """A data set around an array [H, W], [F, H, W] or [H, W, 3]."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.PatientName = MARKER
    dataset.PatientID = f"{MARKER}-ID"
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    if pixels.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(pixels)
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def write(path, dataset):
    syntax = dataset.file_meta.TransferSyntaxUID
    dcmwrite(
        path,
        dataset,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return path


def ramp(dtype=np.uint8, low=0, high=255, side=16):
    return np.linspace(low, high, side * side).round().astype(dtype).reshape(side, side)


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
    ids=lambda uid: uid.name,
)
@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.uint8, 0, 255), (np.int8, -128, 127), (np.uint16, 0, 60000), (np.int16, -2000, 3000)],
)
def test_native_syntaxes_and_data_types(tmp_path, syntax, dtype, low, high):
    pixels = ramp(dtype, low, high)
    pixels[3, 5] = low  # so that a transposed or flipped image differs
    path = write(tmp_path / "a", make(pixels, syntax=syntax, WindowCenter=100, WindowWidth=301))
    image = read_dicom(path, channels=1)[0]
    # PS3.3 C.11.2.1.2.1 by hand: 0 at centre - 0.5 - (width - 1) / 2 = -50.5, 1 at 249.5.
    np.testing.assert_allclose(image, np.clip((pixels.astype(float) + 50.5) / 300, 0, 1), atol=1e-6)


def test_bits_beyond_those_stored_are_ignored(tmp_path):
    pixels = ramp(np.uint16, 0, 4095)
    dirty = pixels | 0xA000
    clean = read_dicom(write(tmp_path / "a", make(pixels, BitsStored=12, HighBit=11)), channels=1)
    image = read_dicom(write(tmp_path / "b", make(dirty, BitsStored=12, HighBit=11)), channels=1)
    np.testing.assert_array_equal(image, clean)


def test_monochrome1_is_inverted(tmp_path):
    pixels = ramp()
    window = {"WindowCenter": 128, "WindowWidth": 200}
    shown = read_dicom(write(tmp_path / "a", make(pixels, **window)), channels=1)
    inverse = read_dicom(
        write(tmp_path / "b", make(pixels, PhotometricInterpretation="MONOCHROME1", **window)),
        channels=1,
    )
    np.testing.assert_allclose(inverse, 1 - shown, atol=1e-6)
    assert shown[0, -1, -1] == 1
    assert inverse[0, -1, -1] == 0


def test_rescale_comes_before_the_window(tmp_path):
    pixels = ramp(np.uint16, 0, 4000)
    path = write(
        tmp_path / "ct",
        make(pixels, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=401),
    )
    hounsfield = pixels * 2.0 - 1024
    expected = np.clip((hounsfield - (39.5 - 200)) / 400, 0, 1)
    np.testing.assert_allclose(read_dicom(path, channels=1)[0], expected, atol=1e-6)


@pytest.mark.parametrize(("function", "width"), [("LINEAR_EXACT", 100), ("SIGMOID", 100)])
def test_voi_functions(tmp_path, function, width):
    pixels = ramp()
    path = write(
        tmp_path / "a",
        make(pixels, WindowCenter=120, WindowWidth=width, VOILUTFunction=function),
    )
    values = pixels.astype(float)
    expected = {
        "LINEAR_EXACT": np.clip((values - 120) / width + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (values - 120) / width)),
    }[function]
    np.testing.assert_allclose(read_dicom(path, channels=1)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    "window",
    [
        {},
        {"WindowCenter": 128},
        {"WindowWidth": 128},
        {"WindowCenter": 128, "WindowWidth": 0},
        {"WindowCenter": 128, "WindowWidth": -5},
        {"WindowCenter": 128, "WindowWidth": 0.5},
        {"WindowCenter": 1e6, "WindowWidth": 100},  # no pixel inside: nothing would be seen
        {"WindowCenter": 128, "WindowWidth": 100, "VOILUTFunction": "CUBIC"},
    ],
    ids=str,
)
def test_a_wrong_window_falls_back_to_the_percentiles(tmp_path, window):
    pixels = ramp()
    pixels[0, 0], pixels[15, 15] = 255, 0
    path = write(tmp_path / "a", make(pixels, **window))
    low, high = np.percentile(pixels, (0.5, 99.5))
    expected = np.clip((pixels - low) / (high - low), 0, 1)
    np.testing.assert_allclose(read_dicom(path, channels=1)[0], expected, atol=1e-6)


@pytest.mark.parametrize("text", ["NaN", "abc", "\\1", "inf"])
def test_a_window_that_is_no_number_falls_back_to_the_percentiles(tmp_path, text):
    path = write(tmp_path / "a", make(ramp(), WindowCenter="128.25", WindowWidth="200.75"))
    data = path.read_bytes().replace(b"200.75", text.encode().ljust(6))
    path.write_bytes(data)
    plain = write(tmp_path / "b", make(ramp()))
    np.testing.assert_array_equal(read_dicom(path, channels=1), read_dicom(plain, channels=1))


def test_the_first_of_several_windows_counts(tmp_path):
    several = make(ramp(), WindowCenter=[100, 200], WindowWidth=[50, 10])
    one = make(ramp(), WindowCenter=100, WindowWidth=50)
    np.testing.assert_array_equal(
        read_dicom(write(tmp_path / "a", several), channels=1),
        read_dicom(write(tmp_path / "b", one), channels=1),
    )


def test_a_few_bright_pixels_on_an_empty_field_are_kept(tmp_path):
    pixels = np.zeros((64, 64), np.uint8)
    pixels[4, 4] = 9
    image = read_dicom(write(tmp_path / "a", make(pixels)), channels=1)
    assert image.sum() == 1
    assert image[0, 4, 4] == 1


def test_padding_does_not_count_for_the_percentiles(tmp_path):
    pixels = ramp(np.int16, 0, 1000, side=64)
    padded = pixels.copy()
    padded[:, :20] = -2000
    image = read_dicom(write(tmp_path / "a", make(padded, PixelPaddingValue=-2000)), channels=1)[0]
    low, high = np.percentile(pixels[:, 20:], (0.5, 99.5))
    expected = np.clip((padded - low) / (high - low), 0, 1)
    np.testing.assert_allclose(image, expected, atol=1e-6)
    assert (image[:, :20] == 0).all()


def lut_item(entries, first, bits, *, vr="US"):
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new(0x00283006, vr, entries if vr == "US" else np.array(entries, "<u2").tobytes())
    return item


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("entries", "bits"),
    [
        (list(range(0, 1024, 4))[::-1], 10),  # falling, ends below and above the values
        (list(range(256)), 8),
    ],
)
def test_voi_lut_is_preferred_to_the_window(tmp_path, syntax, entries, bits):
    pixels = ramp(np.uint16, 0, 400)
    dataset = make(pixels, syntax=syntax, WindowCenter=10, WindowWidth=5)
    dataset.VOILUTSequence = [lut_item(entries, 50, bits, vr="OW")]
    image = read_dicom(write(tmp_path / "a", dataset), channels=1)[0]
    table = np.array(entries, float)
    expected = (table / table.max())[np.clip(pixels.astype(int) - 50, 0, 255)]
    np.testing.assert_allclose(image, expected, atol=1e-6)


def test_voi_lut_of_many_8_bit_entries_does_not_wrap_around(tmp_path):
    # pydicom 3.0.2 alone takes the index modulo 256 here.
    pixels = ramp(np.uint16, 0, 4095, side=64)
    entries = [index // 16 for index in range(4096)]
    dataset = make(pixels)
    dataset.VOILUTSequence = [lut_item(entries, 0, 8)]
    image = read_dicom(write(tmp_path / "a", dataset), channels=1)[0]
    np.testing.assert_allclose(image, pixels // 16 / 255, atol=1e-6)


def test_rescaled_values_are_rounded_and_clipped_before_the_voi_lut(tmp_path):
    pixels = np.full((16, 16), 1000, np.uint16)
    pixels[0, :3] = 0, 100, 200  # 0, 28.999999999999996 and 57.99999999999999 in floating point
    pixels[1] = 60_000
    dataset = make(pixels, RescaleSlope="0.29", RescaleIntercept="0")
    entries = list(range(100))
    dataset.VOILUTSequence = [lut_item(entries, 0, 16)]
    image = read_dicom(write(tmp_path / "a", dataset), channels=1)[0]
    np.testing.assert_allclose(image[0, :4], np.array([0, 29, 58, 99]) / 99, atol=1e-6)
    dataset.RescaleSlope = "1.1"  # 60,000 becomes 66,000, which is 464 modulo 65,536
    dataset.VOILUTSequence = [lut_item(list(range(1000)), 0, 16)]
    image = read_dicom(write(tmp_path / "b", dataset), channels=1)[0]
    assert (image[1] == 1).all()


def test_a_malformed_voi_lut_falls_back_to_the_window(tmp_path):
    dataset = make(ramp(), WindowCenter=100, WindowWidth=100)
    expected = read_dicom(write(tmp_path / "a", dataset), channels=1)
    item = lut_item([0] * 16, 0, 16)
    item.LUTDescriptor = [0, 0, 16]
    dataset.VOILUTSequence = [item]
    image = read_dicom(write(tmp_path / "b", dataset), channels=1)
    np.testing.assert_array_equal(image, expected)


def test_modality_lut_of_12_bits(tmp_path):
    pixels = ramp(np.uint8)
    entries = [(index * 7) % 4096 for index in range(200)]
    dataset = make(pixels, WindowCenter=700, WindowWidth=1001)
    dataset.ModalityLUTSequence = [lut_item(entries, 20, 12)]
    image = read_dicom(write(tmp_path / "a", dataset), channels=1)[0]
    mapped = np.array(entries, float)[np.clip(pixels.astype(int) - 20, 0, 199)]
    expected = np.clip((mapped - (699.5 - 500)) / 1000, 0, 1)
    np.testing.assert_allclose(image, expected, atol=1e-6)


def test_the_frames_own_window_and_rescale_count(tmp_path):
    frames = np.stack([ramp(np.uint16, 0, 1000)] * 3)
    dataset = make(frames)
    shared, rescale = Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = 2, -100
    shared.PixelValueTransformationSequence = [rescale]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for center in (200, 600, 1000):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 401
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    path = write(tmp_path / "a", dataset)
    for index, center in enumerate((200, 600, 1000)):
        values = frames[index] * 2.0 - 100
        expected = np.clip((values - (center - 0.5 - 200)) / 400, 0, 1)
        image = read_dicom(path, channels=1, frame=index)[0]
        np.testing.assert_allclose(image, expected, atol=1e-6)


def test_frames(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 12, 10), dtype=np.uint8)
    path = write(tmp_path / "a", make(frames, WindowCenter=128, WindowWidth=256))
    for wanted, index in ((None, 2), (0, 0), (4, 4)):
        image = read_dicom(path, channels=1, frame=wanted)[0]
        np.testing.assert_allclose(image, frames[index] / 255, atol=1e-6)
    for wrong in (5, -1):
        with pytest.raises(ImageError) as error:
            read_dicom(path, channels=1, frame=wrong)
        assert error.value.reason == QuarantineReason.BAD_FRAME


def test_rle_frames(tmp_path):
    frames = np.random.default_rng(1).integers(0, 60_000, (3, 16, 16), dtype=np.uint16)
    dataset = make(frames, WindowCenter=30_000, WindowWidth=60_001)
    plain = write(tmp_path / "plain", dataset)
    dataset.compress(RLELossless, frames)
    packed = write(tmp_path / "packed", dataset)
    assert b"1.2.840.10008.1.2.5" in packed.read_bytes()
    for index in range(3):
        np.testing.assert_array_equal(
            read_dicom(packed, channels=1, frame=index), read_dicom(plain, channels=1, frame=index)
        )


def test_colour_and_channels(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    path = write(tmp_path / "rgb", make(pixels))
    colour = read_dicom(path, channels=3)
    np.testing.assert_allclose(colour, pixels.transpose(2, 0, 1) / 255, atol=1e-6)
    np.testing.assert_allclose(read_dicom(path, channels=1)[0], pixels @ LUMA / 255, atol=1e-6)
    planar = make(pixels, PlanarConfiguration=1)
    planar.PixelData = pixels.transpose(2, 0, 1).tobytes() + b"\0"
    np.testing.assert_array_equal(read_dicom(write(tmp_path / "p", planar), channels=3), colour)
    grey = read_dicom(write(tmp_path / "grey", make(ramp())), channels=3)
    assert grey.shape == (3, 16, 16)
    assert (grey[0] == grey[1]).all()
    assert (grey[0] == grey[2]).all()
    with pytest.raises(ConfigurationError):
        read_dicom(path, channels=2)


def test_ybr_full(tmp_path):
    rgb = np.random.default_rng(3).integers(0, 256, (16, 16, 3)).astype(float)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    # PS3.3 C.7.6.3.1.2
    ybr = np.stack(
        [
            0.2990 * red + 0.5870 * green + 0.1140 * blue,
            -0.1687 * red - 0.3313 * green + 0.5000 * blue + 128,
            0.5000 * red - 0.4187 * green - 0.0813 * blue + 128,
        ],
        axis=-1,
    )
    pixels = np.clip(np.rint(ybr), 0, 255).astype(np.uint8)
    path = write(tmp_path / "a", make(pixels, PhotometricInterpretation="YBR_FULL"))
    image = read_dicom(path, channels=3)
    assert np.abs(image - rgb.transpose(2, 0, 1) / 255).max() < 2 / 255


def palette(dataset, tables, first, bits, order="<"):
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(
            dataset, f"{colour}PaletteColorLookupTableDescriptor", [len(table) % 2**16, first, bits]
        )
        stored = table.astype(f"{order}u2" if bits == 16 else np.uint8).tobytes()
        setattr(dataset, f"{colour}PaletteColorLookupTableData", stored)
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    return dataset


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(
    ("dtype", "entries", "first", "bits"),
    [
        (np.uint8, 256, 0, 16),
        (np.uint8, 200, 10, 8),
        (np.uint16, 1024, 0, 8),  # pydicom 3.0.2 alone takes the index modulo 256 here
        (np.uint16, 1024, 100, 16),
    ],
)
def test_palettes(tmp_path, syntax, dtype, entries, first, bits):
    pixels = ramp(dtype, 0, 255 if dtype == np.uint8 else 1200)
    tables = np.random.default_rng(4).integers(0, 2**bits, (3, entries))
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dataset = palette(make(pixels, syntax=syntax), tables, first, bits, order)
    image = read_dicom(write(tmp_path / "a", dataset), channels=3)
    expected = tables[:, np.clip(pixels.astype(int) - first, 0, entries - 1)] / (2**bits - 1)
    np.testing.assert_allclose(image, expected, atol=1e-6)


def test_float_pixels(tmp_path):
    values = np.linspace(-3.5, 8.25, 256, dtype=np.float32).reshape(16, 16)
    dataset = make(np.zeros((16, 16), np.uint32))
    del dataset.PixelData, dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit
    dataset.FloatPixelData = values.tobytes()
    image = read_dicom(write(tmp_path / "a", dataset), channels=1)[0]
    low, high = np.percentile(values, (0.5, 99.5))
    np.testing.assert_allclose(image, np.clip((values - low) / (high - low), 0, 1), atol=1e-5)
    values[2, 2] = np.nan
    dataset.FloatPixelData = values.tobytes()
    with pytest.raises(ImageError) as error:
        read_dicom(write(tmp_path / "b", dataset), channels=1)
    assert error.value.reason == QuarantineReason.NOT_FINITE


def test_files_without_preamble_or_file_meta(tmp_path):
    expected = read_dicom(write(tmp_path / "whole", make(ramp())), channels=1)
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        whole = write(tmp_path / "whole", make(ramp(), syntax=syntax)).read_bytes()
        bare = tmp_path / "bare"
        bare.write_bytes(whole[132:])
        assert looks_like_dicom(whole[132:272])
        np.testing.assert_array_equal(read_dicom(bare, channels=1), expected)
        meta_length = 12 + struct.unpack("<I", whole[140:144])[0]
        bare.write_bytes(whole[132 + meta_length :])
        np.testing.assert_array_equal(read_dicom(bare, channels=1), expected)


def reason_of(path, **arguments):
    with pytest.raises(ImageError) as error:
        read_dicom(path, channels=1, **arguments)
    text = str(error.value)
    assert MARKER not in text
    assert str(path.parent) not in text
    assert path.name in text
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__
    return error.value.reason


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"Rows": 65535, "Columns": 65535, "NumberOfFrames": 10000}, "too-large"),
        ({"Rows": 16000, "Columns": 16000}, "too-large"),
        ({"NumberOfFrames": 2**31 - 1}, "too-large"),
        ({"SamplesPerPixel": 65535, "Rows": 4096, "Columns": 4096}, "too-large"),
        ({"Rows": 0}, "too-small"),
        ({"Rows": 7, "Columns": 16}, "too-small"),
        ({"Rows": 8192, "Columns": 8192}, "unreadable"),  # allowed, but not in the file
        ({"NumberOfFrames": 100}, "unreadable"),
        ({"BitsAllocated": 12}, "unreadable"),
        ({"BitsStored": 60}, "unreadable"),
        ({"PixelRepresentation": 7}, "unreadable"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_422"}, "unsupported-syntax"),
    ],
    ids=str,
)
@pytest.mark.timeout(10)
def test_false_claims_are_refused_at_once(tmp_path, claims, reason):
    path = write(tmp_path / "bomb", make(ramp(), **claims))
    assert path.stat().st_size < 5000
    started = time.monotonic()
    assert reason_of(path) == reason
    assert time.monotonic() - started < 2


def test_the_limits_hold_at_their_edge(tmp_path):
    path = write(tmp_path / "a", make(ramp()))
    fits = DecodeLimits(max_side=16, min_side=16, max_bytes=16 * 16 * 4, max_stored_bytes=256)
    assert read_dicom(path, channels=1, limits=fits).shape == (1, 16, 16)
    for field, value in (("max_side", 15), ("max_bytes", 1023), ("max_stored_bytes", 255)):
        tight = DecodeLimits(**{**fits.__dict__, field: value})
        assert reason_of(path, limits=tight) == "too-large"
    assert reason_of(path, limits=DecodeLimits(min_side=17)) == "too-small"


def test_a_codestream_that_states_another_size_is_not_decoded(tmp_path, monkeypatch):
    source = Path(DATA_ROOT) / "test_files" / "MR_small_jp2klossless.dcm"
    siz = source.read_bytes().find(b"\xff\x4f\xff\x51")
    assert siz > 0
    hostile = bytearray(source.read_bytes())
    hostile[siz + 8 : siz + 16] = struct.pack(">II", 2**31, 2**31)
    path = tmp_path / "bomb"
    path.write_bytes(hostile)

    calls = []

    def decode(*_args, **_kwargs):
        calls.append(True)
        raise AssertionError("the decoder was called")

    monkeypatch.setattr(pydicom.pixels.decoders.base.DecodeRunner, "_decode_frame", decode)
    assert reason_of(path) == "unreadable"
    assert calls == []
    # Control: with the honest codestream the decoder is reached.
    assert reason_of(source) == "unreadable"
    assert calls == [True]


def decode_without_border(path):
    """Decode without what turns exceptions into ImageError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dcmread(path).pixel_array


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "JPGExtended.dcm",
        "JPEGLSNearLossless_16.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "693_J2KI.dcm",
        "examples_jpeg2k.dcm",
    ],
)
def test_codestream_size_of_real_frames(name):
    dataset = dcmread(Path(DATA_ROOT) / "test_files" / name)
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    expected = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    assert codestream_size(frame) == expected
    for length in range(60):
        assert codestream_size(frame[:length]) in (None, expected)


@given(st.binary(max_size=200))
def test_codestream_size_never_fails(data):
    for start in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"\xff\x4f\xff\x51"):
        codestream_size(start + data)


@pytest.mark.timeout(30)
def test_a_deflate_bomb_is_stopped(tmp_path):
    path = write(tmp_path / "a", make(ramp(), syntax=DeflatedExplicitVRLittleEndian))
    whole = path.read_bytes()
    start = 132 + 12 + struct.unpack("<I", whole[140:144])[0]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = zlib.decompress(whole[start:], -zlib.MAX_WBITS)
    bomb = (
        deflater.compress(body)
        + b"".join(deflater.compress(bytes(2**20)) for _ in range(64))
        + deflater.flush()
    )
    path.write_bytes(whole[:start] + bomb)
    assert len(bomb) < 2**17
    assert reason_of(path, limits=DecodeLimits(max_bytes=2**24)) == "too-large"
    path.write_bytes(whole[:start] + bomb[: len(bomb) // 2])  # control: no limit in the way
    assert read_dicom(path, channels=1).shape == (1, 16, 16)


def test_reasons_of_other_files(tmp_path):
    assert reason_of(tmp_path / "absent.dcm") == "missing"
    folder = tmp_path / "folder.dcm"
    folder.mkdir()
    assert reason_of(folder) == "not-an-image"
    (tmp_path / "text").write_text("Patient list\n" * 40)
    assert reason_of(tmp_path / "text") == "not-an-image"
    (tmp_path / "empty").write_bytes(b"")
    assert reason_of(tmp_path / "empty") == "not-an-image"
    constant = write(tmp_path / "constant", make(np.full((16, 16), 7, np.uint8)))
    assert reason_of(constant) == "constant"
    unknown = make(ramp())
    unknown.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
    unknown.PixelData = encapsulate([b"\0" * 16])
    unknown["PixelData"].is_undefined_length = True
    assert reason_of(write(tmp_path / "mpeg", unknown)) == "unsupported-syntax"
    private = make(ramp())
    private.file_meta.TransferSyntaxUID = "1.2.3.4.5"
    path = tmp_path / "private"
    dcmwrite(path, private, implicit_vr=False, little_endian=True)
    assert reason_of(path) == "unsupported-syntax"


def test_what_follows_the_pixels_is_not_taken_for_pixels(tmp_path):
    dataset = make(ramp(), Rows=20)
    dataset.add_new(0xFFFCFFFC, "OB", bytes(range(256)))
    assert reason_of(write(tmp_path / "a", dataset)) == "unreadable"
    dataset.Rows = 16  # control
    assert read_dicom(write(tmp_path / "a", dataset), channels=1).shape == (1, 16, 16)


def test_compressed_data_under_a_native_syntax_is_refused(tmp_path):
    dataset = make(ramp(), syntax=JPEGBaseline8Bit)
    dataset.PixelData = encapsulate([b"\xff\xd8" + b"\1" * 600])
    dataset["PixelData"].is_undefined_length = True
    path = write(tmp_path / "a", dataset)
    data = path.read_bytes().replace(
        b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.1".ljust(22, b"\0")
    )
    path.write_bytes(data)
    assert reason_of(path) == "unreadable"


def test_a_pipe_does_not_block(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    assert reason_of(tmp_path / "pipe") == "not-an-image"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_never_gives_another_exception(tmp_path_factory, data):
    sources = ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_implicit.dcm", "image_dfl.dcm"]
    source = Path(DATA_ROOT) / "test_files" / data.draw(st.sampled_from(sources))
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content), 2500) - 1))] = data.draw(
            st.integers(0, 255)
        )
    path = tmp_path_factory.mktemp("damaged") / "a.dcm"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    image, reason = read_or_reason(path)
    if image is None:
        assert reason in set(QuarantineReason)
    else:
        assert np.isfinite(image).all()
        assert 0 <= image.min() < image.max() <= 1


def test_header_text_never_shows(tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    dataset = make(ramp())
    dataset.add_new(0x00100030, "LO", MARKER)  # a birth date of the wrong kind
    good = write(tmp_path / "good", dataset)
    # Every single value turned into the marker, where its length allows it.
    content = good.read_bytes()
    for keyword in ("16", "MONOCHROME2"):
        damaged = content.replace(keyword.encode(), MARKER[: len(keyword)].encode())
        path = tmp_path / "damaged"
        path.write_bytes(damaged)
        try:
            read_dicom(path, channels=1, root=tmp_path)
        except ImageError as error:
            assert MARKER[:2] not in str(error)  # noqa: PT017
    path = write(tmp_path / "frames", make(ramp(), NumberOfFrames=1))
    raw = path.read_bytes()
    at = raw.index(b"\x28\x00\x08\x00IS") + 8
    path.write_bytes(raw[:at] + b"ZZ" + raw[at + 2 :])
    with pytest.raises(ImageError) as error:
        read_dicom(path, channels=1)
    assert "ZZ" not in str(error.value)
    # Control: pydicom itself does quote the value.
    with pytest.raises(ValueError, match="ZZ"):
        decode_without_border(path)
    assert "ZZ" not in caplog.text
    assert "ZZ" not in "".join(capfd.readouterr())


def test_messages_name_the_file_relative_to_the_root(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    write(folder / "a.dcm", make(np.zeros((16, 16), np.uint8)))
    with pytest.raises(ImageError, match=r"^series/a\.dcm: "):
        read_dicom(folder / "a.dcm", channels=1, root=tmp_path)
    with pytest.raises(ImageError, match=r"^a\.dcm: "):
        read_dicom(folder / "a.dcm", channels=1)


def test_warnings_filters_survive_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    path = write(tmp_path / "a", make(ramp()))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: read_dicom(path, channels=1), range(200)))
    assert list(warnings.filters) == before


def test_jpeg2000_is_lossless_here(tmp_path):
    pixels = ramp(np.uint16, 0, 60_000, side=64)
    dataset = make(pixels, WindowCenter=30_000, WindowWidth=60_001)
    expected = read_dicom(write(tmp_path / "a", dataset), channels=1)
    dataset.compress(JPEG2000Lossless, pixels)
    np.testing.assert_array_equal(read_dicom(write(tmp_path / "b", dataset), channels=1), expected)
