"""Gradient inversion: can an image be read out of one site's update?

The attacker (the server) chose the network, and sees weights before and after one step of plain
SGD on one image. Two attacks on the gradient ``(before - after) / learning rate``:

- closed form (Zhu and Blum, 2021; Phong et al., 2018): behind a first linear layer with bias, the
  gradient of each row of weights is the image times the gradient of that row's bias;
- cosine matching (Geiping et al., 2020, after Zhu et al., 2019): search for the image whose
  gradient points the same way, with total variation as prior, in a small convolutional network.

One image in a batch of its own is the worst case. In a larger batch images mix and noise stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fedmed.assurance.privacy_audit.canaries import PLAIN_PRIVACY, PLAIN_SGD
from fedmed.assurance.privacy_audit.verdict import Verdict
from fedmed.configuration.groups import TaskConfig
from fedmed.data.image_set import ImageSet
from fedmed.data.phantom import PhantomPatient, draw_patient
from fedmed.tasks.classification.task import Classification
from fedmed.training.noise import NoiseSource
from fedmed.training.private import Mechanism, train_privately
from fedmed.training.seeds import derive_seed, generator
from fedmed.training.trainer import LocalRound, train

SIDE = 32
RECOGNISED = 0.8
"""Correlation with the true image from which a reconstruction counts as the image."""
_TASK = Classification(TaskConfig())
_RATE = 0.1
_LABEL = 1
_TOTAL_VARIATION = 1e-3

Attack = Callable[[nn.Module, list[Tensor], int, int], Tensor]


@dataclass(frozen=True)
class Reconstruction:
    """One attack on one image.

    Attributes:
        attack: its name.
        original: the image, ``[S, S]`` in [0, 1].
        unprotected: read from the update of training without privacy, ``[S, S]``.
        protected: read from the update of training with privacy, ``[S, S]``.
        unrelated: correlation of the image with one of another patient: what one gets without
            looking at the update.
    """

    attack: str
    original: Tensor
    unprotected: Tensor
    protected: Tensor
    unrelated: float

    @property
    def verdict(self) -> Verdict:
        """Holds if the control is recognised, and the protected one is worse than no look at all.

        Inconclusive if the attack fails on the control too.
        """
        if abs(correlation(self.protected, self.original)) >= RECOGNISED:
            return Verdict.broken
        if correlation(self.unprotected, self.original) < RECOGNISED:
            return Verdict.inconclusive
        return Verdict.holds


def correlation(first: Tensor, second: Tensor) -> float:
    """Return Pearson's correlation of two images; 0 if one is constant."""
    one, two = (image.double().flatten() - image.double().mean() for image in (first, second))
    size = float(one.norm() * two.norm())
    return float(one @ two) / size if size > 0 else 0.0


def peak_signal_to_noise(image: Tensor, original: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, for images in [0, 1]."""
    error = float((image.double() - original.double()).square().mean())
    return -10.0 * math.log10(max(error, 1e-12))


def phantom_image(seed: int, number: int) -> Tensor:
    """Draw an invented patient's middle slice, ``[1, 1, SIDE, SIDE]`` in [0, 1]."""
    patient = PhantomPatient("audit", 0, number, seed, 2 * SIDE, True, "yes")
    _, slices = draw_patient(patient)
    pixels = torch.from_numpy(np.array(slices[len(slices) // 2].image, dtype=np.float32))
    small = nn.functional.interpolate(pixels[None, None], (SIDE, SIDE), mode="area")
    return small.clamp(0.0, 1.0)


def linear_network(seed: int) -> nn.Module:
    """Return a network that begins with a linear layer."""
    return _seeded(
        seed,
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(SIDE**2, 32), nn.Softplus(), nn.Linear(32, 1)
        ),
    )


def convolutional_network(seed: int) -> nn.Module:
    """Return a small convolutional network with smooth activations, which make the search easy."""
    return _seeded(
        seed,
        lambda: nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2, padding=2),
            nn.Tanh(),
            nn.Conv2d(12, 12, 5, stride=2, padding=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(12 * (SIDE // 4) ** 2, 1),
        ),
    )


def closed_form(_model: nn.Module, gradients: list[Tensor], _iterations: int, _seed: int) -> Tensor:
    """Read the image off the first layer: least squares over its rows. ``[SIDE, SIDE]``."""
    weight, bias = gradients[0].double(), gradients[1].double()
    pixels = bias @ weight / bias.square().sum().clamp(min=1e-30)
    return pixels.view(SIDE, SIDE).clamp(0.0, 1.0).float()


def cosine_matching(
    model: nn.Module, gradients: list[Tensor], iterations: int, seed: int
) -> Tensor:
    """Search for the image whose gradient points the same way. ``[SIDE, SIDE]``.

    The label is known to the attacker: with one output, the sign of the last bias tells it.
    """
    label = torch.tensor([1 if float(gradients[-1].sum()) < 0 else 0])
    goal = torch.cat([g.flatten() for g in gradients])
    parameters = list(model.parameters())
    image = torch.rand(1, 1, SIDE, SIDE, generator=generator(seed, "guess")).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        optimizer.zero_grad()
        loss = _TASK.loss(model(image), label).sum()
        found = torch.autograd.grad(loss, parameters, create_graph=True)
        flat = torch.cat([g.flatten() for g in found])
        distance = 1 - nn.functional.cosine_similarity(flat, goal, dim=0)
        variation = image.diff(dim=2).abs().mean() + image.diff(dim=3).abs().mean()
        (image.grad,) = torch.autograd.grad(distance + _TOTAL_VARIATION * variation, [image])
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            image.clamp_(0.0, 1.0)
    return image.detach()[0, 0]


ATTACKS: dict[str, tuple[Callable[[int], nn.Module], Attack]] = {
    "closed form": (linear_network, closed_form),
    "cosine matching": (convolutional_network, cosine_matching),
}


def audit_inversion(
    attack: str, mechanism: Mechanism, noise: NoiseSource, seed: int, iterations: int = 400
) -> Reconstruction:
    """Train one step on one image with and without privacy, and attack both updates.

    Args:
        attack: one of ``ATTACKS``.
        mechanism: gives noise multiplier and clipping norm.
        noise: noise source of the protected step.
        seed: of the image, the network and the attacker's first guess.
        iterations: of the search.
    """
    build, reconstruct = ATTACKS[attack]
    image, other = phantom_image(seed, 0), phantom_image(seed, 1)
    images = ImageSet(image, torch.tensor([_LABEL]), torch.tensor([0]))
    step = replace(
        mechanism, steps=replace(mechanism.steps, sample_rate=1.0, steps=1), noise_share=1.0
    )
    sgd = replace(PLAIN_SGD, learning_rate=_RATE, batch_size=1)
    local = LocalRound(1, 1, 1.0, derive_seed(seed, "inversion"))

    def protected(model: nn.Module) -> None:
        train_privately(model, images, _TASK, sgd, PLAIN_PRIVACY, step, noise, local)

    def unprotected(model: nn.Module) -> None:
        train(model, images, _TASK, sgd, local)

    found = []
    for train_step in (unprotected, protected):
        gradients = observed_gradients(build(seed), train_step)
        found.append(reconstruct(build(seed), gradients, iterations, seed))
    return Reconstruction(attack, image[0, 0], found[0], found[1], correlation(other, image))


def observed_gradients(model: nn.Module, train_step: Callable[[nn.Module], None]) -> list[Tensor]:
    """Return what the update tells of the gradient, one tensor for each parameter."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train_step(model)
    after = [parameter.detach() for parameter in model.parameters()]
    return [(old - new) / _RATE for old, new in zip(before, after, strict=True)]


def _seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "inversion network"))
        return build()
