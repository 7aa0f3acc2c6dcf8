"""``fedmed pki enroll``, ``install``, ``rotate``: the side of a site or of the server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from fedmed.commands.pki_dialogue import (
    add_passphrase_option,
    confirmed,
    new_passphrase,
    present_passphrase,
    say,
)
from fedmed.errors import TrustError
from fedmed.trust.bundle import MAX_BYTES, read_bundle
from fedmed.trust.enrolment import enroll, install, rotate
from fedmed.trust.fingerprints import root_fingerprint
from fedmed.trust.member_folder import NEXT, REQUEST, ROOT, TLS_KEY
from fedmed.trust.protected_files import read_public
from fedmed.trust.roster import Role


def add_commands(commands: Any) -> None:
    """Add the subcommands of a member to those of ``fedmed pki``."""
    enrolling = commands.add_parser(
        "enroll",
        help="member: make keys and a request for certificates",
        description="Make this machine's keys, which never leave it, and request.json, which goes "
        "to the consortium. Then read the fingerprint to the consortium over the phone.",
    )
    enrolling.add_argument("name", help="of the member: lower-case letters, digits, - and _")
    enrolling.add_argument("--role", choices=[role.value for role in Role], default="site")
    enrolling.add_argument(
        "--host",
        nargs="+",
        default=[],
        help="names and addresses by which sites reach the server; none for a site",
    )
    _add_folder(enrolling)
    enrolling.add_argument(
        "--no-passphrase", action="store_true", help="leave the keys unencrypted (mode 0600)"
    )
    enrolling.set_defaults(action=_enroll)
    installing = commands.add_parser(
        "install",
        help="member: take over what the consortium sent",
        description="Check a bundle and take it over: certificates for the keys here, the roster "
        "and the list of revoked certificates. Older ones are refused.",
    )
    installing.add_argument("bundle", type=Path, help="NAME.bundle.json or update.bundle.json")
    _add_folder(installing)
    installing.add_argument(
        "--root-fingerprint", help="as the consortium reads it over the phone; the first time only"
    )
    installing.set_defaults(action=_install)
    rotating = commands.add_parser(
        "rotate",
        help="member: make new keys and a request; due in the last 30 of 90 days",
        description="Make new keys beside the present ones, which are used until the certificates "
        "of the new ones are installed.",
    )
    _add_folder(rotating)
    rotating.add_argument("--host", nargs="+", help="new names and addresses of the server")
    rotating.set_defaults(action=_rotate)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, required=True, help="of this member")
    add_passphrase_option(parser)


def _enroll(parsed: argparse.Namespace, console: Console) -> int:
    passphrase = (
        None
        if parsed.no_passphrase
        else new_passphrase(parsed.passphrase_file, f"the keys of {parsed.name}")
    )
    request = enroll(parsed.folder, parsed.name, Role(parsed.role), parsed.host, passphrase)
    _tell_request(parsed.folder / REQUEST, request.fingerprint(), console)
    return 0


def _rotate(parsed: argparse.Namespace, console: Console) -> int:
    passphrase = present_passphrase(parsed.passphrase_file, parsed.folder / TLS_KEY)
    request = rotate(parsed.folder, passphrase, parsed.host)
    _tell_request(parsed.folder / NEXT / REQUEST, request.fingerprint(), console)
    return 0


def _install(parsed: argparse.Namespace, console: Console) -> int:
    data = read_public(parsed.bundle, MAX_BYTES)
    said: str | None = parsed.root_fingerprint
    if said is None and not (parsed.folder / ROOT).exists():
        said = root_fingerprint(read_bundle(data).publication.root)
        say(console, f"Fingerprint of the root: {said}")
        if not confirmed(
            console,
            "Does the consortium read this fingerprint to you over the phone?",
            "--root-fingerprint",
        ):
            raise TrustError("The fingerprint was not confirmed; nothing was installed.")
    passphrase = present_passphrase(parsed.passphrase_file, parsed.folder / TLS_KEY)
    publication = install(parsed.folder, data, passphrase, said)
    roster = publication.roster
    say(
        console,
        f"Installed in {parsed.folder}: roster version {roster.version} of "
        f"{roster.consortium!r}, {len(roster.names(Role.site))} sites; the list of revoked "
        f"certificates holds until {publication.crl.next_update_utc:%Y-%m-%d}.",
        f"fedmed pki status --folder {parsed.folder} tells more.",
    )
    return 0


def _tell_request(path: Path, fingerprint: str, console: Console) -> None:
    say(
        console,
        f"Wrote {path}: send it to the consortium. The private keys stay here.",
        f"Fingerprint of the request: {fingerprint}",
        "Read it to the consortium over the phone: they sign only if theirs is the same.",
    )
