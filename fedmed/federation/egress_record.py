"""The record of what left a site: one JSON line a message, for the data protection officer."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedmed.errors import PrivacyError

_RoundKey = tuple[str | None, str | None, int | None]


@dataclass(frozen=True)
class EgressEntry:
    """One message that leaves.

    Attributes:
        kind: type of the message, such as ``masked``.
        bytes: of all that the message holds.
        sha256: hex, over the same bytes.
        run, purpose, round, attempt: which round it is for; all None where that is not known.
    """

    kind: str
    bytes: int
    sha256: str
    run: str | None
    purpose: str | None
    round: int | None
    attempt: int | None

    @property
    def _key(self) -> _RoundKey:
        return self.run, self.purpose, self.round


class EgressRecord:
    """The file of one site, which is only ever added to; mode 0600.

    Args:
        path: its folder is made if needed.

    Raises:
        PrivacyError: if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sent: defaultdict[_RoundKey, int] = defaultdict(int)
        self._torn = False
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise PrivacyError(
                f"{path.name}: the record of what left cannot be read ({error.strerror}). See to "
                "the rights of the site's state folder (site.state)."
            ) from error
        self._torn = bool(content) and not content.endswith(b"\n")
        for line in content.split(b"\n"):
            self._count(line)

    def bytes_of_round(self, entry: EgressEntry) -> int:
        """Return the bytes that have left for an entry's round, in all attempts and starts.

        Messages that belong to no round are not added up.
        """
        return 0 if entry.run is None else self._sent[entry._key]

    def write(self, entry: EgressEntry) -> None:
        """Add a message, before it leaves.

        Raises:
            PrivacyError: if it cannot be written; the message must not leave then.
        """
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(entry)}
        text = "\n" * self._torn + json.dumps(line, sort_keys=True) + "\n"
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                # Torn from here until the whole line is there.
                self._torn = True
                file.write(text)
        except OSError as error:
            raise PrivacyError(
                f"{self._path.name}: what leaves cannot be written down ({error.strerror}), so "
                "nothing leaves. See to free space and to the rights of the site's state folder "
                "(site.state)."
            ) from error
        self._torn = False
        self._sent[entry._key] += entry.bytes

    def _count(self, line: bytes) -> None:
        try:
            fields = json.loads(line)
            values = [fields[name] for name in ("run", "purpose", "round", "bytes")]
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # torn by a crash, or of an earlier version
        if [type(value) for value in values] == [str, str, int, int]:
            self._sent[values[0], values[1], values[2]] += values[3]
