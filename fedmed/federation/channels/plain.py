"""Unsigned messages, single updates in clear: for tests and comparisons."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from flwr.app import RecordDict

from fedmed.configuration.plan import Plan
from fedmed.errors import ProtocolError
from fedmed.federation.channels.base import Ask, Attempt, Collected, Evaluation, site_entry
from fedmed.federation.cohort import Participants
from fedmed.federation.exchange import Outcome, Status, take_plain
from fedmed.federation.records import (
    FLOAT32,
    FLOAT64,
    UPDATE,
    WEIGHTS,
    Evaluated,
    Request,
    Trained,
    pack,
    unpack_arrays,
)
from fedmed.federation.strategies.base import WeightedUpdate
from fedmed.models.parameters import FloatVector
from fedmed.tasks.base import Aggregate, Task, merge

log = logging.getLogger(__name__)

_Kind = TypeVar("_Kind", Trained, Evaluated)


@dataclass(frozen=True)
class PlainChannel:
    """Two exchanges a round: train, evaluate.

    Attributes:
        ask: sends requests and collects the answers.
        plan: of the run.
        task: built from the plan.
        parameters: numbers in the model.
        run: identifier of the run.
    """

    ask: Ask
    plan: Plan
    task: Task
    parameters: int
    run: str

    evaluates_on_the_way = False
    attempts = 1

    def named_survivors(self, purpose: str, number: int) -> tuple[str, ...]:
        """Return nobody: any site may try any round."""
        return ()

    def join_request(self) -> RecordDict:
        """Return the plan as an unsigned request."""
        return pack(Request(self.run, 0, self.plan.to_json()))

    def take_joined(self, node: int, content: RecordDict) -> Outcome:
        """Read an unsigned answer."""
        return take_plain(node, content)

    def begin(self, weights: FloatVector, number: int) -> None:
        """Write nothing down: unsigned messages prove nothing."""

    def collect(self, attempt: Attempt, participants: Participants) -> Collected:
        """Take each update as its site sends it; one that is not as agreed is not used."""
        request = Request(self.run, attempt.round, self.plan.to_json())
        content = pack(request, {WEIGHTS: attempt.weights})
        deadline = self.plan.federation.deadline_seconds
        outcomes = self.ask(dict.fromkeys(attempt.nodes, content), "train", take_plain, deadline)
        updates: list[WeightedUpdate] = []
        sites: dict[str, dict[str, object]] = {}
        losses: list[tuple[float, int]] = []
        for node, outcome in outcomes.items():
            name = participants.name(node)
            entry = sites[name] = site_entry(outcome.status.value, outcome.reason)
            if outcome.status != Status.OK or outcome.content is None:
                continue
            try:
                reply = _demand_kind(outcome, Trained)
                shapes = {UPDATE: (self.parameters,)}
                update = unpack_arrays(outcome.content, shapes, FLOAT32)[UPDATE]
                claimed = participants.joined[node].train
                if reply.site != name:
                    raise ProtocolError("The update comes under another site's name.")
                if claimed is not None and reply.examples > claimed:
                    raise ProtocolError("The site claims more images than when it joined.")
            except ProtocolError as error:
                entry.update(status=Status.FAILED.value, reason=str(error))
                continue
            updates.append(
                WeightedUpdate(name, update.astype(np.float32, copy=False), reply.examples)
            )
            entry.update(examples=reply.examples, loss=reply.loss, epsilon=reply.epsilon)
            if reply.loss is not None:
                losses.append((reply.loss, reply.examples))
        total = sum(examples for _, examples in losses)
        loss = sum(one * examples for one, examples in losses) / total if total else None
        return Collected(updates, tuple(sorted(one.site for one in updates)), sites, loss)

    def evaluate(
        self, attempt: Attempt, participants: Participants
    ) -> tuple[dict[str, Evaluation], Callable[[], None]]:
        """Ask once for each split."""
        found = {
            split: self._evaluate_split(attempt, split, participants) for split in attempt.evaluate
        }
        return found, lambda: None

    def _evaluate_split(
        self, attempt: Attempt, split: str, participants: Participants
    ) -> Evaluation:
        request = Request(self.run, attempt.round, self.plan.to_json(), split)
        content = pack(request, {WEIGHTS: attempt.weights})
        deadline = self.plan.federation.deadline_seconds
        outcomes = self.ask(dict.fromkeys(attempt.nodes, content), "evaluate", take_plain, deadline)
        parts: dict[str, Aggregate] = {}
        for node, outcome in outcomes.items():
            name = participants.name(node)
            if outcome.status != Status.OK or outcome.content is None:
                log.warning("%s: no evaluation (%s)", name, outcome.reason)
                continue
            try:
                arrays = unpack_arrays(outcome.content, self.task.aggregate_shapes, FLOAT64)
                _demand_kind(outcome, Evaluated)
            except ProtocolError as error:
                log.warning("%s: evaluation not used: %s", name, error)
                continue
            parts[name] = arrays
        if not parts:
            return Evaluation()
        total = merge([parts[site] for site in sorted(parts)])
        sites = {site: self.task.metrics(part) for site, part in parts.items()}
        return Evaluation(self.task.metrics(total), sites, self.task.error_bounds(total))


def _demand_kind(outcome: Outcome, kind: type[_Kind]) -> _Kind:
    if not isinstance(outcome.reply, kind):
        raise ProtocolError(f"The site answered with something else than {kind.__name__}.")
    return outcome.reply
