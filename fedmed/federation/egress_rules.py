"""The allow-list: what each kind of message may hold when it leaves a site.

A field that is not here stays, and one that is here has a form that leaves no room for anything
else: names of members, numbers, short codes, hex of a known length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedmed.errors import ProtocolError
from fedmed.secagg.shamir import SHARE_BYTES
from fedmed.trust.canonical import Json
from fedmed.trust.envelope import Envelope
from fedmed.trust.roster import MEMBER_NAME

BOX_BYTES = 4096
"""Most bytes of a sealed box with shares; one of HPKE with ML-KEM-768 takes about 1,250."""

REASON_LENGTH = 2000
"""Most characters of the reason of a refusal."""

COUNTS = frozenset({"train", "val", "test", "excluded"})
"""Fields of a report that tell a site's number of images."""

METRICS = "metrics"
REPORT = "report"
REFUSED = "refused"

_MOST_ENTRIES = 64
_MOST_SITES = 4096
_CODE = re.compile(r"[a-z][a-z0-9_ .-]{0,63}", re.IGNORECASE)
_KIND = re.compile(r"[A-Za-z]{1,64}")

Check = Callable[[Json], bool]


@dataclass(frozen=True)
class MessageRule:
    """What one type of message may hold.

    Attributes:
        body: check of each field that the body may have, ``report`` aside.
        report: check of each field that the body's ``report`` may have.
        parts: names of parts, whose sizes the caller knows from the plan.
        boxes: whether there may be a part ``box/NAME`` for each site of the cohort.
    """

    body: Mapping[str, Check] = field(default_factory=dict)
    report: Mapping[str, Check] = field(default_factory=dict)
    parts: frozenset[str] = frozenset()
    boxes: bool = False


def _is_count(value: Json) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_number(value: Json) -> bool:
    # JSON does not tell 1 from 1.0; a whole number of a thousand digits is a message of its own.
    return _is_count(value) or (isinstance(value, float) and math.isfinite(value))


def _is_number_or_none(value: Json) -> bool:
    return value is None or _is_number(value)


def _is_amount(value: Json) -> bool:
    return _is_number(value) and not (isinstance(value, float) and value < 0)


def _is_amount_or_none(value: Json) -> bool:
    return value is None or _is_amount(value)


def _matches(pattern: str) -> Check:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _is_list_of_sites(value: Json) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MOST_SITES
        and all(isinstance(name, str) and MEMBER_NAME.fullmatch(name) for name in value)
    )


def _mapping(key: re.Pattern[str], check: Check, most: int) -> Check:
    def is_mapping(value: Json) -> bool:
        return (
            isinstance(value, Mapping)
            and len(value) <= most
            and all(key.fullmatch(name) and check(item) for name, item in value.items())
        )

    return is_mapping


def _is_reason(value: Json) -> bool:
    return isinstance(value, str) and len(value) <= REASON_LENGTH


_HASH = _matches(r"[0-9a-f]{64}")
_HASHES = _mapping(MEMBER_NAME, _HASH, _MOST_SITES)
_COSIGNATURE = _matches(r"[0-9a-f]{128}")
_SHARES = _mapping(MEMBER_NAME, _matches(rf"[0-9a-f]{{{2 * SHARE_BYTES}}}"), _MOST_SITES)
_RESULT: Mapping[str, Check] = {
    "epsilon": _is_amount_or_none,
    "delta": _is_amount_or_none,
    "seconds": _is_amount,
    METRICS: _mapping(_CODE, _is_number_or_none, _MOST_ENTRIES),
}

RULES: Mapping[str, MessageRule] = {
    "joined": MessageRule(
        body={"encryption_key": _matches(r"[A-Za-z0-9+/]{1,4096}={0,2}")},
        report={
            "train": _is_count,
            "val": _is_count,
            "test": _is_count,
            "excluded": _mapping(_CODE, _is_count, _MOST_ENTRIES),
            "delta": _is_number_or_none,
            "witnessed_size": _is_count,
        },
    ),
    "prepared": MessageRule(
        body={
            "mask_key": _HASH,  # X25519: as long as a hash
            "seed_commitment": _HASH,
            # Commitments to shares; a share itself is longer and does not pass.
            "seed_shares": _HASHES,
            "key_shares": _HASHES,
        },
        report={"cosignature": _COSIGNATURE},
        boxes=True,
    ),
    "masked": MessageRule(
        body={"sharers": _is_list_of_sites},
        report=_RESULT,
        parts=frozenset({"update", "counts"}),
    ),
    # Sealed for the server, which opens it.
    "trained": MessageRule(
        report={**_RESULT, "cosignature": _COSIGNATURE}, parts=frozenset({"update", "counts"})
    ),
    "confirmed": MessageRule(body={"survivors": _is_list_of_sites}),
    "revealed": MessageRule(body={"seeds": _SHARES, "mask_keys": _SHARES}),
    REFUSED: MessageRule(body={"kind": _matches(_KIND.pattern), "reason": _is_reason}),
}


def check_body(envelope: Envelope, rule: MessageRule) -> None:
    """Compare a message's fields with the list; by a site before it sends, by a server on receipt.

    Raises:
        ProtocolError: if there is another field, or one of another form.
    """
    body = dict(envelope.body)
    report = body.pop(REPORT, {})
    if not isinstance(report, Mapping):
        raise ProtocolError(f"The report of a {envelope.type!r} message is no list of fields.")
    _check_fields(envelope.type, body, rule.body)
    _check_fields(envelope.type, report, rule.report)


def _check_fields(kind: str, found: Mapping[str, Json], checks: Mapping[str, Check]) -> None:
    for name, value in found.items():
        # The name itself is not told: it may be what should not leave.
        if name not in checks:
            raise ProtocolError(f"A {kind!r} message has a field that may not leave a site.")
        if not checks[name](value):
            raise ProtocolError(f"Field {name!r} of a {kind!r} message has a form not allowed.")
