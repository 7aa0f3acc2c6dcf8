"""The sites' signed messages in a leaf: from whom, over what, and what they state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedmed.errors import ProtocolError
from fedmed.trust.audit.leaves import OpenRoundLeaf, RoundLeaf
from fedmed.trust.canonical import Json
from fedmed.trust.context import TRAINING
from fedmed.trust.envelope import Envelope
from fedmed.trust.roster import Role, Roster

MASKED = ("masked", 2)
TRAINED = ("trained", 2)
CONFIRMED = ("confirmed", 3)
MASKED_UPDATE = "update"
_CONFIRMED_FIELD = "survivors"


@dataclass(frozen=True)
class Moments:
    """When something was signed: not before one checkpoint, not after another.

    Attributes:
        since, until: seconds since 1970, by the server's clock, both within.
    """

    since: int
    until: int


@dataclass(frozen=True)
class Statement:
    """What a site states of its own privacy in a round.

    Attributes:
        epsilon: spent in the run so far; None without differential privacy.
        delta: of the same guarantee.
    """

    epsilon: float | None
    delta: float | None


@dataclass(frozen=True)
class CheckedMessages:
    """The messages of a leaf, all of which hold.

    Attributes:
        inputs: signatures over a masked input or, in an open round, an update.
        confirmations: signatures over the list of survivors.
        statements: by site; only of training.
        hashes: hex SHA-256 of each part of each site's input, by site and part.
    """

    inputs: int
    confirmations: int
    statements: Mapping[str, Statement] = field(default_factory=dict)
    hashes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def keys_between(
    roster: Roster, name: str, role: Role, moments: Moments
) -> tuple[Ed25519PublicKey, ...]:
    """Return the keys of a member that were valid at some moment, newest first.

    Raises:
        ProtocolError: if it is no such member, or none of its keys was valid.
    """
    member = roster.member(name)
    if member.role != role:
        raise ProtocolError(f"{name!r} is no {role.value} of the consortium.")
    keys = tuple(
        _public_key(keys.signing_key)
        for keys in reversed(member.keys)
        if keys.not_before <= moments.until and keys.not_after >= moments.since
    )
    if not keys:
        raise ProtocolError(f"No key of {name!r} was valid at the time.")
    return keys


def check_messages(
    leaf: RoundLeaf | OpenRoundLeaf, roster: Roster, moments: Moments
) -> CheckedMessages:
    """Check all signed messages of a round.

    Args:
        leaf: as read, so that its lists of sites agree with each other.
        roster: in force in the round.
        moments: between which the round was.

    Raises:
        ProtocolError: naming the site whose message does not hold.
    """
    context = leaf.context.sha256()
    inputs = leaf.masked if isinstance(leaf, RoundLeaf) else leaf.updates
    confirmed = leaf.confirmed if isinstance(leaf, RoundLeaf) else {}
    statements, hashes = {}, {}
    for site, data in inputs.items():
        keys = keys_between(roster, site, Role.site, moments)
        kind = MASKED if isinstance(leaf, RoundLeaf) else TRAINED
        envelope = _open(data, kind, context, site, keys)
        if isinstance(leaf, RoundLeaf):
            _demand_list(envelope, "sharers", leaf.sharers)
        if MASKED_UPDATE not in envelope.parts and leaf.context.purpose == TRAINING:
            raise ProtocolError(f"The message {kind[0]!r} of {site!r} has no update.")
        hashes[site] = {name: part.sha256 for name, part in envelope.parts.items()}
        if leaf.context.purpose == TRAINING:
            statements[site] = _statement(envelope)
    for site, data in confirmed.items():
        keys = keys_between(roster, site, Role.site, moments)
        _demand_list(_open(data, CONFIRMED, context, site, keys), _CONFIRMED_FIELD, leaf.survivors)
    return CheckedMessages(len(inputs), len(confirmed), statements, hashes)


def _open(
    data: bytes,
    kind: tuple[str, int],
    context: str,
    site: str,
    keys: Sequence[Ed25519PublicKey],
) -> Envelope:
    """Read an envelope and check that a site signed it in this step of this round."""
    failure = ProtocolError("there is no key")
    try:
        envelope = Envelope.from_bytes(data)
    except ProtocolError as error:
        failure, keys = error, ()
    for key in keys:
        try:
            envelope.verify(key, type=kind[0], context=context, site=site, sequence=kind[1])
        except ProtocolError as error:
            failure = error
        else:
            return envelope
    raise ProtocolError(
        f"The message {kind[0]!r} of {site!r} does not hold: {failure}"
    ) from failure


def _demand_list(envelope: Envelope, name: str, sites: Sequence[str]) -> None:
    if envelope.body.get(name) != list(sites):
        raise ProtocolError(
            f"{envelope.site!r} signed other {name} in its message {envelope.type!r} than the "
            "log has."
        )


def _statement(envelope: Envelope) -> Statement:
    report = envelope.body.get("report")
    if not isinstance(report, Mapping) or not {"epsilon", "delta"} <= set(report):
        raise ProtocolError(f"{envelope.site!r} states no epsilon and delta.")
    epsilon, delta = (_figure(report[name], envelope.site) for name in ("epsilon", "delta"))
    return Statement(epsilon, delta)


def _figure(value: Json, site: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ProtocolError(f"{site!r} states an epsilon or delta that is no number.")
    return float(value)


@lru_cache(maxsize=4096)
def _public_key(text: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
