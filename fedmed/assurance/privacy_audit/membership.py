"""Membership inference: who was in the training set, told from the trained network's loss?

Two attacks. The loss threshold (Yeom et al., 2018) says that images with a small loss were
trained on. LiRA (Carlini et al., 2022), online and with one variance for all images as its authors
advise for few shadow models, compares the network's confidence on an image with the confidences of
shadow models that were, and were not, trained on that image. Every model is the target once, with
all others as its shadows.

The images are random and so are their labels: nothing can be learnt but by heart. Real images give
away less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmed.assurance.privacy_audit.bounds import largest_advantage
from fedmed.assurance.privacy_audit.canaries import PLAIN_PRIVACY, PLAIN_SGD
from fedmed.assurance.privacy_audit.verdict import Verdict
from fedmed.configuration.groups import Optimizer, TaskConfig, Unit
from fedmed.data.image_set import ImageSet
from fedmed.tasks.classification.task import Classification
from fedmed.training.accounting import GaussianSteps, solve_noise_multiplier
from fedmed.training.noise import NoiseSource
from fedmed.training.private import Mechanism, train_privately
from fedmed.training.seeds import derive_seed, generator
from fedmed.training.trainer import LocalRound, train

FALSE_ALARMS = 0.01
"""False positive rate at which LiRA's true positive rate is stated."""
WORKING_ATTACK = 0.25
"""Advantage over the unprotected control that an attack must reach to say anything."""
DELTA = 1e-5
SAMPLE_RATE = 0.2
STEPS = 60
_RESAMPLES = 300
_TASK = Classification(TaskConfig())
_MEMORISING = replace(PLAIN_SGD, optimizer=Optimizer.adamw, learning_rate=5e-3, batch_size=25)
_EPOCHS = 50.0

Scores = NDArray[np.float64]
Members = NDArray[np.bool_]


@dataclass(frozen=True)
class MembershipDesign:
    """The pool of images and the models.

    Attributes:
        pool: images; each model is trained on a random half.
        models: number of models, at least 4; each is the target once.
        side: of the square images, in pixels.
        hidden: width of the network's hidden layer.
        seed: of images, labels, halves and initial weights.
    """

    pool: int = 200
    models: int = 20
    side: int = 12
    hidden: int = 32
    seed: int = 0

    def images(self) -> ImageSet:
        """Return the pool: uniform noise with labels drawn by lot."""
        draws = generator(self.seed, "membership")
        return ImageSet(
            torch.rand(self.pool, 1, self.side, self.side, generator=draws),
            torch.randint(0, 2, (self.pool,), generator=draws),
            torch.arange(self.pool),
        )

    def members(self) -> Members:
        """Draw each model's training set, ``[models, pool]``; each image is in half of them."""
        draws = torch.rand(self.models, self.pool, generator=generator(self.seed, "halves"))
        ranks = draws.argsort(dim=0).argsort(dim=0)
        return np.asarray((ranks < self.models // 2).numpy(), dtype=np.bool_)

    def network(self, number: int) -> nn.Module:
        """Return the untrained network of one model."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "network", number))
            return nn.Sequential(
                nn.Flatten(),
                nn.Linear(self.side**2, self.hidden),
                nn.ReLU(),
                nn.Linear(self.hidden, 1),
            )


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval at 95 % (bootstrap over the images of the pool)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AttackResult:
    """How well an attack tells members from others.

    Attributes:
        advantage: largest TPR - FPR over all thresholds; chance alone gives a little above 0.
        auroc: area under the ROC curve; chance gives 0.5.
        tpr: true positive rate at ``FALSE_ALARMS``; chance gives ``FALSE_ALARMS``.
    """

    advantage: Estimate
    auroc: Estimate
    tpr: Estimate


@dataclass(frozen=True)
class MembershipResult:
    """Both attacks, on training with differential privacy and on the unprotected control.

    Attributes:
        epsilon: claimed for the protected training.
        protected: by attack, ``loss threshold`` and ``LiRA``.
        control: the same without privacy.
    """

    epsilon: float
    protected: dict[str, AttackResult]
    control: dict[str, AttackResult]

    def verdict(self, attack: str) -> Verdict:
        """Compare an attack's advantage with the most that epsilon allows, and with the control.

        Broken if the whole interval is above what epsilon allows. Holds if the attack works on the
        control and clearly worse with privacy; that shows that privacy helps, and refutes nothing
        below the limit. Inconclusive otherwise.
        """
        limit = largest_advantage(self.epsilon, DELTA)
        if self.protected[attack].advantage.low > limit:
            return Verdict.broken
        control = self.control[attack].advantage
        works = control.low > max(WORKING_ATTACK, self.protected[attack].advantage.high)
        return Verdict.holds if works else Verdict.inconclusive


def audit_membership(
    design: MembershipDesign,
    epsilon: float,
    clipping_norm: float,
    noise_of_model: Callable[[int], NoiseSource],
) -> MembershipResult:
    """Train all models with and without privacy and attack them.

    Args:
        design: pool and models.
        epsilon: what each protected training spends, at ``DELTA``, with the image as unit.
        clipping_norm: L2 bound on an image's gradient.
        noise_of_model: the noise source of each model, from 0.

    Raises:
        PrivacyError: if epsilon needs too much noise.
    """
    sigma = solve_noise_multiplier(epsilon, DELTA, SAMPLE_RATE, STEPS)
    mechanism = Mechanism(
        GaussianSteps(sigma, SAMPLE_RATE, STEPS), clipping_norm, 256, unit=Unit.image
    )
    members = design.members()

    def protected(number: int, images: ImageSet) -> nn.Module:
        model = design.network(number)
        local = LocalRound(1, 1, 1.0, derive_seed(design.seed, "train", number))
        noise = noise_of_model(number)
        train_privately(model, images, _TASK, PLAIN_SGD, PLAIN_PRIVACY, mechanism, noise, local)
        return model

    def unprotected(number: int, images: ImageSet) -> nn.Module:
        model = design.network(number)
        local = LocalRound(1, 1, _EPOCHS, derive_seed(design.seed, "train", number))
        train(model, images, _TASK, _MEMORISING, local)
        return model

    return MembershipResult(
        epsilon,
        _attack(confidences(design, members, protected), members, design.seed),
        _attack(confidences(design, members, unprotected), members, design.seed),
    )


def confidences(
    design: MembershipDesign, members: Members, trained: Callable[[int, ImageSet], nn.Module]
) -> Scores:
    """Return ``log(p / (1 - p))`` of the true label of every image, ``[models, pool]``.

    It rises as the loss falls, and is closer to normal than the loss (Carlini et al., 2022).
    """
    pool = design.images()
    rows = []
    for number, chosen in enumerate(torch.from_numpy(members)):
        images = ImageSet(pool.images[chosen], pool.targets[chosen], pool.patients[chosen])
        model = trained(number, images).eval()
        with torch.inference_mode():
            logits = model(pool.images)[:, 0].double()
        rows.append(torch.where(pool.targets == 1, logits, -logits).numpy())
    return np.stack(rows)


def lira_scores(confidence: Scores, members: Members) -> Scores:
    """Return LiRA's log-likelihood ratio of each model and image, ``[models, pool]``.

    Args:
        confidence: from :func:`confidences`.
        members: who was trained on; each image in at least two models and out of at least two.
    """
    scores = np.empty_like(confidence)
    for target in range(len(confidence)):
        others = np.arange(len(confidence)) != target
        shadow, inside = confidence[others], members[others]
        centres, spread = [], []
        for chosen in (inside, ~inside):
            mean = (shadow * chosen).sum(axis=0) / chosen.sum(axis=0)
            centres.append(mean)
            spread.append(np.square(shadow - mean)[chosen].mean())
        squared = [
            np.square(confidence[target] - mean) / variance
            for mean, variance in zip(centres, spread, strict=True)
        ]
        scores[target] = (squared[1] - squared[0]) / 2 + np.log(spread[1] / spread[0]) / 2
    return scores


def _attack(confidence: Scores, members: Members, seed: int) -> dict[str, AttackResult]:
    return {
        "loss threshold": measure(confidence, members, seed),
        "LiRA": measure(lira_scores(confidence, members), members, seed),
    }


def measure(scores: Scores, members: Members, seed: int) -> AttackResult:
    """Measure how well scores tell members from others.

    Args:
        scores: high for members, ``[models, pool]``.
        members: the truth, ``[models, pool]``.
        seed: of the bootstrap, which draws whole images, since one image's scores in different
            models are alike.
    """
    found = _figures(scores.ravel(), members.ravel())
    draws = np.random.default_rng(seed)
    again = []
    for _ in range(_RESAMPLES):
        images = draws.integers(0, scores.shape[1], scores.shape[1])
        again.append(_figures(scores[:, images].ravel(), members[:, images].ravel()))
    low, high = np.quantile(np.array(again), [0.025, 0.975], axis=0)
    estimates = [Estimate(*map(float, three)) for three in zip(found, low, high, strict=True)]
    return AttackResult(*estimates)


def _figures(scores: Scores, members: Members) -> tuple[float, float, float]:
    """Return advantage, AUROC and TPR at ``FALSE_ALARMS``; ties count half in the AUROC."""
    inside, outside = np.sort(scores[members]), np.sort(scores[~members])
    thresholds = np.unique(scores)
    # "Member" is said at and above a threshold.
    tpr = 1.0 - np.searchsorted(inside, thresholds, "left") / len(inside)
    fpr = 1.0 - np.searchsorted(outside, thresholds, "left") / len(outside)
    below = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    auroc = below.mean() / 2 / len(outside)
    strict = tpr[fpr <= FALSE_ALARMS]
    advantage = max(0.0, float((tpr - fpr).max()))
    return advantage, float(auroc), float(strict.max()) if len(strict) else 0.0
