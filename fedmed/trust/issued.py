"""The folder ``issued``: every certificate that a root has signed, which is what it revokes by."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from fedmed.errors import TrustError
from fedmed.trust.bundle import MemberCertificates
from fedmed.trust.certificate_checks import is_key, named_member, public_key
from fedmed.trust.protected_files import PUBLIC, read_public, write_new
from fedmed.trust.publication import read_certificate
from fedmed.trust.roster import Member

ISSUED = "issued"


def issued_certificates(folder: Path) -> list[x509.Certificate]:
    """Return every certificate that a consortium's root has signed, in order of file names.

    Raises:
        TrustError: a file in ``issued`` is no certificate.
    """
    paths = sorted((folder / ISSUED).glob("*.crt"))
    return [read_certificate(read_public(path), path.name) for path in paths]


def write_issued(folder: Path, certificates: Iterable[x509.Certificate]) -> None:
    """Keep new certificates, one file each: ``NAME.SERIAL.crt``.

    Raises:
        ConfigurationError: one cannot be written.
    """
    for certificate in certificates:
        name = named_member(certificate)[1]
        path = folder / ISSUED / f"{name}.{certificate.serial_number:x}.crt"
        write_new(path, certificate.public_bytes(Encoding.PEM), PUBLIC)


def newest_certificates(member: Member, issued: Iterable[x509.Certificate]) -> MemberCertificates:
    """Return the certificates of a member's newest keys.

    Raises:
        TrustError: one is not among those issued.
    """
    keys = member.keys[-1]
    found = {
        isinstance(public_key(certificate), Ed25519PublicKey): certificate
        for certificate in issued
        if is_key(public_key(certificate), keys)
    }
    if len(found) != 2:
        raise TrustError(f"The folder {ISSUED!r} lacks a certificate of {member.name!r}.")
    return MemberCertificates(tls=found[False], signing=found[True])
