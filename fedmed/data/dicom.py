"""One DICOM file to one float32 image.

The file is parsed once, for the elements of the Image Pixel, LUT and functional group modules only:
the patient's attributes are skipped and never reach the memory of this process. The frame that is
wanted is decoded by pydicom; how its values become intensities is in ``dicom_intensity``.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from struct import unpack, unpack_from
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options, get_expected_length
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import VR

from fedmed.data.codestream import codestream_size
from fedmed.data.dicom_intensity import INTENSITY_KEYWORDS, colour_image, grey_image, palette_image
from fedmed.data.intensity import check_channels, to_channels
from fedmed.data.quarantine import (
    DEFAULT_LIMITS,
    DecodeLimits,
    QuarantineReason,
    choose_frame,
    decoding,
    display_name,
    open_regular,
)
from fedmed.errors import ImageError

_PIXEL_KEYWORDS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
_IMAGE_KEYWORDS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    *INTENSITY_KEYWORDS,
)
_WANTED_TAGS: list[BaseTag | int] = [Tag(keyword) for keyword in _IMAGE_KEYWORDS]
_VALUE_REPRESENTATIONS = frozenset(
    str(representation).encode() for representation in VR if len(str(representation)) == 2
)
_REQUIRED_KEYWORDS = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
_UNDEFINED_LENGTH = 0xFFFFFFFF


@dataclass(frozen=True)
class _PixelElement:
    """The pixel data element: where its value begins in ``stream`` and what was said of it."""

    stream: BinaryIO
    keyword: str
    representation: str | None
    length: int


def read_dicom(
    path: Path,
    *,
    channels: int,
    frame: int | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
    root: Path | None = None,
) -> NDArray[np.float32]:
    """Read one frame of a DICOM file as it is meant to be seen.

    Grey images go through the modality LUT or rescale (PS3.3 C.11.1), the VOI LUT or the first
    window (C.11.2), and are inverted for MONOCHROME1. [0, 1] spans the window; where the window is
    absent, wrong or leaves no contrast, [0, 1] spans the 0.5..99.5 percentiles. Palettes (C.7.9)
    and YBR become RGB. Files without preamble or file meta information are read too.

    Args:
        path: the file.
        channels: 1 or 3; colour to 1 is the luma, grey to 3 is repeated.
        frame: index from 0; None is the central frame.
        limits: what the header may claim, checked before decoding.
        root: the data root; messages then name the file relative to it.

    Returns:
        [channels, H, W] in [0, 1], rows and columns as stored.

    Raises:
        ImageError: with a :class:`~fedmed.data.quarantine.QuarantineReason`.
        ConfigurationError: ``channels`` is neither 1 nor 3.
    """
    check_channels(channels)
    with decoding(display_name(path, root)), open_regular(path) as file:
        if not looks_like_dicom(file.read(140)):
            raise ImageError(QuarantineReason.NOT_AN_IMAGE, "is not a DICOM file")
        file.seek(0)
        header, stream = _read_header(file, limits)
        element = _find_pixels(stream, header)
        index = _check_claims(header, frame, channels, limits)
        return to_channels(_decode(element, header, index), channels)


def looks_like_dicom(head: bytes) -> bool:
    """Tell from the first 140 bytes of a file whether it is DICOM, with or without preamble."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8:
        return False
    # Without preamble the first element is of group 2 (file meta) or 8 (identification).
    little_group, little_element = unpack_from("<HH", head)
    if unpack_from(">H", head)[0] == 0x0008:
        return head[4:6] in _VALUE_REPRESENTATIONS
    if little_group not in (0x0002, 0x0008) or little_element > 0x3000:
        return False
    return head[4:6] in _VALUE_REPRESENTATIONS or unpack_from("<I", head, 4)[0] < 2**16


def _read_header(file: BinaryIO, limits: DecodeLimits) -> tuple[Dataset, BinaryIO]:
    """Read the elements before the pixels; the stream returned stands at the pixel element."""
    read_preamble(file, force=True)
    meta = _read_file_meta(file)
    stream = file
    syntax = UID(str(meta.get("TransferSyntaxUID") or "")) or _guess_syntax(file)
    if not syntax.is_transfer_syntax or syntax.is_private:
        raise ImageError(QuarantineReason.UNSUPPORTED_SYNTAX, "has a private transfer syntax")
    if syntax == DeflatedExplicitVRLittleEndian:
        stream = BytesIO(_inflate(file.read(), limits.max_bytes))
    header = read_dataset(
        stream,
        syntax.is_implicit_VR,
        syntax.is_little_endian,
        stop_when=lambda tag, _representation, _length: tag in _PIXEL_KEYWORDS,
        specific_tags=_WANTED_TAGS,
    )
    # pydicom's LUT functions ask the file meta information for the byte order.
    meta.TransferSyntaxUID = syntax
    header.file_meta = meta
    return header, stream


def _read_file_meta(file: BinaryIO) -> FileMetaDataset:
    """Read group 2, always explicit VR little endian (PS3.10 section 7.1)."""
    return FileMetaDataset(
        read_dataset(
            file,
            is_implicit_VR=False,
            is_little_endian=True,
            stop_when=lambda tag, _representation, _length: tag >> 16 != 2,
            specific_tags=[Tag("TransferSyntaxUID")],
        )
    )


def _guess_syntax(file: BinaryIO) -> UID:
    """Transfer syntax of a file that states none, from its first element."""
    head = file.read(6)
    file.seek(-len(head), 1)
    if len(head) < 6 or head[4:6] not in _VALUE_REPRESENTATIONS:
        return ImplicitVRLittleEndian
    # Group 0008 in big endian reads as 2048 in little endian.
    return ExplicitVRBigEndian if unpack("<H", head[:2])[0] >= 1024 else ExplicitVRLittleEndian


def _inflate(deflated: bytes, max_bytes: int) -> bytes:
    """Inflate a raw deflate stream (PS3.5 A.5), at most ``max_bytes``."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(deflated, max_bytes)
    if inflater.unconsumed_tail:
        raise ImageError(
            QuarantineReason.TOO_LARGE, f"inflates to more than {max_bytes // 2**20} MiB"
        )
    return inflated


def _find_pixels(stream: BinaryIO, header: Dataset) -> _PixelElement:
    """Read the tag, VR and length of the pixel data element; the stream then is at its value."""
    syntax = UID(str(header.file_meta.TransferSyntaxUID))
    order = "<" if syntax.is_little_endian else ">"
    lead = stream.read(8)
    if len(lead) < 8:
        raise ImageError(QuarantineReason.NO_PIXELS, "is a DICOM object without pixel data")
    group, number, length = unpack(f"{order}HHL", lead)
    representation = None
    # What pydicom found in the data set, not what the transfer syntax promised.
    if not header.original_encoding[0]:
        representation = lead[4:6].decode("latin-1")
        length = unpack(f"{order}L", stream.read(4))[0]
    keyword = _PIXEL_KEYWORDS[group << 16 | number]
    return _PixelElement(stream, keyword, representation, length)


def _check_claims(header: Dataset, frame: int | None, channels: int, limits: DecodeLimits) -> int:
    """Hold the header's figures against the limits; return the index of the frame to decode."""
    missing = [keyword for keyword in _REQUIRED_KEYWORDS if header.get(keyword) is None]
    if missing:
        raise ImageError(QuarantineReason.UNREADABLE, f"its header has no {', '.join(missing)}")
    frames = int(header.get("NumberOfFrames") or 1)
    limits.check(
        int(header.Rows),
        int(header.Columns),
        channels=max(int(header.SamplesPerPixel), channels),
        frames=max(frames, 1),
        itemsize=max(int(header.BitsAllocated) // 8, 1),
    )
    return choose_frame(frame, frames)


def _decode(element: _PixelElement, header: Dataset, index: int) -> NDArray[np.float32]:
    """Decode one frame and turn its values into intensities: [H, W] or [H, W, 3] in [0, 1]."""
    decoder = get_decoder(UID(str(header.file_meta.TransferSyntaxUID)))
    if not decoder.is_available:
        raise NotImplementedError
    options: dict[str, Any] = as_pixel_options(header)
    if decoder.is_encapsulated:
        _check_codestream(element, header, index, options)
    else:
        _check_length(element, header, index)
    options["pixel_keyword"] = element.keyword
    if element.representation is not None:
        options["pixel_vr"] = element.representation
    stored, properties = decoder.as_array(element.stream, index=index, **options)
    interpretation = str(properties["photometric_interpretation"])
    if interpretation in ("MONOCHROME1", "MONOCHROME2") and stored.ndim == 2:
        return grey_image(stored, header, index)
    if interpretation == "PALETTE COLOR" and stored.ndim == 2:
        return palette_image(stored, header)
    if interpretation == "RGB" and stored.ndim == 3:
        return colour_image(stored, int(properties["bits_stored"]))
    raise NotImplementedError


def _check_codestream(
    element: _PixelElement, header: Dataset, index: int, options: dict[str, Any]
) -> None:
    """Refuse a compressed frame whose own size is not the header's."""
    start = element.stream.tell()
    encoded = get_frame(
        element.stream,
        index,
        number_of_frames=int(options["number_of_frames"]),
        extended_offsets=options.get("extended_offsets"),
    )
    element.stream.seek(start)
    stated = codestream_size(encoded)
    expected = (int(header.Rows), int(header.Columns), int(header.SamplesPerPixel))
    if stated is not None and stated != expected:
        raise ImageError(
            QuarantineReason.UNREADABLE,
            "the compressed frame and the header state different sizes",
        )


def _check_length(element: _PixelElement, header: Dataset, index: int) -> None:
    """Refuse native pixel data that ends before the frame does; more may follow in the file."""
    if element.length == _UNDEFINED_LENGTH:
        raise ImageError(
            QuarantineReason.UNREADABLE,
            "compressed pixel data under a transfer syntax for uncompressed data",
        )
    needed = get_expected_length(header) * (index + 1) // int(header.get("NumberOfFrames") or 1)
    if element.length < needed:
        raise ImageError(
            QuarantineReason.UNREADABLE,
            f"holds {element.length} bytes of pixels where its header asks for {needed}",
        )
