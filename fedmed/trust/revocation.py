"""The signed list of revoked certificates (RFC 5280, section 5); out of date, nothing is believed.

A list belongs to one version of the roster: its number is ``version * 65536 + issue``. Whoever
carries the files cannot put an old roster beside a new list.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding

from fedmed.errors import TrustError
from fedmed.trust.issuance import BACKDATED, present
from fedmed.trust.malformed import MALFORMED, whole_octets

CRL_DAYS = 30
_ISSUES = 1 << 16


def crl_number(version: int, issue: int) -> int:
    """Return the number of a roster version's ``issue``-th list, from 0."""
    if not 0 <= issue < _ISSUES:
        raise ValueError("more lists of one roster version than numbers")
    return version * _ISSUES + issue


def number_of(crl: x509.CertificateRevocationList) -> int:
    """Return the number of a list that :func:`read_crl` has read; it grows with every list."""
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def roster_version_of(crl: x509.CertificateRevocationList) -> int:
    """Return the version of the roster that a list belongs to."""
    return number_of(crl) // _ISSUES


def issue_crl(
    root_key: EllipticCurvePrivateKey,
    root: x509.Certificate,
    revoked: Mapping[int, datetime],
    number: int,
    this_update: datetime,
    next_update: datetime,
) -> x509.CertificateRevocationList:
    """Make a list.

    Args:
        root_key: of the root.
        root: its certificate.
        revoked: serial numbers and since when.
        number: see :func:`crl_number`.
        this_update: from when it is to be believed.
        next_update: until when.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.subject)
        .last_update(this_update)
        .next_update(next_update)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()),
            critical=False,
        )
    )
    for serial, since in sorted(revoked.items()):
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
        )
    return builder.sign(root_key, hashes.SHA384())


def read_crl(pem: bytes, root: x509.Certificate) -> x509.CertificateRevocationList:
    """Read ``crl.pem`` and check its signature; whether it is in force is :func:`check_fresh`'s.

    Raises:
        TrustError: of another form, or not signed by this root.
    """
    try:
        crl = x509.load_pem_x509_crl(pem)
        holds = crl_is_by(crl, root)
        number_of(crl)
        spelt = crl.public_bytes(Encoding.PEM)
        whole = whole_octets(crl)
    except MALFORMED as error:
        raise TrustError("The list of revoked certificates cannot be read.") from error
    if not holds:
        raise TrustError(
            "The list of revoked certificates is not signed by the root of the consortium."
        )
    if spelt != pem or not whole or crl.next_update_utc is None:
        raise TrustError("The list of revoked certificates is not of the agreed form.")
    return crl


def crl_is_by(crl: x509.CertificateRevocationList, root: x509.Certificate) -> bool:
    """Tell whether a root signed a list."""
    key = root.public_key()
    return (
        isinstance(key, EllipticCurvePublicKey)
        and crl.issuer == root.subject
        and isinstance(crl.signature_hash_algorithm, hashes.SHA384)
        and crl.is_signature_valid(key)
    )


def check_fresh(crl: x509.CertificateRevocationList, at: datetime | None = None) -> None:
    """Refuse a list that is out of date: a newer one may say otherwise.

    Raises:
        TrustError: its next update is due, or it is from the future.
    """
    now = present(at)
    until = crl.next_update_utc
    if until is None or now >= until:
        raise TrustError(
            f"The list of revoked certificates (crl.pem) ran out on {until:%Y-%m-%d %H:%M} UTC. "
            "Nobody is believed until a new one is installed: the consortium runs fedmed pki "
            "update, each member fedmed pki install."
        )
    if now + BACKDATED < crl.last_update_utc:
        raise TrustError(
            "The list of revoked certificates (crl.pem) is from the future; put this machine's "
            "clock right."
        )


def is_revoked(crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> bool:
    """Tell whether a certificate is on the list."""
    return crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


def revoked_serials(crl: x509.CertificateRevocationList) -> dict[int, datetime]:
    """Return what is on the list: serial numbers and since when."""
    return {entry.serial_number: entry.revocation_date_utc for entry in crl}
