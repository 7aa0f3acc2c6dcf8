"""Everything that a user can set: typed groups, validated once when a command starts."""

from fedmed.configuration.groups import (
    DataConfig,
    FederationConfig,
    ModelConfig,
    PreprocessingConfig,
    PrivacyConfig,
    SimulationConfig,
    SiteConfig,
    StrategyConfig,
    TaskConfig,
    TrackingConfig,
    TrainingConfig,
    TransportConfig,
)
from fedmed.configuration.plan import Plan

__all__ = [
    "DataConfig",
    "FederationConfig",
    "ModelConfig",
    "Plan",
    "PreprocessingConfig",
    "PrivacyConfig",
    "SimulationConfig",
    "SiteConfig",
    "StrategyConfig",
    "TaskConfig",
    "TrackingConfig",
    "TrainingConfig",
    "TransportConfig",
]
