"""``fedmed pki``: who belongs to the consortium."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from fedmed.commands import pki_consortium, pki_member
from fedmed.commands.pki_dialogue import say
from fedmed.commands.pki_status import show_status
from fedmed.trust.simulated import demo_consortium

_EXAMPLES = """\
a consortium, step by step:
  (consortium) fedmed pki init --folder consortium --name "Glioma study"
  (hospital)   fedmed pki enroll north --folder credentials
  (consortium) fedmed pki sign request.json --folder consortium
  (hospital)   fedmed pki install north.bundle.json --folder credentials
  (anybody)    fedmed pki status --folder credentials

Private keys stay on the machine that made them. The root's folder belongs on a machine that is not
the server's, best one without network. Passphrases come from FEDMED_PASSPHRASE_FILE,
FEDMED_PASSPHRASE or --passphrase-file, or are asked for."""

_Action = Callable[[argparse.Namespace, Console], int]


def pki_command(arguments: Sequence[str], console: Console) -> int:
    """Run ``fedmed pki``.

    Raises:
        FedmedError: with what is wrong and the way out.
    """
    parser = argparse.ArgumentParser(
        prog="fedmed pki",
        description="Certificates and keys of a consortium.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    pki_consortium.add_commands(commands)
    pki_member.add_commands(commands)
    status = commands.add_parser(
        "status", help="who is a member and until when; not 0 if something has expired"
    )
    status.add_argument("--folder", type=Path, required=True, help="of a consortium or a member")
    status.set_defaults(action=_status)
    demo = commands.add_parser(
        "demo",
        help="everything for a trial on one machine",
        description="Make a consortium, a server and sites, all on this machine and without "
        "passphrases. For trials only: in a consortium each key is made where it is used.",
    )
    demo.add_argument("folder", type=Path, help="where the files go")
    demo.add_argument("--sites", nargs="+", required=True, help="names of the sites")
    demo.add_argument(
        "--hosts", nargs="+", default=["localhost", "127.0.0.1"], help="names of the server"
    )
    demo.set_defaults(action=_demo)
    parsed = parser.parse_args(arguments)
    action: _Action = parsed.action
    return action(parsed, console)


def _status(parsed: argparse.Namespace, console: Console) -> int:
    return show_status(parsed.folder, console)


def _demo(parsed: argparse.Namespace, console: Console) -> int:
    demo_consortium(parsed.folder, parsed.sites, parsed.hosts)
    folders = ", ".join(["consortium", "server", *parsed.sites])
    say(console, f"Wrote {parsed.folder}: {folders}. For trials only: no key has a passphrase.")
    return 0
