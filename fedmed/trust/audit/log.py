"""The log on the server's disk: leaves are added at its end, and signed for, never changed."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

from fedmed.durable_files import append_durably, replace_durably, sync_folder
from fedmed.errors import ConfigurationError, FederationError, ProtocolError
from fedmed.trust.audit.checkpoint import Checkpoint, log_origin, sign_checkpoint
from fedmed.trust.audit.checkpoint_lines import (
    CheckpointLines,
    checkpoint_line,
    cosignature_line,
)
from fedmed.trust.audit.history import History
from fedmed.trust.audit.leaf_reading import read_leaf
from fedmed.trust.audit.leaves import Leaf, RosterLeaf, StartLeaf
from fedmed.trust.audit.merkle import MerkleTree, leaf_hash
from fedmed.trust.audit.round_messages import Moments, keys_between
from fedmed.trust.canonical import Json, canonical_json
from fedmed.trust.roster import Role, Roster
from fedmed.trust.signatures import Signer

LOG_FILE = "log.jsonl"
CHECKPOINTS_FILE = "checkpoints.jsonl"
ROSTER_FILE = "roster.json"
_NEWEST_PROOFS = 16


class TransparencyLog:
    """The log of one run, in a folder that is also the bundle for ``fedmed audit verify``.

    Opening it reads all leaves once; then a leaf costs O(log n) and two waits for the disk. A
    last line torn by a crash is cut off if no checkpoint covers it; a whole leaf that had no
    checkpoint yet gets it. Use it as a context manager, or call :meth:`close`.

    Args:
        folder: is made when missing.
        signer: of the server.
        run: identifier of the run; part of the log's name, so that a run has one log.
        now: the clock, seconds since 1970.

    Attributes:
        origin: name of the log, ``SERVER/RUN``.

    Raises:
        ProtocolError: if the files do not hold together.
        ConfigurationError: if they cannot be opened, or another process has them.
    """

    def __init__(
        self,
        folder: Path,
        signer: Signer,
        run: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.origin = log_origin(signer.name, run)
        self._folder = folder
        self._signer = signer
        self._now = now
        self._tree = MerkleTree()
        self._history = History(self.origin, _read_own_roster)
        self._lines = CheckpointLines(self.origin)
        self._usable = True
        self._log, self._checkpoints = self._open_files()
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TransparencyLog:
        """Return the log itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self.close()

    def close(self) -> None:
        """Close the files and let another process open them; may be called twice."""
        if self._log >= 0:
            os.close(self._log)
            os.close(self._checkpoints)
        self._log = self._checkpoints = -1
        self._usable = False

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self._tree.size

    @property
    def root(self) -> str:
        """Merkle root over all leaves, hex."""
        return self._tree.root().hex()

    @property
    def checkpoint(self) -> Checkpoint:
        """The newest checkpoint.

        Raises:
            ProtocolError: while the log is empty.
        """
        if not self._lines.checkpoints:
            raise ProtocolError("The log is empty; its first leaf is the start of the run.")
        return self._lines.checkpoints[-1]

    @property
    def roster(self) -> Roster:
        """The roster in force by the log."""
        return self._history.roster

    @property
    def models(self) -> Mapping[int, str]:
        """Hex SHA-256 of the weights after each round of training; 0 is the initial model."""
        return MappingProxyType(self._history.models)

    @property
    def model(self) -> str:
        """Hex SHA-256 of the weights that the next round must give to the sites."""
        return self._history.model

    def append(self, leaf: Mapping[str, Json]) -> Checkpoint:
        """Add a leaf; it and its checkpoint are on disk when this returns.

        Args:
            leaf: made by a builder of ``leaves.py``.

        Returns:
            The new head, signed.

        Raises:
            ProtocolError: if the leaf does not continue the log, or the roster does not have the
                key that this server signs with; nothing was written.
            FederationError: if the disk does not take it. Open the log anew then.
        """
        self._demand_usable()
        line = canonical_json(leaf)
        read = read_leaf(line)
        moment = self._moment(read)
        self._demand_own_key(read, moment)
        self._history.follow(read, self.root)
        self._tree.append(leaf_hash(line))
        self._write(self._log, line + b"\n")
        return self._sign(moment)

    def consistency(self, old_size: int) -> list[str]:
        """Return the proof, hex nodes, that the first ``old_size`` leaves are a prefix of all.

        Raises:
            ProtocolError: if there are not so many leaves.
        """
        return [node.hex() for node in self._tree.consistency(old_size)]

    def invitation(self, witnessed: int) -> dict[str, Json]:
        """Return the newest head and proofs for a site, for the request of a round.

        Args:
            witnessed: size that the site has cosigned last, as far as the server knows. The
                answer may have been lost, so proofs from the newest sizes go along.

        Raises:
            ProtocolError: if the site says that it has seen more leaves than there are.
        """
        newest = range(max(witnessed, self.size - _NEWEST_PROOFS), self.size)
        sizes = {witnessed, *newest} - {0, self.size}
        return {
            "checkpoint": self.checkpoint.to_json(),
            "proofs": {str(size): self.consistency(size) for size in sizes},
        }

    def check_cosignature(self, site: str, signature: bytes) -> None:
        """Check a site's cosignature of the newest checkpoint.

        Raises:
            ProtocolError: if it does not hold.
        """
        now = Moments(self.checkpoint.time, self._moment(None))
        keys = keys_between(self.roster, site, Role.site, now)
        self.checkpoint.verify_cosignature(site, keys, signature)

    def cosigned(self, signatures: Mapping[str, bytes]) -> None:
        """Keep the sites' cosignatures of the newest checkpoint; those already there are left out.

        Raises:
            ProtocolError: if one does not hold; none was written.
            FederationError: if the disk does not take them.
        """
        self._demand_usable()
        known = self._lines.cosignatures.get(self.size, {})
        new = {site: signature for site, signature in signatures.items() if site not in known}
        for site, signature in new.items():
            self.check_cosignature(site, signature)
        if new:
            line = cosignature_line(self.size, new)
            self._lines.read(line)
            self._write(self._checkpoints, line + b"\n")

    def _open_files(self) -> tuple[int, int]:
        descriptors: list[int] = []
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for name in (LOG_FILE, CHECKPOINTS_FILE):
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
                descriptors.append(os.open(self._folder / name, flags, 0o644))
            fcntl.flock(descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_folder(self._folder)
        except OSError as error:
            for descriptor in descriptors:
                os.close(descriptor)
            taken = isinstance(error, BlockingIOError)
            raise ConfigurationError(
                f"{self._folder.name}/{LOG_FILE}: "
                + (
                    "another process writes this log; stop it first."
                    if taken
                    else f"the log cannot be opened: {error.strerror}."
                )
            ) from error
        return descriptors[0], descriptors[1]

    def _load(self) -> None:
        for line in _whole_lines(self._folder / CHECKPOINTS_FILE, self._checkpoints):
            self._lines.read(line)
        heads = self._lines.checkpoints
        read: Leaf | None = None
        for line in _whole_lines(self._folder / LOG_FILE, self._log, len(heads)):
            read = read_leaf(line)
            self._history.follow(read, self.root)
            self._tree.append(leaf_hash(line))
            if self.size <= len(heads) and heads[self.size - 1].root != self.root:
                raise ProtocolError(f"{LOG_FILE}, line {self.size}: not what its checkpoint signs.")
            if self.size > len(heads) + 1:
                raise ProtocolError(f"{LOG_FILE} has several leaves that no checkpoint covers.")
        if self.size < len(heads):
            raise ProtocolError(
                f"{LOG_FILE} has {self.size} whole leaves, and the newest checkpoint signs "
                f"{len(heads)}. Restore the file from a copy."
            )
        if read is not None and self.size > len(heads):
            moment = self._moment(read)
            self._demand_own_key(read, moment)
            self._sign(moment)
        elif read is not None:
            self._write_roster()

    def _sign(self, moment: int) -> Checkpoint:
        self._write_roster()
        checkpoint = sign_checkpoint(
            self._signer, self.origin, self.size, self._tree.root(), moment
        )
        line = checkpoint_line(checkpoint)
        self._write(self._checkpoints, line + b"\n")
        self._lines.read(line)
        return checkpoint

    def _write_roster(self) -> None:
        """Keep ``roster.json`` of the bundle what the newest leaf of a roster has."""
        path = self._folder / ROSTER_FILE
        content = canonical_json(self._history.signed_roster)
        try:
            if not path.exists() or path.read_bytes() != content:
                replace_durably(path, content, 0o644)
        except OSError as error:
            raise self._unwritable(error) from error

    def _write(self, descriptor: int, data: bytes) -> None:
        try:
            append_durably(descriptor, data)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> FederationError:
        self._usable = False
        return FederationError(
            f"{self._folder.name}: the transparency log cannot be written ({error.strerror}), and "
            "without it the run does not go on. See to free space, then resume the run."
        )

    def _demand_usable(self) -> None:
        if not self._usable:
            raise ProtocolError("The log was closed, or could not be written; open it anew.")

    def _demand_own_key(self, leaf: Leaf, moment: int) -> None:
        """Refuse to sign what nobody could verify."""
        roster = (
            _read_own_roster(leaf.roster)
            if isinstance(leaf, StartLeaf | RosterLeaf)
            else self.roster
        )
        keys = keys_between(roster, self._signer.name, Role.server, Moments(moment, moment))
        if self._signer.key.public_key() not in keys:
            raise ProtocolError(
                "The log's roster does not have the key that this server signs with; add the "
                "newest roster to the log first."
            )

    def _moment(self, leaf: Leaf | None) -> int:
        """Return the time now, but none before what the log already has: clocks are set back."""
        times = [checkpoint.time for checkpoint in self._lines.checkpoints[-1:]]
        return max([int(self._now()), *times, *([leaf.time] if leaf else [])])


def _read_own_roster(signed: Mapping[str, Json]) -> Roster:
    """Read a roster; that the root signed it is for those who read the log to check."""
    roster = signed.get("roster")
    if set(signed) != {"roster", "signature"} or not isinstance(roster, Mapping):
        raise ProtocolError("The roster in a leaf is not a signed one.")
    return Roster.from_json(roster)


def _whole_lines(path: Path, descriptor: int, demanded: int = 0) -> Iterator[bytes]:
    """Yield the lines of a file; cut off a torn last one.

    It is left where ``demanded`` lines must be there and are not.
    """
    whole = count = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            count += 1
            yield line[:-1]
    if count >= demanded and whole != os.fstat(descriptor).st_size:
        os.ftruncate(descriptor, whole)
        os.fsync(descriptor)
