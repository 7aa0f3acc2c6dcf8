"""Numerical accounting: from steps of the sampled Gaussian mechanism to epsilon.

Every function returns an upper bound. Which one is used when:

- All units in every step: one Gaussian, in closed form (Balle & Wang, 2018).
- One single step: closed form as well (Steinke, 2022, theorem 11 on Poisson sampling).
- Else the PRV accountant of Opacus (Gopi et al., 2021), where its grid is of moderate size.
- Where that grid is too large, too coarse for a small epsilon, or a unit gives more than one
  contribution or is changed: the privacy loss distribution of Google's ``dp-accounting``, which
  rounds pessimistically ("connect the dots", Doroshenko et al., 2022) for both neighbours.
- Rényi accounting (Mironov, 2017) checks both, and stands alone for a delta below
  ``SMALLEST_NUMERICAL_DELTA``, where the rounding errors of a Fourier transform could matter.

Gaussian DP is not used: it is an approximation from below.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from dp_accounting.pld import privacy_loss_distribution as pld  # type: ignore[import-untyped]
from dp_accounting.privacy_accountant import (  # type: ignore[import-untyped]
    NeighboringRelation,
)
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV, compute_safe_domain_size
from scipy import optimize, special, stats  # type: ignore[import-untyped]

log = logging.getLogger(__name__)

SMALLEST_NUMERICAL_DELTA = 1e-10
_TOLERANCE = 0.01
_PRV_POINTS = 2**19
_PLD_POINTS = 2**22
_NEGLIGIBLE = 1e-16
_WITHOUT_MEANING = 2000.0


@dataclass(frozen=True)
class LossSteps:
    """Steps of one kind, as seen by the unit whose epsilon is asked for.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clipping norm; above 0.
        sample_rate: probability that a contribution is in a step, in (0, 1].
        steps: number of steps; at least 1.
        contributions: how many clipped gradients, each sampled by itself, depend on the unit.
        changed: neighbours differ in what the one contribution *is* (from any vector within the
            clipping norm to any other), not in whether it is there.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    contributions: int = 1
    changed: bool = False

    @property
    def shift(self) -> float:
        """Largest distance between the neighbours' sums, in clipping norms."""
        return 2.0 if self.changed else float(self.contributions)

    @property
    def plain(self) -> bool:
        """Whether this is the sampled Gaussian under add-or-remove neighbours."""
        return self.contributions == 1 and not self.changed


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
    if delta < SMALLEST_NUMERICAL_DELTA:
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


def gaussian_epsilon(distance: float, delta: float) -> float:
    """Return the exact epsilon of a Gaussian mechanism.

    Balle & Wang (2018), theorem 8: ``delta = Phi(m/2 - e/m) - exp(e) Phi(-m/2 - e/m)`` where ``m``
    is the distance; steps without sampling compose to ``m**2 = sum of squares``. Written with the
    scaled complementary error function, which neither overflows nor cancels for large ``m``.

    Args:
        distance: of the two means, in standard deviations of the noise.
        delta: in (0, 1).
    """
    if not math.isfinite(distance):
        return math.inf

    def log_delta(epsilon: float) -> float:
        upper = distance / 2 - epsilon / distance
        other = special.erfcx((distance / 2 + epsilon / distance) / math.sqrt(2))
        if upper > 0:
            value = special.ndtr(upper) - math.exp(-(upper**2) / 2) * other / 2
            return math.log(value) if value > 0 else -math.inf
        gap = special.erfcx(-upper / math.sqrt(2)) - other
        return math.log(gap / 2) - upper**2 / 2 if gap > 0 else -math.inf

    target = math.log(delta)
    if log_delta(0.0) <= target:
        return 0.0
    # The loss is normal with mean m^2/2 and deviation m: far above it, less than delta is left.
    high = distance**2 / 2 + distance * (math.sqrt(2 * math.log(1 / delta)) + 1)
    root = optimize.brentq(
        lambda e: max(log_delta(e), -1e6) - target, 0.0, high, xtol=1e-12, rtol=1e-12
    )
    return float(root) * (1 + 1e-9)


def single_step_epsilon(entry: LossSteps, delta: float) -> float:
    """Return the exact epsilon of one step with Poisson sampling; a lower bound of any more.

    With probability ``q`` the step is a Gaussian mechanism: ``(log(1 + q (exp(e) - 1)), q d)``
    when that is ``(e, d)`` (Balle et al., 2018, theorem 8; equality for the worst neighbours).
    """
    rate = entry.sample_rate
    if delta >= rate:
        return 0.0
    inner = gaussian_epsilon(1 / entry.noise_multiplier, delta / rate)
    if inner > 30:
        return float(np.logaddexp(math.log(rate) + inner, math.log1p(-rate) if rate < 1 else -1e9))
    return math.log1p(rate * math.expm1(inner))


def renyi_epsilon(entries: tuple[LossSteps, ...], delta: float) -> float:
    """Return Opacus's Rényi bound; steps that are not plain count without amplification."""
    accountant = RDPAccountant()
    accountant.history = [
        (entry.noise_multiplier, entry.sample_rate, entry.steps)
        if entry.plain
        else (entry.noise_multiplier / entry.shift, 1.0, entry.steps)
        for entry in entries
    ]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            value = float(accountant.get_epsilon(delta))
        except (ValueError, OverflowError):
            return math.inf
    return value if value >= 0 else math.inf


def random_variable_epsilon(entries: tuple[LossSteps, ...], delta: float) -> float | None:
    """Return the bound of Opacus's PRV accountant, within about 0.5 % of the truth.

    Returns:
        None if the grid would be too large, or the accountant gives up.
    """
    error = min(renyi_epsilon(entries, delta) / 500, 0.5)
    for _attempt in range(3):
        value = _random_variable_epsilon(entries, delta, error)
        if value is None or error <= value / 300:
            return value
        error = value / 500
    return None


def _random_variable_epsilon(
    entries: tuple[LossSteps, ...], delta: float, error: float
) -> float | None:
    counts = [entry.steps for entry in entries]
    slack = delta / 1000
    variables = [PoissonSubsampledGaussianPRV(e.sample_rate, e.noise_multiplier) for e in entries]
    accountant = PRVAccountant()
    accountant.history = [(e.noise_multiplier, e.sample_rate, e.steps) for e in entries]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            reach = compute_safe_domain_size(variables, counts, error, slack)
            mesh = error / math.sqrt(sum(counts) * math.log(12 / slack) / 2)
            if not 2 * reach / mesh <= _PRV_POINTS:
                return None
            value = float(accountant.get_epsilon(delta, eps_error=error, delta_error=slack))
        except (ValueError, RuntimeError, ArithmeticError, MemoryError):
            return None
    return value if math.isfinite(value) and value > 0 else None


def loss_distribution_epsilon(entries: tuple[LossSteps, ...], delta: float) -> float:
    """Return the pessimistic bound of ``dp-accounting``, within about 0.2 % of the truth.

    The grid is halved until halving changes epsilon by less than 0.3 %: the error of connecting
    the dots falls with the square of the grid's interval.
    """
    interval = _first_interval(entries, delta)
    value = _loss_distribution_epsilon(entries, delta, interval)
    if value > _WITHOUT_MEANING and not all(entry.plain for entry in entries):
        return value
    for _halving in range(8):
        interval /= 2
        finer = _loss_distribution_epsilon(entries, delta, interval)
        if not math.isfinite(finer):
            break
        # Both are upper bounds, so that the smaller one is one as well.
        value, before = min(value, finer), value
        if before - finer <= 0.003 * finer:
            break
    return value


def _first_interval(entries: tuple[LossSteps, ...], delta: float) -> float:
    """Guess an interval from the deviation of one step's loss and a rough epsilon."""
    deviations = [
        min(
            entry.shift / entry.noise_multiplier,
            entry.contributions
            * entry.sample_rate
            * math.sqrt(math.expm1(min(1 / entry.noise_multiplier**2, 50.0))),
        )
        for entry in entries
    ]
    amplified = tuple(
        LossSteps(
            entry.noise_multiplier / (2.0 if entry.changed else _likely_contributions(entry)),
            -math.expm1(entry.contributions * math.log1p(-min(entry.sample_rate, 1 - 1e-12))),
            entry.steps,
        )
        for entry in entries
    )
    rough = renyi_epsilon(amplified, delta)
    guess = rough if math.isfinite(rough) else 1000.0
    largest = max(deviations)
    wanted = max(min(largest / 2, guess / 300), guess / _PLD_POINTS)
    # Powers of two: the single steps of a history that grows are found in the cache.
    return float(2.0 ** math.floor(math.log2(wanted)))


def _likely_contributions(entry: LossSteps) -> float:
    """Return how many contributions of a unit fall in one step, hardly ever more."""
    mean = entry.contributions * entry.sample_rate
    return max(1.0, min(float(entry.contributions), mean + 3 * math.sqrt(mean)))


def _loss_distribution_epsilon(
    entries: tuple[LossSteps, ...], delta: float, interval: float
) -> float:
    total = None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            for entry in entries:
                # Above this range the loss has a probability far below any delta.
                reach = (entry.shift / entry.noise_multiplier) ** 2 / 2
                reach += 11 * entry.shift / entry.noise_multiplier
                if not reach / interval <= _PLD_POINTS:
                    return math.inf
                one = _loss_distribution(replace(entry, steps=1), interval)
                steps = one.self_compose(entry.steps)
                total = steps if total is None else total.compose(steps)
            value = math.inf if total is None else float(total.get_epsilon_for_delta(delta))
        except (ValueError, RuntimeError, ArithmeticError, MemoryError):
            return math.inf
    return value if value >= 0 else math.inf


@lru_cache(maxsize=32)
def _loss_distribution(entry: LossSteps, interval: float) -> pld.PrivacyLossDistribution:
    """Return the dominating loss distribution of one step.

    Several contributions: how many of them are in the step is binomial, and their sum is no longer
    than their number, so that a mixture of Gaussians on a line dominates (Ganesh, 2024; for
    vectors: Choquette-Choo et al., 2023, corollary 4.7).

    A changed contribution, from ``u`` to ``v``: neighbours are ``P = (1-q) N(0) + q N(u)`` and
    ``Q = (1-q) N(0) + q N(v)``. For ``a > 1`` the hockey-stick divergence ``D_a(P, Q)`` equals
    ``q D_b(N(u), w N(v) + (1-w) N(0))`` with ``b = a + (a-1)(1-q)/q`` and ``w = a/b``: seen from
    ``u``, a mixture of Gaussians at the distances ``|v-u| <= 2`` and ``|u| <= 1``. By the same
    corollary the longest ones on a line, ``u = -1`` and ``v = 1``, are the worst. Exchanging ``P``
    and ``Q`` gives the case ``a < 1``.
    """
    noise, rate = entry.noise_multiplier, entry.sample_rate
    if entry.contributions > 1 and rate < 1:
        counts, weights = binomial_support(entry.contributions, rate)
        return pld.from_mixture_gaussian_mechanism(
            noise, counts, weights, value_discretization_interval=interval
        )
    return pld.from_gaussian_mechanism(
        noise / entry.contributions,
        sampling_prob=rate,
        value_discretization_interval=interval,
        neighboring_relation=NeighboringRelation.REPLACE_ONE
        if entry.changed
        else NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


def binomial_support(count: int, rate: float) -> tuple[list[float], list[float]]:
    """Return values and probabilities of a binomial; what is negligible is moved *upwards*.

    More contributions are never less loss, so that moving probability up keeps an upper bound.
    """
    numbers = np.arange(count + 1)
    weights = stats.binom.pmf(numbers, count, rate)
    kept_numbers: list[float] = []
    kept_weights: list[float] = []
    carried = 0.0
    for number, weight in zip(numbers, weights, strict=True):
        carried += float(weight)
        if carried > _NEGLIGIBLE or number == count:
            kept_numbers.append(float(number))
            kept_weights.append(carried)
            carried = 0.0
    if kept_weights[-1] == 0.0:
        kept_numbers.pop()
        kept_weights.pop()
    scale = math.fsum(kept_weights)
    return kept_numbers, [weight / scale for weight in kept_weights]


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
