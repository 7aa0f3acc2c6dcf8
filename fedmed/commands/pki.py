"""``fedmed pki``: certificates and keys."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedmed.trust.certificates import create_authority, create_site_key, issue_server_certificate


def pki_command(arguments: Sequence[str], console: Console) -> int:
    """Run ``fedmed pki demo``.

    Raises:
        FedmedError: with what is wrong and the way out.
    """
    parser = argparse.ArgumentParser(
        prog="fedmed pki",
        description="Certificates and keys of a consortium.",
        epilog="example:\n  fedmed pki demo certificates --sites cs du fg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="everything for a trial on one machine",
        description="Make an authority, a server certificate and one key a site, all on this "
        "machine. For trials only: in a consortium each key is made where it is used.",
    )
    demo.add_argument("folder", type=Path, help="where the files go")
    demo.add_argument("--sites", nargs="+", required=True, help="names of the sites")
    demo.add_argument(
        "--hosts", nargs="+", default=["localhost", "127.0.0.1"], help="names of the server"
    )
    parsed = parser.parse_args(arguments)
    create_authority(parsed.folder, "fedmed demo authority")
    issue_server_certificate(parsed.folder, tuple(parsed.hosts))
    for site in parsed.sites:
        create_site_key(parsed.folder / "sites", site)
    console.print(
        f"Wrote {parsed.folder}: ca.crt, server.crt and keys of {len(parsed.sites)} sites"
    )
    return 0
