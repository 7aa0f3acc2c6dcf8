"""From stored values to float32 in [0, 1], and from the samples stored to the channels wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmed.data.quarantine import QuarantineReason
from fedmed.errors import ConfigurationError, ImageError

# ITU-R BT.601, the luma of JPEG and of DICOM's YBR_FULL (PS3.3 C.7.6.3.1.2).
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

# Range that stands for the contrast where a file states none: robust to hot pixels and burnt marks.
PERCENTILES = (0.5, 99.5)


def check_channels(channels: int) -> None:
    """Raise ``ConfigurationError`` unless ``channels`` is 1 (grey) or 3 (colour)."""
    if channels not in (1, 3):
        raise ConfigurationError(f"channels is {channels}; an image is read with 1 or 3 channels")


def scale_between(values: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """Map ``low``..``high`` to 0..1 and clip what lies outside; any shape, real values."""
    # Float64 first: 32-bit counts and doses do not fit the 24 bits of a float32.
    wide = np.dtype(np.float64 if values.dtype.itemsize > 2 else np.float32)
    scaled = values.astype(wide)
    scaled -= low
    scaled /= high - low
    np.clip(scaled, 0.0, 1.0, out=scaled)
    clipped: NDArray[np.float32] = scaled.astype(np.float32, copy=False)
    return clipped


def scale_by_percentiles(
    values: NDArray[Any], weights: NDArray[np.intp] | None = None
) -> NDArray[np.float32]:
    """Map the 0.5..99.5 percentile range to [0, 1].

    Where the two percentiles are equal (a few bright pixels on an empty field) the whole range
    is used.

    Args:
        values: finite real values, any shape.
        weights: how often each of ``values`` counts, same shape; None is once each.

    Raises:
        ImageError: ``constant`` or ``not-finite``.
    """
    if not np.isfinite(values).all():
        raise ImageError(QuarantineReason.NOT_FINITE, "NaN or infinity among the pixel values")
    if weights is not None and weights.any():
        low, high = _weighted_percentiles(values[weights > 0], weights[weights > 0])
    else:
        low, high = (float(bound) for bound in np.percentile(values, PERCENTILES))
    if low == high:
        counted = values if weights is None or not weights.any() else values[weights > 0]
        low, high = float(counted.min()), float(counted.max())
    if low == high:
        raise ImageError(QuarantineReason.CONSTANT, "every pixel has the same value")
    return scale_between(values, low, high)


def _weighted_percentiles(values: NDArray[Any], weights: NDArray[np.intp]) -> tuple[float, float]:
    """Return what ``numpy.percentile`` gives for each value repeated by its weight."""
    order = np.argsort(values, axis=None)
    ascending = values.ravel()[order].astype(np.float64)
    last_rank = np.cumsum(weights.ravel()[order])
    ranks = np.array(PERCENTILES) / 100 * (last_rank[-1] - 1)
    below = ascending[np.searchsorted(last_rank, np.floor(ranks), side="right")]
    above = ascending[np.searchsorted(last_rank, np.ceil(ranks), side="right")]
    low, high = below + (above - below) * (ranks % 1)
    return float(low), float(high)


def to_channels(pixels: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Lay out an image as the networks take it.

    Args:
        pixels: [H, W] grey or [H, W, 3] colour, in [0, 1].
        channels: 1 or 3; colour to 1 is the luma, grey to 3 is repeated.

    Returns:
        [channels, H, W], contiguous.

    Raises:
        ImageError: ``constant``, the image has no contrast.
    """
    if np.array_equal(pixels.min(axis=(0, 1)), pixels.max(axis=(0, 1))):
        raise ImageError(QuarantineReason.CONSTANT, "every pixel has the same value")
    if pixels.ndim == 3 and channels == 1:
        pixels = np.clip(pixels @ LUMA, 0.0, 1.0)
    if pixels.ndim == 3:
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return np.repeat(pixels[np.newaxis], channels, axis=0)
