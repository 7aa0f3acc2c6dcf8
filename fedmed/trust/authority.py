"""The root of a consortium: a folder on a machine that is not the server's, best without network.

Folder: ``root.key`` (encrypted), ``root.crt``, ``roster.json``, ``crl.pem`` and ``issued/`` with
every certificate ever signed, which is what revocation goes by.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from fedmed.errors import ConfigurationError, TrustError
from fedmed.trust import issuance
from fedmed.trust.bundle import Bundle
from fedmed.trust.certificate_checks import is_key, named_member, public_key
from fedmed.trust.issuance import Purpose, present
from fedmed.trust.issued import (
    ISSUED,
    issued_certificates,
    newest_certificates,
    write_issued,
)
from fedmed.trust.key_files import load_ec_key, write_private_key
from fedmed.trust.protected_files import PUBLIC, make_folder, write_new
from fedmed.trust.protected_files import replace as replace_file
from fedmed.trust.publication import (
    CRL,
    ROOT,
    ROSTER,
    Publication,
    check_validity,
    read_publication,
)
from fedmed.trust.request import Request
from fedmed.trust.revocation import (
    CRL_DAYS,
    crl_number,
    issue_crl,
    number_of,
    revoked_serials,
    roster_version_of,
)
from fedmed.trust.roster import Member, MemberKeys, Roster
from fedmed.trust.roster_file import sign_roster

ROOT_KEY = "root.key"
_MAX_CONSORTIUM = 64  # characters of a common name (RFC 5280, appendix A.1)


class Authority:
    """A consortium's folder, opened with the root's key.

    :meth:`admit` and :meth:`revoke` prepare a change; :meth:`publish` signs it.

    Attributes:
        folder: of the consortium.
        publication: what was published last.
    """

    def __init__(
        self, folder: Path, key: ec.EllipticCurvePrivateKey, publication: Publication
    ) -> None:
        self.folder = folder
        self.publication = publication
        self._key = key
        self._members = {member.name: member for member in publication.roster.members}
        self._revoked = revoked_serials(publication.crl)
        self._unpublished: list[x509.Certificate] = []

    @classmethod
    def create(
        cls, folder: Path, consortium: str, passphrase: bytes | None, at: datetime | None = None
    ) -> Authority:
        """Make a root, valid for ten years, with an empty roster.

        Args:
            folder: is made when missing.
            consortium: name of the consortium.
            passphrase: of the root's key; None for trials and simulations only.
            at: as if it was made then.

        Raises:
            ConfigurationError: the name cannot be used, or there is a root already.
        """
        if not 0 < len(consortium) <= _MAX_CONSORTIUM or not consortium.isprintable():
            raise ConfigurationError(
                f"a consortium's name has 1 to {_MAX_CONSORTIUM} printable characters"
            )
        make_folder(folder, private=True)
        make_folder(folder / ISSUED)
        now = present(at)
        key = ec.generate_private_key(ec.SECP384R1())
        root = issuance.root_certificate(
            key, consortium, now - issuance.BACKDATED, now + issuance.ROOT_VALIDITY
        )
        write_private_key(folder / ROOT_KEY, key, passphrase)
        write_new(folder / ROOT, root.public_bytes(Encoding.PEM), PUBLIC)
        empty = Roster(consortium, 0, int(now.timestamp()), ())
        crl = issue_crl(key, root, {}, crl_number(0, 0), now - issuance.BACKDATED, now)
        authority = cls(folder, key, Publication(root, sign_roster(empty, key), crl))
        authority.publish(at)
        return authority

    @classmethod
    def open(cls, folder: Path, passphrase: bytes | None) -> Authority:
        """Open a consortium's folder.

        Raises:
            ConfigurationError: a file is missing, or the passphrase is missing or wrong.
            TrustError: roster or revocation list are not signed by this root.
        """
        publication = read_publication(folder)
        key = load_ec_key(folder / ROOT_KEY, passphrase)
        if key.public_key() != publication.root.public_key():
            raise TrustError(f"{ROOT_KEY} is not the key of {ROOT}.")
        return cls(folder, key, publication)

    def admit(
        self,
        request: Request,
        *,
        replace: bool = False,
        days: int = issuance.MEMBER_DAYS,
        at: datetime | None = None,
    ) -> None:
        """Certify a member's keys; those that they replace hold for another 30 days at most.

        Whether the request is the one that the member made is the caller's to check, by its
        fingerprint. A request that was admitted before changes nothing.

        Args:
            request: of a member.
            replace: take keys of a known name that its present keys do not vouch for; those are
                revoked.
            days: validity.
            at: as if it was admitted then.

        Raises:
            TrustError: another member of this name, or keys that were certified before.
        """
        now = present(at)
        check_validity(self.publication.root, "the root", at)
        member = self._members.get(request.name)
        if member is not None and self._is_certified(request, member):
            return
        self._require_new_keys(request)
        kept: tuple[MemberKeys, ...] = ()
        if member is not None:
            if replace:
                self._revoke_certificates(request.name, now)
            else:
                kept = _overlapping(member, request, now)
        begin = now - issuance.BACKDATED
        end = min(now + timedelta(days=days), self.publication.root.not_valid_after_utc)
        self._issue(request, issuance.tls_purpose(request.role), begin, end)
        self._issue(request, Purpose.signing, begin, end)
        keys = MemberKeys(
            request.signing_key.public_bytes_raw().hex(),
            issuance.tls_key_sha256(request.tls_key),
            int(begin.timestamp()),
            int(end.timestamp()),
        )
        self._members[request.name] = Member(request.name, request.role, (*kept, keys))

    def revoke(self, name: str, at: datetime | None = None) -> None:
        """Take a member out of the roster and revoke all its certificates.

        Raises:
            TrustError: there is none of this name.
        """
        if name not in self._members:
            raise TrustError(
                f"{name!r} is not in the roster of the consortium: nothing to revoke "
                "(fedmed pki status tells who is)."
            )
        self._revoke_certificates(name, present(at))
        del self._members[name]

    def publish(self, at: datetime | None = None, crl_days: float = CRL_DAYS) -> Publication:
        """Sign roster and revocation list with the changes made, and write them.

        The roster stays as it is, to the byte, when nobody came, went or changed keys; the list
        is signed anew in any case.

        Args:
            at: as if it was published then.
            crl_days: until the next list is due.
        """
        now = present(at)
        held = self.publication
        members = tuple(self._members[name] for name in sorted(self._members))
        signed = held.signed_roster
        issue = number_of(held.crl) + 1 - crl_number(held.roster.version, 0)
        # A list of a newer version than the roster: writing was cut short in between.
        whole = roster_version_of(held.crl) == held.roster.version
        if members != held.roster.members or held.roster.version == 0 or not whole:
            version = max(held.roster.version, roster_version_of(held.crl)) + 1
            signed = sign_roster(
                Roster(held.roster.consortium, version, int(now.timestamp()), members), self._key
            )
            issue = 0
        crl = issue_crl(
            self._key,
            held.root,
            self._revoked,
            crl_number(signed.roster.version, issue),
            now - issuance.BACKDATED,
            now + timedelta(days=crl_days),
        )
        self.publication = Publication(held.root, signed, crl)
        write_issued(self.folder, self._unpublished)
        self._unpublished.clear()
        replace_file(self.folder / CRL, crl.public_bytes(Encoding.PEM), PUBLIC)
        replace_file(self.folder / ROSTER, signed.to_bytes(), PUBLIC)
        return self.publication

    def bundle(self, name: str | None = None) -> Bundle:
        """Return what a member installs; without a name what everybody installs.

        Raises:
            TrustError: there is no member of this name.
        """
        members = self.publication.roster.members
        chosen = [member for member in members if name in (None, member.name)]
        if name is not None and not chosen:
            raise TrustError(f"{name!r} is not in the roster of the consortium.")
        issued = issued_certificates(self.folder)
        return Bundle(
            self.publication,
            {member.name: newest_certificates(member, issued) for member in chosen},
        )

    def _issue(self, request: Request, purpose: Purpose, begin: datetime, end: datetime) -> None:
        certificate = issuance.member_certificate(
            self._key,
            self.publication.root,
            request.signing_key if purpose is Purpose.signing else request.tls_key,
            purpose,
            request.role,
            request.name,
            () if purpose is Purpose.signing else request.hosts,
            begin,
            end,
        )
        self._unpublished.append(certificate)

    def _is_certified(self, request: Request, member: Member) -> bool:
        newest = member.keys[-1]
        return (
            member.role is request.role
            and is_key(request.signing_key, newest)
            and is_key(request.tls_key, newest)
        )

    def _require_new_keys(self, request: Request) -> None:
        # Keys once certified may be those of a revoked member, or of another one.
        keys = (request.signing_key, request.tls_key)
        for certificate in self._issued():
            if public_key(certificate) in keys:
                raise TrustError(
                    "The request is for a key that was certified before. Make new ones: "
                    "fedmed pki enroll into an empty folder, or fedmed pki rotate."
                )

    def _revoke_certificates(self, name: str, now: datetime) -> None:
        for certificate in self._issued():
            if named_member(certificate)[1] == name:
                self._revoked.setdefault(certificate.serial_number, now)

    def _issued(self) -> list[x509.Certificate]:
        return [*issued_certificates(self.folder), *self._unpublished]


def _overlapping(member: Member, request: Request, now: datetime) -> tuple[MemberKeys, ...]:
    """Return the keys that hold on beside new ones, each for 30 days more at most."""
    if member.role is not request.role:
        raise TrustError(
            f"{member.name!r} is a {member.role.value} of the consortium; choose another name."
        )
    present_keys = [keys for keys in member.keys if keys.not_after >= now.timestamp()]
    vouching = (Ed25519PublicKey.from_public_bytes(_raw(keys)) for keys in present_keys)
    if not any(request.continues(key) for key in vouching):
        raise TrustError(
            f"{member.name!r} is a member already, and its present keys do not vouch for this "
            "request. A member makes such a request with fedmed pki rotate. If its keys are lost "
            "or have expired, sign with --replace, which revokes them."
        )
    limit = int((now + timedelta(days=issuance.OVERLAP_DAYS)).timestamp())
    return tuple(replace(keys, not_after=min(keys.not_after, limit)) for keys in present_keys)


def _raw(keys: MemberKeys) -> bytes:
    return bytes.fromhex(keys.signing_key)
