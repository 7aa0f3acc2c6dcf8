"""``fedmed pki status``: who is a member, and until when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedmed.commands.pki_dialogue import say
from fedmed.errors import ConfigurationError, TrustError
from fedmed.trust.authority import ROOT_KEY
from fedmed.trust.certificate_checks import is_key, named_member
from fedmed.trust.fingerprints import root_fingerprint
from fedmed.trust.issuance import OVERLAP_DAYS, present
from fedmed.trust.issued import ISSUED, issued_certificates
from fedmed.trust.member_folder import NEXT, REQUEST, ROSTER, SIGNING_KEY, TLS_CERTIFICATE, TLS_KEY
from fedmed.trust.protected_files import read_public, require_private_mode
from fedmed.trust.publication import Publication, read_publication
from fedmed.trust.request import read_request
from fedmed.trust.revocation import is_revoked, revoked_serials, roster_version_of
from fedmed.trust.roster import Member

_CRL_WARNING_DAYS = 7
_ROOT_WARNING_DAYS = 365


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        what: a member's name, or what else runs out.
        role: of a member; empty otherwise.
        until: when it runs out; None if that does not matter.
        state: in words.
        broken: nothing goes on with it.
    """

    what: str
    role: str
    until: datetime | None
    state: str
    broken: bool = False


def show_status(folder: Path, console: Console, at: datetime | None = None) -> int:
    """Print the table.

    Returns:
        0, or the exit code of :class:`TrustError` if something has expired or does not hold.

    Raises:
        ConfigurationError: the folder is neither a consortium's nor a member's.
        TrustError: a signature does not hold.
    """
    now = present(at)
    if not (folder / ROSTER).exists():
        if (folder / REQUEST).exists():
            raise ConfigurationError(
                f"nothing is installed in {folder.name!r} yet: send {REQUEST} to the consortium "
                "and install its answer (fedmed pki install)"
            )
        raise ConfigurationError(f"{folder.name!r} is no folder of a consortium or of a member")
    publication = read_publication(folder)
    lines = [*_published(publication, now), *_members(publication, now)]
    if (folder / ISSUED).is_dir():
        require_private_mode(folder / ROOT_KEY)
        lines += _revoked(publication, folder)
    else:
        lines += _own(publication, folder, now)
    _print(publication, lines, now, console)
    return TrustError.exit_code if any(line.broken for line in lines) else 0


def _published(publication: Publication, now: datetime) -> Iterator[Line]:
    yield _dated("root", publication.root.not_valid_after_utc, now, _ROOT_WARNING_DAYS, "ends soon")
    until = publication.crl.next_update_utc or now
    yield _dated("revocation list", until, now, _CRL_WARNING_DAYS, "update now")
    if roster_version_of(publication.crl) != publication.roster.version:
        yield Line(
            "roster", "", None, "of another version than the list: update or install again", True
        )


def _members(publication: Publication, now: datetime) -> Iterator[Line]:
    for member in publication.roster.members:
        for keys in member.keys:
            until = datetime.fromtimestamp(keys.not_after, UTC)
            if keys is member.keys[-1]:
                line = _dated(member.name, until, now, OVERLAP_DAYS, "rotate now")
                yield Line(line.what, member.role.value, until, line.state, line.broken)
            elif until > now:
                yield Line(member.name, member.role.value, until, "older keys, replaced")


def _revoked(publication: Publication, folder: Path) -> Iterator[Line]:
    names = {
        named_member(certificate)
        for certificate in issued_certificates(folder)
        if is_revoked(publication.crl, certificate)
    }
    for role, name in sorted(names):
        yield Line(name, role.value, None, "revoked certificates")


def _own(publication: Publication, folder: Path, now: datetime) -> Iterator[Line]:
    for file in (TLS_KEY, SIGNING_KEY):
        require_private_mode(folder / file)
    request = read_request(read_public(folder / REQUEST))
    member = _find(publication, request.name)
    if member is None:
        yield Line("this member", request.role.value, None, "not in the roster (revoked?)", True)
    elif not (folder / TLS_CERTIFICATE).exists():
        yield Line("this member", request.role.value, None, "certificates not installed", True)
    else:
        ours = [keys for keys in member.keys if is_key(request.signing_key, keys)]
        if not ours:
            yield Line("this member", member.role.value, None, "keys not in the roster", True)
        else:
            until = datetime.fromtimestamp(ours[-1].not_after, UTC)
            line = _dated("this member", until, now, OVERLAP_DAYS, "rotate now")
            yield Line(line.what, member.role.value, until, line.state, line.broken)
    if (folder / NEXT / REQUEST).exists():
        new = read_request(read_public(folder / NEXT / REQUEST))
        signed = member is not None and is_key(new.signing_key, member.keys[-1])
        state = "signed: install the bundle" if signed else "to be signed by the consortium"
        yield Line("this member's new keys", new.role.value, None, state)
    if count := len(revoked_serials(publication.crl)):
        yield Line(f"{count} certificates", "", None, "revoked")


def _find(publication: Publication, name: str) -> Member | None:
    return next((m for m in publication.roster.members if m.name == name), None)


def _dated(what: str, until: datetime, now: datetime, warning_days: int, advice: str) -> Line:
    if now >= until:
        return Line(what, "", until, "EXPIRED", broken=True)
    return Line(what, "", until, advice if (until - now).days < warning_days else "in force")


def _print(publication: Publication, lines: list[Line], now: datetime, console: Console) -> None:
    roster = publication.roster
    say(
        console,
        f"{roster.consortium}: roster version {roster.version}, "
        f"root {root_fingerprint(publication.root)}",
    )
    table = Table("what", "role", "until", "days", "state")
    for line in lines:
        until = "" if line.until is None else f"{line.until:%Y-%m-%d}"
        days = "" if line.until is None else str((line.until - now).days)
        table.add_row(line.what, line.role, until, days, line.state)
    console.print(table)
