"""What the consortium sends out: ``NAME.bundle.json`` or ``update.bundle.json``.

Everything in it is signed by the root, one piece at a time; who carries it need not be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedmed.errors import ProtocolError, TrustError
from fedmed.trust.canonical import Json, canonical_json, parse_canonical
from fedmed.trust.publication import Publication, read_certificate, read_root
from fedmed.trust.revocation import read_crl
from fedmed.trust.roster import MEMBER_NAME
from fedmed.trust.roster_file import signed_roster_from_json

MAX_BYTES = 16 * 2**20
_PROTOCOL = "fedmed bundle 1"
_FIELDS = {"protocol", "root", "roster", "crl", "certificates"}


@dataclass(frozen=True)
class MemberCertificates:
    """A member's two certificates.

    Attributes:
        tls: over its P-256 key.
        signing: over its Ed25519 key.
    """

    tls: x509.Certificate
    signing: x509.Certificate


@dataclass(frozen=True)
class Bundle:
    """What the root has published, and certificates.

    Attributes:
        publication: root, roster and revocation list.
        certificates: newest ones of the members that the bundle is for.
    """

    publication: Publication
    certificates: Mapping[str, MemberCertificates]

    def to_bytes(self) -> bytes:
        """Return the content of the file: canonical JSON."""
        return canonical_json(
            {
                "protocol": _PROTOCOL,
                "root": _pem(self.publication.root),
                "roster": self.publication.signed_roster.to_json(),
                "crl": _pem(self.publication.crl),
                "certificates": {
                    name: {"tls": _pem(both.tls), "signing": _pem(both.signing)}
                    for name, both in self.certificates.items()
                },
            }
        )


def read_bundle(data: bytes) -> Bundle:
    """Read a bundle from anybody and check that its own root signed roster and revocation list.

    Whether that root is the right one, and the rest in force, is for the caller to check.

    Raises:
        TrustError: it is of another form, or something is not signed by its root.
    """
    if len(data) > MAX_BYTES:
        raise TrustError("The bundle is longer than a bundle ever is.")
    try:
        fields = parse_canonical(data)
    except ProtocolError as error:
        raise TrustError(f"The bundle is damaged: {error} Have it sent again.") from error
    if (
        not isinstance(fields, dict)
        or set(fields) != _FIELDS
        or fields["protocol"] != _PROTOCOL
        or not isinstance(fields["certificates"], dict)
    ):
        raise TrustError("This is no bundle of a consortium (NAME.bundle.json).")
    root = read_root(_bytes(fields["root"]))
    publication = Publication(
        root,
        signed_roster_from_json(fields["roster"], root),
        read_crl(_bytes(fields["crl"]), root),
    )
    return Bundle(
        publication,
        {name: _member(name, entry) for name, entry in fields["certificates"].items()},
    )


def _member(name: str, entry: Json) -> MemberCertificates:
    if (
        not MEMBER_NAME.fullmatch(name)
        or not isinstance(entry, dict)
        or set(entry) != {"tls", "signing"}
    ):
        raise TrustError("The bundle's certificates are not of the agreed form.")
    return MemberCertificates(
        read_certificate(_bytes(entry["tls"]), f"the TLS certificate of {name}"),
        read_certificate(_bytes(entry["signing"]), f"the signing certificate of {name}"),
    )


def _pem(value: x509.Certificate | x509.CertificateRevocationList) -> str:
    return value.public_bytes(Encoding.PEM).decode()


def _bytes(value: Json) -> bytes:
    if not isinstance(value, str):
        raise TrustError("The bundle has a field of a wrong type.")
    return value.encode()
