"""Drawing of a made-up head: skin, skull, brain, ventricles, vessels, harmless findings, lesions.

Nothing here comes from a person. The drawing is made so that the task is neither trivial nor
hopeless: a lesion may lie anywhere in the brain, and harmless findings are as bright as it is, so
no fixed weighting of pixels finds it. What tells it apart is local: a bright irregular rim around
a darker, mottled core, and a faint halo. A convolution learns that within a few hundred steps.

Positions and lengths are in half fields of view: the image spans [-1, 1] in both directions,
x to the right and y down. Only element-wise arithmetic is used, no BLAS, so that the result does
not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

# Sizes of the coarse grids of the smooth random fields: broad, folds of the cortex, mottling.
_BROAD, _FOLDS, _MOTTLE = 5, 17, 40
_LESION_GRID = 9
# Expected number of each harmless finding in a patient, in the order of drawing.
_HARMLESS = (("patch", 0.8), ("node", 3.0), ("vessel", 5.0))


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


@dataclass(frozen=True)
class Finding:
    """Something bright in the brain: a lesion, or a harmless patch, node or vessel."""

    kind: str
    x: float
    y: float
    radius: float
    strength: float
    """Contrast against the tissue around it, as a share of the full contrast."""
    shape: tuple[float, ...]
    """Numbers in [-1, 1] that bend its outline."""
    extent: tuple[float, ...]
    """Radius in each slice as a share of ``radius``; 0 where the slice misses it."""


@dataclass(frozen=True)
class Anatomy:
    """One invented patient's head, through all slices."""

    x: float
    y: float
    angle: float
    """Tilt of the head in the image plane, radians."""
    half_width: float
    half_height: float
    skin: float
    skull: float
    ventricle: float
    asymmetry: float
    skin_signal: float
    brain_signal: float
    """Factors on the brightness of skin and brain."""
    levels: tuple[float, ...]
    """Height of each slice between the base (-1) and the top (1) of the head."""
    fields: tuple[Image, ...]
    """Coarse grids behind the smooth fields that all slices share."""
    findings: tuple[Finding, ...]


def sample_anatomy(rng: np.random.Generator, *, slices: int, lesion: bool, age: int) -> Anatomy:
    """Invent one patient's head.

    Args:
        rng: source of all randomness.
        slices: number of slices, at least 2.
        lesion: whether the patient has lesions; then at least one slice shows one and at least
            one slice shows none.
        age: years; ventricles widen with age.

    Returns:
        The anatomy, to be drawn slice by slice with :func:`draw_slice`.
    """
    half_width, half_height = float(rng.uniform(0.66, 0.78)), float(rng.uniform(0.80, 0.90))
    angle = float(rng.normal(0.0, 0.16))
    middle, step = rng.uniform(-0.1, 0.2), rng.uniform(0.10, 0.16)
    levels = middle + step * (np.arange(slices) - (slices - 1) / 2)
    x, y = (float(value) for value in rng.uniform(-0.07, 0.07, 2))
    findings: list[Finding] = []
    if lesion:
        extent = _lesion_extent(rng, slices)
        for _ in range(1 + int(rng.random() < 0.25)):
            found = _place_lesion(rng, half_width, half_height, extent, findings)
            if found is not None:
                findings.append(found)
    lesions = tuple(findings)
    for kind, expected in _HARMLESS:
        for _ in range(int(rng.poisson(expected))):
            findings.append(_place_harmless(rng, kind, half_width, half_height, slices))
    harmless = findings[len(lesions) :]
    return Anatomy(
        x=x,
        y=y,
        angle=angle,
        half_width=half_width,
        half_height=half_height,
        skin=float(rng.uniform(0.04, 0.08)),
        skull=float(rng.uniform(0.06, 0.10)),
        ventricle=float(rng.uniform(0.8, 1.15) * (0.75 + age / 150)),
        asymmetry=float(rng.normal(0.0, 0.08)),
        skin_signal=float(rng.uniform(0.8, 1.1)),
        brain_signal=float(rng.uniform(0.82, 1.14)),
        levels=tuple(float(level) for level in levels),
        fields=tuple(_coarse(rng, size) for size in (_BROAD, _BROAD, _FOLDS, _MOTTLE)),
        findings=(*harmless, *lesions),  # lesions are drawn last, over everything
    )


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
        _smooth(np.float32(0.85) * shared + np.float32(0.5) * _coarse(rng, len(shared) - 3), size)
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
    across = across + np.float32(0.02) * shift_x
    down = down + np.float32(0.02) * shift_y
    image, inside = _draw_head(anatomy, anatomy.levels[index], contrast, across, down, folds)
    image *= 1 + np.float32(0.05) * mottle + np.float32(0.07) * shift_x
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


# --- placing ---------------------------------------------------------------------------------


def _lesion_extent(rng: np.random.Generator, slices: int) -> tuple[float, ...]:
    """Slices that the lesions cross: at least half of them, never all."""
    crossed = int(rng.integers((slices + 1) // 2, slices)) if slices > 2 else 1
    first = int(rng.integers(0, slices - crossed + 1))
    extent = np.zeros(slices)
    across = (np.arange(crossed) + 0.5) / crossed * 2 - 1
    extent[first : first + crossed] = np.sqrt(1 - 0.6 * across**2)
    return tuple(float(value) for value in extent)


def _inside_brain(
    rng: np.random.Generator, half_width: float, half_height: float, reach: float
) -> tuple[float, float]:
    """A point of the brain in the head's own frame, uniform over an ellipse."""
    turn, distance = rng.uniform(0, 2 * np.pi), reach * np.sqrt(rng.random())
    return (
        float(distance * half_width * np.cos(turn)),
        float(distance * half_height * np.sin(turn)),
    )


def _place_lesion(
    rng: np.random.Generator,
    half_width: float,
    half_height: float,
    extent: tuple[float, ...],
    others: list[Finding],
) -> Finding | None:
    radius = float(rng.uniform(0.11, 0.21))
    for _ in range(20):
        x, y = _inside_brain(rng, half_width, half_height, 0.62)
        apart = all(np.hypot(x - o.x, y - o.y) > 1.5 * (radius + o.radius) for o in others)
        if apart:
            return Finding(
                "lesion",
                x,
                y,
                radius,
                _strength(rng),
                tuple(float(value) for value in rng.uniform(-1, 1, 8)),
                extent,
            )
    return None


def _strength(rng: np.random.Generator) -> float:
    """Contrast of a lesion: clear as a rule, faint in one of eight."""
    return float(rng.uniform(0.15, 0.4) if rng.random() < 0.12 else rng.uniform(0.65, 1.1))


def _place_harmless(
    rng: np.random.Generator, kind: str, half_width: float, half_height: float, slices: int
) -> Finding:
    x, y = _inside_brain(rng, half_width, half_height, 0.72)
    low, high = {"patch": (0.12, 0.22), "node": (0.035, 0.075), "vessel": (0.10, 0.35)}[kind]
    radius = rng.uniform(low, high)
    first = int(rng.integers(0, slices))
    last = min(slices, first + int(rng.integers(1, slices + 1)))
    return Finding(
        kind,
        x,
        y,
        float(radius),
        float(rng.uniform(0.5, 1.05)),
        tuple(float(value) for value in rng.uniform(-1, 1, 8)),
        tuple(1.0 if first <= i < last else 0.0 for i in range(slices)),
    )


# --- drawing ---------------------------------------------------------------------------------


def _head_coordinates(anatomy: Anatomy, size: int) -> tuple[Image, Image]:
    """Coordinates of every pixel in the head's own frame, each (size, size)."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    cosine, sine = np.float32(np.cos(anatomy.angle)), np.float32(np.sin(anatomy.angle))
    x, y = line[None, :] - np.float32(anatomy.x), line[:, None] - np.float32(anatomy.y)
    return cosine * x + sine * y, cosine * y - sine * x


def _draw_head(
    anatomy: Anatomy, level: float, contrast: Contrast, across: Image, down: Image, folds: Image
) -> tuple[Image, Image]:
    """Draw all but the findings; return it and the share of each pixel that is brain."""
    girth = np.sqrt(1 - 0.35 * level**2)
    width, height = anatomy.half_width * girth, anatomy.half_height * girth
    radius = np.sqrt((across / np.float32(width)) ** 2 + (down / np.float32(height)) ** 2)
    image = np.full_like(across, 0.01)
    skull = 1 - anatomy.skin
    brain = skull - anatomy.skull
    _fill(image, 1 - radius, contrast.skin)
    _fill(image, skull - radius, contrast.bone)
    _fill(image, brain - radius, contrast.fluid)
    inside = np.clip((brain - radius) * np.float32(50) + np.float32(0.5), 0, np.float32(1))
    _fill(image, brain - 0.03 - radius - np.float32(0.018) * folds, contrast.grey)
    _fill(image, brain - 0.14 - radius + np.float32(0.06) * folds, contrast.white)
    fissure = np.minimum(np.float32(0.012) + 0.004 * folds - np.abs(across), brain - radius)
    _fill(image, fissure, contrast.fluid, 0.6)
    size = anatomy.ventricle * (1 - 0.8 * max(0.0, level))
    for side in (-1, 1):
        wide = 0.075 * size * (1 + side * anatomy.asymmetry)
        nucleus = (side * across - 0.20) ** 2 / 0.09**2 + (down + 0.02) ** 2 / 0.16**2
        _fill(image, (1 - nucleus) * 0.06, contrast.grey)
        bent = side * across - 0.09 - 0.35 * down**2
        ventricle = (bent / np.float32(wide)) ** 2 + (down / np.float32(0.33 * size)) ** 2
        _fill(image, (1 - ventricle) * np.float32(wide / 2), contrast.fluid)
    return image, inside


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
    cosine, sine = np.cos(anatomy.angle), np.sin(anatomy.angle)
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
    distance /= np.float32(radius)
    if finding.kind == "patch":
        patch += np.exp(-2 * np.square(distance)) * np.float32(0.7) * (bright - patch)
        return
    if finding.kind == "node":
        _fill(patch, (1 - distance) * np.float32(radius), bright)
        return
    mottle = _smooth(_coarse(rng, _LESION_GRID), max(patch.shape))[: len(patch), : patch.shape[1]]
    _draw_lesion(patch, distance, mottle, bright, contrast)
    lesions[top:bottom, left:right][distance < 1] = number


def _bent_distance(
    columns: Image, rows: Image, shape: tuple[float, ...], irregular: float
) -> Image:
    """Distance from the centre over the outline's distance in that direction for radius 1."""
    turn = np.arctan2(rows, columns)
    outline = np.ones_like(turn)
    for wave, (share, phase) in enumerate(zip(shape[0::2], shape[1::2], strict=True), start=2):
        outline += np.float32(irregular * share) * np.cos(wave * turn + np.float32(np.pi * phase))
    return np.sqrt(columns**2 + rows**2) / outline


def _draw_lesion(
    patch: Image, distance: Image, mottle: Image, bright: float, contrast: Contrast
) -> None:
    halo = np.exp(-np.square(np.maximum(distance - 1, 0) / np.float32(0.45)))
    patch += 0.35 * halo * (np.float32(bright) - patch)
    core = np.clip((0.75 - distance) * 6, 0, 1)
    dim = (
        np.float32(0.55 * bright + 0.45 * contrast.white)
        + np.float32(0.3 * (bright - contrast.white)) * mottle
    )
    patch += core * (dim - patch)
    rim = np.exp(-np.square((distance - np.float32(0.84)) / np.float32(0.15)))
    rim *= np.clip(1 + np.float32(0.35) * mottle, 0.4, 1.2)
    patch += rim * (np.float32(bright) - patch)


def _draw_vessel(
    patch: Image, columns: Image, rows: Image, finding: Finding, bright: float
) -> None:
    """An arc: a part of a thin circle that runs through the finding's centre."""
    turn, bend, thick, length = finding.shape[:4]
    cosine, sine = np.cos(np.pi * turn), np.sin(np.pi * turn)
    along, aside = cosine * columns + sine * rows, cosine * rows - sine * columns
    away = np.abs(aside - np.float32(1.5 * bend / finding.radius * 0.5) * along**2)
    inside = np.float32(finding.radius * (0.8 + 0.2 * length)) - np.abs(along)
    _fill(patch, np.minimum(np.float32(0.013 + 0.005 * thick) - away, inside), bright)


def _fill(
    image: Image, depth: Image, value: float, opacity: float = 1.0, soft: float = 0.02
) -> None:
    """Paint ``value`` where ``depth`` > 0, with an edge ``soft`` wide."""
    weight = np.clip(depth * np.float32(1 / soft) + np.float32(0.5), 0, np.float32(1))
    if opacity != 1.0:
        weight *= np.float32(opacity)
    image += weight * (np.float32(value) - image)


# --- smooth random fields --------------------------------------------------------------------


def _coarse(rng: np.random.Generator, cells: int) -> Image:
    """Random coefficients for a field of ``cells`` by ``cells``, (cells + 3, cells + 3)."""
    return rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)


def _smooth(coarse: Image, size: int) -> Image:
    """Cubic B-spline through the coefficients, float32 (size, size), standard deviation near 1."""
    first, weights = _spline(len(coarse) - 3, size)
    wide = np.zeros((len(coarse), size), np.float32)
    for tap in range(4):
        wide += coarse[:, first + tap] * weights[tap][None, :]
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
