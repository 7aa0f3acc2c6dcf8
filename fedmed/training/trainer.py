"""Local training without differential privacy: a plain loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmed.configuration.groups import Optimizer, TrainingConfig
from fedmed.data.augmentation import augment
from fedmed.data.image_set import ImageSet
from fedmed.errors import FederationError
from fedmed.tasks.base import Task
from fedmed.training.batches import shuffled_batches, steps_per_round
from fedmed.training.schedule import learning_rate
from fedmed.training.seeds import generator

Progress = Callable[[float], None]


@dataclass(frozen=True)
class LocalRound:
    """What one site's training in one round is given besides model and images.

    Attributes:
        number: round, from 1.
        rounds: rounds of the whole run, for the schedule.
        local_epochs: passes over the images.
        seed: of batches and augmentation; derived from plan, site and round.
        progress: called with the share done, 0 to 1.
    """

    number: int
    rounds: int
    local_epochs: float
    seed: int
    progress: Progress = lambda _share: None

    def share_of_run(self, share_of_round: float) -> float:
        """Return how much of the whole run is done, 0 to 1."""
        return (self.number - 1 + share_of_round) / self.rounds


def make_optimizer(model: nn.Module, config: TrainingConfig, rate: float) -> torch.optim.Optimizer:
    """Return a fresh optimiser over the parameters that are trained."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == Optimizer.adamw:
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters, lr=rate, momentum=config.momentum, weight_decay=config.weight_decay
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def loss_weights(targets: Tensor, config: TrainingConfig) -> Tensor:
    """Return a weight for each image ``[N]``, mean 1; all ones unless ``training.balance``.

    Only exclusive classes are balanced: with several labels an image has no one class.
    """
    if not config.balance or targets.dim() != 1 or targets.is_floating_point():
        return torch.ones(len(targets), device=targets.device)
    counts = torch.bincount(targets).clamp(min=1).float()
    weights = 1.0 / counts[targets]
    return weights / weights.mean()


def train(
    model: nn.Module, images: ImageSet, task: Task, config: TrainingConfig, local: LocalRound
) -> float:
    """Train in place and return the mean loss over the round's batches, in nats.

    Raises:
        FederationError: if the loss stops being finite; nothing is sent then.
    """
    device = next(model.parameters()).device
    images = images.to(device)
    weights = loss_weights(images.targets, config)
    draws = generator(local.seed, "batches")
    steps = steps_per_round(local.local_epochs, len(images), config.batch_size)
    optimizer = make_optimizer(model, config, config.learning_rate)
    model.train()
    total = torch.zeros((), device=device)
    for step, batch in enumerate(shuffled_batches(len(images), config.batch_size, steps, draws)):
        share = local.share_of_run(step / steps)
        set_rate(optimizer, learning_rate(config.learning_rate, config.schedule, share))
        inputs = images.images[batch]
        if config.augment:
            inputs = augment(inputs, draws)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_amp(config, device)):
            outputs = model(inputs)
        loss = (task.loss(outputs.float(), images.targets[batch]) * weights[batch]).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach()
        local.progress((step + 1) / steps)
    mean_loss = float(total) / steps
    if not math.isfinite(mean_loss):
        raise FederationError(
            "Training diverged: the loss is not finite. Lower training.learning_rate."
        )
    return mean_loss


def uses_amp(config: TrainingConfig, device: torch.device) -> bool:
    """Whether forward passes run in bfloat16: on a CUDA device only."""
    return config.amp and device.type == "cuda"
