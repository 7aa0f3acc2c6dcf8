"""The ``fedmed`` command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from rich.console import Console

from fedmed import __version__
from fedmed.errors import FedmedError

_INTERRUPTED = 130
Command = Callable[[Sequence[str], Console], int]

# Commands whose words are Hydra overrides, each with the function that runs it ...
_WITH_SETTINGS = {
    "simulate": "simulate",
    "server": "serve_federation",
    "client": "join_federation",
    "doctor": "examine_site",
}
# ... and those with subcommands of their own.
_WITH_PARSER = ("data", "pki", "ledger", "audit")

USAGE = """\
usage: fedmed COMMAND [settings]

commands:
  simulate   a whole federation on this machine
  server     the consortium's server (also: python -m server)
  client     one hospital's client (also: python -m clients)
  doctor     is a hospital's client ready, and how fast will it be
  data       make demo archives, check archives
  pki        certificates and keys
  ledger     what the privacy ledger of a site says
  audit      check and read a run's log; attack the privacy of a training

fedmed COMMAND --help tells more. Settings are Hydra overrides: key=value."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 done, 1 other error, 2 wrong settings, 4 data, 5 privacy or policy, 6 protocol,
    7 federation, 8 certificates, 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    if not given or given[0] in ("-h", "--help"):
        console.print(USAGE, markup=False, highlight=False)
        return 0
    if given[0] == "--version":
        console.print(f"fedmed {__version__}", highlight=False)
        return 0
    errors = Console(stderr=True)
    try:
        return _run(given[0], given[1:], console)
    except FedmedError as error:
        errors.print(f"fedmed: {error}", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        errors.print("fedmed: stopped", markup=False)
        return _INTERRUPTED


def _run(name: str, rest: list[str], console: Console) -> int:
    # Imported on demand: torch and Flower take seconds, an error in a word should not.
    if name in _WITH_PARSER:
        command: Command = getattr(
            import_module(f"fedmed.commands.{name}"),
            f"{name}_command",
        )
        return command(rest, console)
    if name in _WITH_SETTINGS:
        module = import_module(f"fedmed.commands.{name}")
        if "-h" in rest or "--help" in rest:
            text = _settings_help(name, module.EXAMPLES)
            console.print(text, markup=False, highlight=False, soft_wrap=True)
            return 0
        run: Command = getattr(module, _WITH_SETTINGS[name])
        return run(rest, console)
    raise FedmedError(f"There is no command {name}. See fedmed --help.")


def _settings_help(name: str, examples: str) -> str:
    from fedmed.commands.settings_help import settings_help  # noqa: PLC0415

    return settings_help(name, examples)


if __name__ == "__main__":
    sys.exit(main())
