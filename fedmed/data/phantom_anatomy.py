"""Invented heads: sizes, pose, and what is found in the brain, drawn by lot.

Nothing here comes from a person. The lots make the task neither trivial nor hopeless: a lesion may
lie anywhere in the brain, and harmless findings are as bright or as large as it is, so no fixed
weighting of pixels and no histogram finds it. What tells it apart is local: a bright irregular rim
around a dimmer, mottled core, and a faint halo. A convolution learns that within a few hundred
steps; one lesion in eight is faint, which keeps the best networks below a perfect score.

Positions and lengths are in half fields of view: the image spans [-1, 1] in both directions,
x to the right and y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedmed.data.phantom_fields import Image, random_grid

Kind = Literal["lesion", "patch", "node", "vessel"]

# Sizes of the coarse grids of the smooth random fields: broad, folds of the cortex, mottling.
_BROAD, _FOLDS, _MOTTLE = 5, 17, 40
# Harmless findings in the order of drawing: expected number in a patient, range of the radius.
_HARMLESS: tuple[tuple[Kind, float, tuple[float, float]], ...] = (
    ("patch", 0.8, (0.12, 0.22)),
    ("node", 3.0, (0.035, 0.075)),
    ("vessel", 5.0, (0.10, 0.35)),
)


@dataclass(frozen=True)
class Finding:
    """Something bright in the brain: a lesion, or a harmless patch, node or vessel.

    ``x`` and ``y`` are in the head's own frame, before it is shifted and tilted.
    """

    kind: Kind
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
    lesions = _place_lesions(rng, half_width, half_height, slices) if lesion else ()
    harmless = tuple(
        _place_harmless(rng, kind, radii, half_width, half_height, slices)
        for kind, expected, radii in _HARMLESS
        for _ in range(int(rng.poisson(expected)))
    )
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
        fields=tuple(random_grid(rng, size) for size in (_BROAD, _BROAD, _FOLDS, _MOTTLE)),
        findings=(*harmless, *lesions),  # lesions are drawn last, over everything
    )


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


def _place_lesions(
    rng: np.random.Generator, half_width: float, half_height: float, slices: int
) -> tuple[Finding, ...]:
    """Place one lesion, or two that do not touch; both cross the same slices."""
    extent = _lesion_extent(rng, slices)
    placed: list[Finding] = []
    for _ in range(2 if rng.random() < 0.25 else 1):
        radius = float(rng.uniform(0.11, 0.21))
        for _ in range(20):
            x, y = _inside_brain(rng, half_width, half_height, 0.62)
            if all(np.hypot(x - o.x, y - o.y) > 1.5 * (radius + o.radius) for o in placed):
                shape = _shape(rng)
                placed.append(Finding("lesion", x, y, radius, _strength(rng), shape, extent))
                break
    return tuple(placed)


def _place_harmless(
    rng: np.random.Generator,
    kind: Kind,
    radii: tuple[float, float],
    half_width: float,
    half_height: float,
    slices: int,
) -> Finding:
    """Place a patch, a node or a vessel; it crosses some slices in a row."""
    x, y = _inside_brain(rng, half_width, half_height, 0.72)
    first = int(rng.integers(0, slices))
    last = min(slices, first + int(rng.integers(1, slices + 1)))
    extent = tuple(float(first <= index < last) for index in range(slices))
    radius, strength = float(rng.uniform(*radii)), float(rng.uniform(0.5, 1.05))
    return Finding(kind, x, y, radius, strength, _shape(rng), extent)


def _strength(rng: np.random.Generator) -> float:
    """Contrast of a lesion: clear as a rule, faint in one of eight."""
    return float(rng.uniform(0.15, 0.4) if rng.random() < 0.125 else rng.uniform(0.65, 1.1))


def _shape(rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(float(value) for value in rng.uniform(-1, 1, 8))
