"""A site's durable record of the privacy that its patients have spent.

An append-only file of JSON lines, synced to disk. A round's cost is reserved before its first
noisy step; a reservation is never taken back, so that a crash counts as spent. The account is the
study: rounds, restarts, runs and both units spend from it, because the patients are the same.
Several processes may share the file: each holds an exclusive lock while it reads, decides and
writes.
"""

from __future__ import annotations

import fcntl
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from fedmed.configuration.groups import Unit
from fedmed.durable_files import (
    Identity,
    append_durably,
    identity,
    locked_lines,
    make_folder,
    read_whole_lines,
)
from fedmed.errors import BudgetError, PrivacyError
from fedmed.training.accounting import GaussianSteps, Spending, epsilon_for
from fedmed.training.reservation import Reservation

__all__ = ["Ledger", "Reservation"]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Ledger:
    """The ledger of one site.

    Args:
        path: file; its folder is made if needed. Mode 0600.
        clock: gives the UTC time that a reservation is stamped with.

    Raises:
        PrivacyError: if the file is damaged.
    """

    def __init__(self, path: Path, clock: Callable[[], str] = _now) -> None:
        self._path = path
        self._clock = clock
        self._entries: list[Reservation] = []
        self._seen: Identity | None = None
        make_folder(path.parent)
        if path.exists():
            with self._locked():
                pass

    @classmethod
    def read_only(cls, path: Path) -> tuple[Reservation, ...]:
        """Return a ledger's reservations and change nothing, not even a torn last line.

        Raises:
            PrivacyError: if the file is damaged.
            OSError: if it cannot be read.
        """
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            content = file.read()
        return tuple(_parse(content, path.name))

    @property
    def entries(self) -> tuple[Reservation, ...]:
        """All reservations that this process knows of, oldest first."""
        return tuple(self._entries)

    def epsilon(
        self, study: str, unit: Unit, delta: float, planned: Sequence[GaussianSteps] = ()
    ) -> float:
        """Return what a study has spent, as one unit sees it, at ``delta``.

        Args:
            study: all its reservations count, whatever their run, unit or site name.
            unit: whose epsilon; steps of the other unit are converted.
            delta: in (0, 1).
            planned: further steps with this unit, counted as if they were done.

        Returns:
            ``inf`` if steps of the other unit leave no guarantee worth a number.
        """
        if self._path.exists():
            with self._locked():
                pass
        return study_epsilon(self._entries, study, unit, delta, planned)

    def reserve(
        self, reservation: Reservation, *, delta: float, max_epsilon: float | None
    ) -> float:
        """Write a round's cost to disk and return epsilon of its study and unit with it.

        Args:
            reservation: what the round will do; the time is filled in.
            delta: in (0, 1).
            max_epsilon: the site's limit; None is none.

        Raises:
            BudgetError: if ``max_epsilon`` would be passed, or no finite epsilon would be left;
                nothing is written then.
            PrivacyError: if the reservation makes no sense, or cannot be written.
        """
        reservation = replace(reservation, time=self._clock())
        reservation.check()
        study, unit = reservation.study, reservation.unit
        with self._locked() as descriptor:
            if reservation.repeatable and reservation in self._entries:
                return study_epsilon(self._entries, study, unit, delta)
            epsilon = study_epsilon(self._entries, study, unit, delta, [reservation.steps])
            # Without a limit a figure is still needed: a round that leaves no guarantee is none.
            if not (math.isfinite(epsilon) and (max_epsilon is None or epsilon <= max_epsilon)):
                raise BudgetError(self._refusal(reservation, epsilon, max_epsilon))
            append_durably(descriptor, reservation.to_line())
            self._entries.append(reservation)
            self._seen = identity(descriptor)
        return epsilon

    def _refusal(self, reservation: Reservation, epsilon: float, limit: float | None) -> str:
        others = any(
            entry.study == reservation.study and entry.unit != reservation.unit
            for entry in self._entries
        )
        why = (
            " Rounds that protected another unit were trained on the same patients and count too."
            if others
            else ""
        )
        above = "" if limit is None else f", above this site's limit of {limit:g}"
        return (
            f"Round {reservation.round} would bring epsilon to {epsilon:.3f}{above} "
            f"(site.max_epsilon). Nothing was trained.{why} `fedmed "
            "ledger show` tells what was spent. Raise site.max_epsilon if the site's data "
            "protection officer agrees, ask for a plan with more noise or fewer rounds, or, for "
            "other patients only, name another site.study."
        )

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the file's exclusive lock, with the entries as they are on disk."""
        try:
            with locked_lines(self._path) as descriptor:
                if identity(descriptor) != self._seen:
                    # A torn line was never synced, so its round never began.
                    content = read_whole_lines(descriptor)
                    self._entries = _parse(content, self._path.name)
                    self._seen = identity(descriptor)
                yield descriptor
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> PrivacyError:
        return PrivacyError(
            f"{self._path.name}: the privacy ledger cannot be used ({error.strerror}), and without "
            "it nothing is trained. See to free space and to the rights of the site's state "
            "folder (site.state)."
        )


def study_epsilon(
    entries: Sequence[Reservation],
    study: str,
    unit: Unit,
    delta: float,
    planned: Sequence[GaussianSteps] = (),
) -> float:
    """Return epsilon of one study and unit over ``entries`` and ``planned`` steps of that unit."""
    history = [
        Spending(entry.steps, entry.unit, entry.images_per_patient)
        for entry in entries
        if entry.study == study
    ]
    return epsilon_for(unit, [*history, *(Spending(steps, unit, 1) for steps in planned)], delta)


def _parse(content: bytes, name: str) -> list[Reservation]:
    """Read all whole lines; what follows the last line break is left out."""
    entries = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            entries.append(Reservation.from_line(line))
        except (ValueError, TypeError, KeyError, PrivacyError, RecursionError) as error:
            raise PrivacyError(
                f"{name}, line {number}: the privacy ledger is damaged. Restore it from a "
                "copy; without it fedmed cannot know what has been spent."
            ) from error
    return entries
