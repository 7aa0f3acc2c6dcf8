"""Strategies by name."""

from __future__ import annotations

from collections.abc import Callable

from fedmed.configuration.groups import StrategyConfig
from fedmed.errors import ConfigurationError
from fedmed.federation.strategies.base import Strategy
from fedmed.federation.strategies.fedavg import FedAvg

STRATEGIES: dict[str, Callable[[StrategyConfig], Strategy]] = {"fedavg": FedAvg}


def build_strategy(config: StrategyConfig) -> Strategy:
    """Return the strategy of a configuration.

    Raises:
        ConfigurationError: if there is no strategy of that name.
    """
    if config.name not in STRATEGIES:
        known = ", ".join(sorted(STRATEGIES))
        raise ConfigurationError(f"strategy.name={config.name}: choose one of {known}.")
    return STRATEGIES[config.name](config)
