"""What a channel is: it carries a round's questions and answers, and decides what a server sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import RecordDict

from fedmed.errors import FederationError
from fedmed.federation.cohort import Participants
from fedmed.federation.exchange import Outcome
from fedmed.federation.strategies.base import WeightedUpdate
from fedmed.models.parameters import FloatVector

Ask = Callable[[Mapping[int, RecordDict], str, "Take", float], dict[int, Outcome]]
"""Sends one request to each node: contents, message type, how answers are taken, deadline in s."""
Take = Callable[[int, RecordDict], Outcome]
"""Reads a node's answer as soon as it comes; keeps what is needed and returns the outcome."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model on one split.

    Attributes:
        metrics: on the union of the sites' images, from the sum of their counts.
        sites: metrics by site, of those whose policy lets them leave.
        error_bounds: how far a binned metric can be from the exact one.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    sites: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    error_bounds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempt:
    """One try of a round.

    Attributes:
        round: number.
        attempt: number of the try, from 1.
        nodes: asked.
        weights: of the global model, ``[parameters]``.
        evaluate: sets of images on which to evaluate these weights on the way.
    """

    round: int
    attempt: int
    nodes: Sequence[int]
    weights: FloatVector
    evaluate: tuple[str, ...] = ()


@dataclass(frozen=True)
class Collected:
    """What came of a round.

    Attributes:
        updates: of single sites, or one named ``sum``.
        participants: sites whose updates are in it.
        sites: each asked site's entry for ``rounds.jsonl``.
        loss: mean training loss; None if no site tells its own.
        evaluations: of the weights that the round began with, by split.
        record: enters the round and the new weights into the transparency log.
        aggregation: how exact a masked sum is: the mean's largest number and proven error, numbers
            that were clipped, sites whose weight was cut.
    """

    updates: list[WeightedUpdate]
    participants: tuple[str, ...]
    sites: dict[str, dict[str, object]]
    loss: float | None
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    record: Callable[[FloatVector], None] = lambda _weights: None
    aggregation: Mapping[str, float] = field(default_factory=dict)


class AttemptFailedError(FederationError):
    """A try of a round came to nothing; another may succeed.

    Attributes:
        sites: entries of ``rounds.jsonl`` of the sites that were asked.
        survivors: if any, the only cohort with which sites try this round again.
    """

    def __init__(
        self, reason: str, sites: Mapping[str, Mapping[str, object]], survivors: Sequence[str] = ()
    ) -> None:
        super().__init__(reason)
        self.sites = sites
        self.survivors = tuple(survivors)


class Channel(Protocol):
    """Carries the messages of a run, on the server's side."""

    @property
    def evaluates_on_the_way(self) -> bool:
        """Whether a round's messages carry the evaluation of the weights that it begins with."""

    @property
    def attempts(self) -> int:
        """How often a round is tried."""

    def named_survivors(self, purpose: str, number: int) -> tuple[str, ...]:
        """Return the sites that alone may try a round (again); empty where anybody may."""

    def join_request(self) -> RecordDict:
        """Return what every site is asked once."""

    def take_joined(self, node: int, content: RecordDict) -> Outcome:
        """Read the answer to it; the outcome's reply is ``Joined`` or ``Refused``."""

    def begin(self, weights: FloatVector, number: int) -> None:
        """Say with which weights the run begins, or goes on after a round."""

    def collect(self, attempt: Attempt, participants: Participants) -> Collected:
        """Let the sites train.

        Raises:
            AttemptFailedError: if this attempt came to nothing and another may succeed.
        """

    def evaluate(
        self, attempt: Attempt, participants: Participants
    ) -> tuple[dict[str, Evaluation], Callable[[], None]]:
        """Let the sites count the model's answers, without training.

        Returns:
            Figures by split, and what enters them into the transparency log.
        """


def site_entry(status: str, reason: str | None = None) -> dict[str, object]:
    """Return a site's entry of ``rounds.jsonl``, yet without figures."""
    return {
        "status": status,
        "reason": reason,
        "examples": None,
        "loss": None,
        "epsilon": None,
        "metrics": {},
    }
