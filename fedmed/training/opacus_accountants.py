"""Opacus's accountants: the Rényi bound and the PRV accountant.

The Rényi divergences of one step are kept, because Opacus computes them anew for each question:
with them a history that grows by a round costs little.
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis.prv import Domain, PoissonSubsampledGaussianPRV
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

from fedmed.training.loss_steps import LossSteps

_ORDERS = tuple(float(order) for order in RDPAccountant.DEFAULT_ALPHAS)
_LARGEST_GRID = 2**19


def renyi_epsilon(entries: tuple[LossSteps, ...], delta: float) -> float:
    """Return Opacus's Rényi bound; steps that are not plain count without amplification.

    Args:
        entries: at least one.
        delta: in (0, 1).
    """
    divergences = np.zeros(len(_ORDERS))
    for entry in entries:
        rate, noise = entry.sample_rate, entry.noise_multiplier
        if not entry.plain:
            rate, noise = 1.0, noise / entry.shift
        divergences = divergences + entry.steps * _divergences(noise, rate)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        epsilon, _order = get_privacy_spent(orders=_ORDERS, rdp=divergences, delta=delta)
    return math.inf if math.isnan(epsilon) else max(0.0, float(epsilon))


@lru_cache(maxsize=1024)
def _divergences(noise: float, rate: float) -> npt.NDArray[np.float64]:
    """Return the Rényi divergence of one step at each order; infinite where it overflows."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            found = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=_ORDERS)
        except (ValueError, ArithmeticError):
            return np.full(len(_ORDERS), math.inf)
    return np.where(np.isnan(found), math.inf, np.asarray(found, dtype=np.float64))


class _Accountant(PRVAccountant):  # type: ignore[misc]
    """Opacus's accountant on a grid whose size is known before it is allocated."""

    def __init__(self, entries: tuple[LossSteps, ...], grid: Domain) -> None:
        super().__init__()
        self.history = [(e.noise_multiplier, e.sample_rate, e.steps) for e in entries]
        self._grid = grid

    def _get_domain(
        self,
        prvs: list[PoissonSubsampledGaussianPRV],
        num_self_compositions: list[int],
        eps_error: float,
        delta_error: float,
    ) -> Domain:
        return self._grid


def random_variable_epsilon(entries: tuple[LossSteps, ...], delta: float) -> float | None:
    """Return the bound of Opacus's PRV accountant, within about 0.5 % of the truth.

    Args:
        entries: plain ones.
        delta: in (0, 1).

    Returns:
        None if the grid would be too large, or the accountant gives up.
    """
    # Above an error of 1 the accountant's choice of the grid is not proven (its own comment).
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
    slack = delta / 1000
    count = sum(entry.steps for entry in entries)
    # Gopi et al. (2021), remark 5.6 and theorem 5.5, as in Opacus.
    reach = 3 + max(
        error,
        renyi_epsilon(entries, slack / 4),
        *(renyi_epsilon((entry.once(),), slack / (8 * count)) for entry in entries),
    )
    mesh = error / math.sqrt(count * math.log(12 / slack) / 2)
    if mesh <= 0 or not 2 * reach / mesh <= _LARGEST_GRID:
        return None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            accountant = _Accountant(entries, Domain.create_aligned(-reach, reach, mesh))
            value = float(accountant.get_epsilon(delta, eps_error=error, delta_error=slack))
        except (ValueError, RuntimeError, ArithmeticError, MemoryError):
            return None
    return value if math.isfinite(value) and value > 0 else None
