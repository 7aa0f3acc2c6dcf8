"""Which sites take part: joining, refusals, sampling for a round."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedmed.configuration.plan import Plan
from fedmed.errors import FederationError
from fedmed.federation.exchange import Outcome, Status, Traffic, ask
from fedmed.federation.observer import Observer
from fedmed.federation.records import Joined, Refused
from fedmed.training.seeds import derive_seed

Roster = Callable[[], Mapping[int, str]]
"""Gives the name of each node that the server knows by its key."""

_JOIN_MESSAGE = "query.join"
_PAUSE = 0.05


@dataclass
class Participants:
    """The sites of a run, by node.

    Attributes:
        joined: what each participating site said about itself.
        refused: reasons of sites that take no part.
        restarted: nodes among ``joined`` that must join again before they can be asked.
    """

    joined: dict[int, Joined] = field(default_factory=dict)
    refused: dict[int, Refused] = field(default_factory=dict)
    restarted: set[int] = field(default_factory=set)

    def ready(self) -> set[int]:
        """Return the nodes that can be asked."""
        return self.joined.keys() - self.restarted

    def name(self, node: int) -> str:
        """Return the site of a node, or the node's number where it never said."""
        if node in self.joined:
            return self.joined[node].site
        if node in self.refused:
            return self.refused[node].site
        return f"node {node}"


@dataclass(frozen=True)
class Joining:
    """Asks nodes to join.

    Attributes:
        grid: Flower's link.
        plan: what they are asked to take part in.
        request: what they are asked.
        take: reads the answer.
        roster: names by node, from the sites' keys; None where nodes name themselves (simulation).
        observer: told who joined.
        traffic: payload counters.
    """

    grid: Grid
    plan: Plan
    request: RecordDict
    take: Callable[[int, RecordDict], Outcome]
    roster: Roster | None
    observer: Observer
    traffic: Traffic

    def gather(self, participants: Participants, expected: int | None) -> None:
        """Wait for the expected number of sites, or at the deadline for the smallest allowed.

        Raises:
            FederationError: if fewer than ``federation.minimum_sites`` have joined in time.
        """
        settings = self.plan.federation
        end = time.monotonic() + settings.join_seconds
        while True:
            self.welcome(participants)
            answered = len(participants.joined) + len(participants.refused)
            enough = len(participants.joined) >= settings.minimum_sites
            if enough and (expected is None or answered >= expected):
                return
            hopeless = expected is not None and answered >= expected
            if hopeless or time.monotonic() > end:
                break
            time.sleep(_PAUSE)
        if len(participants.joined) < settings.minimum_sites:
            reasons = "".join(f"\n  {r.site}: {r.reason}" for r in participants.refused.values())
            raise FederationError(
                f"{len(participants.joined)} sites joined, federation.minimum_sites is "
                f"{settings.minimum_sites}.{reasons}"
            )

    def welcome(self, participants: Participants) -> None:
        """Ask every node that has not answered yet."""
        known = participants.ready() | participants.refused.keys()
        new = [node for node in self.grid.get_node_ids() if node not in known]
        if not new:
            return
        outcomes = ask(
            self.grid,
            dict.fromkeys(new, self.request),
            _JOIN_MESSAGE,
            group="join",
            deadline=self.plan.federation.deadline_seconds,
            traffic=self.traffic,
            take=self.take,
            replied=lambda _node, _outcome: None,
        )
        for node, outcome in outcomes.items():
            self._take(participants, node, outcome)

    def _take(self, participants: Participants, node: int, outcome: Outcome) -> None:
        reply = outcome.reply
        name = self.roster().get(node) if self.roster else None
        if isinstance(reply, Joined | Refused) and name is not None and reply.site != name:
            reply = Refused(name, "ProtocolError", "the site does not use its own name")
        if isinstance(reply, Joined):
            same = [n for n, one in participants.joined.items() if one.site == reply.site]
            for other in [n for n in same if n != node]:
                if other in set(self.grid.get_node_ids()):
                    text = "another node has joined under this name"
                    reply = Refused(reply.site, "ProtocolError", text)
                else:
                    # A site that has new keys is another node; the old one will not come back.
                    del participants.joined[other]
        if isinstance(reply, Joined):
            participants.joined[node] = reply
            participants.restarted.discard(node)
            counts = {"train": reply.train, "val": reply.val, "test": reply.test}
            told = {split: count for split, count in counts.items() if count is not None}
            self.observer.site_joined(reply.site, told, reply.excluded)
            return
        if not isinstance(reply, Refused):
            reply = Refused(
                name or f"node {node}", "FederationError", outcome.reason or "no answer"
            )
        if outcome.status != Status.LATE:
            participants.refused[node] = reply
        self.observer.site_refused(reply.site, reply.reason)


def sample_sites(
    participants: Participants, plan: Plan, number: int, present: Collection[int]
) -> list[int]:
    """Choose the nodes of a round, in the order of their sites' names, repeatably from the seed.

    Raises:
        FederationError: if fewer sites are there than a round needs.
    """
    settings = plan.federation
    candidates = sorted(
        (node for node in participants.ready() if node in set(present)), key=participants.name
    )
    if len(candidates) < settings.minimum_sites:
        raise FederationError(
            f"Round {number}: {len(candidates)} sites are connected, federation.minimum_sites is "
            f"{settings.minimum_sites}."
        )
    wanted = max(settings.minimum_sites, round(settings.fraction_sites * len(candidates)))
    if wanted >= len(candidates):
        return candidates
    chooser = random.Random(derive_seed(plan.seed, "sites", number))  # noqa: S311 - not a secret
    chosen = set(chooser.sample(candidates, wanted))
    return [node for node in candidates if node in chosen]
