"""One-run audit of DP-SGD with canaries (Steinke, Nasr and Jagielski, 2023).

Canaries are trained on with the installed code, the attacker guesses who was in the training set,
and the number of right guesses bounds epsilon from below.

What it cannot see: a fault that makes one unit's share of the sum *smaller* when there are many
units, such as clipping the sum of all units to the clipping norm (it takes many runs to see that
its sensitivity is up to twice as large). Tests of the sensitivity are there for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedmed.assurance.privacy_audit.bounds import (
    GuessCount,
    epsilon_lower_bound,
    largest_provable_epsilon,
)
from fedmed.assurance.privacy_audit.canaries import (
    PLAIN_PRIVACY,
    PLAIN_SGD,
    CanaryDesign,
    canary_scores,
)
from fedmed.assurance.privacy_audit.verdict import Verdict
from fedmed.configuration.groups import Unit
from fedmed.data.image_set import ImageSet
from fedmed.tasks.base import Task
from fedmed.training.accounting import GaussianSteps, epsilon_spent
from fedmed.training.noise import NoiseSource
from fedmed.training.private import Mechanism, train_privately
from fedmed.training.trainer import LocalRound, train

PROBE_ROUNDS = 2
PROBE_RATES = (1.0, 0.5, 0.25, 0.1, 0.05)
CONFIDENCE = 0.95
SHARE_OF_PROVABLE = 0.85
"""Largest epsilon of the probe, as a share of what its guesses could refute."""
_GRADIENT_OVER_CLIPPING_NORM = 10.0
_SEEN_OFTEN = 2.0
"""Expected steps of an included canary from which its absence shows as well."""


@dataclass(frozen=True)
class CanaryResult:
    """Outcome of one canary audit.

    Attributes:
        count: guesses that gave the bound.
        claimed: epsilon that the accountant gives for what was run.
        lower_bound: epsilon that the guesses refute at ``confidence``.
        provable: bound of an attack that is always right.
        delta: at which both epsilons are stated.
        confidence: of the bound.
        steps: what was run in all rounds together.
        rounds: number of rounds.
    """

    count: GuessCount
    claimed: float
    lower_bound: float
    provable: float
    delta: float
    confidence: float
    steps: GaussianSteps
    rounds: int

    @property
    def verdict(self) -> Verdict:
        """Broken if the bound exceeds the claim, inconclusive if it could not have."""
        if self.lower_bound > self.claimed:
            return Verdict.broken
        return Verdict.holds if self.provable > self.claimed else Verdict.inconclusive


def probe_of(mechanism: Mechanism, delta: float, canaries: int) -> Mechanism:
    """Return one step a round with the same noise, in which the canaries show best.

    Epsilon of a long run cannot be seen from guesses: about ``3 e^epsilon`` right ones in a row
    would be needed, and subsampling hides a canary in all steps that it is not part of. A fault of
    sampling, clipping or noise shows in every step, so two steps with the plan's own noise
    multiplier, clipping and unit are audited, against the accountant's epsilon for exactly these.
    The sample rate is 1, where the attack is nearly tight, or the next lower one at which guesses
    about so many canaries could refute that epsilon.
    """
    room: dict[Mechanism, float] = {}
    for rate in PROBE_RATES:
        one = GaussianSteps(mechanism.steps.noise_multiplier, rate, 1)
        both = replace(one, steps=PROBE_ROUNDS)
        provable = _provable(canaries, guess_plans(canaries, both), delta, CONFIDENCE)
        probe = replace(mechanism, steps=one, noise_share=1.0)
        room[probe] = provable - epsilon_spent([both], delta) / SHARE_OF_PROVABLE
        if room[probe] >= 0:
            return probe
    return max(room, key=lambda probe: room[probe])


def audit_canaries(
    design: CanaryDesign,
    mechanism: Mechanism,
    rounds: int,
    delta: float,
    noise_of_round: Callable[[int], NoiseSource],
    confidence: float = CONFIDENCE,
) -> CanaryResult:
    """Train on canaries with :func:`train_privately` and bound epsilon from below.

    Args:
        design: the canaries; several images for each need ``mechanism.unit`` patient.
        mechanism: of each round, exactly as it is run.
        rounds: even, if noise that repeats is to be seen.
        delta: at which epsilon is claimed and bounded.
        noise_of_round: the noise source of each round, from 1.
        confidence: that the bound is below the true epsilon.

    Raises:
        ValueError: if a unit has several images and the unit is the image.
    """
    if design.images > 1 and mechanism.unit != Unit.patient:
        raise ValueError("a canary of several images is a patient")

    def round_of_dp(model: nn.Module, images: ImageSet, task: Task, local: LocalRound) -> None:
        noise = noise_of_round(local.number)
        train_privately(model, images, task, PLAIN_SGD, PLAIN_PRIVACY, mechanism, noise, local)

    total = replace(mechanism.steps, steps=mechanism.steps.steps * rounds)
    included = design.included()
    scores = canary_scores(
        design,
        included,
        round_of_dp,
        rounds,
        mechanism.clipping_norm * _GRADIENT_OVER_CLIPPING_NORM,
    )
    return _judge(scores, included, total, rounds, delta, confidence)


def unprotected_bound(
    design: CanaryDesign, result: CanaryResult, confidence: float = CONFIDENCE
) -> float:
    """Return the lower bound that the same attack reaches on training without privacy."""

    def plain_round(model: nn.Module, images: ImageSet, task: Task, local: LocalRound) -> None:
        train(model, images, task, replace(PLAIN_SGD, batch_size=len(images)), local)

    included = design.included()
    scores = canary_scores(design, included, plain_round, PROBE_ROUNDS, 1.0)
    outcome = _judge(scores, included, result.steps, PROBE_ROUNDS, result.delta, confidence)
    return outcome.lower_bound


def count_guesses(
    scores: NDArray[np.float64], included: NDArray[np.bool_], positive: int, negative: int
) -> GuessCount:
    """Guess "in" for the ``positive`` highest scores and "out" for the ``negative`` lowest."""
    order = np.argsort(-scores, kind="stable")
    correct = int(included[order[:positive]].sum())
    correct += int((~included[order[len(order) - negative :]]).sum()) if negative else 0
    return GuessCount(len(scores), positive + negative, correct)


def guess_plans(canaries: int, steps: GaussianSteps) -> list[tuple[int, int]]:
    """Return how many guesses "in" and "out" are made; fixed before the scores are seen.

    A canary that seldom is in a batch cannot be told from one that is not there, so only guesses
    "in" are made then, and fewer than there are canaries in one batch. Few guesses suit a claim of
    a small epsilon, many a large one.

    Args:
        canaries: number of canaries.
        steps: what is run in all rounds together.
    """
    if steps.sample_rate * steps.steps >= _SEEN_OFTEN:
        return [(canaries // 40, canaries // 40), (canaries // 5, canaries // 5)]
    in_one_batch = canaries * steps.sample_rate / 2
    return [
        (min(canaries // 40, int(0.5 * in_one_batch)), 0),
        (min(canaries // 20, int(0.8 * in_one_batch)), 0),
    ]


def _judge(
    scores: NDArray[np.float64],
    included: NDArray[np.bool_],
    steps: GaussianSteps,
    rounds: int,
    delta: float,
    confidence: float,
) -> CanaryResult:
    plans = guess_plans(len(scores), steps)
    each = _confidence_of_each(plans, confidence)
    counts = [count_guesses(scores, included, *plan) for plan in plans]
    bounds = [epsilon_lower_bound(count, delta, each) for count in counts]
    best = int(np.argmax(bounds))
    return CanaryResult(
        count=counts[best],
        claimed=epsilon_spent([steps], delta),
        lower_bound=bounds[best],
        provable=_provable(len(scores), plans, delta, confidence),
        delta=delta,
        confidence=confidence,
        steps=steps,
        rounds=rounds,
    )


def _provable(
    canaries: int, plans: list[tuple[int, int]], delta: float, confidence: float
) -> float:
    """Return the bound of an attack whose guesses are all right."""
    each = _confidence_of_each(plans, confidence)
    return max(largest_provable_epsilon(canaries, sum(plan), delta, each) for plan in plans)


def _confidence_of_each(plans: list[tuple[int, int]], confidence: float) -> float:
    """Bonferroni: the best of several bounds holds if each has its part of the error."""
    return 1.0 - (1.0 - confidence) / len(plans)
