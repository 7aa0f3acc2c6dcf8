"""Whole consortia in one folder, for simulations and trials: no key is protected by a passphrase.

In a real consortium each key is made on the machine where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from fedmed.errors import ConfigurationError
from fedmed.trust.authority import ROOT_KEY, Authority
from fedmed.trust.credentials import load_credentials
from fedmed.trust.enrolment import enroll, install
from fedmed.trust.fingerprints import root_fingerprint
from fedmed.trust.issuance import MEMBER_DAYS, ROOT_VALIDITY
from fedmed.trust.protected_files import PUBLIC, write_new
from fedmed.trust.publication import ROOT
from fedmed.trust.revocation import CRL_DAYS
from fedmed.trust.roster import Role

SERVER = "server"
CONSORTIUM = "consortium"


def simulated_consortium(folder: Path, sites: Sequence[str]) -> None:
    """Make the members of a simulation, or leave those that are there.

    Writes ``root.crt`` and the members' folders ``server`` and ``SITE``. All is valid for ten
    years and the root's key is thrown away: the roster of a simulation does not change.

    Args:
        folder: is made when missing.
        sites: names.

    Raises:
        ConfigurationError: the folder holds a consortium of other sites, or a name cannot be
            used.
        TrustError: what is there does not hold any more.
    """
    if (folder / ROOT).exists():
        roster = load_credentials(folder / SERVER, None).roster
        if roster.names(Role.site) != tuple(sorted(sites)):
            raise ConfigurationError(
                f"the folder {folder.name!r} holds the keys of other sites "
                f"({', '.join(roster.names(Role.site))}); remove it, or choose another one"
            )
        for site in sites:
            load_credentials(folder / site, None)
        return
    days = ROOT_VALIDITY.days
    authority = _make(folder, sites, ("localhost",), days, days, None)
    (authority.folder / ROOT_KEY).unlink()
    # Written last: with it the folder is complete.
    write_new(folder / ROOT, authority.publication.root.public_bytes(Encoding.PEM), PUBLIC)


def demo_consortium(
    folder: Path, sites: Sequence[str], hosts: Sequence[str], at: datetime | None = None
) -> Authority:
    """Make a consortium for a trial on one machine, with the terms of a real one.

    Args:
        folder: gets ``consortium`` (with the root's key), ``server`` and a folder for each site.
        sites: names.
        hosts: names and addresses of the server.
        at: as if it was made then.

    Raises:
        ConfigurationError: there is a consortium already, or a name or host cannot be used.
    """
    return _make(folder, sites, hosts, MEMBER_DAYS, CRL_DAYS, at)


def _make(
    folder: Path,
    sites: Sequence[str],
    hosts: Sequence[str],
    days: int,
    crl_days: int,
    at: datetime | None,
) -> Authority:
    if taken := {SERVER, CONSORTIUM} & set(sites):
        raise ConfigurationError(f"{taken.pop()!r} is taken; choose another name for the site")
    authority = Authority.create(folder / CONSORTIUM, "fedmed trial, not for patients", None, at)
    members = {SERVER: Role.server, **dict.fromkeys(sites, Role.site)}
    for name, role in members.items():
        names = hosts if role is Role.server else ()
        authority.admit(enroll(folder / name, name, role, names, None), days=days, at=at)
    authority.publish(at, crl_days)
    pinned = root_fingerprint(authority.publication.root)
    for name in members:
        install(folder / name, authority.bundle(name).to_bytes(), None, pinned, at)
    return authority
