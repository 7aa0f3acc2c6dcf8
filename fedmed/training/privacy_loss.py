"""Numerical accounting: from steps of the sampled Gaussian mechanism to epsilon.

Every function returns an upper bound. Which one is used when:

- All units in every step: one Gaussian, in closed form (Balle & Wang, 2018).
- One single step: closed form as well (Balle et al., 2018, theorem 8).
- Else the PRV accountant of Opacus (Gopi et al., 2021), where its grid is of moderate size. It
  looks at the removal of a unit; ``dp-accounting`` looks at the addition as well, and agrees.
- Where that grid is too large, too coarse for a small epsilon, or a unit gives more than one
  contribution or is changed: the privacy loss distribution of Google's ``dp-accounting``, which
  rounds pessimistically ("connect the dots", Doroshenko et al., 2022) for both neighbours.
- Rényi accounting (Mironov, 2017) checks both, and stands alone for a delta below
  ``SMALLEST_NUMERICAL_DELTA``, where the rounding errors of a Fourier transform could matter. Where
  two contradict each other, the larger figure counts and a warning is logged.

Gaussian DP is not used: it is an approximation from below.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from fedmed.training.closed_forms import gaussian_epsilon, single_step_epsilon
from fedmed.training.loss_distributions import loss_distribution_epsilon
from fedmed.training.loss_steps import LossSteps
from fedmed.training.opacus_accountants import random_variable_epsilon, renyi_epsilon

log = logging.getLogger(__name__)

SMALLEST_NUMERICAL_DELTA = 1e-10
_TOLERANCE = 0.01


@lru_cache(maxsize=4096)
def composed_epsilon(history: tuple[LossSteps, ...], delta: float) -> float:
    """Return an upper bound of epsilon for all steps together; ``inf`` if none is known.

    Args:
        history: at least one entry; equal entries merged, for speed.
        delta: in (0, 1).
    """
    entries = _merge_gaussians(history)
    if len(entries) == 1 and entries[0].sample_rate == 1:
        return gaussian_epsilon(entries[0].shift / entries[0].noise_multiplier, delta)
    plain = all(entry.plain for entry in entries)
    if plain and sum(entry.steps for entry in entries) == 1:
        return single_step_epsilon(entries[0], delta)
    bound = renyi_epsilon(entries, delta)
    if delta < SMALLEST_NUMERICAL_DELTA or bound == 0:
        return bound
    if not plain:
        return min(bound, loss_distribution_epsilon(entries, delta))
    floor = max(single_step_epsilon(entry, delta) for entry in entries)
    engines: tuple[Callable[[tuple[LossSteps, ...], float], float | None], ...] = (
        random_variable_epsilon,
        loss_distribution_epsilon,
    )
    seen = [bound]
    for engine in engines:
        value = engine(entries, delta)
        if value is None or not math.isfinite(value):
            continue
        if floor * (1 - _TOLERANCE) <= value <= bound * (1 + _TOLERANCE):
            return max(floor, min(value, bound))
        log.warning(
            "Accountants contradict each other (%s: %.6g, Rényi: at most %.6g, one step: at "
            "least %.6g); the larger figure counts.",
            engine.__name__,
            value,
            bound,
            floor,
        )
        seen.append(value)
    return max(seen)


def _merge_gaussians(history: tuple[LossSteps, ...]) -> tuple[LossSteps, ...]:
    """Replace all steps without sampling by the one Gaussian that they are together."""
    sampled = tuple(entry for entry in history if entry.sample_rate < 1)
    whole = [entry for entry in history if entry.sample_rate == 1]
    if not whole:
        return sampled
    distance = math.sqrt(math.fsum(e.steps * (e.shift / e.noise_multiplier) ** 2 for e in whole))
    merged = replace(
        whole[0],
        noise_multiplier=1 / distance,
        steps=1,
        contributions=1,
        changed=False,
    )
    return (*sampled, merged)
