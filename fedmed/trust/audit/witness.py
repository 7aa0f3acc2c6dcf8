"""The witness at a site: cosigns the log's head only if it continues the one seen before.

The state file holds the newest head of each log that the site has cosigned. It is on disk before
a cosignature leaves the site, so no crash lets the server show a second history.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedmed.durable_files import replace_durably
from fedmed.errors import ConfigurationError, ProtocolError
from fedmed.trust.audit.checkpoint import Checkpoint, log_origin, read_hex
from fedmed.trust.audit.merkle import (
    HASH_BYTES,
    MAX_PROOF_NODES,
    verify_consistency,
)
from fedmed.trust.canonical import Json, canonical_json, parse_canonical
from fedmed.trust.context import RoundContext
from fedmed.trust.signatures import Signer

_PROTOCOL = "fedmed witness 1"
_FIELDS = {"protocol", "site", "heads", "conflicts"}


@dataclass(frozen=True)
class WitnessState:
    """What a site has seen of all logs.

    Attributes:
        site: whose state it is.
        heads: newest cosigned head by origin.
        conflicts: first head that was refused because it did not continue the cosigned one, by
            origin; both are signed by the server, which is evidence against it.
    """

    site: str
    heads: Mapping[str, Checkpoint] = field(default_factory=dict)
    conflicts: Mapping[str, Checkpoint] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the text of the state file."""
        state: dict[str, Json] = {
            "protocol": _PROTOCOL,
            "site": self.site,
            "heads": {origin: head.to_json() for origin, head in self.heads.items()},
            "conflicts": {origin: head.to_json() for origin, head in self.conflicts.items()},
        }
        return canonical_json(state) + b"\n"


def read_witness_state(data: bytes) -> WitnessState:
    """Read a state file.

    Raises:
        ProtocolError: if it is not of the agreed form.
    """
    fields = parse_canonical(data.removesuffix(b"\n"))
    if not isinstance(fields, dict) or set(fields) != _FIELDS or fields["protocol"] != _PROTOCOL:
        raise ProtocolError("It is not the state of a witness.")
    site, heads, conflicts = fields["site"], fields["heads"], fields["conflicts"]
    if not (
        isinstance(site, str) and isinstance(heads, Mapping) and isinstance(conflicts, Mapping)
    ):
        raise ProtocolError("It is not the state of a witness.")
    state = WitnessState(site, _read_heads(heads), _read_heads(conflicts))
    for heads_by_origin in (state.heads, state.conflicts):
        if any(origin != head.origin for origin, head in heads_by_origin.items()):
            raise ProtocolError("A head is kept under the name of another log.")
    return state


class Witness:
    """Cosigns heads for one site.

    Args:
        path: the state file; it and its folder are made when missing. Never share it between
            sites, and never put an old copy back.
        signer: of the site.
    """

    def __init__(self, path: Path, signer: Signer) -> None:
        self._path = path
        self._signer = signer

    def witnessed_size(self, origin: str) -> int:
        """Return the size of the newest head cosigned of a log; 0 if there is none.

        Raises:
            ConfigurationError: if the state file cannot be used.
        """
        head = self._read().heads.get(origin)
        return head.size if head else 0

    def cosign(
        self,
        invitation: Json,
        context: RoundContext,
        server: str,
        server_keys: Sequence[Ed25519PublicKey],
    ) -> bytes:
        """Cosign the head that comes with the invitation to a round.

        Args:
            invitation: ``{"checkpoint": ..., "proofs": {old size: [hex, ...]}}``, as
                :meth:`TransparencyLog.invitation` makes it.
            context: of the round, already found acceptable.
            server: its name in the roster.
            server_keys: keys that it may sign with.

        Returns:
            The cosignature, 64 bytes.

        Raises:
            ProtocolError: if the head is of another log than this server's for this run, is not
                the one in the context, or does not continue what the site has seen.
            ConfigurationError: if the state file cannot be used.
        """
        if not isinstance(invitation, Mapping) or set(invitation) != {"checkpoint", "proofs"}:
            raise ProtocolError("A round came without the head of the log and its proofs.")
        checkpoint = Checkpoint.from_json(invitation["checkpoint"])
        if checkpoint.origin != log_origin(server, context.run):
            raise ProtocolError("The head is of another log than that of this server and run.")
        if (checkpoint.size, checkpoint.root) != (context.log_size, context.log_root):
            raise ProtocolError("The head of the log is another one than the round's context has.")
        proofs = invitation["proofs"]
        if not isinstance(proofs, Mapping):
            raise ProtocolError("The proofs about the log are not by size.")
        known = self.witnessed_size(checkpoint.origin)
        if known in (0, checkpoint.size):
            proof: Json = []
        elif known > checkpoint.size or str(known) in proofs:
            proof = proofs.get(str(known), [])
        else:
            raise ProtocolError(
                f"There is no proof that the log of {checkpoint.size} leaves begins with the "
                f"{known} that this site has seen."
            )
        return self.check(checkpoint, _read_proof(proof), server_keys)

    def check(
        self,
        checkpoint: Checkpoint,
        proof: Sequence[str],
        server_keys: Sequence[Ed25519PublicKey],
    ) -> bytes:
        """Cosign a head if it continues the one that this site cosigned last.

        Args:
            checkpoint: the new head.
            proof: hex nodes: consistency with the head of :meth:`witnessed_size`; empty if that
                is 0 or the new size.
            server_keys: keys that the server may sign with.

        Returns:
            The cosignature, 64 bytes. The state is on disk by then.

        Raises:
            ProtocolError: if the server has not signed it, the log has shrunk, or it is another
                history. In the last two cases the head is kept in the state as evidence.
            ConfigurationError: if the state file cannot be used.
        """
        checkpoint.verify(server_keys)
        nodes = [read_hex(node, HASH_BYTES, "A node of a proof") for node in proof]
        with self._locked():
            state = self._read()
            known = state.heads.get(checkpoint.origin)
            try:
                _demand_continuation(known, checkpoint, nodes)
            except ProtocolError:
                conflicts = {checkpoint.origin: checkpoint, **state.conflicts}
                if conflicts != state.conflicts:
                    self._write(replace(state, conflicts=conflicts))
                raise
            if known != checkpoint:
                heads = {**state.heads, checkpoint.origin: checkpoint}
                self._write(replace(state, heads=heads))
        return checkpoint.cosign(self._signer)

    def _read(self) -> WitnessState:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return WitnessState(self._signer.name)
        except OSError as error:
            raise self._unusable(error.strerror) from error
        try:
            state = read_witness_state(data)
        except ProtocolError as error:
            raise self._unusable("it is damaged") from error
        if state.site != self._signer.name:
            raise self._unusable("it is another site's")
        return state

    def _write(self, state: WitnessState) -> None:
        try:
            replace_durably(self._path, state.to_bytes(), 0o600)
        except OSError as error:
            raise self._unusable(error.strerror) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time read, decide and write."""
        lock = self._path.with_name(f".{self._path.name}.lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unusable(error.strerror) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _unusable(self, reason: str | None) -> ConfigurationError:
        return ConfigurationError(
            f"{self._path.name}: the state of the log's witness cannot be used ({reason}), and "
            "without it the site takes part in no round. See to the rights of the site's state "
            "folder (site.state), or restore the file from its newest copy."
        )


def _demand_continuation(
    known: Checkpoint | None, checkpoint: Checkpoint, proof: Sequence[bytes]
) -> None:
    if known is None:
        if proof:
            raise ProtocolError("A proof about the log came for a head that this site never saw.")
        return
    verify_consistency(
        known.size,
        bytes.fromhex(known.root),
        checkpoint.size,
        bytes.fromhex(checkpoint.root),
        proof,
    )


def _read_proof(nodes: Json) -> list[str]:
    if not isinstance(nodes, list) or len(nodes) > MAX_PROOF_NODES:
        raise ProtocolError("A proof about the log is not a short list of SHA-256 hashes.")
    return [read_hex(node, HASH_BYTES, "A node of a proof").hex() for node in nodes]


def _read_heads(fields: Mapping[str, Json]) -> dict[str, Checkpoint]:
    return {origin: Checkpoint.from_json(head) for origin, head in fields.items()}
