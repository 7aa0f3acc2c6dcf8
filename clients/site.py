"""One hospital's side of a round: read, reserve, train, answer."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fedmed.configuration.groups import SiteConfig
from fedmed.configuration.plan import Plan
from fedmed.data.cohort import Cohort, Reading
from fedmed.data.labels import LabelSchema
from fedmed.data.sources import CohortLoader
from fedmed.federation.egress import Egress
from fedmed.federation.records import Evaluated, Joined, Request, Trained
from fedmed.models.parameters import FloatVector, ParameterLayout, flatten, load_flat
from fedmed.models.registry import build_model
from fedmed.tasks.base import Aggregate, Task
from fedmed.tasks.registry import build_task
from fedmed.training.accounting import epsilon_spent
from fedmed.training.device import choose_device
from fedmed.training.evaluate import evaluate
from fedmed.training.ledger import Ledger, Reservation
from fedmed.training.noise import NoiseSource, SecureNoise, SeededNoise
from fedmed.training.present_plan import PresentPlan
from fedmed.training.private import check_trainable_privately, train_privately
from fedmed.training.seeds import derive_seed
from fedmed.training.site_plan import SitePrivacy, check_site_policy, site_privacy
from fedmed.training.trainer import LocalRound, train
from fedmed.trust.policy import SitePolicy, check_epsilon

log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class _Prepared:
    """What a plan needs at this site, kept from round to round."""

    plan: Plan
    task: Task
    cohort: Cohort
    layout: ParameterLayout
    privacy: SitePrivacy | None


@dataclass
class Site:
    """A hospital.

    Attributes:
        config: what the site decides for itself.
        load: reads the site's archive.
        state: folder of ledger, egress record and quarantine list.
        seeded_noise: tests only; set where the site starts, never by a message.
        policy: what else the site decides for itself, from its policy file.
        progress: told of the share of a round's training that is done.
    """

    config: SiteConfig
    load: CohortLoader
    state: Path
    seeded_noise: bool = False
    policy: SitePolicy = field(default_factory=SitePolicy)
    progress: Progress = lambda _site, _share: None
    _prepared: dict[str, _Prepared] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(self.state / "ledger.jsonl")
        self.egress = Egress(self.state / "egress.jsonl", self.policy)

    @property
    def name(self) -> str:
        """Name of the site in the consortium."""
        return self.config.name

    def join(self, request: Request) -> Joined:
        """Check the plan against the site's own settings and its data, and count the images.

        Raises:
            FedmedError: why the site takes no part.
        """
        ready = self._prepare(request)
        sizes = {split: len(images) for split, images in ready.cohort.splits.items()}
        if ready.privacy is not None:
            self._note_present_plan(request, ready.plan, ready.privacy)
        return Joined(
            site=self.name,
            train=sizes["train"],
            val=sizes["val"],
            test=sizes["test"],
            excluded=ready.cohort.excluded_counts,
            delta=ready.privacy.delta if ready.privacy else None,
        )

    def layout(self, request: Request) -> ParameterLayout:
        """Return the layout of the plan's model: what weights from outside must look like."""
        return self._prepare(request).layout

    def cohort(self, request: Request) -> Cohort:
        """Return the images that the plan uses; for comparisons in a simulation."""
        return self._prepare(request).cohort

    def task(self, request: Request) -> Task:
        """Return the plan's task."""
        return self._prepare(request).task

    def delta(self, request: Request) -> float | None:
        """Return at which delta the site states epsilon; None without differential privacy."""
        privacy = self._prepare(request).privacy
        return privacy.delta if privacy else None

    def train(
        self, request: Request, weights: FloatVector, attempt: int = 1
    ) -> tuple[Trained, FloatVector]:
        """Train one round and return the report and the update ``[parameters]``.

        Args:
            request: names the round.
            weights: of the global model, ``[parameters]``.
            attempt: number of the try; each has batches and noise of its own.

        Raises:
            PrivacyError: before training, if the site's budget would be passed.
        """
        started = time.monotonic()
        ready = self._prepare(request)
        images, plan = ready.cohort.splits["train"], ready.plan
        model = self._model(plan, ready.task)
        load_flat(model, weights)
        again = (attempt,) if attempt > 1 else ()
        local = LocalRound(
            number=request.round,
            rounds=plan.federation.rounds,
            local_epochs=plan.federation.local_epochs,
            # The first attempt's seed is that of a round that succeeds at once.
            seed=derive_seed(plan.seed, "train", self.name, request.round, *again),
            progress=lambda share: self.progress(self.name, share),
        )
        loss = epsilon = None
        if ready.privacy is None:
            loss = train(model, images, ready.task, plan.training, local)
        else:
            epsilon = self._reserve(request, ready.privacy, attempt)
            train_privately(
                model,
                images,
                ready.task,
                plan.training,
                plan.privacy,
                ready.privacy.mechanism,
                self._noise(plan, request.round, *again),
                local,
            )
        report = Trained(
            site=self.name,
            examples=ready.privacy.units if ready.privacy else len(images),
            loss=loss,
            epsilon=epsilon,
            seconds=time.monotonic() - started,
        )
        return report, flatten(model) - weights

    def evaluate(self, request: Request, weights: FloatVector) -> tuple[Evaluated, Aggregate]:
        """Count a model's answers on one split of the site's images."""
        ready = self._prepare(request)
        model = self._model(ready.plan, ready.task)
        load_flat(model, weights)
        images = ready.cohort.splits[request.split]
        return Evaluated(self.name, request.split), evaluate(model, images, ready.task)

    def _model(self, plan: Plan, task: Task) -> torch.nn.Module:
        model = build_model(
            plan.model,
            channels=plan.preprocessing.channels,
            outputs=task.outputs,
            seed=derive_seed(plan.seed, "model"),
        )
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        return model.to(choose_device(self.config.device))

    def _prepare(self, request: Request) -> _Prepared:
        """Parse the plan and read the archive, once for each plan."""
        with self._lock:
            if request.plan not in self._prepared:
                # One run at a time: the images of an older plan need not stay in memory.
                self._prepared.clear()
                self._prepared[request.plan] = self._read_plan(Plan.from_json(request.plan))
            return self._prepared[request.plan]

    def _read_plan(self, plan: Plan) -> _Prepared:
        check_site_policy(plan, self.config)
        task = build_task(plan.task)
        model = self._model(plan, task)
        if plan.privacy.enabled:
            check_trainable_privately(model)
        cohort = self.load(
            Reading(
                preprocessing=plan.preprocessing,
                schema=LabelSchema(tuple(plan.task.labels), plan.task.multi_label),
                required_columns=task.required_columns,
                encode=task.encode,
                strata=task.strata,
                seed=derive_seed(plan.seed, "split"),
            )
        )
        self._write_quarantine(cohort)
        privacy = site_privacy(plan, cohort.splits["train"])
        return _Prepared(plan, task, cohort, ParameterLayout.of(model), privacy)

    def _write_quarantine(self, cohort: Cohort) -> None:
        """List what is not used, for the site's engineer; the list never leaves the site."""
        lines = [
            json.dumps({"row": entry.row, "reason": entry.reason, "detail": entry.detail}) + "\n"
            for entry in cohort.excluded
        ]
        (self.state / "excluded.jsonl").write_text("".join(lines), encoding="utf-8")

    def _reserve(self, request: Request, privacy: SitePrivacy, attempt: int) -> float:
        repeatable = f"{request.run}/{request.round}" if self.seeded_noise else ""
        if attempt > 1 and repeatable:
            repeatable += f"/{attempt}"
        steps = privacy.mechanism.steps
        limits = [
            limit
            for limit in (self.config.max_epsilon, self.policy.max_epsilon)
            if limit is not None
        ]
        if self.policy.max_epsilon_per_round is not None:
            check_epsilon(self.policy, epsilon_spent([steps], privacy.delta), 0.0)
        return self.ledger.reserve(
            Reservation(
                run=request.run,
                round=request.round,
                steps=steps,
                repeatable=repeatable,
                site=self.name,
                study=self.config.study,
                unit=privacy.mechanism.unit,
                images_per_patient=privacy.images_per_patient,
            ),
            delta=privacy.delta,
            max_epsilon=min(limits) if limits else None,
        )

    def _note_present_plan(self, request: Request, plan: Plan, privacy: SitePrivacy) -> None:
        """Let ``fedmed ledger show`` tell how many rounds of this plan are left."""
        PresentPlan(
            run=request.run,
            rounds=plan.federation.rounds,
            study=self.config.study,
            unit=privacy.mechanism.unit,
            delta=privacy.delta,
            steps=privacy.mechanism.steps,
            images_per_patient=privacy.images_per_patient,
        ).write(self.state)

    def _noise(self, plan: Plan, number: int, *again: int) -> NoiseSource:
        if self.seeded_noise:
            return SeededNoise(derive_seed(plan.seed, "noise", self.name, number, *again))
        return SecureNoise()
