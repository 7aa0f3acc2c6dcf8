"""The hospitals' scanners: what each does to an image, and how it stores it.

Each hospital has its own contrast, sharpness, shading, noise and matrix, and its own habits in the
DICOM file: RLE compression at one, inverted grey scale at another, different rescaling. A model
trained at one hospital alone therefore does worse at the others, as with real scanners.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedmed.data.phantom_drawing import Contrast
from fedmed.data.phantom_fields import Image


@dataclass(frozen=True)
class Scanner:
    """One scanner: its picture and its way of storing pictures."""

    model: str
    field_strength: float
    """Tesla."""
    repetition_time: float
    """Milliseconds."""
    echo_time: float
    """Milliseconds."""
    contrast: Contrast
    gamma: float
    blur: float
    """Standard deviation of the point spread, millimetres."""
    shading: float
    """Strength of the bias field of the coil, as a share of the brightness."""
    noise: float
    """Standard deviation of each of the two channels; the magnitude is Rician."""
    matrix: float
    """Rows and columns as a share of the archive's size."""
    field_of_view: float
    """Millimetres."""
    slope: float
    intercept: float
    inverted: bool = False
    """Stored as MONOCHROME1."""
    run_length: bool = False
    """Stored as RLE Lossless."""


_FLAIR = Contrast(skin=0.62, bone=0.08, fluid=0.16, grey=0.46, white=0.36, enhancing=0.86)
_FLAIR_SOFT = Contrast(skin=0.50, bone=0.10, fluid=0.20, grey=0.50, white=0.42, enhancing=0.82)
_T1 = Contrast(skin=0.80, bone=0.10, fluid=0.14, grey=0.38, white=0.48, enhancing=0.92)

_SCANNERS = (
    Scanner(
        "Lumen 3T", 3.0, 9000.0, 125.0, _FLAIR, 1.0, 0.9, 0.12, 0.025, 1.0, 240.0, 1.0, 0.0
    ),
    Scanner(
        "Aster 1.5", 1.5, 8000.0, 110.0, _FLAIR_SOFT, 1.15, 1.4, 0.20, 0.040, 1.125, 256.0, 0.5,
        -64.0, run_length=True,
    ),
    Scanner(
        "Orbit Classic", 1.0, 550.0, 12.0, _T1, 0.85, 1.7, 0.28, 0.055, 0.875, 230.0, 2.0, 0.0,
        inverted=True,
    ),
)  # fmt: skip


def scanner_of(site: int, seed: int) -> Scanner:
    """Scanner of one hospital.

    Args:
        site: number of the hospital, from 0. The first three have fixed, clearly different
            scanners; later ones have variations of these.
        seed: seed of the archives.
    """
    scanner = _SCANNERS[site % len(_SCANNERS)]
    if site < len(_SCANNERS):
        return scanner
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, site)))
    gamma, blur, shading, noise = (float(value) for value in rng.uniform(0.8, 1.25, 4))
    return replace(
        scanner,
        gamma=scanner.gamma * np.sqrt(gamma),
        blur=scanner.blur * blur,
        shading=scanner.shading * shading,
        noise=scanner.noise * noise,
    )


def matrix_of(scanner: Scanner, size: int) -> int:
    """Rows and columns of the scanner's images in an archive of the given size."""
    return 2 * round(size * scanner.matrix / 2)


def scan(rng: np.random.Generator, tissue: Image, scanner: Scanner) -> Image:
    """What the scanner makes of a slice.

    Args:
        rng: source of shading and noise.
        tissue: float32 (size, size), about [0, 1].
        scanner: the scanner.

    Returns:
        float32 (size, size) in [0, 1]. The noise is Rician, as in magnitude images of MR
        (Gudbjartsson and Patz, Magn Reson Med 1995).
    """
    size = len(tissue)
    image = np.clip(tissue, 0, 1) ** np.float32(scanner.gamma)
    image = _blur(image, scanner.blur / (scanner.field_of_view / size))
    line = np.linspace(-1, 1, size, dtype=np.float32)
    tilt_x, tilt_y, bowl = (np.float32(v) for v in scanner.shading * rng.uniform(-1, 1, 3))
    image *= (1 + tilt_x * line - bowl * line**2)[None, :] + (tilt_y * line)[:, None]
    image *= np.float32(rng.uniform(0.72, 1.0))
    real, imaginary = np.float32(scanner.noise) * rng.standard_normal(
        (2, size, size), dtype=np.float32
    )
    magnitude: Image = np.sqrt((image + real) ** 2 + imaginary**2)
    return np.minimum(magnitude, np.float32(1))


def _blur(image: Image, deviation: float) -> Image:
    """Binomial smoothing with the given standard deviation in pixels, rounded to whole passes."""
    for _ in range(round(2 * deviation**2)):
        for axis in (0, 1):
            line = np.moveaxis(image, axis, 0)
            smooth = np.float32(0.5) * line
            smooth[1:] += np.float32(0.25) * line[:-1]
            smooth[:-1] += np.float32(0.25) * line[1:]
            smooth[0] += np.float32(0.25) * line[0]
            smooth[-1] += np.float32(0.25) * line[-1]
            image = np.moveaxis(smooth, 0, axis)
    return image
