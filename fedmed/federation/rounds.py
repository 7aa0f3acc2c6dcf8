"""The round loop: invite, train, aggregate, checkpoint, evaluate."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedmed.configuration.plan import Plan
from fedmed.errors import FederationError, ProtocolError
from fedmed.federation.cohort import Joining, Participants, Roster, sample_sites
from fedmed.federation.exchange import Outcome, Status, Traffic, ask
from fedmed.federation.observer import Observer
from fedmed.federation.records import (
    FLOAT32,
    FLOAT64,
    Evaluated,
    Request,
    Trained,
    pack,
    unpack_arrays,
)
from fedmed.federation.run_folder import Checkpoint, RunFolder
from fedmed.federation.strategies.base import Strategy, WeightedUpdate
from fedmed.models.parameters import FloatVector, ParameterLayout
from fedmed.tasks.base import Aggregate, Task, merge
from fedmed.training.schedule import learning_rate

log = logging.getLogger(__name__)

UPDATE = "update"
WEIGHTS = "weights"
TRAIN_MESSAGE = "train"
EVALUATE_MESSAGE = "evaluate"


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model on one split.

    Attributes:
        metrics: on the union of the sites' images, from the sum of their counts.
        sites: metrics by site.
        error_bounds: how far a binned metric can be from the exact one.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    sites: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    error_bounds: Mapping[str, float] = field(default_factory=dict)


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
    participants: Participants = field(default_factory=Participants)
    traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        self._joining = Joining(
            self.grid, self.plan, self.run, self.roster, self.observer, self.traffic
        )

    def train(self, start: Checkpoint) -> Checkpoint:
        """Run the rounds that are left after a checkpoint and return the last one.

        Raises:
            FederationError: if too few sites take part or deliver.
        """
        self.strategy.restore(start.strategy)
        self.traffic.down, self.traffic.up = start.traffic
        self._joining.gather(self.participants, self.expected)
        names = sorted(joined.site for joined in self.participants.joined.values())
        self.observer.run_started(self.folder.path.name, self.plan.federation.rounds, names)
        if start.round == 0:
            self.folder.save_checkpoint(start, self.layout)
        checkpoint = start
        for number in range(start.round + 1, self.plan.federation.rounds + 1):
            checkpoint = self._round(number, checkpoint)
        return checkpoint

    def evaluate(self, weights: FloatVector, split: str, number: int) -> Evaluation:
        """Let all sites count the model's answers on their images of one split."""
        present = set(self.grid.get_node_ids())
        nodes = sorted(
            (node for node in self.participants.joined if node in present),
            key=self.participants.name,
        )
        request = Request(self.run, number, self.plan.to_json(), split)
        outcomes = self._ask(nodes, pack(request, {WEIGHTS: weights}), EVALUATE_MESSAGE, number)
        parts: dict[str, Aggregate] = {}
        for node, outcome in outcomes.items():
            if outcome.status != Status.OK or outcome.content is None:
                log.warning("%s: no evaluation (%s)", self.participants.name(node), outcome.reason)
                continue
            try:
                arrays = unpack_arrays(outcome.content, self.task.aggregate_shapes, FLOAT64)
                _demand_kind(outcome, Evaluated)
            except ProtocolError as error:
                log.warning("%s: evaluation not used: %s", self.participants.name(node), error)
                continue
            parts[self.participants.name(node)] = arrays
        if not parts:
            return Evaluation()
        total = merge([parts[site] for site in sorted(parts)])
        sites = {site: self.task.metrics(part) for site, part in parts.items()}
        return Evaluation(self.task.metrics(total), sites, self.task.error_bounds(total))

    def _ask(
        self, nodes: list[int], content: RecordDict, message_type: str, number: int
    ) -> dict[int, Outcome]:
        def replied(node: int, outcome: Outcome) -> None:
            if message_type == TRAIN_MESSAGE:
                name = self.participants.name(node)
                self.observer.site_replied(name, outcome.status.value, outcome.reason)

        return ask(
            self.grid,
            dict.fromkeys(nodes, content),
            message_type,
            group=str(number),
            deadline=self.plan.federation.deadline_seconds,
            traffic=self.traffic,
            replied=replied,
        )

    def _round(self, number: int, before: Checkpoint) -> Checkpoint:
        started = time.monotonic()
        self._joining.welcome(self.participants)
        nodes = sample_sites(self.participants, self.plan, number, list(self.grid.get_node_ids()))
        self.observer.round_started(number, [self.participants.name(node) for node in nodes])
        bytes_before = (self.traffic.down, self.traffic.up)
        request = Request(self.run, number, self.plan.to_json())
        content = pack(request, {WEIGHTS: before.weights})
        outcomes = self._ask(nodes, content, TRAIN_MESSAGE, number)
        trained_at = time.monotonic()
        updates, sites = self._read_updates(outcomes)
        self._demand_enough(number, updates, sites)
        weights = self.strategy.apply(before.weights, updates)
        aggregated_at = time.monotonic()
        epsilons = {
            site: epsilon
            for site, entry in sites.items()
            if isinstance(epsilon := entry["epsilon"], float)
        }
        every = self.plan.federation.evaluate_every
        evaluation = Evaluation()
        if every and (number % every == 0 or number == self.plan.federation.rounds):
            evaluation = self.evaluate(weights, "val", number)
        evaluated_at = time.monotonic()
        after = Checkpoint(
            run=self.run,
            round=number,
            weights=weights,
            strategy=self.strategy.state(),
            epsilons={**before.epsilons, **epsilons},
            seconds=before.seconds + evaluated_at - started,
            traffic=(self.traffic.down, self.traffic.up),
        )
        self.folder.save_checkpoint(after, self.layout)
        for site, metrics in evaluation.sites.items():
            sites.setdefault(site, _site_entry("not sampled"))["metrics"] = dict(metrics)
        record = {
            "round": number,
            "metrics": dict(evaluation.metrics),
            "loss": _mean_loss(sites),
            "learning_rate": self._learning_rate(number),
            "participants": sorted(update.site for update in updates),
            "sites": sites,
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
        self.folder.append_round(record)
        self.observer.round_finished(record)
        return after

    def _learning_rate(self, number: int) -> float:
        """Return the rate that the sites begin a round with."""
        training, privacy = self.plan.training, self.plan.privacy
        base = (privacy.learning_rate if privacy.enabled else None) or training.learning_rate
        return learning_rate(base, training.schedule, (number - 1) / self.plan.federation.rounds)

    def _read_updates(
        self, outcomes: Mapping[int, Outcome]
    ) -> tuple[list[WeightedUpdate], dict[str, dict[str, object]]]:
        """Check each answer; one that is not as agreed counts as failed and is not used."""
        updates: list[WeightedUpdate] = []
        sites: dict[str, dict[str, object]] = {}
        for node, outcome in outcomes.items():
            name = self.participants.name(node)
            entry = _site_entry(outcome.status.value, outcome.reason)
            sites[name] = entry
            if outcome.status != Status.OK or outcome.content is None:
                continue
            try:
                reply = _demand_kind(outcome, Trained)
                shapes = {UPDATE: (self.layout.size,)}
                update = unpack_arrays(outcome.content, shapes, FLOAT32)[UPDATE]
                if reply.site != name:
                    raise ProtocolError("The update comes under another site's name.")
                if reply.examples > self.participants.joined[node].train:
                    raise ProtocolError("The site claims more images than when it joined.")
            except ProtocolError as error:
                entry.update(status=Status.FAILED.value, reason=str(error))
                continue
            updates.append(
                WeightedUpdate(name, update.astype(np.float32, copy=False), reply.examples)
            )
            entry.update(examples=reply.examples, loss=reply.loss, epsilon=reply.epsilon)
        return updates, sites

    def _demand_enough(
        self,
        number: int,
        updates: list[WeightedUpdate],
        sites: Mapping[str, Mapping[str, object]],
    ) -> None:
        minimum = self.plan.federation.minimum_sites
        if len(updates) >= minimum:
            return
        details = "".join(
            f"\n  {site}: {entry['status']}: {entry['reason']}"
            for site, entry in sites.items()
            if entry["status"] != Status.OK.value
        )
        raise FederationError(
            f"Round {number}: {len(updates)} usable updates, federation.minimum_sites is "
            f"{minimum}.{details}\nThe last finished round is kept; go on with resume=DIR."
        )


Kind = TypeVar("Kind", Trained, Evaluated)


def _demand_kind(outcome: Outcome, kind: type[Kind]) -> Kind:
    if not isinstance(outcome.reply, kind):
        raise ProtocolError(f"The site answered with something else than {kind.__name__}.")
    return outcome.reply


def _site_entry(status: str, reason: str | None = None) -> dict[str, object]:
    return {
        "status": status,
        "reason": reason,
        "examples": None,
        "loss": None,
        "epsilon": None,
        "metrics": {},
    }


def _mean_loss(sites: Mapping[str, Mapping[str, object]]) -> float | None:
    losses = [
        (loss, examples)
        for entry in sites.values()
        if isinstance(loss := entry["loss"], float)
        and isinstance(examples := entry["examples"], int)
    ]
    total = sum(examples for _, examples in losses)
    return sum(loss * examples for loss, examples in losses) / total if total else None
