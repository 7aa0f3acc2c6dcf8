"""Noise that the server adds to the mean update (``privacy.model=central``), for comparisons.

Each site sends one clipped, noiseless step ``-rate * sum / (q * units)``; weighted by units, their
mean is ``-rate * total sum / (q * all units)``, which one unit moves by at most
``rate * clipping_norm / (q * all units)``.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedmed.configuration.groups import PrivacyModel
from fedmed.configuration.plan import Plan
from fedmed.federation.strategies.base import Strategy
from fedmed.federation.strategies.sum_only import SumOnly
from fedmed.training.accounting import solve_noise_multiplier
from fedmed.training.noise import NoiseSource
from fedmed.training.schedule import learning_rate


class CentralNoise:
    """Draws a round's noise for the mean update.

    Args:
        plan: with ``privacy.model=central``.
        trained: whether each value of the flat weights is trained, ``[parameters]``.
        source: of standard normal values.
    """

    def __init__(self, plan: Plan, trained: NDArray[np.bool_], source: NoiseSource) -> None:
        self._plan = plan
        self._trained = trained
        self._source = source
        self._multiplier = _multiplier(plan)

    def scale(self, number: int, units: float) -> float:
        """Return the standard deviation of round ``number``'s noise on the mean update."""
        plan = self._plan
        base = plan.privacy.learning_rate or plan.training.learning_rate
        share = (number - 1) / plan.federation.rounds
        rate = learning_rate(base, plan.training.schedule, share)
        q = plan.privacy.sample_rate or 1.0
        return rate * self._multiplier * plan.privacy.clipping_norm / (q * units)

    def __call__(self, number: int, units: float) -> NDArray[np.float64]:
        """Return noise ``[parameters]``, zero where nothing is trained."""
        noise = self._source.normal(torch.Size(self._trained.shape)).double().numpy()
        scaled: NDArray[np.float64] = noise * (self.scale(number, units) * self._trained)
        return scaled


def _multiplier(plan: Plan) -> float:
    privacy = plan.privacy
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    if privacy.target_epsilon is None or privacy.delta is None or privacy.sample_rate is None:
        raise ValueError("not a plan with central noise")  # pragma: no cover - validate_plan
    return solve_noise_multiplier(
        privacy.target_epsilon, privacy.delta, privacy.sample_rate, plan.federation.rounds
    )


def with_privacy_model(
    strategy: Strategy, plan: Plan, trained: NDArray[np.bool_], source: NoiseSource
) -> Strategy:
    """Wrap a strategy as the plan's ``privacy.model`` asks; ``local`` leaves it as it is."""
    if not plan.privacy.enabled or plan.privacy.model == PrivacyModel.local:
        return strategy
    if plan.privacy.model == PrivacyModel.distributed:
        return SumOnly(strategy)
    return SumOnly(strategy, CentralNoise(plan, trained, source))
