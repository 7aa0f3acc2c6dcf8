"""The leaves of the log: what is written of a run.

Builders return JSON for :meth:`fedmed.trust.audit.log.TransparencyLog.append`; ``leaf_reading.py``
reads it back into the types here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time as clock
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedmed.trust.canonical import Json, canonical_json
from fedmed.trust.context import RoundContext

MAX_REASON = 500


@dataclass(frozen=True)
class StartLeaf:
    """The first leaf of a run.

    Attributes:
        time: seconds since 1970, by the server's clock, as in all leaves.
        run: identifier.
        plan: hex SHA-256 of the plan in the leaf, as :meth:`Plan.sha256` has it.
        mode: the plan's ``transport.mode``; empty if the plan has none.
        model: hex SHA-256 of the initial weights.
        roster: signed roster, see ``trust/roster_file.py``.
    """

    time: int
    run: str
    plan: str
    mode: str
    model: str
    roster: Mapping[str, Json]


@dataclass(frozen=True)
class RosterLeaf:
    """The consortium's roster has changed.

    Attributes:
        time, run: as in :class:`StartLeaf`.
        roster: the new signed roster.
    """

    time: int
    run: str
    roster: Mapping[str, Json]


@dataclass(frozen=True)
class ResumedLeaf:
    """The server went back to an earlier state, after a crash for instance.

    Attributes:
        time, run: as in :class:`StartLeaf`.
        round: last round that counts; 0 is the initial model.
        model: hex SHA-256 of the weights after that round.
    """

    time: int
    run: str
    round: int
    model: str


@dataclass(frozen=True)
class AbandonedLeaf:
    """An attempt at a round that came to nothing.

    Attributes:
        time: as in :class:`StartLeaf`.
        context: of the attempt.
        reason: for people, up to 500 printable characters.
    """

    time: int
    context: RoundContext
    reason: str


@dataclass(frozen=True)
class RoundLeaf:
    """A round of secure aggregation.

    Attributes:
        time: as in :class:`StartLeaf`.
        context: of the attempt that succeeded.
        sharers: sites whose keys and shares the server had, sorted.
        survivors: sites whose masked input is in the sum, sorted.
        model_out: hex SHA-256 of the weights after the round.
        masked: signed ``masked`` envelope by survivor.
        confirmed: signed ``confirmed`` envelope by site, of at least the threshold.
    """

    time: int
    context: RoundContext
    sharers: tuple[str, ...]
    survivors: tuple[str, ...]
    model_out: str
    masked: Mapping[str, bytes]
    confirmed: Mapping[str, bytes]


@dataclass(frozen=True)
class OpenRoundLeaf:
    """A round whose single updates the server saw (``transport.mode`` sealed or plain).

    Attributes:
        time, context, survivors, model_out: as in :class:`RoundLeaf`.
        updates: signed ``trained`` envelope by survivor.
    """

    time: int
    context: RoundContext
    survivors: tuple[str, ...]
    model_out: str
    updates: Mapping[str, bytes]


Leaf = StartLeaf | RosterLeaf | ResumedLeaf | AbandonedLeaf | RoundLeaf | OpenRoundLeaf


def start_leaf(
    run: str,
    plan: Mapping[str, Json],
    model: str,
    roster: Mapping[str, Json],
    time: int | None = None,
) -> dict[str, Json]:
    """Return the first leaf of a run; see :class:`StartLeaf`. ``time`` None is now."""
    return {
        "type": "start",
        "time": _now(time),
        "run": run,
        "plan": plan,
        "model": model,
        "roster": roster,
    }


def roster_leaf(run: str, roster: Mapping[str, Json], time: int | None = None) -> dict[str, Json]:
    """Return the leaf of a changed roster; see :class:`RosterLeaf`."""
    return {"type": "roster", "time": _now(time), "run": run, "roster": roster}


def resumed_leaf(run: str, round: int, model: str, time: int | None = None) -> dict[str, Json]:
    """Return the leaf of a run that goes on from an earlier round; see :class:`ResumedLeaf`."""
    return {"type": "resumed", "time": _now(time), "run": run, "round": round, "model": model}


def abandoned_leaf(context: RoundContext, reason: str, time: int | None = None) -> dict[str, Json]:
    """Return the leaf of an attempt that failed; see :class:`AbandonedLeaf`."""
    printable = "".join(c if c.isprintable() else " " for c in reason)[:MAX_REASON]
    return {
        "type": "abandoned",
        "time": _now(time),
        "context": context.to_json(),
        "reason": printable,
    }


def round_leaf(
    context: RoundContext,
    sharers: Iterable[str],
    survivors: Iterable[str],
    model_out: str,
    masked: Mapping[str, bytes],
    confirmed: Mapping[str, bytes],
    time: int | None = None,
) -> dict[str, Json]:
    """Return the leaf of a round of secure aggregation; see :class:`RoundLeaf`."""
    return {
        "type": "round",
        "time": _now(time),
        "context": context.to_json(),
        "sharers": sorted(sharers),
        "survivors": sorted(survivors),
        "model_out": model_out,
        "masked": _encoded(masked),
        "confirmed": _encoded(confirmed),
    }


def open_round_leaf(
    context: RoundContext,
    survivors: Iterable[str],
    model_out: str,
    updates: Mapping[str, bytes],
    time: int | None = None,
) -> dict[str, Json]:
    """Return the leaf of a round without secure aggregation; see :class:`OpenRoundLeaf`."""
    return {
        "type": "round",
        "time": _now(time),
        "context": context.to_json(),
        "survivors": sorted(survivors),
        "model_out": model_out,
        "updates": _encoded(updates),
    }


def plan_sha256(plan: Mapping[str, Json]) -> str:
    """Return the hex SHA-256 of a plan, spelt as ``Plan.to_json`` spells it (ASCII only)."""
    canonical_json(plan)  # refuses what is no JSON
    text = json.dumps(plan, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _encoded(messages: Mapping[str, bytes]) -> dict[str, Json]:
    return {site: base64.b64encode(data).decode() for site, data in messages.items()}


def _now(time: int | None) -> int:
    return int(clock.time()) if time is None else time
