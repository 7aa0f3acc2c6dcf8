"""A site's durable record of the privacy that its patients have spent.

An append-only file of JSON lines, synced to disk. A round's cost is reserved before its first
noisy step; a reservation is never taken back, so that a crash counts as spent. The ledger spans
rounds, restarts and runs: the same images spend from one account.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedmed.errors import PrivacyError
from fedmed.training.accounting import GaussianSteps, epsilon_spent


@dataclass(frozen=True)
class Reservation:
    """One round's cost.

    Attributes:
        run: identifier of the run.
        round: number of the round.
        repeatable: identifies seeded noise, for tests: a repeated round with the very same noise
            publishes nothing new and is counted once. Empty in production.
        steps: what the round does.
    """

    run: str
    round: int
    steps: GaussianSteps
    repeatable: str = ""


class Ledger:
    """The ledger of one site.

    Args:
        path: file; its folder is made if needed. Mode 0600.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._entries = _read(path)

    @property
    def entries(self) -> tuple[Reservation, ...]:
        """All reservations, oldest first."""
        return tuple(self._entries)

    def epsilon(self, delta: float, planned: Sequence[GaussianSteps] = ()) -> float:
        """Return what is spent, and would be with ``planned`` steps, at ``delta``."""
        return epsilon_spent([*(e.steps for e in self._entries), *planned], delta)

    def reserve(
        self, reservation: Reservation, *, delta: float, max_epsilon: float | None
    ) -> float:
        """Write a round's cost to disk and return epsilon with it.

        Raises:
            PrivacyError: if ``max_epsilon`` would be passed; nothing is written then.
        """
        if reservation.repeatable and reservation in self._entries:
            return self.epsilon(delta)
        epsilon = self.epsilon(delta, [reservation.steps])
        if max_epsilon is not None and epsilon > max_epsilon:
            raise PrivacyError(
                f"Round {reservation.round} would bring epsilon to {epsilon:.3f}, above this "
                f"site's limit of {max_epsilon:g} (site.max_epsilon). Nothing was trained."
            )
        _append(self._path, reservation)
        self._entries.append(reservation)
        return epsilon


def _append(path: Path, reservation: Reservation) -> None:
    line = json.dumps(asdict(reservation), sort_keys=True) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> list[Reservation]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    if complete != text:
        # A line torn by a crash was never synced, so its round never began: cut it off.
        os.truncate(path, len(complete.encode()))
    lines = complete.split("\n")
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            values = json.loads(line)
            steps = GaussianSteps(**values.pop("steps"))
            entries.append(Reservation(steps=steps, **values))
        except (ValueError, TypeError, KeyError) as error:
            raise PrivacyError(
                f"{path.name}, line {number}: the privacy ledger is damaged. Restore it from a "
                "copy; without it fedmed cannot know what has been spent."
            ) from error
    return entries
