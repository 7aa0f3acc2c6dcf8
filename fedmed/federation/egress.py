"""The one gate through which anything leaves a site.

An allow-list says which fields and arrays each kind of reply may hold. Anything else stays, and
trying to send it is an error. What left is written down at the site, with its size and hash, for
the data protection officer.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import RecordDict

from fedmed.errors import ProtocolError
from fedmed.federation.records import (
    Arrays,
    Evaluated,
    Joined,
    Refused,
    Reply,
    Shapes,
    Trained,
    pack,
    value_bytes,
)

ALLOWED_FIELDS: dict[type[Reply], frozenset[str]] = {
    Joined: frozenset({"site", "train", "val", "test", "excluded", "delta"}),
    Trained: frozenset({"site", "examples", "loss", "epsilon", "seconds"}),
    Evaluated: frozenset({"site", "split"}),
    Refused: frozenset({"site", "kind", "reason"}),
}


class Egress:
    """The gate of one site.

    Args:
        path: file that records what left, one JSON line a message.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def release(
        self, reply: Reply, arrays: Arrays | None = None, shapes: Shapes | None = None
    ) -> RecordDict:
        """Check a reply against the allow-list, write it down, and return it ready to send.

        Args:
            reply: typed answer.
            arrays: update of a training round, or counts of an evaluation.
            shapes: what the plan says the arrays look like.

        Raises:
            ProtocolError: if a field or an array is not on the allow-list.
        """
        held = frozenset(field.name for field in fields(reply))
        if held != ALLOWED_FIELDS.get(type(reply)):
            raise ProtocolError(f"A {type(reply).__name__} message may not leave a site like this.")
        _check_arrays(reply, arrays, shapes)
        content = pack(reply, arrays)
        self._write_down(type(reply).__name__.lower(), content)
        return content

    def _write_down(self, kind: str, content: RecordDict) -> None:
        digest, size = hashlib.sha256(), 0
        for name in sorted(content):
            record = content[name]
            for key in sorted(record):
                data = value_bytes(record[key])
                digest.update(data)
                size += len(data)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "kind": kind,
            "bytes": size,
            "sha256": digest.hexdigest(),
        }
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")


def _check_arrays(reply: Reply, arrays: Arrays | None, shapes: Shapes | None) -> None:
    if arrays is None:
        return
    if not isinstance(reply, Trained | Evaluated) or shapes is None:
        raise ProtocolError(f"A {type(reply).__name__} message may not carry arrays.")
    found = {name: tuple(array.shape) for name, array in arrays.items()}
    if found != dict(shapes):
        raise ProtocolError("The arrays are not those of the plan; nothing was sent.")
