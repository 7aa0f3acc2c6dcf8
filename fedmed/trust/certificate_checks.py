"""Whom a certificate speaks for: every check of a member's certificate, in one place."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedmed.errors import ProtocolError, TrustError
from fedmed.trust.issuance import USAGES, PublicKey, Purpose, present, tls_key_sha256
from fedmed.trust.malformed import MALFORMED, whole_octets
from fedmed.trust.publication import Publication, check_validity
from fedmed.trust.revocation import is_revoked
from fedmed.trust.roster import Member, MemberKeys, Role

_TLS_ROLES = {Purpose.site_tls: Role.site, Purpose.server_tls: Role.server}


def check_member_certificate(
    certificate: x509.Certificate,
    publication: Publication,
    purpose: Purpose,
    at: datetime | None = None,
) -> Member:
    """Check all that a member's certificate must satisfy, and say whose it is.

    It must be signed by the root, within its dates, for exactly this purpose, not revoked by a
    list that is in force, and name a member of the roster in the right role, one of whose present
    keys it certifies.

    Args:
        certificate: of a peer, or one's own.
        publication: what the root has published.
        purpose: what the certificate is used for.
        at: time of the check; now when None.

    Raises:
        TrustError: naming the check that failed; also if the publication itself is out of date.
    """
    try:
        certificate.verify_directly_issued_by(publication.root)
        if not whole_octets(certificate):
            raise ValueError("not DER")
    except MALFORMED as error:
        raise TrustError("A certificate is not signed by the root of the consortium.") from error
    # Everything else in it is the root's word.
    role, name = named_member(certificate)
    whose = f"{role.value} {name!r}"
    check_validity(certificate, whose, at)
    publication.check(at)
    if is_revoked(publication.crl, certificate):
        raise TrustError(f"The certificate of {whose} was revoked.")
    _check_purpose(certificate, purpose, role, whose)
    try:
        member = publication.roster.member(name)
    except ProtocolError as error:
        raise TrustError(f"{name!r} is not in the roster of the consortium.") from error
    if member.role is not role:
        raise TrustError(f"The roster has {name!r} as {member.role.value}, not as {role.value}.")
    certified_keys(certificate, member, at)
    return member


def named_member(certificate: x509.Certificate) -> tuple[Role, str]:
    """Return role and name from a certificate's URI, unchecked.

    Raises:
        TrustError: it has no such URI, or several.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        prefix, member, role, name = uri.split(":")
        if (prefix, member) != ("urn", "fedmed"):
            raise ValueError("not a URI of ours")
        return Role(role), name
    except MALFORMED as error:
        raise TrustError("A certificate names no member of a consortium.") from error


def certified_keys(
    certificate: x509.Certificate, member: Member, at: datetime | None = None
) -> MemberKeys:
    """Return the member's present keys one of which a certificate is for.

    Raises:
        TrustError: it is for none of them.
    """
    now = present(at).timestamp()
    key = public_key(certificate)
    for keys in reversed(member.keys):
        if keys.not_before <= now <= keys.not_after and is_key(key, keys):
            return keys
    raise TrustError(
        f"The certificate of {member.name!r} is for none of the member's present keys in the "
        "roster. Install the newest bundle of the consortium (fedmed pki install)."
    )


def is_key(key: PublicKey, keys: MemberKeys) -> bool:
    """Tell whether a public key is the one of its kind in a roster's entry."""
    if isinstance(key, Ed25519PublicKey):
        return key.public_bytes_raw().hex() == keys.signing_key
    return tls_key_sha256(key) == keys.tls_key_sha256


def public_key(certificate: x509.Certificate) -> PublicKey:
    """Return a certificate's key, of one of the two kinds that members have.

    Raises:
        TrustError: it is of another kind.
    """
    try:
        key = certificate.public_key()
    except MALFORMED:
        key = None
    if not isinstance(key, PublicKey):
        raise TrustError("A certificate has another kind of key than members have.")
    return key


def _check_purpose(certificate: x509.Certificate, purpose: Purpose, role: Role, whose: str) -> None:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except MALFORMED as error:
        raise TrustError(f"The certificate of {whose} does not say what it is for.") from error
    if list(usages) != [USAGES[purpose]] or constraints.ca:
        raise TrustError(f"The certificate of {whose} is for another purpose than {purpose.value}.")
    if isinstance(public_key(certificate), Ed25519PublicKey) != (purpose is Purpose.signing):
        raise TrustError(f"The certificate of {whose} has a key of the wrong kind.")
    if _TLS_ROLES.get(purpose, role) is not role:
        raise TrustError(f"A certificate for {purpose.value} was shown by {whose}.")
