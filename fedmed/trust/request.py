"""A member's request for certificates: what it sends to the consortium, and its fingerprint."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from fedmed.errors import ConfigurationError, ProtocolError, TrustError
from fedmed.trust.canonical import Json, canonical_json, parse_canonical
from fedmed.trust.fingerprints import fingerprint
from fedmed.trust.issuance import general_name, member_uri, signing_request
from fedmed.trust.malformed import MALFORMED
from fedmed.trust.roster import MEMBER_NAME, Role
from fedmed.trust.signatures import Signer, verify

MAX_HOSTS = 16
_PROTOCOL = "fedmed request 1"
_REQUEST = "request"
_ROTATION = "rotation"
_FIELDS = {"protocol", "name", "role", "hosts", "csr", "signing_key"}
_HOST = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)


@dataclass(frozen=True)
class Request:
    """What a member asks the consortium to certify.

    Attributes:
        name, role, hosts: of the member; only a server has hosts.
        csr: for its TLS key (RFC 2986), signed with that key.
        signing_key: its Ed25519 key.
        signature: with that key over all of the above.
        continuity: over the same, with the signing key that it replaces; None at first.
    """

    name: str
    role: Role
    hosts: tuple[str, ...]
    csr: x509.CertificateSigningRequest
    signing_key: Ed25519PublicKey
    signature: bytes
    continuity: bytes | None

    @property
    def tls_key(self) -> EllipticCurvePublicKey:
        """The P-256 key that the request is for."""
        key = self.csr.public_key()
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
            raise TrustError("The request is not for a P-256 key.")
        return key

    def fingerprint(self) -> str:
        """Return what is read over the phone; it covers both keys, name, role and hosts."""
        return fingerprint(self.signed_bytes())

    def signed_bytes(self) -> bytes:
        """Return what the signatures are over."""
        return canonical_json(self._fields())

    def to_bytes(self) -> bytes:
        """Return the content of ``request.json``."""
        return canonical_json(
            {
                "request": self._fields(),
                "signature": self.signature.hex(),
                "continuity": None if self.continuity is None else self.continuity.hex(),
            }
        )

    def continues(self, key: Ed25519PublicKey) -> bool:
        """Tell whether the owner of an earlier signing key stands behind this request."""
        if self.continuity is None:
            return False
        try:
            verify(key, _ROTATION, self.signed_bytes(), self.continuity)
        except ProtocolError:
            return False
        return True

    def _fields(self) -> dict[str, Json]:
        return {
            "protocol": _PROTOCOL,
            "name": self.name,
            "role": self.role.value,
            "hosts": list(self.hosts),
            "csr": self.csr.public_bytes(Encoding.PEM).decode(),
            "signing_key": self.signing_key.public_bytes_raw().hex(),
        }


def make_request(
    name: str,
    role: Role,
    hosts: Sequence[str],
    tls_key: EllipticCurvePrivateKey,
    signing_key: Ed25519PrivateKey,
    previous: Ed25519PrivateKey | None = None,
) -> Request:
    """Make a request that proves possession of both keys.

    Args:
        name: of the member.
        role: site or server.
        hosts: names and addresses of a server.
        tls_key: to be certified.
        signing_key: to be certified.
        previous: the signing key that is replaced, when keys are rotated.

    Raises:
        ConfigurationError: the name or a host cannot be used, or the role does not go with hosts.
    """
    check_identity(name, role, hosts)
    csr = signing_request(tls_key, role, name, hosts)
    unsigned = Request(name, role, tuple(hosts), csr, signing_key.public_key(), b"", None)
    payload = unsigned.signed_bytes()
    return Request(
        name,
        role,
        unsigned.hosts,
        csr,
        unsigned.signing_key,
        Signer(name, signing_key).sign(_REQUEST, payload),
        None if previous is None else Signer(name, previous).sign(_ROTATION, payload),
    )


def read_request(data: bytes) -> Request:
    """Read ``request.json``, which may come from anybody, and check that its keys made it.

    Raises:
        TrustError: it is of another form, or a proof of possession does not hold.
    """
    try:
        request = _parsed(parse_canonical(data))
        check_identity(request.name, request.role, request.hosts)
        verify(request.signing_key, _REQUEST, request.signed_bytes(), request.signature)
        names = request.csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        asked = [
            x509.UniformResourceIdentifier(member_uri(request.role, request.name)),
            *(general_name(host) for host in request.hosts),
        ]
        if list(names) != asked or not request.csr.is_signature_valid:
            raise ValueError("the CSR is for another member, or not signed with its key")
        if request.to_bytes() != data:
            raise ValueError("not in its canonical spelling")
    except (ProtocolError, ConfigurationError, *MALFORMED) as error:
        raise TrustError(
            "The request is damaged or was changed; have it sent again (request.json)."
        ) from error
    _ = request.tls_key
    return request


def check_identity(name: str, role: Role, hosts: Sequence[str]) -> None:
    """Check name, role and hosts.

    Raises:
        ConfigurationError: one cannot be used.
    """
    if not MEMBER_NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no name for a member; use up to 63 lower-case letters, digits, - and _"
        )
    if (role is Role.server) != bool(hosts):
        raise ConfigurationError(
            "a server needs --host with every name and address by which sites reach it; "
            "a site has none, because nobody connects to it"
        )
    if len(hosts) > MAX_HOSTS or len(set(hosts)) != len(hosts):
        raise ConfigurationError(f"name up to {MAX_HOSTS} hosts, each once")
    for host in hosts:
        try:
            # One spelling each: an address as this class writes it.
            fits = str(ipaddress.ip_address(host)) == host
        except ValueError:
            fits = bool(_HOST.fullmatch(host))
        if not fits:
            raise ConfigurationError(f"{host!r} is no host name (lower case) and no address")


def _parsed(value: Json) -> Request:
    if not isinstance(value, dict) or set(value) != {"request", "signature", "continuity"}:
        raise TypeError("not a request")
    fields, continuity = value["request"], value["continuity"]
    if not isinstance(fields, dict) or set(fields) != _FIELDS:
        raise TypeError("not a request")
    hosts = fields["hosts"]
    if fields["protocol"] != _PROTOCOL or not isinstance(hosts, list):
        raise TypeError("another kind of request")
    csr = x509.load_pem_x509_csr(_text(fields["csr"]).encode())
    if not isinstance(csr.signature_hash_algorithm, hashes.SHA256):
        raise TypeError("another kind of signature")
    return Request(
        _text(fields["name"]),
        Role(_text(fields["role"])),
        tuple(_text(host) for host in hosts),
        csr,
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(_text(fields["signing_key"]))),
        bytes.fromhex(_text(value["signature"])),
        None if continuity is None else bytes.fromhex(_text(continuity)),
    )


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value
