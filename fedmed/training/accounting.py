"""From noise, sampling rate and steps to epsilon, for patients and for images.

The figure reported is that of the PRV accountant (Gopi et al., 2021), an upper bound by numerical
composition, where it is right; see :mod:`fedmed.training.privacy_loss` for what takes its place
elsewhere, and for the cross-checks.

Neighbouring cohorts differ by one unit, added or removed: one patient with all images, or one
image. Rounds of both units can be on the same patients, and each unit's epsilon counts all of
them (:func:`epsilon_for`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import optimize  # type: ignore[import-untyped]

from fedmed.configuration.groups import Unit
from fedmed.errors import PrivacyError
from fedmed.training.loss_steps import LossSteps
from fedmed.training.opacus_accountants import renyi_epsilon
from fedmed.training.privacy_loss import composed_epsilon

LARGEST_NOISE_MULTIPLIER = 50.0
SMALLEST_NOISE_MULTIPLIER = 0.2
LARGEST_DELTA = 1e-5
LARGEST_CONVERTED_EPSILON = 1000.0
_RELATIVE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class GaussianSteps:
    """A run of DP-SGD steps with the same noise.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clipping norm; above 0.
        sample_rate: probability that a unit (image or patient) is in a batch, in (0, 1].
        steps: number of steps; at least 1.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def sensible(self) -> bool:
        """Tell whether the values are in their ranges; NaN and infinity are not."""
        return (
            0 < self.noise_multiplier < math.inf and 0 < self.sample_rate <= 1 and self.steps >= 1
        )


@dataclass(frozen=True)
class Spending:
    """Steps together with whose contribution they bound.

    Attributes:
        steps: what was done.
        unit: whose gradient was clipped and sampled as one.
        images_per_patient: largest number of images of one patient at the site, at least 1.
    """

    steps: GaussianSteps
    unit: Unit
    images_per_patient: int


def epsilon_spent(history: Sequence[GaussianSteps], delta: float) -> float:
    """Return epsilon of all steps together, at ``delta``, under add-or-remove neighbours.

    An upper bound, at most 1 % above the truth for a delta of 1e-10 or more. Results are cached.

    Raises:
        PrivacyError: if the accountants cannot bound it, or a value is out of its range.
    """
    spent = _compose([_as_loss(steps) for steps in history], delta)
    if not math.isfinite(spent):
        raise PrivacyError(
            "No finite epsilon for this noise multiplier, sampling rate and number of steps. "
            "Raise privacy.noise_multiplier."
        )
    return spent


def epsilon_for(unit: Unit, history: Sequence[Spending], delta: float) -> float:
    """Return epsilon of one unit over steps that were taken with either unit.

    Steps with the same unit compose as in :func:`epsilon_spent`. The others are converted one
    step at a time, and then composed with them:

    - A *patient* in steps that bound *images*: each of its k images is sampled by itself, so that
      a step holds a binomial number of them. A mixture of Gaussians dominates this (Ganesh, 2024).
    - An *image* in steps that bound *patients*: removing it changes the one clipped gradient of
      its patient from some vector within the clipping norm to another one, or removes it. The
      worst is the opposite vector, twice the clipping norm away, and sampled with the patient.

    :mod:`fedmed.training.loss_distributions` has the proofs.

    Returns:
        ``inf`` if no bound is known, or if steps of the other unit bring it above
        ``LARGEST_CONVERTED_EPSILON``: no guarantee worth a number.

    Raises:
        PrivacyError: if a value is out of its range.
    """
    steps = [
        _as_loss(
            entry.steps,
            contributions=max(entry.images_per_patient, 1)
            if (unit, entry.unit) == (Unit.patient, Unit.image)
            else 1,
            changed=(unit, entry.unit) == (Unit.image, Unit.patient),
        )
        for entry in history
    ]
    converted = any(entry.unit != unit for entry in history)
    epsilon = _compose(steps, delta)
    return math.inf if converted and epsilon > LARGEST_CONVERTED_EPSILON else epsilon


def solve_noise_multiplier(
    target_epsilon: float, delta: float, sample_rate: float, steps: int
) -> float:
    """Return the smallest noise multiplier (to 0.1 %) whose epsilon is at most the target.

    At least ``SMALLEST_NOISE_MULTIPLIER``, even if less would do.

    Raises:
        PrivacyError: if more than ``LARGEST_NOISE_MULTIPLIER`` would be needed.
    """

    def excess(log_noise: float) -> float:
        spent = _compose([LossSteps(math.exp(log_noise), sample_rate, steps)], delta)
        return math.log(max(spent, 1e-300) / target_epsilon)

    low, high = math.log(SMALLEST_NOISE_MULTIPLIER), math.log(LARGEST_NOISE_MULTIPLIER)
    if excess(high) > 0:
        raise PrivacyError(
            f"A target epsilon of {target_epsilon:g} over {steps} steps would need a noise "
            f"multiplier above {LARGEST_NOISE_MULTIPLIER:g}: nothing could be learnt. Raise "
            "privacy.target_epsilon, or lower federation.rounds or privacy.sample_rate."
        )
    high = _renyi_noise(target_epsilon, delta, sample_rate, steps, low, high)
    step = 0.05
    while high - step > low and excess(high - step) <= 0:
        high, step = high - step, 2 * step
    low = max(low, high - step)
    if excess(low) <= 0:
        return math.exp(low)
    root = optimize.brentq(excess, low, high, xtol=_RELATIVE_TOLERANCE / 4)
    while excess(root) > 0:
        root += _RELATIVE_TOLERANCE / 4
    return math.exp(root)


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


def _as_loss(steps: GaussianSteps, contributions: int = 1, changed: bool = False) -> LossSteps:
    return LossSteps(steps.noise_multiplier, steps.sample_rate, steps.steps, contributions, changed)


def _compose(history: Sequence[LossSteps], delta: float) -> float:
    if not 0 < delta < 1:
        raise PrivacyError(f"privacy.delta={delta:g} must lie between 0 and 1.")
    totals: dict[tuple[float, float, int, bool], int] = {}
    for entry in history:
        if not GaussianSteps(entry.noise_multiplier, entry.sample_rate, entry.steps).sensible():
            raise PrivacyError(
                f"A noise multiplier of {entry.noise_multiplier:g}, a sampling rate of "
                f"{entry.sample_rate:g} and {entry.steps} steps give no differential privacy. "
                "Choose privacy.noise_multiplier above 0, a rate in (0, 1] and at least 1 step."
            )
        key = (entry.noise_multiplier, entry.sample_rate, entry.contributions, entry.changed)
        totals[key] = totals.get(key, 0) + entry.steps
    if not totals:
        return 0.0
    merged = sorted((noise, rate, steps, k, c) for (noise, rate, k, c), steps in totals.items())
    return composed_epsilon(tuple(LossSteps(*entry) for entry in merged), delta)


def _renyi_noise(
    target: float, delta: float, sample_rate: float, steps: int, low: float, high: float
) -> float:
    """Return the logarithm of noise that is enough (Rényi accounting is quick and too careful)."""
    while high - low > 0.02:
        middle = (low + high) / 2
        bound = renyi_epsilon((LossSteps(math.exp(middle), sample_rate, steps),), delta)
        low, high = (low, middle) if bound <= target else (middle, high)
    return high
