"""Local training with differential privacy: DP-SGD (Abadi et al., 2016) on Opacus.

Each step draws units (images or patients) by Poisson sampling, clips each unit's mean gradient to
``clipping_norm``, adds Gaussian noise to the sum, and divides by the *expected* number of units,
which tells nothing of the actual one. An empty batch makes a step of noise alone, and counts.
docs/privacy.md proves what follows from that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fedmed.configuration.groups import Clipping, PrivacyConfig, TrainingConfig, Unit
from fedmed.data.augmentation import augment
from fedmed.data.image_set import ImageSet
from fedmed.errors import FederationError, PrivacyError
from fedmed.tasks.base import Task
from fedmed.training.accounting import GaussianSteps
from fedmed.training.averaging import WeightAverage
from fedmed.training.clipping.base import Clipper, trained_parameters
from fedmed.training.clipping.choice import choose_clipper
from fedmed.training.noise import (
    CLIPPING_MARGIN,
    NoiseSource,
    add_on_lattice,
    lattice_spacing,
)
from fedmed.training.schedule import learning_rate
from fedmed.training.trainer import LocalRound, make_optimizer, set_rate, uses_amp
from fedmed.training.units import UnitBatch, Units


@dataclass(frozen=True)
class Mechanism:
    """What one round of DP-SGD does at a site.

    Attributes:
        steps: noise multiplier that is accounted, sampling rate, and number of steps of the round.
        clipping_norm: L2 bound on one unit's gradient.
        max_physical_batch: images (times views) whose gradients are held at once.
        unit: what is clipped as a whole.
        images_per_patient: most images that a patient lends to one step.
        noise_share: part of the standard deviation that this site adds itself: 1 unless the noise
            is distributed over the sites (``1 / sqrt(sites)``) or central (0).
    """

    steps: GaussianSteps
    clipping_norm: float
    max_physical_batch: int
    unit: Unit = Unit.image
    images_per_patient: int = 1
    noise_share: float = 1.0

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise that this site adds to each coordinate of a sum."""
        return self.steps.noise_multiplier * self.clipping_norm * self.noise_share


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's optimiser for sums that are clipped already, with noise from a NoiseSource."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, noise: NoiseSource, scale: float, **kwargs: float
    ) -> None:
        super().__init__(optimizer, **kwargs)
        self._noise = noise
        self._scale = scale
        self._spacing = lattice_spacing(self.max_grad_norm, sum(p.numel() for p in self.params))

    def step_with(self, clipped_sums: list[Tensor]) -> None:
        """Add noise to the sums of a batch, divide by the expected batch, and take a step."""
        for parameter, clipped_sum in zip(self.params, clipped_sums, strict=True):
            parameter.summed_grad = clipped_sum
        self.add_noise()
        self.scale_grad()
        self.original_optimizer.step()
        self.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Take off the parameters what Opacus has hung on them."""
        for parameter in self.params:
            for name in ("grad_sample", "summed_grad"):
                if hasattr(parameter, name):
                    delattr(parameter, name)

    def add_noise(self) -> None:
        """Add noise to the sums, on the lattice; without noise (central) they stay as they are."""
        # In one vector: the noise generator works in chunks larger than most layers.
        released = torch.cat([parameter.summed_grad.flatten() for parameter in self.params])
        if self._scale > 0:
            noise = self._noise.normal(released.shape)
            released = add_on_lattice(released, noise, self._scale, self._spacing)
        parts = torch.split(released, [parameter.numel() for parameter in self.params])
        for parameter, part in zip(self.params, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def scale_grad(self) -> None:
        """Divide by the expected number of units in a batch."""
        for parameter in self.params:
            parameter.grad /= self.expected_batch_size


def check_trainable_privately(model: nn.Module) -> None:
    """Refuse a network whose per-sample gradients are not defined.

    Raises:
        PrivacyError: naming the layers, as BatchNorm, that mix images of a batch.
    """
    mode = model.training
    model.train()
    errors = ModuleValidator.validate(model, strict=False)
    model.train(mode)
    tracked = [
        name
        for name, layer in model.named_modules()
        if getattr(layer, "running_mean", None) is not None
    ]
    if errors or tracked:
        layers = ", ".join(tracked) or "; ".join(str(error) for error in errors)
        raise PrivacyError(
            f"This network cannot be trained with differential privacy ({layers}): its layers mix "
            "images of a batch. Choose model.normalisation=group or privacy=off."
        )


@contextmanager
def _clipping(
    model: nn.Module, task: Task, way: Clipping, optimizer: NoisyOptimizer
) -> Iterator[Clipper]:
    """Leave the network as it was found, whatever happens in between."""
    clipper = choose_clipper(
        model, lambda outputs, targets: task.loss(outputs.float(), targets), way
    )
    try:
        yield clipper
    finally:
        clipper.close()
        optimizer.close()


def train_privately(
    model: nn.Module,
    images: ImageSet,
    task: Task,
    training: TrainingConfig,
    privacy: PrivacyConfig,
    mechanism: Mechanism,
    noise: NoiseSource,
    local: LocalRound,
) -> None:
    """Train in place for one round.

    No loss is returned: the batch losses are not noised, so they must not leave the site.

    Args:
        model: network without batch statistics.
        images: the site's training images.
        task: gives the per-image loss.
        training: optimiser, schedule, augmentation.
        privacy: learning rate, views, averaging and way of clipping.
        mechanism: what the ledger has reserved; exactly this is done.
        noise: cryptographic in production.
        local: round and progress.

    Raises:
        FederationError: if the weights stop being finite; nothing is sent then.
    """
    device = next(model.parameters()).device
    images = images.to(device)
    units = Units(images, mechanism.unit, mechanism.images_per_patient)
    base_rate = privacy.learning_rate or training.learning_rate
    settings = mechanism.steps
    optimizer = NoisyOptimizer(
        make_optimizer(model, training, base_rate),
        noise,
        mechanism.noise_scale,
        noise_multiplier=settings.noise_multiplier,
        max_grad_norm=mechanism.clipping_norm,
        expected_batch_size=settings.sample_rate * len(units),
    )
    average = WeightAverage(model, privacy.ema_decay) if privacy.ema_decay else None
    # Secret, like the sampling: were the draws known, a unit's presence would change which of them
    # the others get, and so move the sum by more than its own gradient.
    draws = noise.sampling_generator()
    views = privacy.augmentation_multiplicity
    model.train()
    with _clipping(model, task, privacy.clipping, optimizer) as clipper:
        batches = units.batches(settings.sample_rate, settings.steps, noise.sampling_generator())
        for step, batch in enumerate(batches):
            share = local.share_of_run(step / settings.steps)
            set_rate(optimizer, learning_rate(base_rate, training.schedule, share))
            sums = [torch.zeros_like(p) for p in trained_parameters(model)]
            for part in batch.repeated(views).split(mechanism.max_physical_batch):
                inputs = images.images[part.images]
                if training.augment:
                    inputs = augment(inputs, draws)
                with torch.autocast(
                    device.type, torch.bfloat16, enabled=uses_amp(training, device)
                ):
                    _add_clipped(sums, clipper, inputs, images.targets, part, mechanism)
            optimizer.step_with(sums)
            if average is not None:
                average.update()
            local.progress((step + 1) / settings.steps)
    if average is not None:
        average.load()
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise FederationError(
            "Training diverged: a weight is not finite. Lower privacy.learning_rate."
        )


def _add_clipped(
    sums: list[Tensor],
    clipper: Clipper,
    inputs: Tensor,
    targets: Tensor,
    part: UnitBatch,
    mechanism: Mechanism,
) -> None:
    """Add the clipped gradients of a physical batch to the sums of the step."""
    clipped = clipper.clipped_sum(
        inputs, targets[part.images], part.sizes, mechanism.clipping_norm * CLIPPING_MARGIN
    )
    # A gradient that is not finite would spoil the sum whatever the noise; its unit must not.
    if not math.isfinite(float(clipped.norms.sum())):
        raise FederationError(
            "Training diverged: a gradient is not finite. Lower privacy.learning_rate."
        )
    for total, one in zip(sums, clipped.sums, strict=True):
        total.add_(one)
