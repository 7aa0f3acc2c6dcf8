"""What a site has promised in secure aggregation, on disk before anyone is told.

An append-only file of JSON lines, synced before a method returns. It holds, for each run, purpose
and round, the one set of survivors that the site has confirmed, and each attempt (context) that
the site has begun, and revealed shares in. A restart forgets all secrets but none of these.

The rule of one set of survivors keeps two sums of one round from being subtracted. It says nothing
of two rounds: whoever sees the sums of two rounds can subtract these, and differential privacy is
what bounds that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedmed.durable_files import Identity, append_durably, identity, locked_lines, read_whole_lines
from fedmed.errors import PrivacyError, ProtocolError
from fedmed.trust.canonical import canonical_json, parse_canonical
from fedmed.trust.context import RoundContext

BEGUN = "begun"
CONFIRMED = "confirmed"
REVEALED = "revealed"
_FIELDS = {"type": str, "run": str, "purpose": str, "round": int, "context": str, "survivors": list}


@dataclass(frozen=True)
class JournalEntry:
    """One line.

    Attributes:
        type: ``begun``, ``confirmed`` or ``revealed``.
        run, purpose, round: as in the context.
        context: hex SHA-256 of the context, which has the attempt's number in it.
        survivors: sorted names; empty in ``begun``.
    """

    type: str
    run: str
    purpose: str
    round: int
    context: str
    survivors: tuple[str, ...] = ()

    def same_round(self, context: RoundContext) -> bool:
        """Return whether this is of the context's round, whatever the attempt."""
        mine = (self.run, self.purpose, self.round)
        return mine == (context.run, context.purpose, context.round)


class Journal:
    """The journal of one site; several processes may share the file.

    Args:
        path: file; its folder is made if needed. Mode 0600.

    Raises:
        PrivacyError: if the file is damaged or cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: list[JournalEntry] = []
        self._seen: Identity | None = None
        with self._locked():
            pass

    @property
    def entries(self) -> tuple[JournalEntry, ...]:
        """All lines that this process knows of, oldest first."""
        return tuple(self._entries)

    def begin(self, context: RoundContext) -> None:
        """Write down that an attempt begins.

        Raises:
            ProtocolError: if it has begun before: each attempt needs its own number.
            PrivacyError: if the journal cannot be written.
        """
        with self._locked() as descriptor:
            if self._has(BEGUN, context):
                raise ProtocolError(
                    f"This site has begun attempt {context.attempt} at round {context.round} "
                    "before. A further attempt needs a number of its own."
                )
            self._append(descriptor, BEGUN, context, ())

    def confirm(self, context: RoundContext, survivors: tuple[str, ...]) -> None:
        """Write down the survivors of a round, before they are confirmed.

        Raises:
            ProtocolError: if this attempt was confirmed before, or another attempt at the same
                round with other survivors.
            PrivacyError: if the journal cannot be written.
        """
        with self._locked() as descriptor:
            if self._has(CONFIRMED, context):
                raise ProtocolError("This site has confirmed the survivors of this attempt before.")
            for entry in self._entries:
                other = entry.type == CONFIRMED and entry.survivors != survivors
                if other and entry.same_round(context):
                    raise ProtocolError(
                        f"This site has confirmed round {context.round} with other survivors "
                        f"({', '.join(entry.survivors)}). A second sum of one round would tell "
                        "the difference; ask for the same sites, or go on to the next round."
                    )
            self._append(descriptor, CONFIRMED, context, survivors)

    def reveal(self, context: RoundContext, survivors: tuple[str, ...]) -> None:
        """Write down that shares are revealed, before they are.

        Raises:
            ProtocolError: if they were revealed before, or these survivors were never confirmed
                in this attempt.
            PrivacyError: if the journal cannot be written.
        """
        confirmed = _entry(CONFIRMED, context, survivors)
        with self._locked() as descriptor:
            if confirmed not in self._entries:
                raise ProtocolError("This site has not confirmed these survivors.")
            if self._has(REVEALED, context):
                raise ProtocolError("This site has revealed its shares of this attempt before.")
            self._append(descriptor, REVEALED, context, survivors)

    def _has(self, type: str, context: RoundContext) -> bool:
        digest = context.sha256()
        return any(entry.type == type and entry.context == digest for entry in self._entries)

    def _append(
        self, descriptor: int, type: str, context: RoundContext, survivors: tuple[str, ...]
    ) -> None:
        entry = _entry(type, context, survivors)
        append_durably(descriptor, canonical_json(vars(entry)) + b"\n")
        self._entries.append(entry)
        self._seen = identity(descriptor)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the file's exclusive lock, with the entries as they are on disk."""
        try:
            with locked_lines(self._path) as descriptor:
                if identity(descriptor) != self._seen:
                    self._entries = self._parse(read_whole_lines(descriptor))
                    self._seen = identity(descriptor)
                yield descriptor
        except OSError as error:
            raise self._unusable(error) from error

    def _parse(self, content: bytes) -> list[JournalEntry]:
        lines = content.split(b"\n")[:-1]
        return [_parse(line, number, self._path.name) for number, line in enumerate(lines, start=1)]

    def _unusable(self, error: OSError) -> PrivacyError:
        return PrivacyError(
            f"{self._path.name}: the journal of secure aggregation cannot be used "
            f"({error.strerror}), and without it nothing is confirmed or revealed. See to free "
            "space and to the rights of the site's state folder (site.state)."
        )


def _entry(type: str, context: RoundContext, survivors: tuple[str, ...]) -> JournalEntry:
    return JournalEntry(
        type, context.run, context.purpose, context.round, context.sha256(), survivors
    )


def _parse(line: bytes, number: int, name: str) -> JournalEntry:
    try:
        fields = parse_canonical(line)
    except ProtocolError:
        fields = None
    if (
        not isinstance(fields, dict)
        or set(fields) != set(_FIELDS)
        or any(type(fields[key]) is not kind for key, kind in _FIELDS.items())
        or fields["type"] not in (BEGUN, CONFIRMED, REVEALED)
    ):
        raise PrivacyError(
            f"{name}, line {number}: the journal of secure aggregation is damaged. Restore it from "
            "a copy no older than the last round; without it fedmed cannot know what this site has "
            "revealed."
        )
    return JournalEntry(**{**fields, "survivors": tuple(fields["survivors"])})
