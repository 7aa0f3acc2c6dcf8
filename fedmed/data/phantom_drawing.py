"""Drawing of an invented head: skin, skull, brain, ventricles, harmless findings, lesions.

Only element-wise arithmetic is used, no BLAS, so that the result does not depend on the number of
threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedmed.data.phantom_anatomy import Anatomy, Finding
from fedmed.data.phantom_fields import Image, random_grid, smooth_field

_LESION_CELLS = 9  # of the mottling across a lesion and its halo


@dataclass(frozen=True)
class Contrast:
    """Brightness of each tissue under one MR sequence; 0 is black, 1 is white."""

    skin: float
    bone: float
    fluid: float
    grey: float
    white: float
    enhancing: float
    """Rim of a lesion, a vessel, a harmless node."""


def draw_slice(
    rng: np.random.Generator, anatomy: Anatomy, index: int, size: int, contrast: Contrast
) -> tuple[Image, NDArray[np.uint8]]:
    """Draw one slice, before the scanner adds its own flaws.

    Args:
        rng: source of what changes from slice to slice.
        anatomy: the patient.
        index: slice number.
        size: rows and columns of the image.
        contrast: brightness of the tissues.

    Returns:
        The image, float32 (size, size) in about [0, 1], and the lesions, uint8 (size, size):
        0 outside, 1 for the pixels of the first lesion, 2 for those of the second.
    """
    shift_x, shift_y, folds, mottle = (
        smooth_field(0.85 * shared + 0.5 * random_grid(rng, len(shared) - 3), size)
        for shared in anatomy.fields
    )
    signal = anatomy.brain_signal * float(rng.uniform(0.94, 1.06))
    contrast = replace(
        contrast,
        skin=contrast.skin * anatomy.skin_signal,
        grey=contrast.grey * signal,
        white=contrast.white * signal,
    )
    across, down = _head_coordinates(anatomy, size)
    across += 0.02 * shift_x
    down += 0.02 * shift_y
    image, inside = _draw_head(anatomy, anatomy.levels[index], contrast, across, down, folds)
    image *= 1 + 0.05 * mottle + 0.07 * shift_x
    without = image.copy()
    lesions = np.zeros((size, size), np.uint8)
    number = 0
    for finding in anatomy.findings:
        if finding.kind == "lesion":
            number += 1
        if finding.extent[index] > 0:
            _draw_finding(rng, image, lesions, finding, index, anatomy, contrast, number)
    lesions[inside < 0.5] = 0  # no finding grows through the skull
    return without + inside * (image - without), lesions


def _head_coordinates(anatomy: Anatomy, size: int) -> tuple[Image, Image]:
    """Coordinates of every pixel in the head's own frame, each (size, size)."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    cosine, sine = math.cos(anatomy.angle), math.sin(anatomy.angle)
    x, y = line[None, :] - anatomy.x, line[:, None] - anatomy.y
    return cosine * x + sine * y, cosine * y - sine * x


def _draw_head(
    anatomy: Anatomy, level: float, contrast: Contrast, across: Image, down: Image, folds: Image
) -> tuple[Image, Image]:
    """Draw all but the findings; return it and the share of each pixel that is brain."""
    girth = math.sqrt(1 - 0.35 * level**2)
    width, height = anatomy.half_width * girth, anatomy.half_height * girth
    radius: Image = np.sqrt(np.square(across / width) + np.square(down / height))
    image = np.full_like(across, 0.01)
    skull = 1 - anatomy.skin
    brain = skull - anatomy.skull
    _fill(image, 1 - radius, contrast.skin)
    _fill(image, skull - radius, contrast.bone)
    _fill(image, brain - radius, contrast.fluid)
    inside: Image = np.clip((brain - radius) * 50 + 0.5, 0, 1)
    _fill(image, brain - 0.03 - radius - 0.018 * folds, contrast.grey)
    _fill(image, brain - 0.14 - radius + 0.06 * folds, contrast.white)
    fissure = np.minimum(0.012 + 0.004 * folds - np.abs(across), brain - radius)
    _fill(image, fissure, contrast.fluid, 0.6)
    edge = len(image) // 6
    middle = (slice(edge, -edge), slice(edge, -edge))
    _draw_depths(anatomy, level, contrast, image[middle], across[middle], down[middle])
    return image, inside


def _draw_depths(
    anatomy: Anatomy, level: float, contrast: Contrast, image: Image, across: Image, down: Image
) -> None:
    """Draw deep grey nuclei and ventricles into the middle of the image."""
    size = anatomy.ventricle * (1 - 0.8 * max(0.0, level))
    for side in (-1, 1):
        wide = 0.075 * size * (1 + side * anatomy.asymmetry)
        nucleus: Image = np.square((side * across - 0.20) / 0.09) + np.square((down + 0.02) / 0.16)
        _fill(image, (1 - nucleus) * 0.06, contrast.grey)
        bent = side * across - 0.09 - 0.35 * np.square(down)
        ventricle: Image = np.square(bent / wide) + np.square(down / (0.33 * size))
        _fill(image, (1 - ventricle) * (wide / 2), contrast.fluid)


def _draw_finding(
    rng: np.random.Generator,
    image: Image,
    lesions: NDArray[np.uint8],
    finding: Finding,
    index: int,
    anatomy: Anatomy,
    contrast: Contrast,
    number: int,
) -> None:
    """Draw into ``image`` and, for a lesion, write ``number`` into ``lesions``."""
    size = len(image)
    cosine, sine = math.cos(anatomy.angle), math.sin(anatomy.angle)
    x = anatomy.x + cosine * finding.x - sine * finding.y
    y = anatomy.y + sine * finding.x + cosine * finding.y
    radius = finding.radius * finding.extent[index]
    reach = radius * (1.5 if finding.kind in ("node", "vessel") else 2.2) + 0.03
    left, right = (int(np.clip((x + s * reach + 1) * size / 2, 0, size)) for s in (-1, 1))
    top, bottom = (int(np.clip((y + s * reach + 1) * size / 2, 0, size)) for s in (-1, 1))
    columns = ((np.arange(left, right) + 0.5) * 2 / size - 1 - x).astype(np.float32)[None, :]
    rows = ((np.arange(top, bottom) + 0.5) * 2 / size - 1 - y).astype(np.float32)[:, None]
    patch = image[top:bottom, left:right]
    bright = contrast.white + finding.strength * (contrast.enhancing - contrast.white)
    if finding.kind == "vessel":
        _draw_vessel(patch, columns, rows, finding, bright)
        return
    distance = _bent_distance(columns, rows, finding.shape, 0.10 if number else 0.06)
    distance /= radius
    if finding.kind == "patch":
        patch += np.exp(-2 * np.square(distance)) * 0.7 * (bright - patch)
        return
    if finding.kind == "node":
        _fill(patch, (1 - distance) * radius, bright)
        return
    mottle = smooth_field(random_grid(rng, _LESION_CELLS), max(patch.shape))[
        : len(patch), : patch.shape[1]
    ]
    _draw_lesion(patch, distance, mottle, bright, contrast.white)
    lesions[top:bottom, left:right][distance < 1] = number


def _bent_distance(
    columns: Image, rows: Image, shape: tuple[float, ...], irregular: float
) -> Image:
    """Distance from the centre over the outline's distance in that direction for radius 1."""
    turn = np.arctan2(rows, columns)
    outline = np.ones_like(turn)
    for wave, (share, phase) in enumerate(zip(shape[0::2], shape[1::2], strict=True), start=2):
        outline += irregular * share * np.cos(wave * turn + math.pi * phase)
    distance: Image = np.sqrt(columns**2 + rows**2) / outline
    return distance


def _draw_lesion(patch: Image, distance: Image, mottle: Image, bright: float, white: float) -> None:
    """Draw halo, mottled core and rim; ``distance`` is 1 on the outline."""
    halo = np.exp(-np.square(np.maximum(distance - 1, 0) / 0.45))
    patch += 0.35 * halo * (bright - patch)
    core = np.clip((0.75 - distance) * 6, 0, 1)
    dim = 0.55 * bright + 0.45 * white + 0.3 * (bright - white) * mottle
    patch += core * (dim - patch)
    rim = np.exp(-np.square((distance - 0.84) / 0.15))
    rim *= np.clip(1 + 0.35 * mottle, 0.4, 1.2)
    patch += rim * (bright - patch)


def _draw_vessel(
    patch: Image, columns: Image, rows: Image, finding: Finding, bright: float
) -> None:
    """Draw a thin parabola through the finding's centre."""
    turn, bend, thick, length = finding.shape[:4]
    cosine, sine = math.cos(math.pi * turn), math.sin(math.pi * turn)
    along, aside = cosine * columns + sine * rows, cosine * rows - sine * columns
    away = np.abs(aside - 0.75 * bend / finding.radius * np.square(along))
    inside = finding.radius * (0.8 + 0.2 * length) - np.abs(along)
    _fill(patch, np.minimum(0.013 + 0.005 * thick - away, inside), bright)


def _fill(image: Image, depth: Image, value: float, opacity: float = 1.0) -> None:
    """Paint ``value`` where ``depth`` > 0, with an edge 0.02 wide."""
    weight = np.clip(depth * 50 + 0.5, 0, 1)
    if opacity != 1.0:
        weight *= opacity
    image += weight * (value - image)
