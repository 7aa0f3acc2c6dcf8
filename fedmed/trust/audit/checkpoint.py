"""Checkpoints: the log's head, signed by the server and cosigned by the sites that saw it.

A cosignature says that the site has seen this head and no other history of the same log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedmed.errors import ProtocolError
from fedmed.trust.audit.merkle import HASH_BYTES
from fedmed.trust.canonical import Json, canonical_json
from fedmed.trust.roster import MEMBER_NAME
from fedmed.trust.signatures import SIGNATURE_BYTES, Signer, verify

RUN_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,127}")
_PURPOSE = "checkpoint"
_COSIGNING = "witness"
_FIELDS = {"origin": str, "size": int, "root": str, "time": int, "signature": str}
# Larger numbers are no time and no size, and other programs cannot read them exactly.
_LARGEST = 2**53


def log_origin(server: str, run: str) -> str:
    """Return the name of a run's log, ``SERVER/RUN``.

    A site works it out itself: were the name the server's choice, a second history would only
    need a second name.

    Raises:
        ProtocolError: if a name cannot be used.
    """
    if not MEMBER_NAME.fullmatch(server):
        raise ProtocolError("The log's server has no name of a member.")
    if not RUN_NAME.fullmatch(run):
        raise ProtocolError("The identifier of a run is of letters, digits, '.', '-' and '_'.")
    return f"{server}/{run}"


def split_origin(origin: str) -> tuple[str, str]:
    """Return server and run of a log's name.

    Raises:
        ProtocolError: if it is no such name.
    """
    server, _, run = origin.partition("/")
    log_origin(server, run)
    return server, run


def read_hex(text: Json, length: int, what: str) -> bytes:
    """Return the bytes of a lower-case hex text.

    Raises:
        ProtocolError: if it is not one of ``length`` bytes; ``what`` names it.
    """
    try:
        data = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        data = b""
    # fromhex takes capitals and spaces as well: then a changed byte could mean the same.
    if len(data) != length or data.hex() != text:
        raise ProtocolError(f"{what} is not {length} bytes in lower-case hex.")
    return data


@dataclass(frozen=True)
class Checkpoint:
    """The head of a log.

    Attributes:
        origin: name of the log, see :func:`log_origin`.
        size: number of leaves.
        root: Merkle root over them, hex.
        time: when it was signed, seconds since 1970, by the server's clock.
        signature: the server's, hex.
    """

    origin: str
    size: int
    root: str
    time: int
    signature: str

    def signed_bytes(self) -> bytes:
        """Return what server and witnesses sign: canonical JSON of all but the signature."""
        return canonical_json(
            {"origin": self.origin, "size": self.size, "root": self.root, "time": self.time}
        )

    def to_json(self) -> dict[str, Json]:
        """Return the fields as JSON."""
        return {
            "origin": self.origin,
            "size": self.size,
            "root": self.root,
            "time": self.time,
            "signature": self.signature,
        }

    @classmethod
    def from_json(cls, fields: Json) -> Checkpoint:
        """Read a checkpoint that came from outside; says nothing of who signed it.

        Raises:
            ProtocolError: if it is not of this form.
        """
        if not isinstance(fields, Mapping) or set(fields) != set(_FIELDS):
            raise ProtocolError("A checkpoint of the log has other fields than agreed.")
        if any(type(fields[name]) is not kind for name, kind in _FIELDS.items()):
            raise ProtocolError("A field of a checkpoint has a wrong type.")
        checkpoint = cls(**fields)  # type: ignore[arg-type]
        split_origin(checkpoint.origin)
        if not (0 < checkpoint.size < _LARGEST and 0 <= checkpoint.time < _LARGEST):
            raise ProtocolError("Size or time of a checkpoint is out of range.")
        read_hex(checkpoint.root, HASH_BYTES, "The root of a checkpoint")
        read_hex(checkpoint.signature, SIGNATURE_BYTES, "The signature of a checkpoint")
        return checkpoint

    def verify(self, server_keys: Sequence[Ed25519PublicKey]) -> None:
        """Check the server's signature; one of the keys must have made it.

        Raises:
            ProtocolError: if none has.
        """
        signature = read_hex(self.signature, SIGNATURE_BYTES, "The signature of a checkpoint")
        if not _signed(server_keys, _PURPOSE, self.signed_bytes(), signature):
            raise ProtocolError(
                f"The checkpoint of size {self.size} is not signed by the server of the roster."
            )

    def cosign(self, signer: Signer) -> bytes:
        """Return a site's cosignature, 64 bytes. Only a witness may do so, see ``witness.py``."""
        return signer.sign(_COSIGNING, self.signed_bytes())

    def verify_cosignature(
        self, site: str, keys: Sequence[Ed25519PublicKey], signature: bytes
    ) -> None:
        """Check a site's cosignature; one of its keys must have made it.

        Raises:
            ProtocolError: if none has.
        """
        if not _signed(keys, _COSIGNING, self.signed_bytes(), signature):
            raise ProtocolError(
                f"The cosignature of {site!r} under the checkpoint of size {self.size} "
                "does not hold."
            )


def sign_checkpoint(signer: Signer, origin: str, size: int, root: bytes, time: int) -> Checkpoint:
    """Return a checkpoint signed by the server."""
    unsigned = Checkpoint(origin, size, root.hex(), time, "")
    signature = signer.sign(_PURPOSE, unsigned.signed_bytes())
    return Checkpoint(origin, size, root.hex(), time, signature.hex())


def _signed(
    keys: Sequence[Ed25519PublicKey], purpose: str, payload: bytes, signature: bytes
) -> bool:
    for key in keys:
        try:
            verify(key, purpose, payload, signature)
        except ProtocolError:
            continue
        return True
    return False
