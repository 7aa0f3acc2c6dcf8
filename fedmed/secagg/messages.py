"""The messages of secure aggregation: their types, their bodies, and who may send them.

A body has the fields that its class below names, and ``report``: an object that belongs to the
caller (policy, log, figures of a site) and is signed with the rest but not read here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fedmed.errors import ProtocolError
from fedmed.secagg.keys import ENCRYPTION_KEY_BYTES, MASK_KEY_BYTES
from fedmed.secagg.shamir import SHARE_BYTES
from fedmed.trust.canonical import Json
from fedmed.trust.context import RoundContext
from fedmed.trust.envelope import Envelope
from fedmed.trust.roster import Role, Roster

Parts = dict[str, bytes]
Message = tuple[Envelope, Parts]
"""A signed header and the parts that travel beside it, by name."""
Report = Mapping[str, Json]

_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_HASH_BYTES = 32


@dataclass(frozen=True)
class Kind:
    """A type of message.

    Attributes:
        type: as in the envelope.
        sequence: number of the step.
        role: who sends it.
    """

    type: str
    sequence: int
    role: Role


JOINED = Kind("joined", 0, Role.site)
PREPARE = Kind("prepare", 1, Role.server)
PREPARED = Kind("prepared", 1, Role.site)
TRAIN = Kind("train", 2, Role.server)
MASKED = Kind("masked", 2, Role.site)
CONFIRM = Kind("confirm", 3, Role.server)
CONFIRMED = Kind("confirmed", 3, Role.site)
REVEAL = Kind("reveal", 4, Role.server)
REVEALED = Kind("revealed", 4, Role.site)


def verify_message(
    envelope: Envelope, kind: Kind, context: str, sender: str, roster: Roster
) -> None:
    """Check that a message is the one that this step expects, from the member who should send it.

    Args:
        envelope: as received.
        kind: what the step expects.
        context: hex SHA-256 of the round's (or the joining) context.
        sender: name in the roster.
        roster: pinned by this machine.

    Raises:
        ProtocolError: if type, context, sender, step or signature differ, or the sender is no
            such member.
    """
    failure = ProtocolError(f"{sender!r} has no key to sign with.")
    for key in roster.signing_keys(sender, kind.role):
        try:
            envelope.verify(
                key, type=kind.type, context=context, site=sender, sequence=kind.sequence
            )
        except ProtocolError as error:
            failure = error
        else:
            return
    raise failure


def check_parts(
    envelope: Envelope, parts: Mapping[str, bytes | memoryview], expected: Collection[str]
) -> None:
    """Check that exactly the expected parts came, each as its sender signed it.

    Raises:
        ProtocolError: if one is missing, one too many, or changed.
    """
    if set(parts) != set(expected) or set(envelope.parts) != set(expected):
        raise ProtocolError(f"A message {envelope.type!r} has other parts than this step expects.")
    for name, data in parts.items():
        envelope.check_part(name, data)


@dataclass(frozen=True)
class Joined:
    """A site's public HPKE key for a run.

    Attributes:
        encryption_key: 1216 bytes.
        report: the caller's.
    """

    encryption_key: bytes
    report: Report = field(default_factory=dict)

    def to_body(self) -> dict[str, Json]:
        """Return the body of the envelope."""
        return {
            "encryption_key": base64.b64encode(self.encryption_key).decode(),
            "report": self.report,
        }

    @classmethod
    def from_body(cls, body: Mapping[str, Json]) -> Joined:
        """Read a body.

        Raises:
            ProtocolError: if it is not of this form.
        """
        _check_fields(body, "encryption_key")
        text = body["encryption_key"]
        try:
            key = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        except (binascii.Error, ValueError) as error:
            raise ProtocolError("encryption_key is not of the agreed form.") from error
        if len(key) != ENCRYPTION_KEY_BYTES or base64.b64encode(key).decode() != text:
            raise ProtocolError("encryption_key is not of the agreed form.")
        return cls(key, _report(body))


@dataclass(frozen=True)
class Prepare:
    """Step 1, from the server: what the round is.

    Attributes:
        context: agreed by all.
        report: the caller's.
    """

    context: RoundContext
    report: Report = field(default_factory=dict)

    def to_body(self) -> dict[str, Json]:
        """Return the body of the envelope."""
        return {"context": self.context.to_json(), "report": self.report}

    @classmethod
    def from_body(cls, body: Mapping[str, Json]) -> Prepare:
        """Read a body.

        Raises:
            ProtocolError: if it is not of this form.
        """
        _check_fields(body, "context")
        fields = body["context"]
        if not isinstance(fields, Mapping):
            raise ProtocolError("A round's context is no object.")
        return cls(RoundContext.from_json(fields), _report(body))


@dataclass(frozen=True)
class Prepared:
    """Step 1, from a site: its mask key, and commitments to all that it shares among the sites.

    Attributes:
        mask_key: X25519 public key, 32 bytes.
        seed_commitment: SHA-256 that binds the site to the seed of its self mask.
        seed_shares: for each site of the cohort, SHA-256 that binds to its share of the seed.
        key_shares: the same for its share of the private mask key.
        report: the caller's.
    """

    mask_key: bytes
    seed_commitment: bytes
    seed_shares: Mapping[str, bytes]
    key_shares: Mapping[str, bytes]
    report: Report = field(default_factory=dict)

    def to_body(self) -> dict[str, Json]:
        """Return the body of the envelope."""
        return {
            "mask_key": self.mask_key.hex(),
            "seed_commitment": self.seed_commitment.hex(),
            "seed_shares": {name: value.hex() for name, value in self.seed_shares.items()},
            "key_shares": {name: value.hex() for name, value in self.key_shares.items()},
            "report": self.report,
        }

    @classmethod
    def from_body(cls, body: Mapping[str, Json], cohort: Collection[str]) -> Prepared:
        """Read a body.

        Args:
            body: as received.
            cohort: the sites that there must be commitments for.

        Raises:
            ProtocolError: if it is not of this form.
        """
        _check_fields(body, "mask_key", "seed_commitment", "seed_shares", "key_shares")
        return cls(
            _hex(body["mask_key"], MASK_KEY_BYTES),
            _hex(body["seed_commitment"], _HASH_BYTES),
            _hex_of_each(body["seed_shares"], cohort, _HASH_BYTES),
            _hex_of_each(body["key_shares"], cohort, _HASH_BYTES),
            _report(body),
        )


@dataclass(frozen=True)
class Bare:
    """Steps 2 and 4, from the server: all but the caller's report is in the parts.

    Attributes:
        report: the caller's.
    """

    report: Report = field(default_factory=dict)

    def to_body(self) -> dict[str, Json]:
        """Return the body of the envelope."""
        return {"report": self.report}

    @classmethod
    def from_body(cls, body: Mapping[str, Json]) -> Bare:
        """Read a body.

        Raises:
            ProtocolError: if it is not of this form.
        """
        _check_fields(body)
        return cls(_report(body))


@dataclass(frozen=True)
class Masked:
    """Step 2, from a site: with whom it made masks; the masked arrays are the parts.

    Attributes:
        sharers: sorted names.
        report: the caller's.
    """

    sharers: tuple[str, ...]
    report: Report = field(default_factory=dict)

    def to_body(self) -> dict[str, Json]:
        """Return the body of the envelope."""
        return {"sharers": list(self.sharers), "report": self.report}

    @classmethod
    def from_body(cls, body: Mapping[str, Json]) -> Masked:
        """Read a body.

        Raises:
            ProtocolError: if it is not of this form.
        """
        _check_fields(body, "sharers")
        return cls(_names(body["sharers"]), _report(body))


@dataclass(frozen=True)
class Survivors:
    """Step 3, both ways: whose masked arrays are in the sum.

    Attributes:
        survivors: sorted names.
        report: the caller's.
    """

    survivors: tuple[str, ...]
    report: Report = field(default_factory=dict)

    def to_body(self) -> dict[str, Json]:
        """Return the body of the envelope."""
        return {"survivors": list(self.survivors), "report": self.report}

    @classmethod
    def from_body(cls, body: Mapping[str, Json]) -> Survivors:
        """Read a body.

        Raises:
            ProtocolError: if it is not of this form.
        """
        _check_fields(body, "survivors")
        return cls(_names(body["survivors"]), _report(body))


@dataclass(frozen=True)
class Revealed:
    """Step 4, from a site: one share for each site that made masks.

    Attributes:
        seeds: share of the self mask's seed, for each survivor.
        mask_keys: share of the private mask key, for each site that sent no masked arrays.
        report: the caller's.
    """

    seeds: Mapping[str, bytes]
    mask_keys: Mapping[str, bytes]
    report: Report = field(default_factory=dict)

    def to_body(self) -> dict[str, Json]:
        """Return the body of the envelope."""
        return {
            "seeds": {name: share.hex() for name, share in self.seeds.items()},
            "mask_keys": {name: share.hex() for name, share in self.mask_keys.items()},
            "report": self.report,
        }

    @classmethod
    def from_body(
        cls, body: Mapping[str, Json], survivors: Collection[str], dropped: Collection[str]
    ) -> Revealed:
        """Read a body.

        Args:
            body: as received.
            survivors: for whom there must be a share of the seed, and nothing else.
            dropped: for whom there must be a share of the mask key, and nothing else.

        Raises:
            ProtocolError: if it is not of this form.
        """
        _check_fields(body, "seeds", "mask_keys")
        return cls(
            _hex_of_each(body["seeds"], survivors, SHARE_BYTES),
            _hex_of_each(body["mask_keys"], dropped, SHARE_BYTES),
            _report(body),
        )


def _check_fields(body: Mapping[str, Json], *names: str) -> None:
    if set(body) != {*names, "report"}:
        raise ProtocolError("A message's body has other fields than agreed.")


def _report(body: Mapping[str, Json]) -> Report:
    report = body["report"]
    if not isinstance(report, Mapping):
        raise ProtocolError("A message's report is no object.")
    return report


def _hex(value: Json, length: int) -> bytes:
    if not isinstance(value, str) or len(value) != 2 * length or not _HEX.fullmatch(value):
        raise ProtocolError("A key, share or hash in a message is not of the agreed form.")
    return bytes.fromhex(value)


def _hex_of_each(value: Json, names: Collection[str], length: int) -> dict[str, bytes]:
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise ProtocolError("A message has values for other sites than agreed.")
    return {name: _hex(text, length) for name, text in value.items()}


def _names(value: Json) -> tuple[str, ...]:
    if not isinstance(value, list) or any(type(name) is not str for name in value):
        raise ProtocolError("A list of sites in a message is not of the agreed form.")
    if value != sorted(set(value)):
        raise ProtocolError("A list of sites in a message is not sorted, or names a site twice.")
    return tuple(value)
