"""One spelling for every value that is hashed or signed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from fedmed.errors import ProtocolError

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
"""What may stand in a signed message or a leaf of the log."""


def canonical_json(value: Json) -> bytes:
    """Return UTF-8 JSON with sorted keys and no white space.

    Finite floats are written as the shortest text that reads back to the same double (as RFC 8785
    does for most values), so that both sides, who run the same program, hash the same bytes.

    Raises:
        ProtocolError: if the value holds NaN, infinity or something that is not JSON.
    """
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError("A message holds something that JSON cannot express.") from error


def parse_canonical(data: bytes) -> Json:
    """Read JSON that must be spelt as :func:`canonical_json` spells it.

    Raises:
        ProtocolError: if it is no JSON, or spelt in another way (a doubled key, say).
    """
    try:
        value: Json = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("A signed text is no JSON.") from error
    if canonical_json(value) != data:
        raise ProtocolError("A signed text is not in its canonical spelling.")
    return value


def sha256_json(value: Json) -> str:
    """Return the hex SHA-256 of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
