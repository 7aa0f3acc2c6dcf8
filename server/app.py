"""The ServerApp: trains, evaluates on the test sets, writes the run folder."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmed.configuration.groups import TransportMode
from fedmed.configuration.plan import Plan
from fedmed.federation.central_noise import with_privacy_model
from fedmed.federation.channels.signed import ServerParty
from fedmed.federation.cohort import Roster
from fedmed.federation.observer import Observer
from fedmed.federation.rounds import RoundLoop
from fedmed.federation.run_folder import Checkpoint, RunFolder
from fedmed.federation.strategies.registry import build_strategy
from fedmed.federation.summary import model_card, summarise
from fedmed.federation.survivors import NamedSurvivors
from fedmed.models.initial_weights import load_initial_weights
from fedmed.models.parameters import ParameterLayout, flatten, trained_mask
from fedmed.models.registry import build_model
from fedmed.tasks.registry import build_task
from fedmed.training.noise import NoiseSource, SecureNoise
from fedmed.training.seeds import derive_seed
from fedmed.trust.audit.log import TransparencyLog
from fedmed.trust.credentials import Credentials

log = logging.getLogger(__name__)


@dataclass
class ServerRun:
    """One run of the server.

    Attributes:
        plan: what is trained.
        folder: where the run is written; a checkpoint in it is gone on with.
        observer: told of events.
        credentials: the server's keys and roster; None only for ``transport=plain``.
        roster: names of nodes by key, in deployment.
        expected: number of sites that may come, if known.
        noise: what privacy noise is made from, for the report; and what the server draws from if
            it is the one to add it.
        initial: weights to start from; None is random ones.
        summary: content of ``summary.json``, once the run is over.
    """

    plan: Plan
    folder: RunFolder
    observer: Observer
    credentials: Credentials | None = None
    roster: Roster | None = None
    expected: int | None = None
    noise: NoiseSource = field(default_factory=SecureNoise)
    initial: Path | None = None
    summary: dict[str, object] = field(default_factory=dict)

    def execute(self, grid: Grid) -> None:
        """Run all rounds that are left, then evaluate and write the results.

        Raises:
            FederationError: if too few sites take part or deliver.
        """
        plan = self.plan
        task = build_task(plan.task)
        model = build_model(
            plan.model,
            channels=plan.preprocessing.channels,
            outputs=task.outputs,
            seed=derive_seed(plan.seed, "model"),
        )
        layout = ParameterLayout.of(model)
        if self.initial is not None:
            matched = load_initial_weights(model, self.initial)
            log.info("initial weights: %s", matched)
        start = self.folder.newest_checkpoint(layout)
        if start is None:
            start = Checkpoint(run=secrets.token_hex(8), round=0, weights=flatten(model))
        self.folder.forget_rounds_after(start.round)
        with self._party(start.run) as party:
            loop = RoundLoop(
                grid=grid,
                plan=plan,
                task=task,
                layout=layout,
                strategy=with_privacy_model(
                    build_strategy(plan.strategy), plan, trained_mask(model), self.noise
                ),
                folder=self.folder,
                observer=self.observer,
                run=start.run,
                roster=self.roster,
                expected=self.expected,
                party=party,
            )
            final = loop.train(start)
            evaluation = loop.evaluate(final.weights, final.round)
        self.folder.write_model(final.weights, layout, model_card(plan, layout))
        self.summary = summarise(
            plan, layout, loop.participants, final, evaluation, self.noise.description
        )
        self.folder.write_json("summary.json", self.summary)

    @contextmanager
    def _party(self, run: str) -> Iterator[ServerParty | None]:
        """Open the transparency log of the run for as long as it goes on."""
        if self.credentials is None or self.plan.transport.mode == TransportMode.plain:
            yield None
            return
        signer = self.credentials.signer
        with TransparencyLog(self.folder.path / "audit", signer, run) as log_of_run:
            yield ServerParty(
                signer,
                self.credentials.publication.signed_roster,
                log_of_run,
                NamedSurvivors(self.folder.path / "survivors.json"),
            )


def make_server_app(run: ServerRun) -> ServerApp:
    """Return the ServerApp of a run, the same for every engine."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run.execute(grid)

    return app
