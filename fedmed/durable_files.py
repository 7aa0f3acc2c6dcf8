"""Files that survive a crash: appended line by line under a lock, or replaced whole.

What a site has promised (the ledger, the journal of secure aggregation, the witness) and what a
server has signed (the log) must be on disk before anybody is told.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRIVATE = 0o600

Identity = tuple[int, int, int]
"""Inode, size and time of change: differs once another process has written."""


def append_durably(descriptor: int, data: bytes) -> None:
    """Write at the end of an open file and wait for the disk.

    Raises:
        OSError: if the disk did not take all of it; a part may be in the file.
    """
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)


def replace_durably(path: Path, data: bytes, mode: int) -> None:
    """Replace a file so that after a crash either the old or the new one is there, whole.

    Raises:
        OSError: if it cannot be written; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        append_durably(descriptor, data)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    sync_folder(path.parent)


@contextmanager
def locked_lines(path: Path) -> Iterator[int]:
    """Open a private file of lines for reading and appending, under its exclusive lock.

    The file and its folder are made if they are missing.

    Raises:
        OSError: if it cannot be opened or locked.
    """
    make_folder(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, PRIVATE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.fchmod(descriptor, PRIVATE)
        # An empty file may be a new one, whose name is not on disk yet.
        if not os.fstat(descriptor).st_size:
            sync_folder(path.parent)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def locked_alone(path: Path) -> Iterator[None]:
    """Hold a lock that only one process can have; the file stays.

    Raises:
        BlockingIOError: if another process has it.
        OSError: if the file cannot be made.
    """
    make_folder(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def read_whole_lines(descriptor: int) -> bytes:
    """Return all whole lines of a file, and cut off one that a crash has torn.

    A torn line was never synced, so nobody was told of it.

    Raises:
        OSError: if it cannot be read or cut.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)
    pieces = []
    while piece := os.read(descriptor, 1 << 20):
        pieces.append(piece)
    content = b"".join(pieces)
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        os.ftruncate(descriptor, whole)
        os.fsync(descriptor)
    return content[:whole]


def identity(descriptor: int) -> Identity:
    """Return what tells whether another process has written since."""
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_mtime_ns


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that their names are on disk.

    Raises:
        OSError: if it cannot be made.
    """
    if not folder.exists():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk: syncing a file alone does not (fsync(2)).

    Raises:
        OSError: if the disk does not take it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
