"""``fedmed audit``: attack the privacy of the training code; check and read a run's log."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module

from rich.console import Console

Command = Callable[[Sequence[str], Console], int]

# Module and function by subcommand. A module is imported only when it is asked for: whoever checks
# a log need not wait for torch.
_COMMANDS = {
    "privacy": ("audit_privacy", "privacy_command", "attack the training code at given settings"),
    "verify": ("audit_verify", "verify_command", "check a run's transparency log, offline"),
    "show": ("audit_show", "show_command", "read a run's transparency log"),
}


def audit_command(arguments: Sequence[str], console: Console) -> int:
    """Run ``fedmed audit privacy``, ``verify`` or ``show``.

    Returns:
        The exit code: 0 if what was claimed holds, 1 if an attack could not have shown a fault.

    Raises:
        PrivacyError: if an attack shows more leakage than is claimed.
        ProtocolError: if something in a log does not hold.
        FedmedError: with what is wrong in the settings and the way out.
    """
    parser = argparse.ArgumentParser(
        prog="fedmed audit",
        description="Check what is claimed.",
        epilog="\n".join(f"  {name:<9}{text}" for name, (_, _, text) in _COMMANDS.items())
        + "\n\nfedmed audit COMMAND --help tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=tuple(_COMMANDS))
    module, function, _ = _COMMANDS[parser.parse_args(list(arguments[:1])).command]
    command: Command = getattr(import_module(f"fedmed.commands.{module}"), function)
    return command(arguments[1:], console)
