"""The roster: the consortium's members and their keys, signed by its root and pinned by sites."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedmed.errors import ProtocolError
from fedmed.trust.canonical import Json, sha256_json

MEMBER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_KEY_BYTES = 32


class Role(StrEnum):
    """What a member may do."""

    site = "site"
    server = "server"


@dataclass(frozen=True)
class MemberKeys:
    """One generation of a member's keys; two overlap while keys are rotated.

    Attributes:
        signing_key: Ed25519 public key, hex of 32 bytes.
        tls_key_sha256: hex SHA-256 of the TLS key's SubjectPublicKeyInfo (DER).
        not_before, not_after: validity, seconds since 1970.
    """

    signing_key: str
    tls_key_sha256: str
    not_before: int
    not_after: int


@dataclass(frozen=True)
class Member:
    """A site or a server of the consortium.

    Attributes:
        name: as in every message.
        role: site or server.
        keys: newest last.
    """

    name: str
    role: Role
    keys: tuple[MemberKeys, ...]


@dataclass(frozen=True)
class Roster:
    """All members.

    Attributes:
        consortium: name.
        version: grows with every change; a site never goes back to a smaller one.
        issued: seconds since 1970.
        members: sorted by name; revoked ones are not in it.
    """

    consortium: str
    version: int
    issued: int
    members: tuple[Member, ...]

    def to_json(self) -> dict[str, Json]:
        """Return the roster as JSON."""
        return {
            "consortium": self.consortium,
            "version": self.version,
            "issued": self.issued,
            "members": [
                {
                    "name": member.name,
                    "role": member.role.value,
                    "keys": [vars(keys) for keys in member.keys],
                }
                for member in self.members
            ],
        }

    def sha256(self) -> str:
        """Return the hex SHA-256 that stands in every round's context."""
        return sha256_json(self.to_json())

    def names(self, role: Role) -> tuple[str, ...]:
        """Return the members of a role, sorted."""
        return tuple(member.name for member in self.members if member.role == role)

    def member(self, name: str) -> Member:
        """Return a member.

        Raises:
            ProtocolError: if there is none of this name.
        """
        for member in self.members:
            if member.name == name:
                return member
        raise ProtocolError(f"{name!r} is not in the roster of the consortium.")

    def signing_keys(
        self, name: str, role: Role, at: datetime | None = None
    ) -> tuple[Ed25519PublicKey, ...]:
        """Return the keys that a member may sign with now, newest first.

        Raises:
            ProtocolError: if it is not a member, has another role, or all its keys have expired.
        """
        member = self.member(name)
        now = (at or datetime.now(UTC)).timestamp()
        valid = [keys for keys in member.keys if keys.not_before <= now <= keys.not_after]
        if member.role != role:
            raise ProtocolError(f"{name!r} is no {role.value} of the consortium.")
        if not valid:
            raise ProtocolError(
                f"The keys of {name!r} have expired: rotate them (fedmed pki rotate)."
            )
        return tuple(
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(keys.signing_key))
            for keys in reversed(valid)
        )

    @classmethod
    def from_json(cls, fields: Mapping[str, Json]) -> Roster:
        """Read a roster; whether the root signed it is checked by ``trust/roster_file.py``.

        Raises:
            ProtocolError: if it is not of the agreed form.
        """
        try:
            members = tuple(_read_member(entry) for entry in _list(fields["members"]))
            roster = cls(
                _text(fields["consortium"]),
                _number(fields["version"]),
                _number(fields["issued"]),
                members,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError("The roster is not of the agreed form.") from error
        names = [member.name for member in members]
        if roster.to_json() != dict(fields) or names != sorted(set(names)):
            raise ProtocolError("The roster is not of the agreed form.")
        return roster


def _read_member(entry: Json) -> Member:
    if not isinstance(entry, Mapping):
        raise TypeError("a member is an object")
    name = _text(entry["name"])
    if not MEMBER_NAME.fullmatch(name):
        raise ValueError("not a name")
    return Member(
        name, Role(_text(entry["role"])), tuple(_read_keys(keys) for keys in _list(entry["keys"]))
    )


def _read_keys(entry: Json) -> MemberKeys:
    if not isinstance(entry, Mapping):
        raise TypeError("keys are an object")
    keys = MemberKeys(
        _text(entry["signing_key"]),
        _text(entry["tls_key_sha256"]),
        _number(entry["not_before"]),
        _number(entry["not_after"]),
    )
    for text in (keys.signing_key, keys.tls_key_sha256):
        if len(bytes.fromhex(text)) != _KEY_BYTES:
            raise ValueError("not a key")
    return keys


def _text(value: Json) -> str:
    if type(value) is not str:
        raise TypeError("not a text")
    return value


def _number(value: Json) -> int:
    if type(value) is not int:
        raise TypeError("not a number")
    return value


def _list(value: Json) -> Iterable[Json]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value
