"""A whole round of fedmed's secure aggregation in one process, on its real sessions.

Each member's CPU time is counted by itself: reading what it got, its step, and writing what it
sends. The messages go through their bytes, as between machines; training is left out.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedmed.secagg.journal import Journal
from fedmed.secagg.keys import EncryptionKeys
from fedmed.secagg.messages import Message
from fedmed.secagg.quantise import Ring, decode_counts, encode_counts
from fedmed.secagg.server import ServerSession
from fedmed.secagg.site import SiteSession
from fedmed.secagg.unmasking import Sums
from fedmed.secagg.verification import join
from fedmed.trust.context import JOINING, TRAINING, RoundContext
from fedmed.trust.envelope import Envelope
from fedmed.trust.roster import Member, MemberKeys, Role, Roster
from fedmed.trust.signatures import Signer

UPDATE_BOUND = 0.1
WEIGHT_BOUND = 1000
SERVER = "server"
STEPS = ("join", "prepare", "open", "quantise", "mask", "confirm", "reveal")
_COUNTS = 16


@dataclass(frozen=True)
class RoundCost:
    """What a round cost.

    Attributes:
        client_s: CPU seconds of a site, mean over the sites that took part to the end.
        steps: the same by step.
        server_s: CPU seconds of the server.
        upload_ratio: bytes that a site sends, all messages, to those of float32.
    """

    client_s: float
    steps: dict[str, float]
    server_s: float
    upload_ratio: float


class WrongSumError(Exception):
    """The round gave another mean than it should have."""


@dataclass
class _Site:
    session: SiteSession
    sent: int
    weight: int


class _Meter:
    """CPU seconds by member and step."""

    def __init__(self) -> None:
        self.spent: dict[tuple[str, str], float] = defaultdict(float)

    @contextmanager
    def count(self, member: str, step: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.spent[member, step] += time.process_time() - start

    def mean(self, members: Sequence[str], step: str) -> float:
        return sum(self.spent[member, step] for member in members) / len(members)


class AggregationRound:
    """One round; :meth:`run` may be called once.

    Args:
        update: float32 [p], each site's; the weights differ.
        sites: how many are asked.
        drop_outs: how many of them fall silent before they send their masked update.
        bits: of the ring.
        folder: for the sites' journals; empty.
    """

    def __init__(
        self, update: npt.NDArray[np.float32], sites: int, drop_outs: int, bits: int, folder: Path
    ) -> None:
        self._update = update
        self._names = [f"site-{number:02}" for number in range(sites)]
        self._alive = self._names[: sites - drop_outs]
        self._ring = Ring(bits, UPDATE_BOUND, WEIGHT_BOUND, sites)
        self._folder = folder
        self._meter = _Meter()
        signers = {name: Signer(name, Ed25519PrivateKey.generate()) for name in self._names}
        self._signers = signers | {SERVER: Signer(SERVER, Ed25519PrivateKey.generate())}
        self._roster = _roster(self._signers)
        self._model = hashlib.sha256(update.data).hexdigest()
        self._joining = self._context(JOINING, ()).sha256()
        self._sites: dict[str, _Site] = {}

    def run(self) -> RoundCost:
        """Run all steps, and compare the mean with the plain one.

        Raises:
            WrongSumError: if it is not within the proven bound.
        """
        server = self._join()
        with self._meter.count(SERVER, "prepare"):
            requests = server.prepare_requests()
        for name, request in requests.items():
            with self._meter.count(name, "prepare"):
                reply, parts = self._sites[name].session.prepare(_received(request[0]), request[1])
                data = self._send(name, reply, *parts.values())
            with self._meter.count(SERVER, "prepare"):
                server.take_prepared(name, Envelope.from_bytes(data), parts)
        with self._meter.count(SERVER, "train"):
            requests = server.train_requests()
        for name in self._alive:
            self._train(server, name, requests[name])
        self._confirm_and_reveal(server)
        with self._meter.count(SERVER, "finish"):
            sums = server.finish()
            weights = float(decode_counts(sums.counts)[0])
            mean = self._ring.mean(sums.update, weights)
        self._check(sums, weights, mean)
        return self._cost()

    def _join(self) -> ServerSession:
        joined = {}
        context = self._context(TRAINING, tuple(self._names))
        for number, name in enumerate(self._names):
            journal = Journal(self._folder / f"{name}.jsonl")
            with self._meter.count(name, "join"):
                keys = EncryptionKeys()
                envelope = join(self._signers[name], self._joining, keys, {})
                joined[name] = envelope.to_bytes()
            with self._meter.count(name, "prepare"):
                session = SiteSession(
                    self._signers[name], self._roster, SERVER, keys, journal, context, self._joining
                )
            weight = WEIGHT_BOUND // (1 + number % 4)
            self._sites[name] = _Site(session, len(joined[name]), weight)
        with self._meter.count(SERVER, "prepare"):
            return ServerSession(
                self._signers[SERVER],
                self._roster,
                context,
                joined,
                self._joining,
                update_size=self._update.size,
                bits=self._ring.bits,
                count_size=_COUNTS,
            )

    def _train(self, server: ServerSession, name: str, request: Message) -> None:
        site = self._sites[name]
        with self._meter.count(name, "open"):
            model = hashlib.sha256(self._update.data).hexdigest()
            site.session.open_training(_received(request[0]), request[1], model)
        with self._meter.count(name, "quantise"):
            update = self._ring.encode(self._update, site.weight).values
            counts = encode_counts(np.full(_COUNTS, float(site.weight)), len(self._names))
        with self._meter.count(name, "mask"):
            reply = site.session.mask(update, counts)
            parts = (update.data.cast("B"), counts.data.cast("B"))
            data = self._send(name, reply, *parts)
        with self._meter.count(SERVER, "train"):
            server.take_masked(name, Envelope.from_bytes(data), *parts)

    def _confirm_and_reveal(self, server: ServerSession) -> None:
        with self._meter.count(SERVER, "confirm"):
            requests = server.confirm_requests()
        for name, request in requests.items():
            with self._meter.count(name, "confirm"):
                reply, _ = self._sites[name].session.confirm(_received(request[0]), request[1])
                data = self._send(name, reply)
            with self._meter.count(SERVER, "confirm"):
                server.take_confirmed(name, Envelope.from_bytes(data), {})
        with self._meter.count(SERVER, "reveal"):
            requests = server.reveal_requests()
        for name, request in requests.items():
            with self._meter.count(name, "reveal"):
                reply, _ = self._sites[name].session.reveal(_received(request[0]), request[1])
                data = self._send(name, reply)
            with self._meter.count(SERVER, "reveal"):
                server.take_revealed(name, Envelope.from_bytes(data), {})

    def _send(self, name: str, reply: Envelope, *parts: bytes | memoryview) -> bytes:
        data = reply.to_bytes()
        self._sites[name].sent += len(data) + sum(len(part) for part in parts)
        return data

    def _check(self, sums: Sums, weights: float, mean: npt.NDArray[np.float64]) -> None:
        """All sites have the same update, so the mean is that update, clipped."""
        expected = np.clip(self._update.astype(np.float64), -UPDATE_BOUND, UPDATE_BOUND)
        error = float(np.abs(mean - expected).max())
        alive = tuple(self._alive)
        if (
            sums.survivors != alive
            or weights != sum(self._sites[name].weight for name in alive)
            or error > self._ring.error_bound(weights, len(alive))
        ):
            raise WrongSumError(f"the mean is {error} off")

    def _cost(self) -> RoundCost:
        steps = {step: self._meter.mean(self._alive, step) for step in STEPS}
        server = sum(s for (member, _), s in self._meter.spent.items() if member == SERVER)
        sent = sum(self._sites[name].sent for name in self._alive) / len(self._alive)
        return RoundCost(sum(steps.values()), steps, server, sent / self._update.nbytes)

    def _context(self, purpose: str, cohort: tuple[str, ...]) -> RoundContext:
        joining = purpose == JOINING
        return RoundContext(
            run="benchmark",
            purpose=purpose,
            round=0 if joining else 1,
            attempt=1,
            cohort=cohort,
            roster=self._roster.sha256(),
            plan="00" * 32,
            model="" if joining else self._model,
            weight_bound=0 if joining else WEIGHT_BOUND,
            log_size=0,
            log_root="",
        )


def _received(envelope: Envelope) -> Envelope:
    """Return what the receiver reads from the bytes."""
    return Envelope.from_bytes(envelope.to_bytes())


def _roster(signers: dict[str, Signer]) -> Roster:
    members = []
    for name, signer in sorted(signers.items()):
        public = signer.key.public_key().public_bytes_raw().hex()
        role = Role.server if name == SERVER else Role.site
        members.append(Member(name, role, (MemberKeys(public, "00" * 32, 0, 2**40),)))
    return Roster("benchmark", 1, 0, tuple(members))
