"""Sealed updates: one exchange a round, each update encrypted for the server, which sees it.

For strategies that must see single updates. Whoever relays the messages, ends TLS or reads the
server's disk later learns nothing (the key is made for the run and kept in memory only); the
server itself learns each site's update. The report of the run says so.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fedmed.errors import ProtocolError
from fedmed.federation.channels.base import (
    Attempt,
    AttemptFailedError,
    Collected,
    Evaluation,
    site_entry,
)
from fedmed.federation.channels.signed import (
    Answer,
    SignedChannel,
    demand_statement,
    demand_weight,
    training_entry,
    weights_sha256,
)
from fedmed.federation.cohort import Participants
from fedmed.federation.counts import CountsLayout, Tallies
from fedmed.federation.records import FLOAT32, FLOAT64, WEIGHTS, beside
from fedmed.federation.strategies.base import WeightedUpdate
from fedmed.federation.wire import pack_message
from fedmed.models.parameters import FloatVector
from fedmed.secagg.keys import EncryptionKeys
from fedmed.secagg.messages import Kind, Report, check_parts, verify_message
from fedmed.tasks.base import Aggregate, merge
from fedmed.trust.audit.leaves import open_round_leaf
from fedmed.trust.context import EVALUATION, TRAINING, RoundContext
from fedmed.trust.envelope import seal
from fedmed.trust.roster import Role

ASK = Kind("ask", 1, Role.server)
TRAINED = Kind("trained", 2, Role.site)
PARTS = {"update": FLOAT32, "counts": FLOAT64}
"""Parts of an answer, with the numbers that are in them once they are opened."""


def sealing_info(context: str, site: str, part: str) -> bytes:
    """Return what binds a sealed part to its round, its sender and its name."""
    return f"fedmed sealed 1|{context}|{site}|{part}".encode()


@dataclass
class _Opened:
    """One site's answer, opened.

    Attributes:
        update: ``[parameters]``; empty in an evaluation.
        tallies: its weight and loss.
        aggregates: counts by split.
        report: signed.
        envelope: for the log.
    """

    update: FloatVector
    tallies: Tallies
    aggregates: dict[str, Aggregate]
    report: Report
    envelope: bytes


@dataclass
class SealedChannel(SignedChannel):
    """Server's side of ``transport=sealed``.

    Attributes:
        keys: made for this run.
    """

    keys: EncryptionKeys = field(default_factory=EncryptionKeys)

    def collect(self, attempt: Attempt, participants: Participants) -> Collected:
        """Let the sites train, and open each update."""
        context, opened, entries = self._exchange(TRAINING, attempt, participants)
        layout = CountsLayout(self.task.aggregate_shapes, attempt.evaluate)
        updates, losses, lossless = [], 0.0, 0.0
        for site, one in sorted(opened.items()):
            weight = demand_weight(one.tallies)
            updates.append(WeightedUpdate(site, one.update, weight))
            entries[site].update(training_entry(one.report), examples=int(weight))
            entries[site]["loss"] = one.tallies.mean_loss()
            losses += one.tallies.weighted_loss
            lossless += one.tallies.lossless
        total = Tallies(sum(one.weight for one in updates), losses, lossless)
        return Collected(
            updates,
            tuple(sorted(opened)),
            entries,
            total.mean_loss(),
            self._figures(layout, opened),
            lambda weights: self._record(context, opened, weights),
        )

    def evaluate(
        self, attempt: Attempt, participants: Participants
    ) -> tuple[dict[str, Evaluation], Callable[[], None]]:
        """Open the sites' counts."""
        context, opened, _ = self._exchange(EVALUATION, attempt, participants)
        layout = CountsLayout(self.task.aggregate_shapes, attempt.evaluate)
        figures = self._figures(layout, opened)
        return figures, lambda: self._record(context, opened, attempt.weights)

    def _figures(self, layout: CountsLayout, opened: dict[str, _Opened]) -> dict[str, Evaluation]:
        totals = {
            split: merge([one.aggregates[split] for _, one in sorted(opened.items())])
            for split in layout.splits
        }
        return self.figures(layout, totals, {site: one.report for site, one in opened.items()})

    def _record(
        self, context: RoundContext, opened: dict[str, _Opened], weights: FloatVector
    ) -> None:
        envelopes = {site: one.envelope for site, one in opened.items()}
        self.party.log.append(
            open_round_leaf(context, tuple(sorted(opened)), weights_sha256(weights), envelopes)
        )

    def _exchange(
        self, purpose: str, attempt: Attempt, participants: Participants
    ) -> tuple[RoundContext, dict[str, _Opened], dict[str, dict[str, object]]]:
        context = self.context(purpose, attempt, participants)
        size = self.parameters if purpose == TRAINING else 0
        opened: dict[str, _Opened] = {}
        cosignatures: dict[str, bytes] = {}

        def take(site: str, answer: Answer) -> None:
            opened[site] = self._open(context, site, answer, attempt, size)
            cosignatures[site] = self.take_cosignature(site, opened[site].report)

        key = base64.b64encode(self.keys.encryption_key).decode()
        nodes = {participants.name(node): node for node in attempt.nodes}
        model = beside({WEIGHTS: attempt.weights})
        contents = {}
        for site, report in self.invitations(context, attempt, encryption_key=key).items():
            body = {"context": context.to_json(), "report": report}
            request = seal(self.party.signer, ASK.type, context.sha256(), ASK.sequence, body)
            contents[nodes[site]] = pack_message(request.to_bytes(), {}, model)
        taking = self.taking(context, participants, take)
        outcomes = self.ask(contents, purpose, taking, self.plan.federation.deadline_seconds)
        entries = {
            site: site_entry(outcomes[node].status.value, outcomes[node].reason)
            for site, node in nodes.items()
        }
        # An answer whose cosignature does not hold has failed, though it could be opened.
        opened = {site: one for site, one in opened.items() if site in cosignatures}
        self.party.log.cosigned(cosignatures)
        minimum = self.plan.federation.minimum_sites
        if len(opened) < minimum:
            error = AttemptFailedError(
                f"{len(opened)} usable answers, federation.minimum_sites is {minimum}", entries
            )
            self.abandon(context, error)
            raise error
        return context, opened, entries

    def _open(
        self, context: RoundContext, site: str, answer: Answer, attempt: Attempt, size: int
    ) -> _Opened:
        digest = context.sha256()
        verify_message(answer.envelope, TRAINED, digest, site, self.party.roster)
        check_parts(answer.envelope, answer.parts, set(PARTS))
        report = answer.envelope.body.get("report")
        if set(answer.envelope.body) != {"report"} or not isinstance(report, dict):
            raise ProtocolError("A sealed update has other fields than agreed.")
        layout = CountsLayout(self.task.aggregate_shapes, attempt.evaluate)
        sizes = {"update": size, "counts": layout.size}
        vectors = {}
        for name, dtype in PARTS.items():
            data = self.keys.open(answer.parts[name], sealing_info(digest, site, name))
            if len(data) != sizes[name] * np.dtype(dtype).itemsize:
                raise ProtocolError(f"Part {name!r} of a sealed update has another size.")
            vectors[name] = np.frombuffer(data, dtype)
            if not np.isfinite(vectors[name]).all():
                raise ProtocolError(f"Part {name!r} of a sealed update holds NaN or infinity.")
        tallies, aggregates = layout.split(vectors["counts"].astype(np.float64, copy=False))
        if size:
            demand_statement(report)
            demand_weight(tallies)
            if tallies.weight > context.weight_bound:
                raise ProtocolError("A site's weight is above the round's bound.")
        bound = self.plan.transport.update_bound
        update = np.clip(vectors["update"].astype(np.float32, copy=False), -bound, bound)
        return _Opened(update, tallies, aggregates, report, answer.envelope.to_bytes())
