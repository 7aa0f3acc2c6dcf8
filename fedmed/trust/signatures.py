"""Ed25519 signatures (RFC 8032), each made for one purpose."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedmed.errors import ProtocolError

SIGNATURE_BYTES = 64
_PREFIX = b"fedmed 1 "


@dataclass(frozen=True)
class Signer:
    """Who signs: a site or the server.

    Attributes:
        name: in the roster.
        key: private; never leaves the machine.
    """

    name: str
    key: Ed25519PrivateKey

    def sign(self, purpose: str, payload: bytes) -> bytes:
        """Return the signature, 64 bytes, of a payload for a purpose."""
        return self.key.sign(_framed(purpose, payload))


def verify(key: Ed25519PublicKey, purpose: str, payload: bytes, signature: bytes) -> None:
    """Check a signature.

    Raises:
        ProtocolError: if it was made with another key, for another purpose or another payload.
    """
    try:
        key.verify(signature, _framed(purpose, payload))
    except InvalidSignature as error:
        raise ProtocolError(f"A signature ({purpose}) does not hold.") from error


def _framed(purpose: str, payload: bytes) -> bytes:
    # No purpose holds a zero byte, so no two pairs of purpose and payload look the same.
    if "\0" in purpose:
        raise ValueError("a purpose holds no zero byte")
    return _PREFIX + purpose.encode() + b"\0" + payload
