"""Local training with differential privacy: DP-SGD (Abadi et al., 2016) on Opacus.

Each step draws a batch by Poisson sampling, clips every image's gradient to ``clipping_norm``,
adds Gaussian noise to the sum, and divides by the *expected* batch size, which tells nothing of
the actual one. An empty batch makes a step of noise alone, and counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fedmed.configuration.groups import PrivacyConfig, TrainingConfig
from fedmed.data.augmentation import augment
from fedmed.data.image_set import ImageSet
from fedmed.errors import PrivacyError
from fedmed.tasks.base import Task
from fedmed.training.accounting import GaussianSteps
from fedmed.training.batches import poisson_batches
from fedmed.training.noise import NoiseSource
from fedmed.training.schedule import learning_rate
from fedmed.training.seeds import generator
from fedmed.training.trainer import LocalRound, make_optimizer, set_rate, uses_amp


@dataclass(frozen=True)
class Mechanism:
    """What one round of DP-SGD does at a site.

    Attributes:
        steps: noise multiplier, sampling rate and number of steps of the round.
        clipping_norm: L2 bound on one image's gradient.
        max_physical_batch: images whose gradients are held at once.
    """

    steps: GaussianSteps
    clipping_norm: float
    max_physical_batch: int


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's optimiser with noise from a :class:`NoiseSource` instead of torch's generator."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, noise: NoiseSource, **kwargs: float
    ) -> None:
        super().__init__(optimizer, **kwargs)
        self._noise = noise

    def add_noise(self) -> None:
        """Add noise of standard deviation ``noise_multiplier x max_grad_norm`` to each sum."""
        scale = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            clipped_sum: Tensor = parameter.summed_grad
            noise = self._noise.normal(clipped_sum.shape).to(clipped_sum.device)
            parameter.grad = (clipped_sum + scale * noise).view_as(parameter)


def check_trainable_privately(model: nn.Module) -> None:
    """Refuse a network whose per-sample gradients are not defined.

    Raises:
        PrivacyError: naming the layers, as BatchNorm, that Opacus does not support.
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
def _per_sample_gradients(model: nn.Module) -> Iterator[GradSampleModule]:
    wrapped = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=True)
    try:
        yield wrapped
    finally:
        wrapped.remove_hooks()
        for parameter in model.parameters():
            for name in ("grad_sample", "summed_grad", "_forward_counter"):
                if hasattr(parameter, name):
                    delattr(parameter, name)


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
        privacy: learning rate under privacy.
        mechanism: what the ledger has reserved; exactly this is done.
        noise: cryptographic in production.
        local: round and progress.
    """
    device = next(model.parameters()).device
    images = images.to(device)
    base_rate = privacy.learning_rate or training.learning_rate
    settings = mechanism.steps
    optimizer = NoisyOptimizer(
        make_optimizer(model, training, base_rate),
        noise,
        noise_multiplier=settings.noise_multiplier,
        max_grad_norm=mechanism.clipping_norm,
        expected_batch_size=settings.sample_rate * len(images),
    )
    sampling = noise.sampling_generator()
    draws = generator(local.seed, "augmentation")
    model.train()
    with _per_sample_gradients(model) as wrapped:
        batches = poisson_batches(len(images), settings.sample_rate, settings.steps, sampling)
        for step, batch in enumerate(batches):
            share = local.share_of_run(step / settings.steps)
            set_rate(optimizer, learning_rate(base_rate, training.schedule, share))
            inputs = images.images[batch]
            if training.augment:
                inputs = augment(inputs, draws)
            with torch.autocast(device.type, torch.bfloat16, enabled=uses_amp(training, device)):
                _accumulate(
                    wrapped,
                    optimizer,
                    task,
                    inputs,
                    images.targets[batch],
                    mechanism.max_physical_batch,
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            local.progress((step + 1) / settings.steps)


def _accumulate(
    wrapped: GradSampleModule,
    optimizer: NoisyOptimizer,
    task: Task,
    inputs: Tensor,
    targets: Tensor,
    physical_batch: int,
) -> None:
    """Leave per-sample gradients of the last physical batch for ``step``, sum up those before."""
    if len(inputs) == 0:
        for parameter in optimizer.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        return
    chunks = list(
        zip(torch.split(inputs, physical_batch), torch.split(targets, physical_batch), strict=True)
    )
    for number, (images, labels) in enumerate(chunks):
        last = number == len(chunks) - 1
        total = task.loss(wrapped(images).float(), labels).sum()
        total.backward()  # type: ignore[no-untyped-call]
        if not last:
            optimizer.signal_skip_step(do_skip=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        else:
            optimizer.signal_skip_step(do_skip=False)
