"""fedmed's round loop over any Grid, with a clock."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid
from torch import nn

from fedmed.configuration import FederationConfig, Plan, StrategyConfig, TransportConfig
from fedmed.configuration.groups import TransportMode
from fedmed.federation.channels.signed import ServerParty
from fedmed.federation.cohort import Roster
from fedmed.federation.observer import SilentObserver
from fedmed.federation.rounds import RoundLoop
from fedmed.federation.run_folder import Checkpoint, RunFolder
from fedmed.federation.strategies.fedavg import FedAvg
from fedmed.models.parameters import ParameterLayout
from fedmed.tasks.classification.task import Classification
from round_engines.echo import PARAMETERS, SITES, STEP, RoundTime

RUN = "round-overhead"
"""Identifier of the run."""


class Clock(SilentObserver):
    """Notes when rounds end, and how long each waited for its sites."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.exchanges: list[float] = []

    def round_finished(self, record: Mapping[str, object]) -> None:
        """Note the time, and the seconds that the loop counts as training."""
        self.ends.append(time.perf_counter())
        seconds = record["seconds"]
        assert isinstance(seconds, dict)
        self.exchanges.append(float(seconds["train"]))


def echo_layout() -> ParameterLayout:
    """Return the layout of the weights that the sites get."""
    side = round(PARAMETERS**0.5)
    return ParameterLayout.of(nn.Linear(side, side, bias=False))


def time_rounds(
    grid: Grid,
    folder: Path,
    rounds: int,
    roster: Roster | None = None,
    mode: TransportMode = TransportMode.plain,
    party: ServerParty | None = None,
) -> list[RoundTime]:
    """Run rounds and return the times of each but the first, which warms up.

    A round is: the model to three sites, three updates back, checks, weighted mean, checkpoint,
    a line in ``rounds.jsonl``. Nothing is evaluated.

    Args:
        grid: link to the sites.
        folder: of the run.
        rounds: to time.
        roster: names of nodes, in deployment.
        mode: plain, as stock Flower has it, or secure aggregation.
        party: the server's keys and log, unless updates are plain.

    Raises:
        RuntimeError: the model is not what that many updates of all sites make of it.
    """
    plan = Plan(
        federation=FederationConfig(
            rounds=rounds + 1, minimum_sites=len(SITES), evaluate_every=0, join_seconds=120.0
        ),
        transport=TransportConfig(mode=mode),
    )
    layout = echo_layout()
    clock = Clock()
    loop = RoundLoop(
        grid=grid,
        plan=plan,
        task=Classification(plan.task),
        layout=layout,
        strategy=FedAvg(StrategyConfig()),
        folder=RunFolder(folder),
        observer=clock,
        run=RUN,
        roster=roster,
        expected=len(SITES),
        party=party,
    )
    start = Checkpoint(run=RUN, round=0, weights=np.ones(PARAMETERS, np.float32))
    final = loop.train(start)
    if not np.allclose(final.weights, (1 + STEP) ** (rounds + 1), rtol=1e-4):
        raise RuntimeError("the model is not what these rounds should make of it")
    wholes = [after - before for before, after in itertools.pairwise(clock.ends)]
    return [RoundTime(*pair) for pair in zip(wholes, clock.exchanges[1:], strict=True)]
