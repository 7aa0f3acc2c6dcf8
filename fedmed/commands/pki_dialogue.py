"""What ``fedmed pki`` says, and asks for where the command line and the environment lack it."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path

from rich.console import Console

from fedmed.errors import ConfigurationError
from fedmed.trust.passphrase import find_passphrase, require_strong

_WAY_OUT = (
    "set FEDMED_PASSPHRASE_FILE to a file that holds it (mode 0600), or give --passphrase-file"
)


def add_passphrase_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--passphrase-file``."""
    parser.add_argument(
        "--passphrase-file", type=Path, help="file that holds the passphrase, mode 0600"
    )


def present_passphrase(file: Path | None, key: Path) -> bytes | None:
    """Return the passphrase of a key that exists; asks if it is encrypted and none is given.

    Raises:
        ConfigurationError: the key is encrypted, no passphrase is given, and there is no terminal.
    """
    given = find_passphrase(file)
    if given is not None or not key.exists() or b"ENCRYPTED" not in key.read_bytes()[:64]:
        return given
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{key.name} needs its passphrase: {_WAY_OUT}")
    return getpass.getpass(f"Passphrase of {key.name}: ").encode()


def new_passphrase(file: Path | None, what: str) -> bytes:
    """Return the passphrase for new keys; asks twice if none is given.

    Raises:
        ConfigurationError: none is given and there is no terminal, it is too short, or the two
            differ.
    """
    given = find_passphrase(file)
    if given is None:
        if not sys.stdin.isatty():
            raise ConfigurationError(f"{what} needs a passphrase: {_WAY_OUT}")
        given = getpass.getpass(f"New passphrase for {what}: ").encode()
        if getpass.getpass("Once more: ").encode() != given:
            raise ConfigurationError("the two passphrases differ; nothing was written")
    require_strong(given)
    return given


def confirmed(console: Console, question: str, option: str) -> bool:
    """Ask a question that only ``yes`` answers.

    Raises:
        ConfigurationError: there is no terminal to ask at.
    """
    if not sys.stdin.isatty():
        raise ConfigurationError(f"nobody can be asked here: {question} Give it with {option}")
    return console.input(f"{question} [yes/no] ", markup=False).strip().lower() == "yes"


def say(console: Console, *lines: str) -> None:
    """Print lines as they are, to be copied: not wrapped, no markup."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
