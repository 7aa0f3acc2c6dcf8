"""What a federation is compared with: each site alone, and all images in one place.

For simulations only. The pooled model needs what federated learning exists to avoid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from fedmed.configuration.plan import Plan
from fedmed.data.image_set import ImageSet
from fedmed.models.initial_weights import load_initial_weights
from fedmed.models.registry import build_model
from fedmed.tasks.base import Task
from fedmed.training.device import choose_device
from fedmed.training.noise import NoiseSource
from fedmed.training.private import train_privately
from fedmed.training.seeds import derive_seed
from fedmed.training.site_plan import site_privacy
from fedmed.training.trainer import LocalRound, Progress, train


@dataclass(frozen=True)
class Baseline:
    """One model trained without a federation.

    Attributes:
        name: site, or ``pooled``.
        images: what it is trained on.
        progress: told of the share done.
        initial: weights to start from, as the federation does.
    """

    name: str
    images: ImageSet
    progress: Progress = lambda _share: None
    initial: Path | None = None


def train_baseline(
    plan: Plan, task: Task, baseline: Baseline, device: str, noise: NoiseSource
) -> nn.Module:
    """Train from the same initial weights for as many passes as the federation makes.

    The optimiser runs through without the interruptions of rounds, and differential privacy has
    the plan's settings: a baseline is not handicapped.
    """
    federation = plan.federation
    passes = federation.rounds * federation.local_epochs
    through = replace(plan, federation=replace(federation, rounds=1, local_epochs=passes))
    model = build_model(
        plan.model,
        channels=plan.preprocessing.channels,
        outputs=task.outputs,
        seed=derive_seed(plan.seed, "model"),
    )
    if baseline.initial is not None:
        load_initial_weights(model, baseline.initial)
    model.to(choose_device(device))
    seed = derive_seed(plan.seed, "baseline", baseline.name)
    local = LocalRound(1, 1, passes, seed, baseline.progress)
    privacy = site_privacy(through, baseline.images)
    if privacy is None:
        train(model, baseline.images, task, plan.training, local)
    else:
        train_privately(
            model,
            baseline.images,
            task,
            plan.training,
            plan.privacy,
            # Nobody shares the noise of a model trained alone: it needs all of it.
            replace(privacy.mechanism, noise_share=1.0),
            noise,
            local,
        )
    return model
