"""The bundle that is handed to whoever audits a run: a folder, or a zip file of it."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from fedmed.errors import ConfigurationError, ProtocolError
from fedmed.trust.audit.log import CHECKPOINTS_FILE, LOG_FILE, ROSTER_FILE

# A leaf of 1,000 sites has 30 MB; nobody's file makes the auditor's machine hold more than this.
MAX_LINE_BYTES = 128 * 2**20
MAX_ROSTER_BYTES = 64 * 2**20


class Bundle:
    """Reads the files of a bundle; makes no use of what they say.

    Args:
        path: a run's folder, its ``audit`` folder, or a zip file of the latter.

    Raises:
        ConfigurationError: if there is no bundle at this path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._prefix = ""
        if path.is_file():
            self._prefix = _find_in_zip(path)
        elif (path / "audit" / LOG_FILE).is_file():
            self.path = path / "audit"
        elif not (path / LOG_FILE).is_file():
            raise ConfigurationError(
                f"{path.name}: no bundle of a transparency log; give the folder RUN/audit, which "
                f"has {LOG_FILE}, or a zip file of it."
            )

    def log_lines(self) -> Iterator[bytes]:
        """Yield the lines of ``log.jsonl`` without line breaks.

        Raises:
            ProtocolError: if one is torn or far too long.
        """
        return self._lines(LOG_FILE)

    def checkpoint_lines(self) -> Iterator[bytes]:
        """Yield the lines of ``checkpoints.jsonl`` without line breaks.

        Raises:
            ProtocolError: if the file is missing, or a line is torn or far too long.
        """
        return self._lines(CHECKPOINTS_FILE)

    def roster(self) -> bytes:
        """Return the content of ``roster.json``.

        Raises:
            ProtocolError: if it is missing or far too long.
        """
        with self._open(ROSTER_FILE) as file:
            data = file.read(MAX_ROSTER_BYTES + 1)
        if len(data) > MAX_ROSTER_BYTES:
            raise ProtocolError(f"{ROSTER_FILE} is too long.")
        return data

    def _lines(self, name: str) -> Iterator[bytes]:
        number = 0
        with self._open(name) as file:
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                if not line.endswith(b"\n"):
                    raise ProtocolError(f"{name}, line {number}: it is torn, or far too long.")
                yield line[:-1]

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            if self.path.is_dir():
                with (self.path / name).open("rb") as file:
                    yield file
            else:
                with (
                    zipfile.ZipFile(self.path) as archive,
                    archive.open(self._prefix + name) as file,
                ):
                    yield file
        except (FileNotFoundError, KeyError) as error:
            raise ProtocolError(f"{name} is missing in the bundle.") from error
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
            raise ProtocolError(f"{name} cannot be read: the bundle is damaged.") from error


def _find_in_zip(path: Path) -> str:
    """Return the folder within a zip file, with a slash, in which the log is."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigurationError(f"{path.name}: neither a folder nor a zip file.") from error
    found = [name for name in names if PurePosixPath(name).name == LOG_FILE]
    if len(found) != 1:
        raise ConfigurationError(f"{path.name}: not one {LOG_FILE} is in it, but {len(found)}.")
    return found[0].removesuffix(LOG_FILE)
