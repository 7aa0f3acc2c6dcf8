"""Keys of secure aggregation: hybrid HPKE for sealed boxes, X25519 for pairwise masks.

Sealing is HPKE (RFC 9180) in base mode with the hybrid KEM of ML-KEM-768 and X25519, HKDF-SHA256
and AES-256-GCM: a box stays closed as long as one of the two KEMs holds. Who sealed a box is not
known from HPKE; the sender signs the hash of the box in its envelope.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fedmed.errors import ProtocolError

_MLKEM_KEY_BYTES = 1184
MASK_KEY_BYTES = 32
ENCRYPTION_KEY_BYTES = _MLKEM_KEY_BYTES + 32
SEALING_OVERHEAD = 1136
"""How much longer a sealed box is than what is in it: encapsulation 1120, tag 16 bytes."""

_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


class EncryptionKeys:
    """A member's HPKE key pair for one run, in memory only.

    Attributes:
        encryption_key: public, 1216 bytes: ML-KEM-768 key (1184, FIPS 203), then X25519 key (32).
    """

    def __init__(self) -> None:
        mlkem = MLKEM768PrivateKey.generate()
        x25519 = X25519PrivateKey.generate()
        self._private = hpke.MLKEM768X25519PrivateKey(mlkem, x25519)
        self.encryption_key: bytes = (
            mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        )

    def open(self, box: bytes, info: bytes) -> bytes:
        """Open a box that was sealed to this key for ``info``.

        Raises:
            ProtocolError: if it was sealed to another key, for something else, or was changed.
        """
        try:
            return _SUITE.decrypt(box, self._private, info=info)
        except (InvalidTag, ValueError) as error:
            raise ProtocolError(
                "A sealed box does not open: it was not sealed for this step and this site."
            ) from error


def seal_box(encryption_key: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Seal something to the owner of a key.

    Args:
        encryption_key: raw, 1216 bytes.
        plaintext: any length; the box is 1136 bytes longer.
        info: what it is for; the box opens with the same only.

    Raises:
        ProtocolError: if it is no encryption key.
    """
    try:
        if len(encryption_key) != ENCRYPTION_KEY_BYTES:
            raise ValueError("wrong length")
        public = hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(encryption_key[:_MLKEM_KEY_BYTES]),
            X25519PublicKey.from_public_bytes(encryption_key[_MLKEM_KEY_BYTES:]),
        )
        return _SUITE.encrypt(plaintext, public, info=info)
    except ValueError as error:
        raise ProtocolError("An encryption key of a member is not of the agreed form.") from error


class MaskKey:
    """A site's X25519 key pair (RFC 7748) for the pairwise masks of one attempt at one round.

    Args:
        private: 32 bytes; a new one when left out.

    Attributes:
        public: 32 bytes.
    """

    def __init__(self, private: bytes | None = None) -> None:
        self._key = (
            X25519PrivateKey.generate()
            if private is None
            else X25519PrivateKey.from_private_bytes(private)
        )
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def private_bytes(self) -> bytes:
        """Return the private key, 32 bytes, to be shared among the sites."""
        return self._key.private_bytes_raw()

    def agree(self, peer: bytes) -> bytes:
        """Return the secret, 32 bytes, that only the owners of the two keys know.

        Args:
            peer: the other's public key, 32 bytes.

        Raises:
            ProtocolError: if the peer's key is of low order, which would make the secret known.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError as error:
            raise ProtocolError("A mask key of a site is not a usable X25519 key.") from error
