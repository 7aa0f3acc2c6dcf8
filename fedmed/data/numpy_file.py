"""Arrays from ``.npy`` files that others wrote: never unpickled, measured before they are read.

``numpy.load`` allocates what the header states: a file of 128 bytes can ask for 745 GiB. Here the
header is parsed by numpy, then held against the file's real size and the limits.
Format: NEP 1, ``numpy.lib.format``.
"""

from __future__ import annotations

import math
import os
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from fedmed.data.quarantine import DecodeLimits, QuarantineReason, choose_frame
from fedmed.errors import ImageError

NUMPY_MAGIC = b"\x93NUMPY"


def read_numpy_image(
    file: BinaryIO, *, channels: int, frame: int | None, limits: DecodeLimits
) -> NDArray[Any]:
    """Read one image from an ``.npy`` file.

    The axes are told by their sizes: [H, W]; [H, W, C] where the last has 1, 3 or 4 entries (an
    alpha channel is dropped); [C, H, W] where the first has 1 or 3; else [frames, H, W].

    Args:
        file: the open file, at its beginning.
        channels: channels wanted, for the limits.
        frame: index from 0 in a file of frames; None is the central one.
        limits: what the header may claim.

    Returns:
        [H, W] or [H, W, 3], any real data type, values as stored.

    Raises:
        ImageError: ``unreadable``, ``too-large``, ``too-small``, ``bad-frame``.
    """
    shape, fortran_order, dtype = _read_header(file)
    kind, frames, height, width = _axes(shape)
    samples = 3 if kind in ("HWC", "CHW") else 1
    limits.check(
        height,
        width,
        channels=max(channels, samples),
        frames=frames,
        itemsize=dtype.itemsize,
    )
    index = choose_frame(frame, frames)
    if kind == "FHW" and not fortran_order:
        file.seek(index * height * width * dtype.itemsize, os.SEEK_CUR)
        return _read_values(file, dtype, height * width).reshape(height, width)
    whole = math.prod(shape)
    if whole * max(4, dtype.itemsize) > limits.max_bytes:
        raise ImageError(QuarantineReason.TOO_LARGE, "the array is larger than a frame may be")
    array: NDArray[Any] = _read_values(file, dtype, whole)
    array = array.reshape(shape, order="F" if fortran_order else "C")
    if kind == "FHW":
        array = array[index]
    elif kind == "CHW":
        array = array.transpose(1, 2, 0)
    if kind in ("HW", "FHW"):
        return array
    return array.squeeze(-1) if array.shape[-1] == 1 else array[..., :3]


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse the header and hold it against the file's size; the file then is at the values."""
    version = npy_format.read_magic(file)
    if version == (1, 0):
        shape, fortran_order, dtype = npy_format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran_order, dtype = npy_format.read_array_header_2_0(file)
    else:  # 3.0 exists for field names of structured arrays only
        raise ImageError(QuarantineReason.UNREADABLE, "has a structured or unknown .npy layout")
    if dtype.kind not in "buif":
        raise ImageError(
            QuarantineReason.UNREADABLE, "does not hold numbers; objects are never unpickled"
        )
    present = os.fstat(file.fileno()).st_size - file.tell()
    if min(shape, default=0) <= 0 or math.prod(shape) * dtype.itemsize > present:
        raise ImageError(
            QuarantineReason.UNREADABLE,
            "its header states more values than the file holds, or none",
        )
    return shape, fortran_order, dtype


def _axes(shape: tuple[int, ...]) -> tuple[str, int, int, int]:
    """Order of the axes, number of frames, height and width."""
    if len(shape) == 2:
        return "HW", 1, shape[0], shape[1]
    if len(shape) == 3 and shape[2] in (1, 3, 4):
        return "HWC", 1, shape[0], shape[1]
    if len(shape) == 3 and shape[0] in (1, 3):
        return "CHW", 1, shape[1], shape[2]
    if len(shape) == 3:
        return "FHW", shape[0], shape[1], shape[2]
    raise ImageError(
        QuarantineReason.UNREADABLE,
        f"has {len(shape)} dimensions; an image has 2, or 3 with channels or frames",
    )


def _read_values(file: BinaryIO, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    values: NDArray[Any] = np.fromfile(file, dtype=dtype, count=count)
    return values
