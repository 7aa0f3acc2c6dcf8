"""From noise, sampling rate and steps to epsilon, with Opacus's accountants.

The figure reported is that of the PRV accountant (Gopi et al., 2021), an upper bound by numerical
composition. Rényi accounting (Mironov, 2017) is looser and finds the noise quickly; Gaussian DP
is not used: it is an approximation from below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from opacus.accountants import PRVAccountant, RDPAccountant

from fedmed.errors import PrivacyError

LARGEST_NOISE_MULTIPLIER = 50.0
LARGEST_DELTA = 1e-5
_RELATIVE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class GaussianSteps:
    """A run of DP-SGD steps with the same noise.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clipping norm.
        sample_rate: probability that an image is in a batch.
        steps: number of steps.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int


def epsilon_spent(history: Sequence[GaussianSteps], delta: float) -> float:
    """Return epsilon of all steps together, at ``delta``, under add-or-remove neighbours.

    Raises:
        PrivacyError: if the accountant cannot bound it.
    """
    composed = _merge(history)
    if not composed:
        return 0.0
    rough = _renyi(composed, delta)
    accountant = PRVAccountant()
    accountant.history = composed
    try:
        precise = accountant.get_epsilon(delta, eps_error=max(1e-4, min(0.01, rough / 500)))
    except (ValueError, RuntimeError, MemoryError, FloatingPointError):
        # The discretised domain may be too large for extreme settings; Rényi is sound as well.
        precise = math.inf
    result = min(rough, float(precise)) if math.isfinite(precise) else rough
    if not math.isfinite(result):
        raise PrivacyError(
            "No finite epsilon for this noise multiplier, sampling rate and number of steps. "
            "Raise privacy.noise_multiplier."
        )
    return result


def solve_noise_multiplier(
    target_epsilon: float, delta: float, sample_rate: float, steps: int
) -> float:
    """Return the smallest noise multiplier (to 0.1 %) whose epsilon is at most the target.

    Raises:
        PrivacyError: if more than ``LARGEST_NOISE_MULTIPLIER`` would be needed.
    """

    def spent(noise: float) -> float:
        return epsilon_spent([GaussianSteps(noise, sample_rate, steps)], delta)

    low, high = 0.2, LARGEST_NOISE_MULTIPLIER
    if spent(high) > target_epsilon:
        raise PrivacyError(
            f"A target epsilon of {target_epsilon:g} over {steps} steps would need a noise "
            f"multiplier above {LARGEST_NOISE_MULTIPLIER:g}: nothing could be learnt. Raise "
            "privacy.target_epsilon, or lower federation.rounds or privacy.sample_rate."
        )
    if spent(low) <= target_epsilon:
        return low
    while high / low > 1 + _RELATIVE_TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= target_epsilon else (middle, high)
    return high


def choose_delta(configured: float | None, patients: int) -> float:
    """Return the configured delta, or ``1 / (10 x patients)``, at most 1e-5.

    Raises:
        PrivacyError: if the configured one is not below ``1 / patients``.
    """
    if configured is None:
        return min(LARGEST_DELTA, 1.0 / (10 * max(patients, 1)))
    if configured >= 1.0 / max(patients, 1):
        raise PrivacyError(
            f"privacy.delta={configured:g} is not below 1 / patients at this site: a mechanism "
            "that publishes one patient in full would pass. Set privacy.delta=null."
        )
    return configured


def _merge(history: Sequence[GaussianSteps]) -> list[tuple[float, float, int]]:
    totals: dict[tuple[float, float], int] = {}
    for entry in history:
        key = (entry.noise_multiplier, entry.sample_rate)
        totals[key] = totals.get(key, 0) + entry.steps
    return [(noise, rate, steps) for (noise, rate), steps in totals.items() if steps > 0]


def _renyi(history: list[tuple[float, float, int]], delta: float) -> float:
    accountant = RDPAccountant()
    accountant.history = history
    return float(accountant.get_epsilon(delta))
