"""Comparison with what was seen earlier: a witness' state, a checkpoint, an earlier bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedmed.errors import ConfigurationError, ProtocolError
from fedmed.trust.audit.bundle import Bundle
from fedmed.trust.audit.checkpoint import Checkpoint
from fedmed.trust.audit.checkpoint_lines import CheckpointLines
from fedmed.trust.audit.findings import EarlierFindings
from fedmed.trust.audit.witness import read_witness_state
from fedmed.trust.canonical import parse_canonical

_MAX_STATE_BYTES = 64 * 2**20
_ZIP_START = b"PK"
ServerKeys = Callable[[Checkpoint], Sequence[Ed25519PublicKey]]


@dataclass(frozen=True)
class Earlier:
    """Heads of a log that were seen before.

    Attributes:
        source: ``witness state``, ``checkpoint`` or ``bundle``.
        heads: by size.
        site: whose state it is; None unless it is a witness' state.
    """

    source: str
    heads: tuple[Checkpoint, ...]
    site: str | None = None

    def compare(self, heads: Sequence[Checkpoint], server_keys: ServerKeys) -> EarlierFindings:
        """Check that a log continues this one.

        Args:
            heads: of the sizes 1, 2, 3, ... of the log, all of which hold.
            server_keys: returns the keys that the server could sign a head with.

        Raises:
            ProtocolError: if it does not, or a head here is not signed by the server.
        """
        for old in self.heads:
            try:
                old.verify(server_keys(old))
            except ProtocolError as error:
                raise ProtocolError(
                    f"The earlier {self.source} proves nothing: its head of size {old.size} is not "
                    "signed by the server."
                ) from error
            if old.size > len(heads):
                raise ProtocolError(
                    f"The log has {len(heads)} leaves, and the earlier {self.source} a head of "
                    f"{old.size} that the server signed: leaves were taken back, or this bundle "
                    "is the older one."
                )
            if heads[old.size - 1].root != old.root:
                raise ProtocolError(
                    f"The server signed two histories of {old.origin}: with {old.size} leaves the "
                    f"root is {heads[old.size - 1].root[:16]}... in this bundle and "
                    f"{old.root[:16]}... in the earlier {self.source}. Keep both files; together "
                    "they prove it."
                )
        return EarlierFindings(self.source, max(head.size for head in self.heads), len(self.heads))


def read_earlier(path: Path, origin: str) -> Earlier:
    """Read what was seen of a log before.

    Args:
        path: state file of a site's witness, a checkpoint as JSON, or a bundle.
        origin: name of the log.

    Raises:
        ConfigurationError: if the file cannot be read.
        ProtocolError: if it is damaged, or knows nothing of this log.
    """
    if path.is_dir():
        return _from_bundle(path, origin)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_STATE_BYTES)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path.name}: {error.strerror}") from error
    if data.startswith(_ZIP_START):
        return _from_bundle(path, origin)
    try:
        fields = parse_canonical(data.removesuffix(b"\n"))
        if isinstance(fields, dict) and "heads" in fields:
            return _from_state(data, origin)
        return Earlier("checkpoint", _of_log([Checkpoint.from_json(fields)], origin))
    except ProtocolError as error:
        raise ProtocolError(f"{path.name}: {error}") from error


def _from_bundle(path: Path, origin: str) -> Earlier:
    lines = CheckpointLines()
    for number, line in enumerate(Bundle(path).checkpoint_lines(), start=1):
        try:
            lines.read(line)
        except ProtocolError as error:
            raise ProtocolError(f"Earlier bundle, line {number}: {error}") from error
    return Earlier("bundle", _of_log(lines.checkpoints, origin))


def _from_state(data: bytes, origin: str) -> Earlier:
    state = read_witness_state(data)
    seen = [heads[origin] for heads in (state.conflicts, state.heads) if origin in heads]
    seen.sort(key=lambda head: head.size)
    return Earlier("witness state", _of_log(seen, origin), state.site)


def _of_log(heads: Sequence[Checkpoint], origin: str) -> tuple[Checkpoint, ...]:
    if not heads or any(head.origin != origin for head in heads):
        raise ProtocolError(f"There is no head of the log {origin} in it.")
    return tuple(heads)
