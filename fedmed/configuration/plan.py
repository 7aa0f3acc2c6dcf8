"""The plan of a run: what the server and every site must agree on, to the byte.

The plan travels as canonical JSON with its SHA-256. A site parses it into these types (an unknown
key, a wrong type or an impossible value is refused) and checks it against its own settings.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedmed.configuration.groups import (
    FederationConfig,
    ModelConfig,
    PreprocessingConfig,
    PrivacyConfig,
    StrategyConfig,
    TaskConfig,
    TrainingConfig,
    TransportConfig,
)
from fedmed.configuration.schema import open_schema
from fedmed.configuration.validation import validate_plan
from fedmed.errors import ConfigurationError

MAX_PLAN_BYTES = 64 * 1024


@dataclass(frozen=True)
class PlanSettings:
    """All settings that shape the trained model.

    Attributes:
        seed: of initial weights, patient splits, batches and augmentation. Never of privacy noise.
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)
    seed: int = 0


@dataclass(frozen=True)
class Plan(PlanSettings):
    """What the server proposes and each site checks."""

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no white space."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    def sha256(self) -> str:
        """Return the hex SHA-256 of :meth:`to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Parse and validate a plan that came from outside.

        Raises:
            ConfigurationError: if it is too long, no JSON, has unknown or missing keys, values of
                the wrong type, or an impossible combination.
        """
        if len(text) > MAX_PLAN_BYTES:
            raise ConfigurationError(f"The plan is longer than {MAX_PLAN_BYTES} bytes.")
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ConfigurationError("The plan is not a JSON object.")
            # OmegaConf resolves "${...}" even in values; a plan from outside has no use for it.
            if "${" in text:
                raise ConfigurationError("The plan holds an interpolation.")
            merged = OmegaConf.merge(open_schema(cls), OmegaConf.create(values))
            plan = OmegaConf.to_object(merged)
        except (ValueError, RecursionError, OmegaConfBaseException) as error:
            raise ConfigurationError(f"The plan cannot be read: {type(error).__name__}.") from error
        if not isinstance(plan, cls):
            raise ConfigurationError("The plan cannot be read.")
        validate_plan(plan)
        return plan
