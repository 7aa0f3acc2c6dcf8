"""The roster as the root signs it: ``roster.json``."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)

from fedmed.errors import ProtocolError, TrustError
from fedmed.trust.canonical import Json, canonical_json, parse_canonical
from fedmed.trust.roster import Roster

# Framed as in trust/signatures.py. The root signs certificates and revocation lists besides, which
# are DER and begin with another byte, so no signature of one kind is taken for another.
_PREFIX = b"fedmed 1 roster\0"


@dataclass(frozen=True)
class SignedRoster:
    """A roster and the root's signature.

    Attributes:
        roster: the members.
        signature: ECDSA with SHA-384 over its canonical JSON, DER.
    """

    roster: Roster
    signature: bytes

    def to_json(self) -> dict[str, Json]:
        """Return both as JSON."""
        return {"roster": self.roster.to_json(), "signature": self.signature.hex()}

    def to_bytes(self) -> bytes:
        """Return the content of ``roster.json``: canonical JSON."""
        return canonical_json(self.to_json())

    def verify(self, root: x509.Certificate) -> None:
        """Check that the root signed this roster.

        Raises:
            TrustError: it did not.
        """
        key = root.public_key()
        if not isinstance(key, EllipticCurvePublicKey):
            raise TrustError("The root's certificate has another kind of key than agreed.")
        try:
            key.verify(self.signature, _signed(self.roster), ECDSA(hashes.SHA384()))
        except InvalidSignature as error:
            raise TrustError("The roster is not signed by the root of the consortium.") from error


def sign_roster(roster: Roster, root_key: EllipticCurvePrivateKey) -> SignedRoster:
    """Sign a roster with the root's key."""
    return SignedRoster(roster, root_key.sign(_signed(roster), ECDSA(hashes.SHA384())))


def read_signed_roster(data: bytes, root: x509.Certificate) -> SignedRoster:
    """Read ``roster.json`` and check its signature.

    Raises:
        TrustError: it is of another form, or not signed by this root.
    """
    try:
        return signed_roster_from_json(parse_canonical(data), root)
    except ProtocolError as error:
        raise TrustError(f"roster.json cannot be used: {error}") from error


def signed_roster_from_json(fields: Json, root: x509.Certificate) -> SignedRoster:
    """Read a signed roster from parsed JSON and check its signature.

    Raises:
        TrustError: it is of another form, or not signed by this root.
    """
    if not isinstance(fields, dict) or set(fields) != {"roster", "signature"}:
        raise TrustError("The signed roster has other fields than agreed.")
    roster, signature = fields["roster"], fields["signature"]
    if not isinstance(roster, dict) or not isinstance(signature, str):
        raise TrustError("The signed roster has a field of a wrong type.")
    try:
        signed = SignedRoster(Roster.from_json(roster), bytes.fromhex(signature))
    except (ProtocolError, ValueError) as error:
        raise TrustError("The signed roster is not of the agreed form.") from error
    if signed.signature.hex() != signature:
        raise TrustError("The signature of the roster is not in its canonical spelling.")
    signed.verify(root)
    return signed


def _signed(roster: Roster) -> bytes:
    return _PREFIX + canonical_json(roster.to_json())
