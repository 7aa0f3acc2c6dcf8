"""The round loop: invite, train, aggregate, checkpoint, evaluate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedmed.configuration.groups import TransportMode
from fedmed.configuration.plan import Plan
from fedmed.errors import FederationError
from fedmed.federation.attempts import Attempts
from fedmed.federation.channels.base import Channel, Collected, Evaluation, site_entry
from fedmed.federation.channels.plain import PlainChannel
from fedmed.federation.channels.sealed import SealedChannel
from fedmed.federation.channels.secagg import SecureChannel
from fedmed.federation.channels.signed import ServerParty
from fedmed.federation.cohort import Joining, Participants, Roster
from fedmed.federation.exchange import Outcome, Status, Traffic, ask
from fedmed.federation.observer import Observer
from fedmed.federation.run_folder import Checkpoint, RunFolder
from fedmed.federation.strategies.base import Strategy
from fedmed.models.parameters import FloatVector, ParameterLayout
from fedmed.tasks.base import Task
from fedmed.training.schedule import learning_rate

log = logging.getLogger(__name__)

VALIDATION = "val"
TEST = "test"


@dataclass
class RoundLoop:
    """Trains the global model over the sites that a grid reaches.

    Attributes:
        grid: Flower's link: in one process, Ray, or a SuperLink.
        plan: what is trained.
        task: built from the plan.
        layout: of the model's weights.
        strategy: aggregation.
        folder: where the run is written.
        observer: told of events.
        run: identifier of the run.
        roster: names of nodes by key, in deployment.
        expected: number of sites that may come, if known.
        party: the server's keys and log; needed unless ``transport=plain``.
    """

    grid: Grid
    plan: Plan
    task: Task
    layout: ParameterLayout
    strategy: Strategy
    folder: RunFolder
    observer: Observer
    run: str
    roster: Roster | None = None
    expected: int | None = None
    party: ServerParty | None = None
    participants: Participants = field(default_factory=Participants)
    traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        self._channel = self._make_channel()
        self._joining = Joining(
            self.grid,
            self.plan,
            self._channel.join_request(),
            self._channel.take_joined,
            self.roster,
            self.observer,
            self.traffic,
        )
        self._attempts = Attempts(
            self.grid, self.plan, self._channel, self._joining, self.participants, self.observer
        )

    def train(self, start: Checkpoint) -> Checkpoint:
        """Run the rounds that are left after a checkpoint and return the last one.

        Raises:
            FederationError: if too few sites take part or deliver.
        """
        self.strategy.restore(start.strategy)
        self.traffic.down, self.traffic.up = start.traffic
        if start.round == 0:
            self.folder.save_checkpoint(start, self.layout)
        self._channel.begin(start.weights, start.round)
        self._joining.gather(self.participants, self.expected)
        names = sorted(joined.site for joined in self.participants.joined.values())
        self.observer.run_started(self.folder.path.name, self.plan.federation.rounds, names)
        checkpoint = start
        for number in range(start.round + 1, self.plan.federation.rounds + 1):
            checkpoint = self._round(number, checkpoint)
        return checkpoint

    def evaluate(self, weights: FloatVector, number: int) -> Evaluation:
        """Evaluate the final model on the test sets.

        Where the validation of a round rides on the next one, the last round's is done here too.

        Raises:
            FederationError: if too few sites answer.
        """
        splits: tuple[str, ...] = (TEST,)
        if self._channel.evaluates_on_the_way and self._is_evaluated(number):
            splits = (VALIDATION, TEST)
        found = self._attempts.evaluate(weights, number, splits)
        if VALIDATION in splits:
            self._publish(number, found.get(VALIDATION, Evaluation()))
        return found.get(TEST, Evaluation())

    def _make_channel(self) -> Channel:
        plan = self.plan
        if plan.transport.mode == TransportMode.plain:
            return PlainChannel(self._ask, plan, self.task, self.layout.size, self.run)
        if self.party is None:
            raise FederationError("Signed messages need the server's keys (fedmed pki).")
        make = SecureChannel if plan.transport.mode == TransportMode.secagg else SealedChannel
        return make(self._ask, plan, self.task, self.layout.size, self.run, self.party)

    def _ask(
        self,
        contents: Mapping[int, RecordDict],
        message_type: str,
        take: Callable[[int, RecordDict], Outcome],
        deadline: float,
    ) -> dict[int, Outcome]:
        names = {node: self.participants.name(node) for node in contents}

        def replied(node: int, outcome: Outcome) -> None:
            if message_type == "train" or outcome.status != Status.OK:
                self.observer.site_replied(names[node], outcome.status.value, outcome.reason)

        return ask(
            self.grid,
            contents,
            message_type,
            group="round",
            deadline=deadline,
            traffic=self.traffic,
            take=take,
            replied=replied,
        )

    def _is_evaluated(self, number: int) -> bool:
        """Whether the model after a round is evaluated on the validation sets."""
        every = self.plan.federation.evaluate_every
        last = self.plan.federation.rounds
        return number > 0 and every > 0 and (number % every == 0 or number == last)

    def _round(self, number: int, before: Checkpoint) -> Checkpoint:
        started = time.monotonic()
        bytes_before = (self.traffic.down, self.traffic.up)
        # Where the validation of a round rides on the next one, it is of the weights that this one
        # begins with.
        rides = self._channel.evaluates_on_the_way and self._is_evaluated(number - 1)
        collected = self._attempts.collect(number, before.weights, (VALIDATION,) if rides else ())
        trained_at = time.monotonic()
        weights = self.strategy.apply(before.weights, collected.updates)
        collected.record(weights)
        aggregated_at = time.monotonic()
        if VALIDATION in collected.evaluations:
            self._publish(number - 1, collected.evaluations[VALIDATION])
        evaluation: Evaluation | None = None
        awaits = self._is_evaluated(number)
        if awaits and not self._channel.evaluates_on_the_way:
            evaluation = self._attempts.evaluate(weights, number, (VALIDATION,))[VALIDATION]
            awaits = False
        evaluated_at = time.monotonic()
        after = self._checkpoint(number, before, collected, weights, evaluated_at - started)
        self.folder.save_checkpoint(after, self.layout)
        record = {
            "round": number,
            "metrics": {},
            "loss": collected.loss,
            "learning_rate": self._learning_rate(number),
            "participants": list(collected.participants),
            "sites": collected.sites,
            "aggregation": dict(collected.aggregation),
            "seconds": {
                "train": trained_at - started,
                "aggregate": aggregated_at - trained_at,
                "evaluate": evaluated_at - aggregated_at,
                "checkpoint": time.monotonic() - evaluated_at,
            },
            "bytes": {
                "down": self.traffic.down - bytes_before[0],
                "up": self.traffic.up - bytes_before[1],
            },
        }
        self.folder.append_round(_with_evaluation(record, evaluation or Evaluation()))
        if not awaits:
            self.observer.round_finished(_with_evaluation(record, evaluation or Evaluation()))
        return after

    def _checkpoint(
        self,
        number: int,
        before: Checkpoint,
        collected: Collected,
        weights: FloatVector,
        seconds: float,
    ) -> Checkpoint:
        epsilons = {
            site: epsilon
            for site, entry in collected.sites.items()
            if isinstance(epsilon := entry["epsilon"], float)
        }
        return Checkpoint(
            run=self.run,
            round=number,
            weights=weights,
            strategy=self.strategy.state(),
            epsilons={**before.epsilons, **epsilons},
            seconds=before.seconds + seconds,
            traffic=(self.traffic.down, self.traffic.up),
        )

    def _publish(self, number: int, evaluation: Evaluation) -> None:
        """Complete the line of a round whose evaluation came with a later message."""
        record = self.folder.amend_round(
            number, lambda stored: _with_evaluation(stored, evaluation)
        )
        if record is not None:
            self.observer.round_finished(record)

    def _learning_rate(self, number: int) -> float:
        """Return the rate that the sites begin a round with."""
        training, privacy = self.plan.training, self.plan.privacy
        base = (privacy.learning_rate if privacy.enabled else None) or training.learning_rate
        return learning_rate(base, training.schedule, (number - 1) / self.plan.federation.rounds)


def _with_evaluation(record: Mapping[str, object], evaluation: Evaluation) -> dict[str, object]:
    """Return a round's record with the figures of the model after it."""
    stored = record.get("sites")
    sites = (
        {site: dict(entry) for site, entry in stored.items()} if isinstance(stored, dict) else {}
    )
    for site, metrics in evaluation.sites.items():
        sites.setdefault(site, site_entry("not sampled"))["metrics"] = dict(metrics)
    return {**record, "metrics": dict(evaluation.metrics), "sites": sites}
