"""The survivors that the server has named in a round, kept on disk.

A site confirms one set of survivors for a round, for ever (``secagg/journal.py``). A server that
was stopped after it had named them must try the round again with these sites and no others, or
the sites refuse it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fedmed.durable_files import replace_durably
from fedmed.errors import ConfigurationError


class NamedSurvivors:
    """The newest survivors of each purpose.

    Args:
        path: JSON file; is made when missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, purpose: str, number: int) -> tuple[str, ...]:
        """Return the survivors named in a round, sorted; empty if none were.

        Raises:
            ConfigurationError: the file is damaged.
        """
        entry = self._read().get(purpose)
        if not isinstance(entry, dict) or entry.get("round") != number:
            return ()
        return tuple(sorted(str(site) for site in entry.get("survivors", ())))

    def keep(self, purpose: str, number: int, survivors: Sequence[str]) -> None:
        """Write the survivors down; they are on the disk when this returns.

        Raises:
            ConfigurationError: the file is damaged.
        """
        entries = self._read()
        entries[purpose] = {"round": number, "survivors": sorted(survivors)}
        replace_durably(self._path, json.dumps(entries, sort_keys=True).encode(), 0o644)

    def _read(self) -> dict[str, object]:
        try:
            entries = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError:
            entries = None
        if not isinstance(entries, dict):
            raise ConfigurationError(
                f"{self._path.name} is damaged. Delete it; if sites then refuse the round because "
                "of other survivors, the message tells which ones they want."
            )
        return entries
