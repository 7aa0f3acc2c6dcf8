"""One line of the privacy ledger."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from fedmed.configuration.groups import Unit
from fedmed.errors import PrivacyError
from fedmed.training.accounting import GaussianSteps

_FIRST_FORMAT = {"run", "round", "steps", "repeatable"}
_STEPS = {"noise_multiplier", "sample_rate", "steps"}


@dataclass(frozen=True)
class Reservation:
    """One round's cost.

    Attributes:
        run: identifier of the run.
        round: number of the round.
        steps: what the round does.
        repeatable: identifies seeded noise, for tests: a repeated round with the very same noise
            publishes nothing new and is counted once. Empty in production.
        site: name of the site at that time; for the reader, since a ledger belongs to one site.
        study: the patients' account.
        unit: whose contribution the steps bound.
        images_per_patient: largest number of training images of one patient at that time.
        time: UTC, ISO 8601; not part of a reservation's identity.
    """

    run: str
    round: int
    steps: GaussianSteps
    repeatable: str = ""
    site: str = ""
    study: str = "main"
    unit: Unit = Unit.image
    images_per_patient: int = 1
    time: str = field(default="", compare=False)

    def check(self) -> None:
        """Refuse types and values that make no sense.

        Raises:
            PrivacyError: if a cost could not be computed from this reservation.
        """
        texts = (self.run, self.repeatable, self.site, self.study, self.time)
        counts = (self.round, self.images_per_patient, self.steps.steps)
        rates = (self.steps.noise_multiplier, self.steps.sample_rate)
        well_typed = (
            all(isinstance(text, str) for text in texts)
            and all(type(count) is int for count in counts)
            and all(type(rate) in (int, float) for rate in rates)
            and isinstance(self.unit, Unit)
        )
        if not (
            well_typed
            and self.steps.sensible()
            and self.round >= 0
            and self.images_per_patient >= 1
            and self.study
        ):
            raise PrivacyError(
                "A round of this noise multiplier, sampling rate and number of steps cannot be "
                "accounted for. Choose privacy.noise_multiplier above 0, a sampling rate in "
                "(0, 1] and at least one step."
            )

    def to_line(self) -> bytes:
        """Return the ledger's line, with its line break."""
        text = json.dumps(asdict(self), sort_keys=True, allow_nan=False)
        return text.encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Reservation:
        """Read a line of the ledger.

        A line of the first format has no study and no unit: study ``main``, unit ``image``, one
        image a patient.

        Raises:
            ValueError, TypeError, KeyError, PrivacyError: if the line is damaged.
        """
        values = json.loads(line.decode("utf-8"))
        if not isinstance(values, dict) or set(values["steps"]) != _STEPS:
            raise ValueError("not a reservation")
        expected = set(cls.__dataclass_fields__)
        if set(values) != expected and set(values) != _FIRST_FORMAT:
            raise ValueError("not the fields of a reservation")
        steps = GaussianSteps(**values.pop("steps"))
        unit = Unit(values.pop("unit", Unit.image))
        reservation = cls(steps=steps, unit=unit, **values)
        reservation.check()
        return reservation
