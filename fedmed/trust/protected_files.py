"""Files that are private from their first byte, never written over unasked, replaced whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fedmed.durable_files import sync_folder
from fedmed.errors import ConfigurationError

PRIVATE = 0o600
PUBLIC = 0o644


def require_private_mode(path: Path) -> None:
    """Refuse a secret that others than its owner can read or change.

    Raises:
        ConfigurationError: the file is missing or its mode is too wide; the message has the
            command that puts it right.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path.name}: {error.strerror}") from error
    _check_mode(path, mode)


def read_private(path: Path, limit: int = 65536) -> bytes:
    """Read a secret that only its owner can read.

    Raises:
        ConfigurationError: missing, readable by others, or longer than ``limit`` bytes.
    """
    try:
        with path.open("rb") as file:
            # Of the open file: the path may lead to another one by now.
            _check_mode(path, stat.S_IMODE(os.fstat(file.fileno()).st_mode))
            return _read(file.fileno(), path, limit)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path.name}: {error.strerror}") from error


def read_public(path: Path, limit: int = 16 * 2**20) -> bytes:
    """Read a file of at most ``limit`` bytes.

    Raises:
        ConfigurationError: missing or too long.
    """
    try:
        with path.open("rb") as file:
            return _read(file.fileno(), path, limit)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path.name}: {error.strerror}") from error


def make_folder(folder: Path, *, private: bool = False) -> None:
    """Make a folder where it is missing; a private one is for its owner only.

    Raises:
        ConfigurationError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700 if private else 0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make the folder {folder}: {error.strerror}") from error


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that must not exist, with its final mode from the start.

    Raises:
        ConfigurationError: it exists (a link counts), or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{path.name} exists in the folder {path.parent.name!r} and is not written over; "
            "remove it, or choose another folder"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"cannot write {path.name}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def replace(path: Path, content: bytes, mode: int) -> None:
    """Replace a file so that a crash leaves either the old or the new one, whole.

    Raises:
        ConfigurationError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    write_new(temporary, content, mode)
    temporary.replace(path)
    sync_folder(path.parent)


def _read(descriptor: int, path: Path, limit: int) -> bytes:
    if os.fstat(descriptor).st_size > limit:
        raise ConfigurationError(f"{path.name} is longer than such a file ever is; is it another?")
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read(limit)


def _check_mode(path: Path, mode: int) -> None:
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(
            f"others can read the private file {path.name} (mode {mode:04o}); "
            f"run: chmod 600 {path.name}"
        )
