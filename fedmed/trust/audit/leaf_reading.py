"""Leaves of the log, read from outside.

All is checked here that can be checked without keys and without the leaves before.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterable, Mapping

from fedmed.errors import ProtocolError
from fedmed.trust.audit.checkpoint import RUN_NAME, read_hex
from fedmed.trust.audit.leaves import (
    MAX_REASON,
    AbandonedLeaf,
    Leaf,
    OpenRoundLeaf,
    ResumedLeaf,
    RosterLeaf,
    RoundLeaf,
    StartLeaf,
    plan_sha256,
)
from fedmed.trust.audit.merkle import HASH_BYTES
from fedmed.trust.canonical import Json, parse_canonical
from fedmed.trust.context import EVALUATION, JOINING, RoundContext
from fedmed.trust.roster import MEMBER_NAME

SMALLEST_COHORT = 3
_LARGEST = 2**53


def confirmation_threshold(sites: int) -> int:
    """Return how many of ``sites`` must confirm the survivors: floor(2n/3) + 1."""
    return 2 * sites // 3 + 1


def read_leaf(line: bytes) -> Leaf:
    """Read a leaf from its canonical JSON, without the line break.

    Raises:
        ProtocolError: if it is not of an agreed form, or contradicts itself.
    """
    fields = parse_canonical(line)
    if not isinstance(fields, dict) or type(fields.get("type")) is not str:
        raise ProtocolError("A leaf of the log has no type.")
    kind = fields["type"]
    if kind == "round":
        return _read_open_round(fields) if "updates" in fields else _read_round(fields)
    if kind == "start":
        return _read_start(fields)
    if kind == "roster":
        _demand_fields(fields, "run", "roster")
        return RosterLeaf(_time(fields), _run(fields), _mapping(fields, "roster"))
    if kind == "resumed":
        _demand_fields(fields, "run", "round", "model")
        number = fields["round"]
        if type(number) is not int or not 0 <= number < _LARGEST:
            raise ProtocolError("The round of a leaf is no number of a round.")
        return ResumedLeaf(_time(fields), _run(fields), number, _sha256(fields, "model"))
    if kind == "abandoned":
        return _read_abandoned(fields)
    raise ProtocolError("A leaf of the log is of an unknown type.")


def _read_start(fields: Mapping[str, Json]) -> StartLeaf:
    _demand_fields(fields, "run", "plan", "model", "roster")
    plan = _mapping(fields, "plan")
    transport = plan.get("transport")
    mode = transport.get("mode", "") if isinstance(transport, Mapping) else ""
    return StartLeaf(
        _time(fields),
        _run(fields),
        plan_sha256(plan),
        mode if isinstance(mode, str) else "",
        _sha256(fields, "model"),
        _mapping(fields, "roster"),
    )


def _read_abandoned(fields: Mapping[str, Json]) -> AbandonedLeaf:
    _demand_fields(fields, "context", "reason")
    reason = fields["reason"]
    if not isinstance(reason, str) or len(reason) > MAX_REASON or not reason.isprintable():
        raise ProtocolError("The reason of an abandoned round is too long or not printable.")
    return AbandonedLeaf(_time(fields), _context(fields), reason)


def _read_round(fields: Mapping[str, Json]) -> RoundLeaf:
    _demand_fields(fields, "context", "sharers", "survivors", "model_out", "masked", "confirmed")
    leaf = RoundLeaf(
        _time(fields),
        _context(fields),
        _names(fields, "sharers"),
        _names(fields, "survivors"),
        _sha256(fields, "model_out"),
        _decoded(fields, "masked"),
        _decoded(fields, "confirmed"),
    )
    cohort = leaf.context.cohort
    if len(cohort) < SMALLEST_COHORT:
        raise ProtocolError(
            f"Only {len(cohort)} sites were asked; secure aggregation needs {SMALLEST_COHORT}."
        )
    threshold = confirmation_threshold(len(cohort))
    _demand_among(leaf.sharers, cohort, "shared keys", "was not asked")
    _demand_among(leaf.survivors, leaf.sharers, "is in the sum", "had shared no keys")
    _demand_same(leaf.masked, leaf.survivors, "masked input")
    _demand_among(leaf.confirmed, leaf.survivors, "confirmed the survivors", "is none of them")
    for count, what in (
        (len(leaf.survivors), "are in the sum"),
        (len(leaf.confirmed), "confirmed who is in the sum"),
    ):
        if count < threshold:
            raise ProtocolError(
                f"Only {count} sites {what}; of {len(cohort)} asked it takes {threshold}."
            )
    _check_model(leaf)
    return leaf


def _read_open_round(fields: Mapping[str, Json]) -> OpenRoundLeaf:
    _demand_fields(fields, "context", "survivors", "model_out", "updates")
    leaf = OpenRoundLeaf(
        _time(fields),
        _context(fields),
        _names(fields, "survivors"),
        _sha256(fields, "model_out"),
        _decoded(fields, "updates"),
    )
    if not leaf.survivors:
        raise ProtocolError("No site has an update in the round.")
    _demand_among(leaf.survivors, leaf.context.cohort, "is in the mean", "was not asked")
    _demand_same(leaf.updates, leaf.survivors, "update")
    _check_model(leaf)
    return leaf


def _check_model(leaf: RoundLeaf | OpenRoundLeaf) -> None:
    if leaf.context.purpose == EVALUATION and leaf.model_out != leaf.context.model:
        raise ProtocolError("The model is another one after an evaluation.")


def _context(fields: Mapping[str, Json]) -> RoundContext:
    context = RoundContext.from_json(_mapping(fields, "context"))
    if context.purpose == JOINING:
        raise ProtocolError("A leaf holds the context of joining, not of a round.")
    for name, digest in (
        ("roster", context.roster),
        ("plan", context.plan),
        ("model", context.model),
        ("log head", context.log_root),
    ):
        read_hex(digest, HASH_BYTES, f"The {name} hash of a round's context")
    if not RUN_NAME.fullmatch(context.run):
        raise ProtocolError("The context of a round names no usable run.")
    for site in context.cohort:
        if not MEMBER_NAME.fullmatch(site):
            raise ProtocolError("A site in the cohort of a round has no usable name.")
    return context


def _demand_fields(fields: Mapping[str, Json], *names: str) -> None:
    if set(fields) != {"type", "time", *names}:
        raise ProtocolError("A leaf of the log has other fields than agreed for its type.")


def _demand_among(names: Iterable[str], all_names: Collection[str], is_said: str, but: str) -> None:
    known = set(all_names)
    for name in names:
        if name not in known:
            raise ProtocolError(f"The log says that {name!r} {is_said}, but it {but}.")


def _demand_same(messages: Mapping[str, bytes], sites: tuple[str, ...], what: str) -> None:
    for name in sites:
        if name not in messages:
            raise ProtocolError(f"The {what} of {name!r} is missing.")
    _demand_among(messages, sites, f"sent a {what}", "is not among the survivors")


def _time(fields: Mapping[str, Json]) -> int:
    time = fields["time"]
    if type(time) is not int or not 0 <= time < _LARGEST:
        raise ProtocolError("The time of a leaf is not in seconds since 1970.")
    return time


def _run(fields: Mapping[str, Json]) -> str:
    run = fields["run"]
    if not isinstance(run, str) or not RUN_NAME.fullmatch(run):
        raise ProtocolError("A leaf of the log names no usable run.")
    return run


def _sha256(fields: Mapping[str, Json], name: str) -> str:
    return read_hex(fields[name], HASH_BYTES, f"The field {name!r} of a leaf").hex()


def _mapping(fields: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    value = fields[name]
    if not isinstance(value, dict):
        raise ProtocolError(f"The field {name!r} of a leaf is no object.")
    return value


def _names(fields: Mapping[str, Json], name: str) -> tuple[str, ...]:
    value = fields[name]
    if not isinstance(value, list) or any(type(entry) is not str for entry in value):
        raise ProtocolError(f"The field {name!r} of a leaf is no list of sites.")
    if value != sorted(set(value)):
        raise ProtocolError(f"The {name} of a round are not sorted, or named twice.")
    return tuple(value)


def _decoded(fields: Mapping[str, Json], name: str) -> dict[str, bytes]:
    decoded = {}
    for site, text in _mapping(fields, name).items():
        if not MEMBER_NAME.fullmatch(site):
            raise ProtocolError(f"The field {name!r} of a leaf is not by sites.")
        try:
            decoded[site] = base64.b64decode(text if isinstance(text, str) else "", validate=True)
        except (binascii.Error, ValueError) as error:
            raise ProtocolError(f"The {name} message of {site!r} is not in base64.") from error
    return decoded
