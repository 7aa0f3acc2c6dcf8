"""The signed envelope that every message travels in.

What is signed: type, context, sender, sequence number, the body, and name, length and SHA-256 of
each part (arrays and sealed boxes, which travel beside it). A receiver says beforehand what it
expects of each; a message of another round, another sender or another step is never opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedmed.errors import ProtocolError
from fedmed.trust.canonical import Json, canonical_json, parse_canonical
from fedmed.trust.signatures import SIGNATURE_BYTES, Signer, verify

MAX_HEADER_BYTES = 2**20
_PURPOSE = "message"
_FIELDS = {"type", "context", "site", "sequence", "body", "parts"}


@dataclass(frozen=True)
class Part:
    """What the header says of a part.

    Attributes:
        length: in bytes.
        sha256: hex.
    """

    length: int
    sha256: str

    @classmethod
    def of(cls, data: bytes | memoryview) -> Part:
        """Describe a part."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Envelope:
    """A message's signed header.

    Attributes:
        type: what kind of message, such as ``masked``.
        context: hex SHA-256 of what both sides agree on (see ``trust/context.py``).
        site: name of the sender in the roster.
        sequence: number of the step within the context.
        body: the typed fields.
        parts: what travels beside the header.
        signature: 64 bytes over :meth:`signed_bytes`.
    """

    type: str
    context: str
    site: str
    sequence: int
    body: Mapping[str, Json]
    parts: Mapping[str, Part]
    signature: bytes = b""

    def signed_bytes(self) -> bytes:
        """Return what the signature is over: canonical JSON of all but itself."""
        return canonical_json(
            {
                "type": self.type,
                "context": self.context,
                "site": self.site,
                "sequence": self.sequence,
                "body": self.body,
                "parts": {name: [part.length, part.sha256] for name, part in self.parts.items()},
            }
        )

    def to_bytes(self) -> bytes:
        """Return the signature and the signed bytes, as they travel."""
        return self.signature + self.signed_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Envelope:
        """Read an envelope; says nothing of who signed it.

        Raises:
            ProtocolError: if it is not of this form.
        """
        if not SIGNATURE_BYTES < len(data) <= MAX_HEADER_BYTES:
            raise ProtocolError("A message's header is too short or too long.")
        fields = parse_canonical(data[SIGNATURE_BYTES:])
        if not isinstance(fields, dict) or set(fields) != _FIELDS:
            raise ProtocolError("A message's header has other fields than agreed.")
        kinds = {"type": str, "context": str, "site": str, "sequence": int, "body": dict}
        if any(type(fields[name]) is not kind for name, kind in kinds.items()):
            raise ProtocolError("A field of a message's header has a wrong type.")
        return cls(
            fields["type"],
            fields["context"],
            fields["site"],
            fields["sequence"],
            fields["body"],
            _read_parts(fields["parts"]),
            data[:SIGNATURE_BYTES],
        )

    def verify(
        self, key: Ed25519PublicKey, *, type: str, context: str, site: str, sequence: int
    ) -> None:
        """Compare with what the receiver expects, and check the signature.

        Raises:
            ProtocolError: naming what differs.
        """
        for name, expected in (
            ("type", type),
            ("context", context),
            ("site", site),
            ("sequence", sequence),
        ):
            if getattr(self, name) != expected:
                raise ProtocolError(f"A message has another {name} than this step expects.")
        verify(key, _PURPOSE, self.signed_bytes(), self.signature)

    def check_part(self, name: str, data: bytes | memoryview) -> None:
        """Compare a part with what the header says of it.

        Raises:
            ProtocolError: if it is not named there, or differs.
        """
        part = self.parts.get(name)
        if part is None or part.length != len(data) or part != Part.of(data):
            raise ProtocolError(f"Part {name!r} of a message is not what its sender signed.")


def seal(
    signer: Signer,
    type: str,
    context: str,
    sequence: int,
    body: Mapping[str, Json],
    parts: Mapping[str, Part] | None = None,
) -> Envelope:
    """Return a signed envelope."""
    unsigned = Envelope(type, context, signer.name, sequence, dict(body), dict(parts or {}))
    signature = signer.sign(_PURPOSE, unsigned.signed_bytes())
    return Envelope(type, context, signer.name, sequence, unsigned.body, unsigned.parts, signature)


def _read_parts(value: Json) -> dict[str, Part]:
    if not isinstance(value, dict):
        raise ProtocolError("A message's header has no list of parts.")
    parts = {}
    for name, entry in value.items():
        if not isinstance(entry, list) or [type(item) for item in entry] != [int, str]:
            raise ProtocolError(f"Part {name!r} of a message is not described as agreed.")
        parts[name] = Part(entry[0], entry[1])
    return parts
