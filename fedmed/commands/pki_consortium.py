"""``fedmed pki init``, ``sign``, ``revoke``, ``update``: the side that holds the root."""

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
from fedmed.errors import ConfigurationError, TrustError
from fedmed.trust.authority import ROOT_KEY, Authority
from fedmed.trust.fingerprints import require_fingerprint, root_fingerprint
from fedmed.trust.issuance import MEMBER_DAYS
from fedmed.trust.protected_files import PUBLIC, read_public, replace
from fedmed.trust.request import Request, read_request
from fedmed.trust.revocation import CRL_DAYS

_MAX_REQUEST_BYTES = 65536
_UPDATE = "update.bundle.json"


def add_commands(commands: Any) -> None:
    """Add the subcommands of the consortium to those of ``fedmed pki``."""
    init = commands.add_parser(
        "init",
        help="consortium: make the root",
        description="Make the root of a consortium, valid for ten years. Its folder belongs on a "
        "machine that is not the server's, best one without network; keep a copy in a safe.",
    )
    _add_folder(init)
    init.add_argument("--name", required=True, help="of the consortium")
    init.set_defaults(action=_init)
    sign = commands.add_parser(
        "sign",
        help="consortium: admit a member, or certify its new keys",
        description="Certify the keys of a request for 90 days, once the member has read its "
        "fingerprint over the phone. Keys that are replaced hold for 30 more days.",
    )
    sign.add_argument("request", type=Path, help="request.json of the member")
    _add_folder(sign)
    sign.add_argument("--fingerprint", help="as the member reads it over the phone")
    sign.add_argument(
        "--replace",
        action="store_true",
        help="the member has lost its keys or they have expired: revoke them",
    )
    sign.add_argument("--output", type=Path, help="file to write (FOLDER/NAME.bundle.json)")
    sign.set_defaults(action=_sign)
    revoke = commands.add_parser("revoke", help="consortium: put a member out at once")
    revoke.add_argument("name", help="of the member")
    _add_folder(revoke)
    revoke.add_argument("--output", type=Path, help="file to write (FOLDER/update.bundle.json)")
    revoke.set_defaults(action=_revoke)
    update = commands.add_parser(
        "update",
        help="consortium: a new list of revoked certificates, due every 30 days",
        description="Sign a new list of revoked certificates and write the bundle that every "
        "member installs. Without it all members stop when the present list runs out.",
    )
    _add_folder(update)
    update.add_argument("--output", type=Path, help="file to write (FOLDER/update.bundle.json)")
    update.add_argument(
        "--days", type=int, default=CRL_DAYS, help=f"until the next list is due ({CRL_DAYS})"
    )
    update.set_defaults(action=_update)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, required=True, help="of the consortium")
    add_passphrase_option(parser)


def _init(parsed: argparse.Namespace, console: Console) -> int:
    passphrase = new_passphrase(parsed.passphrase_file, "the root's key")
    authority = Authority.create(parsed.folder, parsed.name, passphrase)
    root = authority.publication.root
    say(
        console,
        f"Wrote {parsed.folder}: the root, until {root.not_valid_after_utc:%Y-%m-%d}.",
        f"Fingerprint of the root: {root_fingerprint(root)}",
        "Read it over the phone to every member that installs its first bundle.",
        f"{ROOT_KEY} and its passphrase never go to the server: keep them apart, off the network.",
    )
    return 0


def _sign(parsed: argparse.Namespace, console: Console) -> int:
    request = read_request(read_public(parsed.request, _MAX_REQUEST_BYTES))
    _show(request, console)
    _require_confirmation(request, parsed.fingerprint, console)
    authority = _open(parsed)
    authority.admit(request, replace=parsed.replace)
    authority.publish()
    path = parsed.output or parsed.folder / f"{request.name}.bundle.json"
    _write_bundle(authority, request.name, path)
    update = parsed.folder / _UPDATE
    _write_bundle(authority, None, update)
    say(
        console,
        f"Wrote {path}: send it to {request.name}, who installs it (fedmed pki install).",
        f"Fingerprint of the root: {root_fingerprint(authority.publication.root)}",
        f"Roster version {authority.publication.roster.version}: all other members install "
        f"{update}, the server first.",
    )
    return 0


def _revoke(parsed: argparse.Namespace, console: Console) -> int:
    authority = _open(parsed)
    authority.revoke(parsed.name)
    authority.publish()
    path = parsed.output or parsed.folder / _UPDATE
    _write_bundle(authority, None, path)
    say(
        console,
        f"{parsed.name} is out. This takes effect at each member when it installs {path}: send "
        "it to all of them now, to the server first.",
    )
    return 0


def _update(parsed: argparse.Namespace, console: Console) -> int:
    if not 1 <= parsed.days <= MEMBER_DAYS:
        raise ConfigurationError(f"--days {parsed.days}: choose 1 to {MEMBER_DAYS}")
    authority = _open(parsed)
    publication = authority.publish(crl_days=parsed.days)
    path = parsed.output or parsed.folder / _UPDATE
    _write_bundle(authority, None, path)
    say(
        console,
        f"Wrote {path}: the list of revoked certificates until "
        f"{publication.crl.next_update_utc:%Y-%m-%d}. Send it to all members to install.",
    )
    return 0


def _open(parsed: argparse.Namespace) -> Authority:
    passphrase = present_passphrase(parsed.passphrase_file, parsed.folder / ROOT_KEY)
    return Authority.open(parsed.folder, passphrase)


def _show(request: Request, console: Console) -> None:
    hosts = f", reached as {', '.join(request.hosts)}" if request.hosts else ""
    say(
        console,
        f"Request of {request.role.value} {request.name}{hosts}.",
        f"Fingerprint of the request: {request.fingerprint()}",
    )


def _require_confirmation(request: Request, said: str | None, console: Console) -> None:
    if said is not None:
        require_fingerprint(said, request.fingerprint(), "this request")
    elif not confirmed(
        console,
        f"Does {request.name} read this fingerprint to you over the phone?",
        "--fingerprint",
    ):
        raise TrustError("The fingerprint was not confirmed; nothing was signed.")


def _write_bundle(authority: Authority, name: str | None, path: Path) -> None:
    # Replaces an older one: what is in it is signed, and members refuse to go back.
    replace(path, authority.bundle(name).to_bytes(), PUBLIC)
