"""Trying a round until enough sites deliver: whom to ask again, and when to give up."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.serverapp import Grid

from fedmed.configuration.plan import Plan
from fedmed.errors import FederationError
from fedmed.federation.channels.base import (
    Attempt,
    AttemptFailedError,
    Channel,
    Collected,
    Evaluation,
)
from fedmed.federation.channels.signed import NOT_JOINED
from fedmed.federation.cohort import Joining, Participants, sample_sites
from fedmed.federation.exchange import Status
from fedmed.federation.observer import Observer
from fedmed.models.parameters import FloatVector
from fedmed.trust.context import EVALUATION, TRAINING

log = logging.getLogger(__name__)

_PAUSE = 0.05
_RESUME = "The last finished round is kept; go on with resume=DIR."


@dataclass(frozen=True)
class Attempts:
    """Tries rounds and evaluations over a channel.

    Attributes:
        grid: Flower's link.
        plan: of the run.
        channel: carries the messages.
        joining: asks sites that are new, or have restarted, to join.
        participants: of the run.
        observer: told whom a round asks.
    """

    grid: Grid
    plan: Plan
    channel: Channel
    joining: Joining
    participants: Participants
    observer: Observer

    def collect(self, number: int, weights: FloatVector, evaluate: tuple[str, ...]) -> Collected:
        """Try a round, as often as the channel allows, until enough sites deliver.

        Args:
            number: of the round.
            weights: of the global model, ``[parameters]``.
            evaluate: sets of images on which to evaluate these weights on the way.

        Raises:
            FederationError: with the sites' reasons.
        """
        refused: set[int] = set()
        restarted: set[str] = set()
        only = self.channel.named_survivors(TRAINING, number)
        failed: AttemptFailedError | None = None
        attempt, left = 0, self.channel.attempts
        while left > 0:
            if failed is not None:
                log.warning("Round %d, attempt %d: %s", number, attempt, failed)
            attempt += 1
            left -= 1
            nodes = self._choose(number, refused, only, failed)
            self.observer.round_started(number, [self.participants.name(node) for node in nodes])
            try:
                collected = self.channel.collect(
                    Attempt(number, attempt, nodes, weights, evaluate), self.participants
                )
            except AttemptFailedError as error:
                failed, only = error, error.survivors or only
                refused |= {
                    node
                    for node in nodes
                    if _refuses(error.sites.get(self.participants.name(node), {}))
                }
                again = _restarted(error.sites)
                refused |= {n for n in nodes if self.participants.name(n) in again & restarted}
                # A site may restart once in a round at no cost; it must not use up the others'.
                left += bool(again - restarted)
                restarted |= again
                continue
            self._demand_enough(number, collected)
            return collected
        raise FederationError(self._no_round(number, failed))

    def evaluate(
        self, weights: FloatVector, number: int, splits: tuple[str, ...]
    ) -> dict[str, Evaluation]:
        """Evaluate without training, as often as it takes."""
        only = self.channel.named_survivors(EVALUATION, number)
        failed: AttemptFailedError | None = None
        for attempt in range(1, self.channel.attempts + 1):
            if self.channel.evaluates_on_the_way:
                try:
                    nodes = self._choose(number, set(), only, failed)
                except FederationError as error:
                    # The model is trained: it is worth more than its figures.
                    log.warning("The model was not evaluated: %s", error)
                    break
            else:
                present = set(self.grid.get_node_ids())
                nodes = sorted(present & set(self.participants.joined), key=self.participants.name)
            try:
                found, record = self.channel.evaluate(
                    Attempt(number, attempt, nodes, weights, splits), self.participants
                )
            except AttemptFailedError as error:
                log.warning("Evaluation, attempt %d: %s", attempt, error)
                failed, only = error, error.survivors or only
                continue
            record()
            return found
        else:
            log.warning("The model was not evaluated: %s", failed)
        return {split: Evaluation() for split in splits}

    def _choose(
        self,
        number: int,
        refused: set[int],
        only: tuple[str, ...],
        failed: AttemptFailedError | None,
    ) -> list[int]:
        """Choose the sites of an attempt, and wait a while for those that went away."""
        end = time.monotonic() + self.plan.federation.join_seconds
        reason = f"of {', '.join(only)}, who alone may try it again, not all are connected"
        while True:
            self.joining.welcome(self.participants)
            present = [node for node in self.grid.get_node_ids() if node not in refused]
            if only:
                present = [node for node in present if node in self.participants.ready()]
                here = {self.participants.name(node) for node in present}
                present = [node for node in present if self.participants.name(node) in only]
                if set(only) <= here:
                    return sorted(present, key=self.participants.name)
            else:
                try:
                    return sample_sites(self.participants, self.plan, number, present)
                except FederationError as error:
                    if self.channel.attempts == 1:
                        raise
                    reason = str(error)
            if not self._can_be_enough(refused) or time.monotonic() > end:
                raise FederationError(self._no_round(number, failed, reason))
            time.sleep(_PAUSE)

    def _can_be_enough(self, refused: set[int]) -> bool:
        willing = [node for node in self.participants.joined if node not in refused]
        return len(willing) >= self.plan.federation.minimum_sites

    def _demand_enough(self, number: int, collected: Collected) -> None:
        minimum = self.plan.federation.minimum_sites
        if len(collected.participants) < minimum:
            raise FederationError(
                f"Round {number}: {len(collected.updates)} usable updates, "
                f"federation.minimum_sites is {minimum}.{_reasons(collected.sites)}\n{_RESUME}"
            )

    def _no_round(self, number: int, failed: AttemptFailedError | None, reason: str = "") -> str:
        why = f"{failed}{_reasons(failed.sites)}" if failed else reason
        return f"Round {number} came to nothing: {why}\n{_RESUME}"


def _refuses(entry: Mapping[str, object]) -> bool:
    """Whether a site said no; one that has restarted says that it has not joined, and will."""
    reason = str(entry.get("reason") or "")
    return entry.get("status") == Status.REFUSED.value and not reason.startswith(NOT_JOINED)


def _restarted(sites: Mapping[str, Mapping[str, object]]) -> set[str]:
    """Return the sites that only have to join again."""
    return {
        site
        for site, entry in sites.items()
        if str(entry.get("reason") or "").startswith(NOT_JOINED)
    }


def _reasons(sites: Mapping[str, Mapping[str, object]]) -> str:
    return "".join(
        f"\n  {site}: {entry['status']}: {entry['reason']}"
        for site, entry in sites.items()
        if entry["status"] != Status.OK.value
    )
