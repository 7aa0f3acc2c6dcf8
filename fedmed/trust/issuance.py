"""What the root's certificates look like (RFC 5280)."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmed.trust.roster import Role

# Clocks differ: what is signed is valid from a little before it was made.
BACKDATED = timedelta(minutes=10)
ROOT_VALIDITY = timedelta(days=3652)
MEMBER_DAYS = 90
OVERLAP_DAYS = 30

PublicKey = EllipticCurvePublicKey | Ed25519PublicKey


class Purpose(StrEnum):
    """What a member's certificate is for; exactly one extended key usage each."""

    site_tls = "site_tls"
    server_tls = "server_tls"
    signing = "signing"


USAGES = {
    Purpose.site_tls: ExtendedKeyUsageOID.CLIENT_AUTH,
    Purpose.server_tls: ExtendedKeyUsageOID.SERVER_AUTH,
    # Document signing (RFC 9336): no TLS implementation takes such a certificate.
    Purpose.signing: x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36"),
}


def tls_purpose(role: Role) -> Purpose:
    """Return what a role's TLS certificate is for: sites call, servers answer."""
    return Purpose.site_tls if role is Role.site else Purpose.server_tls


def member_uri(role: Role, name: str) -> str:
    """Return the URI that names a member in its certificates, ``urn:fedmed:ROLE:NAME``."""
    return f"urn:fedmed:{role.value}:{name}"


def tls_key_sha256(key: PublicKey) -> str:
    """Return the hex SHA-256 of a key's SubjectPublicKeyInfo (DER), as the roster has it."""
    return hashlib.sha256(
        key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    ).hexdigest()


def present(at: datetime | None) -> datetime:
    """Return the time given, or now, in whole seconds as certificates have it."""
    return (at or datetime.now(UTC)).replace(microsecond=0)


def general_name(host: str) -> x509.GeneralName:
    """Return a host name or an address as a subject alternative name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def root_certificate(
    key: EllipticCurvePrivateKey, consortium: str, not_before: datetime, not_after: datetime
) -> x509.Certificate:
    """Make the self-signed certificate of a consortium's root, which signs members directly."""
    name = _common_name(consortium)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(key, hashes.SHA384())
    )


def member_certificate(
    root_key: EllipticCurvePrivateKey,
    root: x509.Certificate,
    key: PublicKey,
    purpose: Purpose,
    role: Role,
    name: str,
    hosts: Sequence[str],
    not_before: datetime,
    not_after: datetime,
) -> x509.Certificate:
    """Make a member's certificate; checks nothing, the authority has.

    Args:
        root_key: of the root.
        root: its certificate.
        key: the member's public key.
        purpose: the one extended key usage.
        role: of the member, in its URI.
        name: of the member, in its URI and as common name.
        hosts: names and addresses of a server; none for a site.
        not_before: begin of its validity.
        not_after: end of its validity.
    """
    names = [x509.UniformResourceIdentifier(member_uri(role, name))]
    return (
        x509.CertificateBuilder()
        .subject_name(_common_name(name))
        .issuer_name(root.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(
            x509.SubjectAlternativeName([*names, *(general_name(host) for host in hosts)]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([USAGES[purpose]]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()),
            critical=False,
        )
        .sign(root_key, hashes.SHA384())
    )


def signing_request(
    key: EllipticCurvePrivateKey, role: Role, name: str, hosts: Sequence[str]
) -> x509.CertificateSigningRequest:
    """Make a certificate signing request (RFC 2986), signed with the key it asks for."""
    names = [x509.UniformResourceIdentifier(member_uri(role, name))]
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_common_name(name))
        .add_extension(
            x509.SubjectAlternativeName([*names, *(general_name(host) for host in hosts)]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
