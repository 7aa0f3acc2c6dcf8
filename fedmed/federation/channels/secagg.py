"""Secure aggregation: four exchanges a round, and the server learns sums only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedmed.configuration.groups import TransportConfig
from fedmed.errors import FederationError, ProtocolError
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
    training_entry,
    weights_sha256,
)
from fedmed.federation.cohort import Participants
from fedmed.federation.counts import CountsLayout, Tallies
from fedmed.federation.exchange import Outcome, Status
from fedmed.federation.records import WEIGHTS, beside
from fedmed.federation.strategies.base import WeightedUpdate
from fedmed.federation.wire import pack_message
from fedmed.models.parameters import FloatVector
from fedmed.secagg.errors import AggregationError
from fedmed.secagg.messages import Message, Report
from fedmed.secagg.quantise import Ring, decode_counts
from fedmed.secagg.server import ServerSession
from fedmed.secagg.unmasking import Sums
from fedmed.trust.audit.leaves import round_leaf
from fedmed.trust.context import EVALUATION, TRAINING, RoundContext

log = logging.getLogger(__name__)

SUM = "sum"
"""Name under which a strategy gets the mean of all sites' updates."""
COUNTS = "counts"


@dataclass
class _Aggregation:
    """One attempt under way.

    Attributes:
        context: of the attempt.
        session: the protocol.
        nodes: by site.
        entries: of ``rounds.jsonl``, by site.
        reports: what each site tells besides its masked input.
    """

    context: RoundContext
    session: ServerSession
    nodes: Mapping[str, int]
    entries: dict[str, dict[str, object]]
    reports: dict[str, Report] = field(default_factory=dict)


class SecureChannel(SignedChannel):
    """Server's side of ``transport=secagg``."""

    def collect(self, attempt: Attempt, participants: Participants) -> Collected:
        """Let the sites train, and open the sum of their updates."""
        context = self.context(TRAINING, attempt, participants)
        layout = CountsLayout(self.task.aggregate_shapes, attempt.evaluate)
        sums, under_way = self._aggregate(context, attempt, participants, layout, self.parameters)
        tallies, totals = layout.split(decode_counts(sums.counts))
        weight = self._weight(context, sums, tallies, under_way)
        mean, precision = self._mean(context, sums, weight)
        if precision["largest"] > self.plan.transport.update_bound + precision["error_bound"]:
            # A mean of clipped numbers cannot be larger, whatever their weights.
            raise _spoilt("the mean is beyond the bound on single updates", under_way, sums)
        _warn(attempt.round, tallies, precision, self.plan.transport)
        for site in sums.survivors:
            # Its update is in the sum, whatever became of the site in the steps after.
            entry = under_way.entries[site]
            entry.update(training_entry(under_way.reports[site]), status=Status.OK.value)
        return Collected(
            [WeightedUpdate(SUM, mean.astype(np.float32), weight)],
            sums.survivors,
            under_way.entries,
            tallies.mean_loss(),
            self.figures(layout, totals, _of(under_way.reports, sums.survivors)),
            lambda weights: self._record(context, sums, weights),
            {**precision, "clipped": tallies.clipped, "capped_sites": tallies.capped},
        )

    def _weight(
        self, context: RoundContext, sums: Sums, tallies: Tallies, under_way: _Aggregation
    ) -> float:
        least, most = len(sums.survivors), context.weight_bound * len(sums.survivors)
        if not least <= tallies.weight <= most:
            raise _spoilt("the weights add up to what no honest sites' can", under_way, sums)
        return tallies.weight

    def _mean(
        self, context: RoundContext, sums: Sums, weight: float
    ) -> tuple[NDArray[np.float64], dict[str, float]]:
        """Return the mean update ``[parameters]``, its largest number and its proven error."""
        transport = self.plan.transport
        ring = Ring(
            transport.bits, transport.update_bound, context.weight_bound, len(context.cohort)
        )
        mean = ring.mean(sums.update, weight)
        return mean, {
            "largest": float(np.abs(mean).max(initial=0.0)),
            "error_bound": ring.error_bound(weight, len(sums.survivors)),
        }

    def evaluate(
        self, attempt: Attempt, participants: Participants
    ) -> tuple[dict[str, Evaluation], Callable[[], None]]:
        """Open the sums of the sites' counts."""
        context = self.context(EVALUATION, attempt, participants)
        layout = CountsLayout(self.task.aggregate_shapes, attempt.evaluate)
        sums, under_way = self._aggregate(context, attempt, participants, layout, 0)
        _, totals = layout.split(decode_counts(sums.counts))
        figures = self.figures(layout, totals, _of(under_way.reports, sums.survivors))
        return figures, lambda: self._record(context, sums, attempt.weights)

    def _record(self, context: RoundContext, sums: Sums, weights: FloatVector) -> None:
        self.party.log.append(
            round_leaf(
                context,
                sums.sharers,
                sums.survivors,
                weights_sha256(weights),
                sums.masked,
                sums.confirmed,
            )
        )

    def _aggregate(
        self,
        context: RoundContext,
        attempt: Attempt,
        participants: Participants,
        layout: CountsLayout,
        update_size: int,
    ) -> tuple[Sums, _Aggregation]:
        nodes = {participants.name(node): node for node in attempt.nodes}
        session = ServerSession(
            self.party.signer,
            self.party.roster,
            context,
            {site: self.joined[node] for site, node in nodes.items()},
            self.joining.sha256(),
            update_size=update_size,
            bits=self.plan.transport.bits,
            count_size=layout.size,
        )
        under_way = _Aggregation(
            context, session, nodes, {site: site_entry("ok") for site in context.cohort}
        )
        try:
            sums = self._four_exchanges(under_way, attempt, participants)
        except (FederationError, ProtocolError) as error:
            self.abandon(context, error)
            survivors = error.survivors if isinstance(error, AggregationError) else ()
            raise AttemptFailedError(str(error), under_way.entries, survivors) from error
        return sums, under_way

    def _four_exchanges(
        self, under_way: _Aggregation, attempt: Attempt, participants: Participants
    ) -> Sums:
        session, context = under_way.session, under_way.context
        cosignatures: dict[str, bytes] = {}

        def prepared(site: str, answer: Answer) -> None:
            # First: who is taken is a sharer, and must have cosigned the head.
            cosignature = self.take_cosignature(site, _report(answer))
            session.take_prepared(site, answer.envelope, answer.parts)
            cosignatures[site] = cosignature

        def masked(site: str, answer: Answer) -> None:
            update, counts = answer.parts.get("update", b""), answer.parts.get(COUNTS, b"")
            if context.purpose == TRAINING:
                demand_statement(_report(answer))
            under_way.reports[site] = session.take_masked(site, answer.envelope, update, counts)

        def confirmed(site: str, answer: Answer) -> None:
            session.take_confirmed(site, answer.envelope, answer.parts)

        def revealed(site: str, answer: Answer) -> None:
            session.take_revealed(site, answer.envelope, answer.parts)

        def step(
            requests: Mapping[str, Message],
            message_type: str,
            take: Callable[[str, Answer], None],
            deadline: float = self.plan.transport.step_seconds,
            model: RecordDict | None = None,
        ) -> None:
            contents = {
                under_way.nodes[site]: pack_message(envelope.to_bytes(), parts, model)
                for site, (envelope, parts) in requests.items()
            }
            taking = self.taking(context, participants, take)
            outcomes = self.ask(contents, message_type, taking, deadline)
            _note(under_way, outcomes, participants)

        step(
            session.prepare_requests(self.invitations(context, attempt)), "query.prepare", prepared
        )
        self.party.log.cosigned(cosignatures)
        step(
            session.train_requests(),
            context.purpose,
            masked,
            self.plan.federation.deadline_seconds,
            beside({WEIGHTS: attempt.weights}),
        )
        confirmations = session.confirm_requests()
        self._demand_survivors(session)
        # On the disk before a site hears of it: after a stop, no other sum of this round is opened.
        self.party.survivors.keep(context.purpose, context.round, session.survivors)
        step(confirmations, "query.confirm", confirmed)
        step(session.reveal_requests(), "query.reveal", revealed)
        return session.finish()

    def _demand_survivors(self, session: ServerSession) -> None:
        """Stop before the sum is opened if it would be of fewer sites than the plan wants."""
        minimum = self.plan.federation.minimum_sites
        if len(session.survivors) < minimum:
            raise AggregationError(
                "train",
                f"{len(session.survivors)} updates, federation.minimum_sites is {minimum}",
                missing=set(session.sharers) - set(session.survivors),
            )


def _spoilt(why: str, under_way: _Aggregation, sums: Sums) -> AttemptFailedError:
    return AttemptFailedError(
        f"{why}: one of {', '.join(sums.survivors)} sends wrong numbers, and masks hide which",
        under_way.entries,
        sums.survivors,
    )


def _report(answer: Answer) -> Report:
    report = answer.envelope.body.get("report")
    return report if isinstance(report, dict) else {}


def _warn(
    number: int, tallies: Tallies, precision: Mapping[str, float], transport: TransportConfig
) -> None:
    if precision["largest"] < 2 * precision["error_bound"]:
        log.warning(
            "Round %d: masked numbers are so coarse that the mean update, at most %.2g, can be off "
            "by %.2g. Choose transport.bits=32 or a smaller transport.update_bound; sites that "
            "keep their numbers of images make it coarser.",
            number,
            precision["largest"],
            precision["error_bound"],
        )
    if tallies.clipped:
        log.warning(
            "Round %d: %d numbers of the updates were beyond transport.update_bound=%g and were "
            "clipped; raise it if this goes on.",
            number,
            int(tallies.clipped),
            transport.update_bound,
        )


def _note(
    under_way: _Aggregation, outcomes: Mapping[int, Outcome], participants: Participants
) -> None:
    """Keep for each site what went wrong first."""
    names = {node: site for site, node in under_way.nodes.items()}
    for node, outcome in outcomes.items():
        entry = under_way.entries[names[node]]
        if entry["status"] == "ok":
            entry.update(status=outcome.status.value, reason=outcome.reason)


def _of(reports: Mapping[str, Report], sites: tuple[str, ...]) -> dict[str, Report]:
    return {site: reports[site] for site in sites}
