"""Signed messages as Flower carries them: the header, the parts beside it, perhaps the model.

Nothing is believed here. The parts are bytes with a name; the envelope that they came with says
what they must hash to, and whoever reads it checks the signature.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedmed.errors import ProtocolError
from fedmed.federation.records import RAW, SALT_BYTES
from fedmed.trust.envelope import MAX_HEADER_BYTES, Envelope

LARGEST_HEADER = MAX_HEADER_BYTES
"""Bytes of a header, and of a part that is one: read as JSON they grow some thirtyfold.

A header of a round with 1,000 sites has less than half of it.
"""
VECTORS = frozenset({"update", "counts"})
"""Parts that are arrays; they are never parsed, and may be of any size."""
_HEADER = "envelope"
_PARTS = "parts"
_BYTES = "|u1"


def pack_message(
    header: bytes, parts: Mapping[str, bytes | memoryview], beside: RecordDict | None = None
) -> RecordDict:
    """Return the content of a Flower message.

    Args:
        header: an envelope's bytes.
        parts: by the names in the envelope.
        beside: further records, such as the model that all sites get.
    """
    content = RecordDict()
    # Flower drops all but one of equal values (see ``records.SALT_BYTES``).
    content[_HEADER] = ConfigRecord({"bytes": secrets.token_bytes(SALT_BYTES) + header})
    content[_PARTS] = ArrayRecord({name: _array(data) for name, data in parts.items()})
    for name, record in (beside or {}).items():
        content[name] = record
    return content


def is_signed(content: RecordDict) -> bool:
    """Tell whether a message has a signed header."""
    return _HEADER in content


def unpack_message(content: RecordDict) -> tuple[Envelope, dict[str, bytes]]:
    """Read an envelope and the parts beside it; says nothing of who signed it.

    Raises:
        ProtocolError: if it is not of this form.
    """
    record = content.get(_HEADER)
    header = record.get("bytes") if isinstance(record, ConfigRecord) else None
    if not isinstance(header, bytes):
        raise ProtocolError("The message has no signed header.")
    arrays = content.get(_PARTS)
    if not isinstance(arrays, ArrayRecord):
        raise ProtocolError("The message has no list of parts.")
    if len(header) > SALT_BYTES + LARGEST_HEADER:
        raise ProtocolError("A message's header is longer than any that is needed.")
    envelope = Envelope.from_bytes(header[SALT_BYTES:])
    if set(arrays) != set(envelope.parts):
        raise ProtocolError("A message comes with other parts than its header names.")
    parts = {}
    for name, array in arrays.items():
        if (array.dtype, array.stype) != (_BYTES, RAW) or len(array.data) < SALT_BYTES:
            raise ProtocolError("A part of a message is not raw bytes, as agreed.")
        if name not in VECTORS and len(array.data) > SALT_BYTES + LARGEST_HEADER:
            raise ProtocolError("A part of a message is longer than any that is needed.")
        parts[str(name)] = array.data[SALT_BYTES:]
    return envelope, parts


def _array(data: bytes | memoryview) -> Array:
    salted = b"".join((secrets.token_bytes(SALT_BYTES), data))
    return Array(dtype=_BYTES, shape=(len(data),), stype=RAW, data=salted)
