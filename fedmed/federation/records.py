"""The messages of a round: typed records on our side, Flower's RecordDict on the wire.

Arrays travel as raw little-endian bytes. What is read is decided by the layout that the receiver
expects, never by what the sender declares: names, shapes, dtypes and byte counts are compared
before a single value is touched.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedmed.errors import ProtocolError

RAW = "fedmed.raw-le"
# Flower stores equal bytes once and forgets them with the first message that is done: the same
# counts from two sites (both without a validation image, say) would lose the second one's answer.
SALT_BYTES = 16
FLOAT32 = "<f4"
FLOAT64 = "<f8"
PROTOCOL_VERSION = 1
_HEADER = "header"
_ARRAYS = "arrays"
UPDATE = "update"
WEIGHTS = "weights"
_MAX_TEXT = 256 * 1024

Shapes = Mapping[str, tuple[int, ...]]
Arrays = Mapping[str, NDArray[np.float32]] | Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Request:
    """What the server asks of a site.

    Attributes:
        run: identifier of the run.
        round: number of the round; 0 while joining.
        plan: the plan as canonical JSON.
        split: set of images to evaluate on, for evaluation.
    """

    run: str
    round: int
    plan: str
    split: str = ""


@dataclass(frozen=True)
class Joined:
    """A site takes part.

    Attributes:
        site: name.
        train, val, test: numbers of images; None where the site's policy keeps them.
        excluded: number of images left out, by reason.
        delta: at which the site states epsilon; None without differential privacy.
    """

    site: str
    train: int | None
    val: int | None
    test: int | None
    excluded: Mapping[str, int]
    delta: float | None


@dataclass(frozen=True)
class Trained:
    """A site's result of a round, beside its update.

    Attributes:
        site: name.
        examples: weight in the average: number of training images.
        loss: mean training loss; None with differential privacy, which does not cover it.
        epsilon: spent so far by the site's ledger; None without differential privacy.
        seconds: of local training.
    """

    site: str
    examples: int
    loss: float | None
    epsilon: float | None
    seconds: float


@dataclass(frozen=True)
class Evaluated:
    """A site's counts for the metrics, beside the arrays themselves."""

    site: str
    split: str


@dataclass(frozen=True)
class Refused:
    """A site takes no part, and why; a typed answer instead of a crash.

    Attributes:
        site: name.
        kind: class of the error, such as ``PrivacyError``.
        reason: message for the coordinator; holds no patient data.
    """

    site: str
    kind: str
    reason: str


Reply = Joined | Trained | Evaluated | Refused
_REPLIES: dict[str, type[Reply]] = {
    "joined": Joined,
    "trained": Trained,
    "evaluated": Evaluated,
    "refused": Refused,
}
_FIELDS: dict[type[Request] | type[Reply], dict[str, tuple[type, ...]]] = {
    Request: {"run": (str,), "round": (int,), "plan": (str,), "split": (str,)},
    Joined: {
        "site": (str,),
        "train": (int,),
        "val": (int,),
        "test": (int,),
        "excluded": (dict,),
        "delta": (float, type(None)),
    },
    Trained: {
        "site": (str,),
        "examples": (int,),
        "loss": (float, type(None)),
        "epsilon": (float, type(None)),
        "seconds": (float,),
    },
    Evaluated: {"site": (str,), "split": (str,)},
    Refused: {"site": (str,), "kind": (str,), "reason": (str,)},
}


def pack_arrays(arrays: Arrays) -> ArrayRecord:
    """Pack arrays as raw little-endian bytes, float32 or float64, behind a few random ones."""
    packed = {}
    for name, array in arrays.items():
        kind = FLOAT32 if array.dtype == np.float32 else FLOAT64
        raw = np.ascontiguousarray(array, dtype=kind).reshape(-1).view(np.uint8)
        data = b"".join((secrets.token_bytes(SALT_BYTES), raw.data))
        packed[name] = Array(dtype=kind, shape=tuple(array.shape), stype=RAW, data=data)
    return ArrayRecord(packed)


def unpack_arrays(
    content: RecordDict, expected: Shapes, dtype: str
) -> dict[str, NDArray[np.float64]]:
    """Read arrays of exactly the expected names and shapes.

    Args:
        content: a received message's content.
        expected: name and shape of each array.
        dtype: ``<f4`` or ``<f8``.

    Raises:
        ProtocolError: if anything differs from what is expected, or a value is not finite.
    """
    record = content.get(_ARRAYS)
    if not isinstance(record, ArrayRecord) or set(record) != set(expected):
        raise ProtocolError("The message does not hold the arrays that were agreed.")
    arrays = {}
    for name, shape in expected.items():
        array = record[name]
        size = SALT_BYTES + prod(shape) * np.dtype(dtype).itemsize
        declared = (array.dtype, tuple(array.shape), array.stype)
        if declared != (dtype, shape, RAW) or len(array.data) != size:
            raise ProtocolError(
                f"Array {name!r} is not {dtype} of shape {shape} in {size} bytes, as agreed."
            )
        values = np.frombuffer(array.data, dtype=dtype, offset=SALT_BYTES).reshape(shape)
        if not np.isfinite(values).all():
            raise ProtocolError(f"Array {name!r} holds NaN or infinity.")
        arrays[name] = values
    return arrays


def beside(arrays: Arrays) -> RecordDict:
    """Return arrays as content of their own, to travel beside a signed message."""
    content = RecordDict()
    content[_ARRAYS] = pack_arrays(arrays)
    return content


def value_bytes(value: object) -> bytes:
    """Return the payload of one value of a message: an array's data or a text."""
    if isinstance(value, bytes):
        return value
    return value.data if isinstance(value, Array) else str(value).encode()


def pack(record: Request | Reply, arrays: Arrays | None = None) -> RecordDict:
    """Turn a typed record, and arrays if any, into a message's content."""
    kinds: dict[type, str] = {kind: name for name, kind in _REPLIES.items()}
    values = {name: getattr(record, name) for name in _FIELDS[type(record)]}
    header = {
        "version": PROTOCOL_VERSION,
        "kind": kinds.get(type(record), "request"),
        "fields": values,
    }
    content = RecordDict()
    content[_HEADER] = ConfigRecord({"json": json.dumps(header, sort_keys=True)})
    if arrays is not None:
        content[_ARRAYS] = pack_arrays(arrays)
    return content


def unpack_request(content: RecordDict) -> Request:
    """Read what the server asks.

    Raises:
        ProtocolError: if it is not a request of this protocol version.
    """
    kind, fields = _read_header(content)
    if kind != "request":
        raise ProtocolError("Expected a request.")
    return Request(**_checked(Request, fields))


def unpack_reply(content: RecordDict) -> Reply:
    """Read a site's answer.

    Raises:
        ProtocolError: if it is not a reply of this protocol version.
    """
    kind, fields = _read_header(content)
    if kind not in _REPLIES:
        raise ProtocolError("Expected a reply.")
    reply_type = _REPLIES[kind]
    reply = reply_type(**_checked(reply_type, fields))
    _check_counts(reply)
    return reply


def _read_header(content: RecordDict) -> tuple[str, dict[str, object]]:
    record = content.get(_HEADER)
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        raise ProtocolError("The message has no readable header.")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("The message's header is no JSON.") from error
    if not isinstance(header, dict) or header.get("version") != PROTOCOL_VERSION:
        raise ProtocolError(
            f"The other side does not speak version {PROTOCOL_VERSION} of the fedmed protocol. "
            "Install the same fedmed version everywhere."
        )
    kind, fields = header.get("kind"), header.get("fields")
    if not isinstance(kind, str) or not isinstance(fields, dict):
        raise ProtocolError("The message's header is incomplete.")
    return kind, fields


def _checked(kind: type[Request] | type[Reply], fields: dict[str, object]) -> dict[str, Any]:
    wanted = _FIELDS[kind]
    if set(fields) != set(wanted):
        raise ProtocolError(f"A {kind.__name__} message has other fields than agreed.")
    for name, types in wanted.items():
        value = fields[name]
        # JSON does not tell 1 from 1.0, and bool is an int to Python.
        if float in types and type(value) is int:
            fields[name] = value = float(value)
        if type(value) not in types:
            raise ProtocolError(f"Field {name!r} of a {kind.__name__} message has a wrong type.")
        # Python's JSON reader takes NaN and Infinity, which JSON does not have.
        if isinstance(value, float) and not math.isfinite(value):
            raise ProtocolError(f"Field {name!r} of a {kind.__name__} message is not finite.")
    return fields


def _check_counts(reply: Reply) -> None:
    if isinstance(reply, Joined):
        counts = [reply.train, reply.val, reply.test, *reply.excluded.values()]
        if not all(type(count) is int and 0 <= count < 2**53 for count in counts):
            raise ProtocolError("A site's counts are not whole numbers of images.")
    if isinstance(reply, Trained) and not 0 < reply.examples < 2**53:
        raise ProtocolError("A site trained on no image.")
