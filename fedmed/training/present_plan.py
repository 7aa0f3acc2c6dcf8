"""What a site notes of the plan it takes part in, so that its ledger can look ahead."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fedmed.configuration.groups import Unit
from fedmed.training.accounting import GaussianSteps

FILE_NAME = "present_plan.json"


@dataclass(frozen=True)
class PresentPlan:
    """The privacy of a run that a site has joined.

    Attributes:
        run: identifier of the run.
        rounds: of the whole run.
        study: account of the ledger that it spends from.
        unit: what is protected.
        delta: at which epsilon is stated.
        steps: of one round.
        images_per_patient: largest number of training images of one patient.
    """

    run: str
    rounds: int
    study: str
    unit: Unit
    delta: float
    steps: GaussianSteps
    images_per_patient: int

    def write(self, state: Path) -> None:
        """Write ``present_plan.json`` into a site's state folder, whole or not at all."""
        target = state / FILE_NAME
        draft = target.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(self), sort_keys=True) + "\n", encoding="utf-8")
        draft.replace(target)

    @classmethod
    def read(cls, state: Path) -> PresentPlan | None:
        """Return the noted plan; None when there is none that can be read."""
        try:
            values = json.loads((state / FILE_NAME).read_text(encoding="utf-8"))
            steps = GaussianSteps(**values.pop("steps"))
            unit = Unit(values.pop("unit"))
            return cls(steps=steps, unit=unit, **values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
