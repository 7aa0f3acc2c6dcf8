"""Certificates and lists that are wrong in one way each, properly signed otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from fedmed.trust.authority import ROOT_KEY, Authority
from fedmed.trust.certificate_checks import named_member
from fedmed.trust.enrolment import install
from fedmed.trust.issuance import Purpose, member_certificate, tls_purpose
from fedmed.trust.key_files import load_ec_key
from fedmed.trust.publication import CRL
from fedmed.trust.request import Request, make_request
from fedmed.trust.revocation import issue_crl, number_of, revoked_serials
from fedmed.trust.roster import Role
from fedmed.trust.simulated import demo_consortium


def consortium(folder: Path, sites: Sequence[str] = ("north", "south", "west")) -> Authority:
    """Make a server and sites; their folders lie beside ``authority.folder``."""
    return demo_consortium(folder, sites, ("localhost", "127.0.0.1"))


def forge_tls(
    authority: Authority,
    member_folder: Path,
    *,
    name: str | None = None,
    role: Role | None = None,
    purpose: Purpose | None = None,
    hosts: Sequence[str] = (),
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> x509.Certificate:
    """Write a ``tls.crt`` over the member's own key, by the true root, with anything changed."""
    present = x509.load_pem_x509_certificate((member_folder / "tls.crt").read_bytes())
    true_role, true_name = named_member(present)
    role, name = role or true_role, name or true_name
    now = datetime.now(UTC).replace(microsecond=0)
    certificate = member_certificate(
        _root_key(authority),
        authority.publication.root,
        present.public_key(),  # type: ignore[arg-type]
        purpose or tls_purpose(role),
        role,
        name,
        hosts,
        not_before or now - timedelta(hours=1),
        not_after or now + timedelta(days=1),
    )
    (member_folder / "tls.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    return certificate


def other_authority(folder: Path, member_folder: Path) -> x509.Certificate:
    """Have another root of the same name sign the member's ``tls.crt``; return that root."""
    other = Authority.create(folder, "fedmed trial, not for patients", None)
    forge_tls(other, member_folder)
    return other.publication.root


def revoke_and_install(authority: Authority, name: str, *folders: Path) -> None:
    """Revoke a member, and install the update in these folders."""
    authority.revoke(name)
    authority.publish()
    for folder in folders:
        install(folder, authority.bundle().to_bytes(), None)


def expire_crl(authority: Authority, *folders: Path) -> None:
    """Write a list that ran out a minute ago in these folders."""
    now = datetime.now(UTC).replace(microsecond=0)
    crl = issue_crl(
        _root_key(authority),
        authority.publication.root,
        revoked_serials(authority.publication.crl),
        number_of(authority.publication.crl),
        now - timedelta(days=30),
        now - timedelta(minutes=1),
    )
    for folder in folders:
        (folder / CRL).write_bytes(crl.public_bytes(Encoding.PEM))


def _root_key(authority: Authority) -> ec.EllipticCurvePrivateKey:
    return load_ec_key(authority.folder / ROOT_KEY, None)


def new_request(name: str, previous: Ed25519PrivateKey | None = None) -> Request:
    """Return a site's request for fresh keys, which ``previous`` vouches for."""
    tls, signing = ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()
    return make_request(name, Role.site, (), tls, signing, previous)
