"""The one gate through which anything leaves a site.

An allow-list says which fields and arrays each kind of message may hold. Anything else stays, and
trying to send it is an error. What left is written down at the site, with its size and hash, for
the data protection officer, before it leaves. The bytes of a round have a limit that the site's
policy sets; they are counted from that record, so that a restart does not start them anew.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedmed.errors import PolicyError, ProtocolError
from fedmed.federation.egress_record import EgressEntry, EgressRecord
from fedmed.federation.egress_rules import (
    BOX_BYTES,
    COUNTS,
    METRICS,
    REFUSED,
    REPORT,
    RULES,
    MessageRule,
    check_body,
)
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
from fedmed.trust.context import RoundContext
from fedmed.trust.envelope import Envelope
from fedmed.trust.policy import SitePolicy, allowed_metrics

PartData = bytes | memoryview | NDArray[np.generic]

ALLOWED_FIELDS: dict[type[Reply], frozenset[str]] = {
    Joined: frozenset({"site", "train", "val", "test", "excluded", "delta"}),
    Trained: frozenset({"site", "examples", "loss", "epsilon", "seconds"}),
    Evaluated: frozenset({"site", "split"}),
    Refused: frozenset({"site", "kind", "reason"}),
}


@dataclass(frozen=True)
class Released:
    """A message that has passed the gate; what is sent is made from this alone.

    Attributes:
        header: the envelope's bytes.
        parts: what travels beside it, by name.
    """

    header: bytes
    parts: Mapping[str, memoryview]


class Egress:
    """The gate of one site.

    Args:
        path: file that records what left, one JSON line a message.
        policy: of the site; says how many bytes may leave for a round, and whether counts and
            metrics of this site alone may.

    Raises:
        PrivacyError: the record cannot be read.
    """

    def __init__(self, path: Path, policy: SitePolicy | None = None) -> None:
        self._policy = policy or SitePolicy()
        self._record = EgressRecord(path)
        self._lock = threading.Lock()

    def release(
        self,
        reply: Reply,
        arrays: Arrays | None = None,
        shapes: Shapes | None = None,
        *,
        context: RoundContext | None = None,
    ) -> RecordDict:
        """Check a plain reply against the allow-list, write it down, and return it to be sent.

        Args:
            reply: typed answer.
            arrays: update of a training round, or counts of an evaluation.
            shapes: what the plan says the arrays look like.
            context: the round whose bytes it adds to; without it the message alone is measured.

        Raises:
            ProtocolError: if a field or an array is not on the allow-list.
            PolicyError: if more bytes would leave for the round than the policy allows.
            PrivacyError: if it cannot be written down.
        """
        held = frozenset(entry.name for entry in fields(reply))
        if held != ALLOWED_FIELDS.get(type(reply)):
            raise ProtocolError(f"A {type(reply).__name__} message may not leave a site like this.")
        _check_arrays(reply, arrays, shapes)
        content = pack(reply, arrays)
        self._admit(type(reply).__name__.lower(), _values(content), context)
        return content

    def release_envelope(
        self,
        envelope: Envelope,
        parts: Mapping[str, PartData],
        context: RoundContext | None,
        *,
        sizes: Mapping[str, int] | None = None,
        metric_images: int = 0,
    ) -> Released:
        """Check a signed message against the allow-list, write it down, and return it to be sent.

        Args:
            envelope: signed by this site.
            parts: by the names in the envelope; an array stands for its bytes, little-endian and
                in C order.
            context: the attempt that the envelope is bound to; None for a refusal of a request
                that could not be read, whose context is then empty.
            sizes: bytes of each part that is no box, as the plan's layout has them.
            metric_images: number of images that the report's metrics are over.

        Raises:
            ProtocolError: if a field or a part is not on the allow-list, of another form or size,
                or not what was signed.
            PolicyError: if the policy keeps it, or more bytes would leave for the round than the
                policy allows.
            PrivacyError: if it cannot be written down.
        """
        rule = RULES.get(envelope.type)
        if rule is None:
            raise ProtocolError(f"A message of type {envelope.type!r} may not leave a site.")
        if context is None and envelope.type != REFUSED:
            raise ProtocolError("A message may leave a site for a known round alone.")
        if envelope.context != (context.sha256() if context else ""):
            raise ProtocolError("A message is bound to another round than the one it leaves for.")
        check_body(envelope, rule)
        self._check_policy(envelope, metric_images)
        released = Released(
            envelope.to_bytes(), {name: _as_bytes(data) for name, data in sorted(parts.items())}
        )
        _check_parts(envelope, released.parts, rule, context, sizes or {})
        self._admit(envelope.type, [released.header, *released.parts.values()], context)
        return released

    def _check_policy(self, envelope: Envelope, metric_images: int) -> None:
        report = envelope.body.get(REPORT)
        if not isinstance(report, Mapping):
            return
        if not self._policy.per_site_counts and not COUNTS.isdisjoint(report):
            raise PolicyError(
                "This site's policy (per_site_counts) keeps its numbers of images; a report names "
                "them. Nothing was sent."
            )
        if METRICS in report and not allowed_metrics(self._policy, metric_images):
            raise PolicyError(
                "This site's policy (per_site_metrics, metrics_floor) keeps its own metrics; a "
                "report names them. Nothing was sent."
            )

    def _admit(
        self, kind: str, content: Iterable[bytes | memoryview], context: RoundContext | None
    ) -> None:
        """Count a message and write it down, or raise; nothing leaves before this returns."""
        digest, size = hashlib.sha256(), 0
        for data in content:
            digest.update(data)
            size += len(data)
        entry = EgressEntry(
            kind=kind,
            bytes=size,
            sha256=digest.hexdigest(),
            run=context.run if context else None,
            purpose=context.purpose if context else None,
            round=context.round if context else None,
            attempt=context.attempt if context else None,
        )
        with self._lock:
            total = size + self._record.bytes_of_round(entry)
            limit = self._policy.egress_bytes_per_round
            # A refusal is short and must come through, or the server would wait for it in vain.
            if total > limit and kind != REFUSED:
                raise PolicyError(
                    f"This site's policy (egress_bytes_per_round) lets {limit} bytes leave for a "
                    f"round; with this message of {size} bytes it would be {total}. The message "
                    "was not sent. Raise it if the plan's model is this large."
                )
            self._record.write(entry)


def _check_parts(
    envelope: Envelope,
    parts: Mapping[str, memoryview],
    rule: MessageRule,
    context: RoundContext | None,
    sizes: Mapping[str, int],
) -> None:
    boxes = {f"box/{name}" for name in context.cohort} if rule.boxes and context else set()
    for name, data in parts.items():
        if name in boxes:
            fits = 0 < len(data) <= BOX_BYTES
        else:
            fits = name in rule.parts and sizes.get(name) == len(data)
        if not fits:
            raise ProtocolError(
                f"A {envelope.type!r} message has a part that may not leave a site, or of another "
                "size than the plan's; nothing was sent."
            )
        envelope.check_part(name, data)
    if set(envelope.parts) != set(parts):
        raise ProtocolError("A message comes without a part that its sender signed.")


def _as_bytes(data: PartData) -> memoryview:
    if isinstance(data, np.ndarray):
        if data.dtype.hasobject:
            raise ProtocolError("An array of objects may not leave a site.")
        raw = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("<")).reshape(-1)
        return raw.view(np.uint8).data
    return memoryview(data).cast("B")


def _values(content: RecordDict) -> Iterator[bytes]:
    for name in sorted(content):
        record = content[name]
        for key in sorted(record):
            yield value_bytes(record[key])


def _check_arrays(reply: Reply, arrays: Arrays | None, shapes: Shapes | None) -> None:
    if arrays is None:
        return
    if not isinstance(reply, Trained | Evaluated) or shapes is None:
        raise ProtocolError(f"A {type(reply).__name__} message may not carry arrays.")
    found = {name: tuple(array.shape) for name, array in arrays.items()}
    if found != dict(shapes):
        raise ProtocolError("The arrays are not those of the plan; nothing was sent.")
