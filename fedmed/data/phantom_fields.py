"""Smooth random fields: cubic B-splines through random coefficients on a coarse grid."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


def random_grid(rng: np.random.Generator, cells: int) -> Image:
    """Random coefficients of unit variance for a field of ``cells`` by ``cells``.

    Returns:
        float32 (cells + 3, cells + 3).
    """
    return rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)


def smooth_field(grid: Image, size: int) -> Image:
    """Field of standard deviation near 1.

    Args:
        grid: coefficients, see :func:`random_grid`.
        size: rows and columns of the field.

    Returns:
        float32 (size, size).
    """
    first, weights = _spline(len(grid) - 3, size)
    wide = np.zeros((len(grid), size), np.float32)
    for tap in range(4):
        wide += grid[:, first + tap] * weights[tap][None, :]
    field = np.zeros((size, size), np.float32)
    for tap in range(4):
        field += wide[first + tap] * weights[tap][:, None]
    return field


@lru_cache(maxsize=256)
def _spline(cells: int, size: int) -> tuple[NDArray[np.intp], Image]:
    """First coefficient of each pixel, (size,), and the weights of four in a row, (4, size)."""
    place = (np.arange(size) + 0.5) * cells / size
    first = np.minimum(place.astype(np.intp), cells - 1)
    t = place - first
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    )
    # Unit variance of the coefficients would shrink to 0.48**2 by the smoothing.
    return first, (weights / 6 / 0.69).astype(np.float32)
