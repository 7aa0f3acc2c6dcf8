"""The audit of a bundle, offline: recompute everything, believe nobody but the root.

Signatures are checked by several threads (the interpreter's lock is free meanwhile); the leaves
are followed in order. Every line is parsed once.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedmed.errors import ConfigurationError, ProtocolError, TrustError
from fedmed.trust.audit.bundle import Bundle
from fedmed.trust.audit.checkpoint import Checkpoint
from fedmed.trust.audit.checkpoint_lines import CheckpointLines
from fedmed.trust.audit.earlier import read_earlier
from fedmed.trust.audit.findings import AuditReport
from fedmed.trust.audit.history import History
from fedmed.trust.audit.leaf_reading import read_leaf
from fedmed.trust.audit.leaves import (
    AbandonedLeaf,
    Leaf,
    OpenRoundLeaf,
    RosterLeaf,
    RoundLeaf,
    StartLeaf,
)
from fedmed.trust.audit.log import CHECKPOINTS_FILE, LOG_FILE, ROSTER_FILE
from fedmed.trust.audit.merkle import MerkleTree, leaf_hash
from fedmed.trust.audit.round_messages import (
    CheckedMessages,
    Moments,
    check_messages,
    keys_between,
)
from fedmed.trust.audit.tally import Tally
from fedmed.trust.canonical import Json, canonical_json
from fedmed.trust.fingerprints import root_fingerprint
from fedmed.trust.roster import Role, Roster
from fedmed.trust.roster_file import signed_roster_from_json

# Leaves in the air at a time; bounds the memory.
_WINDOW = 64
# Canonical JSON escapes quotes in texts, so a leaf that brings a roster has one of these.
_BRINGS_ROSTER = (b'"type":"start"', b'"type":"roster"')


def verify_bundle(
    path: Path, root: bytes, *, site: str | None = None, earlier: Path | None = None
) -> AuditReport:
    """Check a bundle from the first byte to the last.

    Args:
        path: the bundle: a folder, or a zip file of it.
        root: certificate of the consortium's root, PEM; got from the consortium, not the server.
        site: a site whose part is asked for.
        earlier: state file of that site's witness, a checkpoint or an earlier bundle, which this
            one must continue.

    Returns:
        What holds.

    Raises:
        ProtocolError: naming file, line, round and site of the first thing that does not hold.
        ConfigurationError: if a file is not there, or is no certificate.
    """
    certificate = _load_root(root)
    bundle = Bundle(path)
    heads = _read_checkpoints(bundle)
    audit = _Audit(certificate, heads)
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        audit.follow(bundle, threads)
    _check_roster_file(bundle, audit.history)
    seen = None
    if earlier is not None:
        state = read_earlier(earlier, heads.checkpoints[0].origin)
        if site is not None and state.site not in (None, site):
            raise ProtocolError(f"The earlier state is that of {state.site!r}, not of {site!r}.")
        seen = state.compare(heads.checkpoints, audit.server_keys)
    if site is not None and site not in audit.tally.sites:
        raise ProtocolError(f"{site!r} is no site in any roster of the log.")
    return audit.tally.report(
        audit.history, heads, fingerprint=root_fingerprint(certificate), site=site, earlier=seen
    )


@dataclass(frozen=True)
class _Task:
    """What one thread needs to check a leaf and the head after it.

    Attributes:
        number: of the line, from 1.
        line: of the log.
        leaf: as read from the line, where that has been done already.
        server: name.
        roster: in force after the leaf.
        moments: between which a round was.
        head: over the leaf and all before it.
        cosignatures: of the head, by site.
        cosigned: between which they were made.
    """

    number: int
    line: bytes
    leaf: Leaf | None
    server: str
    roster: Roster
    moments: Moments
    head: Checkpoint
    cosignatures: Mapping[str, bytes]
    cosigned: Moments


@dataclass(frozen=True)
class _Pending:
    """A leaf whose signatures are being checked; ``before``, ``after``: hex Merkle roots."""

    number: int
    before: str
    after: str
    checked: Future[tuple[Leaf, CheckedMessages | None]]


class _Audit:
    """Follows the leaves of a bundle."""

    def __init__(self, root: x509.Certificate, heads: CheckpointLines) -> None:
        self.tally = Tally()
        self._root = root
        self._heads = heads
        self._tree = MerkleTree()
        self._rosters: list[tuple[int, Roster]] = []
        self._pending: deque[_Pending] = deque()
        self.history = History(heads.checkpoints[0].origin, self._read_roster)

    def follow(self, bundle: Bundle, threads: ThreadPoolExecutor) -> None:
        """Check all leaves.

        Raises:
            ProtocolError: naming the line of the first that does not hold.
        """
        due = len(self._heads.checkpoints)
        try:
            for number, line in enumerate(bundle.log_lines(), start=1):
                if number > due:
                    self._finish(0)
                    raise ProtocolError(
                        f"{LOG_FILE}, line {number}: {CHECKPOINTS_FILE} has no checkpoint of it."
                    )
                self._submit(number, line, threads)
                self._finish(_WINDOW)
            self._finish(0)
        finally:
            for waiting in self._pending:
                waiting.checked.cancel()
        if self._tree.size < due:
            raise ProtocolError(
                f"{LOG_FILE} has {self._tree.size} leaves, and the newest checkpoint signs {due}: "
                "leaves are missing."
            )

    def server_keys(self, head: Checkpoint) -> tuple[Ed25519PublicKey, ...]:
        """Return the keys that the server could sign a head with when it was signed."""
        roster = [roster for number, roster in self._rosters if number <= head.size][-1]
        moment = Moments(head.time, head.time)
        return keys_between(roster, self.history.server, Role.server, moment)

    def _submit(self, number: int, line: bytes, threads: ThreadPoolExecutor) -> None:
        before = self._tree.root().hex()
        self._tree.append(leaf_hash(line))
        after = self._tree.root().hex()
        leaf = None
        if number == 1 or any(mark in line for mark in _BRINGS_ROSTER):
            # All before it is followed with the old roster first, all after it with the new one.
            self._finish(0)
            with _located(f"{LOG_FILE}, line {number}"):
                leaf = read_leaf(line)
                if isinstance(leaf, StartLeaf | RosterLeaf):
                    self._rosters.append((number, self._read_roster(leaf.roster)))
                elif number == 1:
                    raise ProtocolError("The log does not begin with the start of a run.")
        heads = self._heads.checkpoints
        head = heads[number - 1]
        now = int(time.time())
        task = _Task(
            number,
            line,
            leaf,
            self.history.server,
            self._rosters[-1][1],
            Moments(heads[max(0, number - 2)].time, head.time),
            head,
            self._heads.cosignatures.get(number, {}),
            Moments(head.time, heads[number].time if number < len(heads) else max(now, head.time)),
        )
        self._pending.append(_Pending(number, before, after, threads.submit(_check, task)))

    def _finish(self, leave: int) -> None:
        """Follow leaves, in order, until only ``leave`` are in the air."""
        while len(self._pending) > leave:
            pending = self._pending.popleft()
            leaf, messages = pending.checked.result()
            with _located(f"{LOG_FILE}, line {pending.number}{_round_of(leaf)}"):
                self.history.follow(leaf, pending.before)
                if messages is not None:
                    self.history.follow_statements(messages.statements)
                if isinstance(leaf, RoundLeaf):
                    self._demand_witnesses(leaf)
                if self._heads.checkpoints[pending.number - 1].root != pending.after:
                    raise ProtocolError("The server signed another leaf: the checkpoint differs.")
            self.tally.add(leaf, messages, self.history.roster)

    def _demand_witnesses(self, leaf: RoundLeaf) -> None:
        """Check that whoever took part has signed the head that the round was agreed on."""
        size = leaf.context.log_size
        cosigned = self._heads.cosignatures.get(size, {})
        for site in leaf.sharers:
            if site not in cosigned:
                raise ProtocolError(
                    f"{site!r} took part, and its cosignature of the head of size {size} is "
                    "missing."
                )

    def _read_roster(self, signed: Mapping[str, Json]) -> Roster:
        try:
            return signed_roster_from_json(dict(signed), self._root).roster
        except TrustError as error:
            raise ProtocolError(str(error)) from error


def _check(task: _Task) -> tuple[Leaf, CheckedMessages | None]:
    """Check all signatures of a leaf and of the head after it."""
    leaf, messages = task.leaf, None
    if leaf is None:
        with _located(f"{LOG_FILE}, line {task.number}"):
            leaf = read_leaf(task.line)
    with _located(f"{LOG_FILE}, line {task.number}{_round_of(leaf)}"):
        if isinstance(leaf, RoundLeaf | OpenRoundLeaf):
            messages = check_messages(leaf, task.roster, task.moments)
        if leaf.time > task.head.time:
            raise ProtocolError("The leaf is younger than the checkpoint that signs it.")
    with _located(f"{CHECKPOINTS_FILE}, size {task.number}"):
        signed = Moments(task.head.time, task.head.time)
        task.head.verify(keys_between(task.roster, task.server, Role.server, signed))
        for site, signature in task.cosignatures.items():
            keys = keys_between(task.roster, site, Role.site, task.cosigned)
            task.head.verify_cosignature(site, keys, signature)
    return leaf, messages


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Say where an error is."""
    try:
        yield
    except ProtocolError as error:
        raise ProtocolError(f"{where}: {error}") from error


def _round_of(leaf: Leaf) -> str:
    if isinstance(leaf, RoundLeaf | OpenRoundLeaf | AbandonedLeaf):
        return f", round {leaf.context.round} ({leaf.context.purpose})"
    return ""


def _load_root(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigurationError(
            "The file given with --root is no certificate in PEM; give the consortium's root.crt."
        ) from error


def _read_checkpoints(bundle: Bundle) -> CheckpointLines:
    heads = CheckpointLines()
    for number, line in enumerate(bundle.checkpoint_lines(), start=1):
        with _located(f"{CHECKPOINTS_FILE}, line {number}"):
            heads.read(line)
    if not heads.checkpoints:
        raise ProtocolError(f"{CHECKPOINTS_FILE} is empty: the server has signed nothing.")
    return heads


def _check_roster_file(bundle: Bundle, history: History) -> None:
    if bundle.roster() != canonical_json(history.signed_roster):
        raise ProtocolError(f"{ROSTER_FILE} is not the newest roster of the log.")
