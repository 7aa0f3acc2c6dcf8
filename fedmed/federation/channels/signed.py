"""What the signed channels share: joining, contexts, refusals, the transparency log."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import RecordDict

from fedmed.configuration.plan import Plan
from fedmed.errors import FederationError, ProtocolError
from fedmed.federation.channels.base import Ask, Attempt, Evaluation
from fedmed.federation.cohort import Participants
from fedmed.federation.counts import CountsLayout, Tallies
from fedmed.federation.egress_rules import RULES, check_body
from fedmed.federation.exchange import Outcome, Status, outcome_of
from fedmed.federation.records import Joined, Refused
from fedmed.federation.survivors import NamedSurvivors
from fedmed.federation.wire import pack_message, unpack_message
from fedmed.models.parameters import FloatVector
from fedmed.secagg import messages
from fedmed.secagg.messages import JOINED, Kind, Report, verify_message
from fedmed.tasks.base import Aggregate, Task
from fedmed.trust.audit.leaves import abandoned_leaf, resumed_leaf, roster_leaf, start_leaf
from fedmed.trust.audit.log import TransparencyLog
from fedmed.trust.canonical import Json
from fedmed.trust.context import JOINING, RoundContext
from fedmed.trust.envelope import Envelope, seal
from fedmed.trust.roster import Role, Roster
from fedmed.trust.roster_file import SignedRoster
from fedmed.trust.signatures import Signer

log = logging.getLogger(__name__)

JOIN = Kind("join", 0, Role.server)
REFUSED = Kind("refused", 0, Role.site)
NOT_JOINED = "NotJoinedError"
"""Kind of the refusal of a site that has restarted since it joined."""

LARGEST_WEIGHT = 1 << 16
"""Bound on a site's weight where sites keep their numbers of images to themselves."""


@dataclass(frozen=True)
class ServerParty:
    """Who the server is, and where it writes what it did.

    Attributes:
        signer: the server's.
        signed_roster: of the consortium, as pinned when the run began.
        log: transparency log of the run.
        survivors: those that it has named in a round of secure aggregation.
    """

    signer: Signer
    signed_roster: SignedRoster
    log: TransparencyLog
    survivors: NamedSurvivors

    @property
    def roster(self) -> Roster:
        """Members of the consortium."""
        return self.signed_roster.roster


@dataclass(frozen=True)
class Answer:
    """A verified answer of a site.

    Attributes:
        envelope: signed header.
        parts: what came beside it.
    """

    envelope: Envelope
    parts: dict[str, bytes]


def joining_context(run: str, roster: str, plan: str) -> RoundContext:
    """Return the context of the messages with which sites join a run."""
    return RoundContext(run, JOINING, 0, 1, (), roster, plan, "", 0, 0, "")


def weights_sha256(weights: FloatVector) -> str:
    """Return the hex SHA-256 of the weights as they travel: float32, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(weights, dtype="<f4").data).hexdigest()


@dataclass
class SignedChannel:
    """State of a run of signed messages.

    Attributes:
        ask: sends requests and collects the answers.
        plan: of the run.
        task: built from the plan.
        parameters: numbers in the model.
        run: identifier of the run.
        party: the server's keys, roster and log.
        joined: each site's signed answer to joining, by node: two may claim one name.
        witnessed: size of the log that each site has cosigned last.
    """

    ask: Ask
    plan: Plan
    task: Task
    parameters: int
    run: str
    party: ServerParty
    joined: dict[int, bytes] = field(default_factory=dict)
    witnessed: dict[str, int] = field(default_factory=dict)

    evaluates_on_the_way = True

    def __post_init__(self) -> None:
        roster = self.party.roster.sha256()
        self.joining = joining_context(self.run, roster, self.plan.sha256())

    @property
    def attempts(self) -> int:
        """How often a round is tried."""
        return self.plan.transport.attempts

    def named_survivors(self, purpose: str, number: int) -> tuple[str, ...]:
        """Return the sites that alone may try a round again after a stop."""
        return self.party.survivors.of(purpose, number)

    def join_request(self) -> RecordDict:
        """Return the plan, signed."""
        body: dict[str, Json] = {"context": self.joining.to_json(), "plan": self.plan.to_json()}
        request = seal(self.party.signer, JOIN.type, self.joining.sha256(), JOIN.sequence, body)
        return pack_message(request.to_bytes(), {})

    def take_joined(self, node: int, content: RecordDict) -> Outcome:
        """Read a site's signed answer: its key for this run and what its policy lets it tell."""
        envelope, _ = unpack_message(content)
        refused = self._refusal(envelope, self.joining.sha256())
        if refused is not None:
            return outcome_of(refused)
        name = envelope.site
        verify_message(envelope, JOINED, self.joining.sha256(), name, self.party.roster)
        check_body(envelope, RULES[JOINED.type])
        report = messages.Joined.from_body(envelope.body).report
        self.joined[node] = envelope.to_bytes()
        self.witnessed[name] = _count(report, "witnessed_size") or 0
        excluded = report.get("excluded", {})
        return outcome_of(
            Joined(
                name,
                _count(report, "train"),
                _count(report, "val"),
                _count(report, "test"),
                {str(k): v for k, v in excluded.items() if isinstance(v, int)}
                if isinstance(excluded, dict)
                else {},
                _number(report, "delta"),
            )
        )

    def begin(self, weights: FloatVector, number: int) -> None:
        """Open the log, or say in it that the run goes on after a round."""
        log, digest = self.party.log, weights_sha256(weights)
        signed = self.party.signed_roster.to_json()
        if log.size == 0:
            log.append(start_leaf(self.run, json.loads(self.plan.to_json()), digest, signed))
            return
        if log.roster.sha256() != self.party.roster.sha256():
            log.append(roster_leaf(self.run, signed))
        # Always, so that no attempt of before the stop has the same context.
        log.append(resumed_leaf(self.run, number, digest))

    def context(self, purpose: str, attempt: Attempt, participants: Participants) -> RoundContext:
        """Return the context that binds every message of an attempt."""
        joined = [participants.joined[node] for node in attempt.nodes]
        told = [one.train for one in joined if one.train is not None]
        bound = LARGEST_WEIGHT
        if len(told) == len(joined):
            # Never above: one site's word must not make the grid too coarse for all.
            bound = min(bound, 1 << max(0, max(told) - 1).bit_length())
        log = self.party.log
        return RoundContext(
            run=self.run,
            purpose=purpose,
            round=attempt.round,
            attempt=attempt.attempt,
            cohort=tuple(sorted(one.site for one in joined)),
            roster=self.party.roster.sha256(),
            plan=self.plan.sha256(),
            model=weights_sha256(attempt.weights),
            weight_bound=bound,
            log_size=log.size,
            log_root=log.root,
        )

    def invitations(
        self, context: RoundContext, attempt: Attempt, **more: Json
    ) -> dict[str, Report]:
        """Return what the first request of a round tells each site of log and evaluation."""
        log_of_run = self.party.log
        # A site that claims to have seen more than there is finds no proof, and refuses.
        seen = {site: self.witnessed.get(site, 0) for site in context.cohort}
        return {
            site: {
                "log": log_of_run.invitation(seen[site] if seen[site] <= log_of_run.size else 0),
                "evaluate": list(attempt.evaluate),
                **more,
            }
            for site in context.cohort
        }

    def take_cosignature(self, site: str, report: Report) -> bytes:
        """Check a site's cosignature of the log head that its context names.

        Raises:
            ProtocolError: if it does not hold.
        """
        text = report.get("cosignature")
        try:
            signature = bytes.fromhex(text) if isinstance(text, str) else b""
        except ValueError:
            signature = b""
        self.party.log.check_cosignature(site, signature)
        self.witnessed[site] = self.party.log.size
        return signature

    def taking(
        self,
        context: RoundContext,
        participants: Participants,
        take: Callable[[str, Answer], None],
    ) -> Callable[[int, RecordDict], Outcome]:
        """Return what reads the answers of one step, and hands those that are no refusals on."""

        def taken(node: int, content: RecordDict) -> Outcome:
            envelope, parts = unpack_message(content)
            refused = self._refusal(envelope, context.sha256())
            if refused is not None:
                if refused.site != participants.name(node):
                    raise ProtocolError("A refusal comes under another site's name.")
                if refused.kind == NOT_JOINED:
                    participants.restarted.add(node)
                return outcome_of(refused)
            if envelope.type not in RULES:
                raise ProtocolError("A message has another type than this step expects.")
            check_body(envelope, RULES[envelope.type])
            take(participants.name(node), Answer(envelope, parts))
            return Outcome(Status.OK)

        return taken

    def abandon(self, context: RoundContext, error: FederationError | ProtocolError) -> None:
        """Enter an attempt that came to nothing into the log."""
        self.party.log.append(abandoned_leaf(context, str(error)[:500]))

    def figures(
        self, layout: CountsLayout, total: Mapping[str, Aggregate], reports: Mapping[str, Report]
    ) -> dict[str, Evaluation]:
        """Return the evaluations by split: of the sums, and of the sites that tell their own."""
        found = {}
        for split in layout.splits:
            counts = total[split]
            if any((array < 0).any() for array in counts.values()):
                log.warning("Counts on %s images add up to less than nothing: not used.", split)
                found[split] = Evaluation()
                continue
            own = {site: own_metrics(report, split) for site, report in sorted(reports.items())}
            found[split] = Evaluation(
                self.task.metrics(counts),
                {site: metrics for site, metrics in own.items() if metrics},
                self.task.error_bounds(counts),
            )
        return found

    def _refusal(self, envelope: Envelope, context: str) -> Refused | None:
        if envelope.type != REFUSED.type:
            return None
        # A site that could not even read the request binds its refusal to no context.
        bound = envelope.context if envelope.context in (context, "") else context
        verify_message(envelope, REFUSED, bound, envelope.site, self.party.roster)
        kind, reason = envelope.body.get("kind"), envelope.body.get("reason")
        if not isinstance(kind, str) or not isinstance(reason, str):
            raise ProtocolError("A refusal is not of the agreed form.")
        return Refused(envelope.site, kind, reason)


def own_metrics(report: Report, split: str) -> dict[str, float]:
    """Return a site's own metrics of a split, where its policy lets them leave."""
    metrics = report.get("metrics")
    if not isinstance(metrics, Mapping):
        return {}
    prefix = f"{split}."
    return {
        str(name).removeprefix(prefix): value
        for name in metrics
        if str(name).startswith(prefix) and (value := _number(metrics, name)) is not None
    }


def training_entry(report: Report) -> dict[str, object]:
    """Return what a site tells of its training: its epsilon, never its number of examples."""
    return {"epsilon": _number(report, "epsilon")}


def demand_statement(report: Report) -> None:
    """Demand that a site states its epsilon and delta, or that there is none.

    Raises:
        ProtocolError: if it does not; nobody could audit the run then.
    """
    if not {"epsilon", "delta"} <= set(report):
        raise ProtocolError("A site states no epsilon and delta.")


def demand_weight(tallies: Tallies) -> float:
    """Return the sum of the weights.

    Raises:
        ProtocolError: if no site has any.
    """
    if not tallies.weight > 0:
        raise ProtocolError("The sites' weights add up to nothing.")
    return tallies.weight


def _count(report: Report, name: str) -> int | None:
    value = report.get(name)
    return value if type(value) is int and 0 <= value < 2**53 else None


def _number(report: Report, name: str) -> float | None:
    value = report.get(name)
    if type(value) is int and abs(value) < 2**53:  # a larger one need not fit a float
        return float(value)
    return value if isinstance(value, float) else None
