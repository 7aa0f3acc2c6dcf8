"""Where the passphrase of private keys comes from: a file or the environment, no command line."""

from __future__ import annotations

import os
from pathlib import Path

from fedmed.errors import ConfigurationError
from fedmed.trust.protected_files import read_private

VARIABLE = "FEDMED_PASSPHRASE"
FILE_VARIABLE = "FEDMED_PASSPHRASE_FILE"
MIN_BYTES = 12
_MAX_BYTES = 1024


def find_passphrase(file: Path | None = None) -> bytes | None:
    """Return the passphrase; never asks.

    Args:
        file: the setting ``link.passphrase_file`` or ``--passphrase-file``, which wins over
            ``FEDMED_PASSPHRASE_FILE``, which wins over ``FEDMED_PASSPHRASE``.

    Returns:
        The passphrase without the line's end; None if none of the three is set.

    Raises:
        ConfigurationError: the file is missing, readable by others or too long, or the passphrase
            is empty.
    """
    if file is None and os.environ.get(FILE_VARIABLE):
        file = Path(os.environ[FILE_VARIABLE])
    if file is not None:
        return _checked(read_private(file, _MAX_BYTES).rstrip(b"\r\n"), file.name)
    text = os.environ.get(VARIABLE)
    return None if text is None else _checked(text.encode(), VARIABLE)


def require_strong(passphrase: bytes) -> None:
    """Refuse a passphrase for a new key that can be guessed.

    Raises:
        ConfigurationError: shorter than 12 bytes.
    """
    if len(passphrase) < MIN_BYTES:
        raise ConfigurationError(
            f"the passphrase is shorter than {MIN_BYTES} characters; four random words are good"
        )


def _checked(passphrase: bytes, source: str) -> bytes:
    if not passphrase:
        raise ConfigurationError(f"{source} holds an empty passphrase")
    return passphrase
