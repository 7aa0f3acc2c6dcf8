"""Canaries: invented units whose traces in an update are as plain as they can be.

The attacker is the strongest that the guarantee speaks of: it chooses the network that is sent
out, the loss, all other data, and sees every round's update. So the network is one linear layer,
and each canary lights one pixel and names one output: its gradient has a weight of its own (a
Dirac canary), far longer than the clipping norm. Everything else is the code that trains at a
hospital: sampling, clipping, noise, optimiser.

Each canary is in the training set with probability 1/2. Its score is how far its weight moves. The
loss pulls up in odd rounds and down in even ones, and the score counts the rounds with these
signs: noise that repeats from round to round cancels, and the canary gives itself away.

The optimiser is plain SGD without momentum, schedule and weight average: these are functions of
the noised sums, and hence no part of the claim; they would blur the attacker's view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmed.configuration.groups import (
    Optimizer,
    PrivacyConfig,
    Schedule,
    TaskConfig,
    TrainingConfig,
)
from fedmed.data.image_set import ImageSet
from fedmed.tasks.base import Task
from fedmed.tasks.classification.task import Classification
from fedmed.training.seeds import derive_seed, generator
from fedmed.training.trainer import LocalRound

PLAIN_SGD = TrainingConfig(
    optimizer=Optimizer.sgd,
    learning_rate=1.0,
    momentum=0.0,
    weight_decay=0.0,
    schedule=Schedule.constant,
    augment=False,
    amp=False,
)
PLAIN_PRIVACY = PrivacyConfig(preset="audit", enabled=True)

TrainRound = Callable[[nn.Module, ImageSet, Task, LocalRound], None]
"""Trains a network in place for one round."""


@dataclass(frozen=True)
class CanaryDesign:
    """The canaries of one audit: ``side**2 * outputs`` units.

    Attributes:
        side: of the square images, in pixels.
        outputs: of the linear layer, at least 3.
        images: images of each unit; more than 1 for the patient as unit only.
        seed: of who is included.
    """

    side: int = 10
    outputs: int = 200
    images: int = 1
    seed: int = 0

    @property
    def canaries(self) -> int:
        """Number of canaries, ``m``."""
        return self.side**2 * self.outputs

    def included(self) -> NDArray[np.bool_]:
        """Draw who is in the training set, ``[canaries]``, each with probability 1/2."""
        coins = torch.rand(self.canaries, generator=generator(self.seed, "canaries"))
        return np.asarray((coins < 0.5).numpy(), dtype=np.bool_)

    def image_set(self, included: NDArray[np.bool_]) -> ImageSet:
        """Return the images of the included canaries, ``[n * images, 1, side, side]``."""
        numbers = torch.from_numpy(np.flatnonzero(included)).repeat_interleave(self.images)
        pixels = torch.zeros(len(numbers), self.side**2)
        pixels[torch.arange(len(numbers)), numbers % self.side**2] = 1.0
        images = pixels.view(-1, 1, self.side, self.side)
        return ImageSet(images, numbers // self.side**2, numbers)

    def network(self) -> nn.Module:
        """Return the linear network, all weights 0; ``weight[output, pixel]`` is a canary's."""
        layer = nn.Linear(self.side**2, self.outputs, bias=False)
        nn.init.zeros_(layer.weight)
        return nn.Sequential(nn.Flatten(), layer)


@dataclass(frozen=True)
class CanaryTask(Classification):
    """A loss whose gradient has the same length and direction whatever the weights are.

    Attributes:
        pull: gradient of the loss with respect to the unit's own weight.
    """

    pull: float = 1.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ``pull`` times the output that the image names, ``[N]``."""
        return self.pull * outputs.gather(1, targets.view(-1, 1))[:, 0]


def canary_scores(
    design: CanaryDesign,
    included: NDArray[np.bool_],
    train_round: TrainRound,
    rounds: int,
    pull: float,
) -> NDArray[np.float64]:
    """Return how far each canary's weight followed the pull of the rounds, ``[canaries]``."""
    images = design.image_set(included)
    config = TaskConfig(labels=[str(number) for number in range(design.outputs)])
    scores = torch.zeros(design.canaries, dtype=torch.float64)
    for number in range(1, rounds + 1):
        direction = 1.0 if number % 2 else -1.0
        model = design.network()
        local = LocalRound(number, rounds, 1.0, derive_seed(design.seed, "round", number))
        train_round(model, images, CanaryTask(config, pull=direction * pull), local)
        (weight,) = model.parameters()
        scores -= direction * weight.detach().double().flatten()
    return np.asarray(scores.numpy(), dtype=np.float64)
