"""Federated averaging (McMahan et al., 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedmed.configuration.groups import StrategyConfig
from fedmed.federation.strategies.base import WeightedUpdate, weighted_mean
from fedmed.models.parameters import FloatVector


class FedAvg:
    """Adds the mean update, weighted by numbers of images, to the global weights."""

    def __init__(self, config: StrategyConfig) -> None:
        self._rate = config.server_learning_rate

    def apply(self, weights: FloatVector, updates: Sequence[WeightedUpdate]) -> FloatVector:
        """Return ``weights + server_learning_rate * mean update``."""
        step = weighted_mean(updates)
        step *= self._rate
        step += weights
        return step.astype(np.float32)

    def state(self) -> Mapping[str, NDArray[np.float64]]:
        """FedAvg remembers nothing."""
        return {}

    def restore(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """FedAvg remembers nothing."""
