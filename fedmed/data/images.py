"""Any image or mask of an archive as an array: the format is told by the content, not the name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedmed.data.dicom import looks_like_dicom, read_dicom
from fedmed.data.intensity import (
    check_channels,
    scale_between,
    scale_by_percentiles,
    to_channels,
)
from fedmed.data.letterbox import Letterbox, resize_keeping_aspect, resize_mask
from fedmed.data.numpy_file import NUMPY_MAGIC, read_numpy_image
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

__all__ = [
    "DecodeLimits",
    "Letterbox",
    "QuarantineReason",
    "read_image",
    "read_mask",
    "resize_keeping_aspect",
    "resize_mask",
]

_PILLOW_MAGIC = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",  # JPEG
    b"II*\x00",  # TIFF, little endian
    b"MM\x00*",  # TIFF, big endian
)
_PILLOW_FORMATS = ("PNG", "JPEG", "TIFF")
_HEAD_BYTES = 140


def read_image(
    path: Path,
    *,
    channels: int,
    frame: int | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
    root: Path | None = None,
) -> NDArray[np.float32]:
    """Read one image: DICOM, PNG, JPEG, TIFF or ``.npy``.

    DICOM: see :func:`fedmed.data.dicom.read_dicom`. 8-bit values are divided by 255, 16-bit ones by
    65535; floats inside [0, 1] stay as they are; any other range of values is mapped by its
    0.5..99.5 percentiles. Transparency is ignored, and so is the EXIF orientation: boxes and masks
    are drawn on rows and columns as stored.

    Args:
        path: the file.
        channels: 1 or 3; colour to 1 is the luma, grey to 3 is repeated.
        frame: index from 0 of a DICOM frame, TIFF page or array slice; None is the central one.
        limits: what the header may claim, checked before decoding.
        root: the data root; messages then name the file relative to it.

    Returns:
        [channels, H, W] in [0, 1], finite.

    Raises:
        ImageError: with a :class:`~fedmed.data.quarantine.QuarantineReason`.
        ConfigurationError: ``channels`` is neither 1 nor 3.
    """
    check_channels(channels)
    with decoding(display_name(path, root)), open_regular(path) as file:
        head = file.read(_HEAD_BYTES)
        file.seek(0)
        if head.startswith(NUMPY_MAGIC):
            array = read_numpy_image(file, channels=channels, frame=frame, limits=limits)
            return to_channels(_scale_array(array), channels)
        if _is_picture(head):
            return to_channels(_read_picture(file, frame, channels, limits), channels)
        if not looks_like_dicom(head):
            raise ImageError(
                QuarantineReason.NOT_AN_IMAGE, "is neither DICOM, PNG, JPEG, TIFF nor .npy"
            )
    return read_dicom(path, channels=channels, frame=frame, limits=limits, root=root)


def read_mask(
    path: Path, *, limits: DecodeLimits = DEFAULT_LIMITS, root: Path | None = None
) -> NDArray[np.uint8]:
    """Read a mask: PNG, TIFF or ``.npy`` with one class index per pixel.

    Of a palette image the indices count, not the colours; a mask stored in colour must be grey. In
    a mask that holds no values but 0 and 255, 255 means class 1. JPEG is refused: its losses make
    classes that nobody drew.

    Args:
        path: the file.
        limits: what the header may claim, checked before decoding.
        root: the data root; messages then name the file relative to it.

    Returns:
        [H, W] class index, 0 is the background.

    Raises:
        ImageError: ``bad-mask`` and those of :func:`read_image`, ``constant`` excepted.
    """
    with decoding(display_name(path, root)), open_regular(path) as file:
        head = file.read(_HEAD_BYTES)
        file.seek(0)
        if head.startswith(NUMPY_MAGIC):
            values = read_numpy_image(file, channels=1, frame=0, limits=limits)
        elif _is_picture(head) and not head.startswith(b"\xff\xd8"):
            with _opened(file) as picture:
                limits.check(picture.height, picture.width, channels=len(picture.getbands()))
                values = np.asarray(picture)
        else:
            raise ImageError(QuarantineReason.BAD_MASK, "a mask is a PNG, TIFF or .npy file")
        return _class_indices(values)


def _is_picture(head: bytes) -> bool:
    """Tell PNG, JPEG and TIFF; a TIFF header may also be the preamble of a DICOM file."""
    return head.startswith(_PILLOW_MAGIC) and head[128:132] != b"DICM"


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Image.Image]:
    """Open with Pillow, which parses the header only until the pixels are asked for."""
    try:
        with Image.open(file, formats=_PILLOW_FORMATS) as picture:
            yield picture
    except Image.DecompressionBombError:
        raise ImageError(QuarantineReason.TOO_LARGE, "has more pixels than Pillow reads") from None


def _read_picture(
    file: BinaryIO, frame: int | None, channels: int, limits: DecodeLimits
) -> NDArray[np.float32]:
    """Decode with Pillow to [H, W] or [H, W, 3] in [0, 1]."""
    with _opened(file) as picture:
        # Only TIFF pages are frames; a JPEG's second picture is a preview.
        pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
        index = choose_frame(frame, pages)
        if index:
            picture.seek(index)
        limits.check(
            picture.height,
            picture.width,
            channels=max(channels, len(picture.getbands())),
            frames=pages,
        )
        return _picture_values(picture)


def _picture_values(picture: Image.Image) -> NDArray[np.float32]:
    """Values of a Pillow image by its mode, [H, W] or [H, W, 3] in [0, 1]."""
    mode = picture.mode
    if mode == "1":
        return np.asarray(picture).astype(np.float32)
    if mode in ("L", "LA"):
        return scale_between(np.asarray(picture.getchannel(0)), 0, 255)
    if mode in ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        return scale_between(np.asarray(picture.convert("RGB")), 0, 255)
    if mode.startswith("I;16") or (mode == "I" and picture.format == "PNG"):
        return scale_between(np.asarray(picture), 0, 65_535)
    if mode in ("I", "F"):
        return _scale_array(np.asarray(picture))
    raise NotImplementedError


def _scale_array(values: NDArray[Any]) -> NDArray[np.float32]:
    """Bring plain numbers to [0, 1] by their data type, else by their percentiles."""
    if values.dtype.kind == "b":
        return values.astype(np.float32)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return scale_between(values, 0, np.iinfo(values.dtype).max)
    # NaN fails the comparison and is named by scale_by_percentiles.
    if values.dtype.kind == "f" and values.min() >= 0.0 and values.max() <= 1.0:
        return values.astype(np.float32)
    return scale_by_percentiles(values)


def _class_indices(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Check that the values are class indices and return them as [H, W]."""
    if values.ndim == 3:
        # Two or four samples: the last is the transparency.
        samples = values[..., :1] if values.shape[-1] == 2 else values[..., :3]
        if (samples != samples[..., :1]).any():
            raise ImageError(
                QuarantineReason.BAD_MASK, "is in colour; store class indices as grey values"
            )
        values = samples[..., 0]
    if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
        raise ImageError(QuarantineReason.BAD_MASK, "holds values that are not whole numbers")
    if values.min() < 0 or values.max() > 255:
        raise ImageError(QuarantineReason.BAD_MASK, "holds values outside 0..255")
    indices: NDArray[np.uint8] = values.astype(np.uint8)
    if np.isin(indices, (0, 255)).all():
        indices[indices == 255] = 1
    return indices
