"""What server and sites agree on before a round: the hash that every message of it carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from fedmed.errors import ProtocolError
from fedmed.trust.canonical import Json, sha256_json

JOINING = "join"
TRAINING = "train"
EVALUATION = "evaluate"
PURPOSES = (JOINING, TRAINING, EVALUATION)


@dataclass(frozen=True)
class RoundContext:
    """One attempt at one round.

    Attributes:
        run: identifier of the run.
        purpose: ``join``, ``train`` or ``evaluate``.
        round: number; 0 while joining.
        attempt: number of this try of the round, from 1.
        cohort: names of the sites asked, sorted; empty while joining.
        roster: hex SHA-256 of the roster.
        plan: hex SHA-256 of the plan (model architecture and configuration).
        model: hex SHA-256 of the weights' float32 bytes; empty while joining.
        weight_bound: largest weight (number of examples) of one site; 0 while joining.
        log_size: leaves in the transparency log before this round.
        log_root: hex Merkle root over them; empty when there are none.
    """

    run: str
    purpose: str
    round: int
    attempt: int
    cohort: tuple[str, ...]
    roster: str
    plan: str
    model: str
    weight_bound: int
    log_size: int
    log_root: str

    def to_json(self) -> dict[str, Json]:
        """Return the fields as JSON."""
        return {**asdict(self), "cohort": list(self.cohort)}

    def sha256(self) -> str:
        """Return the hex SHA-256 that binds every message to this attempt."""
        return sha256_json({"protocol": "fedmed round context 1", **self.to_json()})

    @classmethod
    def from_json(cls, fields: Mapping[str, Json]) -> RoundContext:
        """Read a context that came from outside.

        Raises:
            ProtocolError: if a field is missing, unknown, of a wrong type, or impossible.
        """
        texts = ("run", "purpose", "roster", "plan", "model", "log_root")
        numbers = ("round", "attempt", "weight_bound", "log_size")
        if set(fields) != {*texts, *numbers, "cohort"}:
            raise ProtocolError("A round's context has other fields than agreed.")
        cohort = fields["cohort"]
        if (
            any(type(fields[name]) is not str for name in texts)
            or any(type(fields[name]) is not int for name in numbers)
            or not isinstance(cohort, list)
            or any(type(name) is not str for name in cohort)
        ):
            raise ProtocolError("A field of a round's context has a wrong type.")
        if cohort != sorted(set(cohort)):
            raise ProtocolError("The cohort of a round is not sorted, or names a site twice.")
        if fields["purpose"] not in PURPOSES or any(fields[name] < 0 for name in numbers):  # type: ignore[operator]
            raise ProtocolError("A field of a round's context is out of range.")
        return cls(**{**fields, "cohort": tuple(cohort)})  # type: ignore[arg-type]
