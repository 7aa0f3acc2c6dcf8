"""What an attack's success proves: lower bounds on epsilon.

The one-run bound is that of Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training
Run" (NeurIPS 2023, arXiv:2305.08846), Theorem 5.2: each of ``m`` canaries is in the training set
with probability 1/2, an attacker guesses for ``r`` of them and is right ``v`` times. Under
(epsilon, delta)-differential privacy for adding or removing one canary,

    P[right guesses >= v] <= P[B >= v] + 2 m delta max_{1 <= i <= v} P[v > B >= v - i] / i

with ``B`` binomial of ``r`` trials and probability ``e^epsilon / (1 + e^epsilon)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LARGEST_EPSILON = 50.0
_HALVINGS = 50


@dataclass(frozen=True)
class GuessCount:
    """Outcome of a one-run audit.

    Attributes:
        canaries: all that were drawn for, ``m``.
        guesses: for how many of them a guess was made, ``r``.
        correct: how many guesses were right, ``v``.
    """

    canaries: int
    guesses: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.guesses <= self.canaries:
            raise ValueError("correct, guesses and canaries must not fall in this order")


def one_run_p_value(count: GuessCount, epsilon: float, delta: float) -> float:
    """Bound the probability of as many right guesses under (epsilon, delta)-DP.

    Args:
        count: outcome of the audit.
        epsilon: at least 0.
        delta: 0 to 1.

    Returns:
        An upper bound in [0, 1]; a small one speaks against the claim.
    """
    right = 1.0 / (1.0 + math.exp(-epsilon))
    masses = _binomial_masses(count.guesses, right)
    tail = float(masses[count.correct :].sum())
    if delta == 0 or count.correct == 0:
        return min(1.0, tail)
    below = np.cumsum(masses[: count.correct][::-1])
    worst = float((below / np.arange(1, count.correct + 1)).max())
    return min(1.0, tail + 2.0 * count.canaries * delta * worst)


def epsilon_lower_bound(count: GuessCount, delta: float, confidence: float = 0.95) -> float:
    """Return the largest epsilon that the outcome refutes at this confidence; 0 if none.

    With probability ``confidence`` a mechanism that is (epsilon, delta)-DP gives a lower value
    than its epsilon.
    """
    level = 1.0 - confidence
    if one_run_p_value(count, 0.0, delta) >= level:
        return 0.0
    low, high = 0.0, LARGEST_EPSILON
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if one_run_p_value(count, middle, delta) < level:
            low = middle
        else:
            high = middle
    return low


def largest_provable_epsilon(
    canaries: int, guesses: int, delta: float, confidence: float = 0.95
) -> float:
    """Return the bound of an attack that is always right: no audit of this size shows more."""
    return epsilon_lower_bound(GuessCount(canaries, guesses, guesses), delta, confidence)


def largest_advantage(epsilon: float, delta: float) -> float:
    """Return the most that TPR - FPR can be under (epsilon, delta)-DP (Kairouz et al., 2015)."""
    return 1.0 - 2.0 * (1.0 - delta) / (1.0 + math.exp(min(epsilon, 700.0)))


def _binomial_masses(trials: int, probability: float) -> NDArray[np.float64]:
    """Return ``P[B = k]`` for k = 0 to ``trials``, ``[trials + 1]``."""
    if probability in (0.0, 1.0):
        masses = np.zeros(trials + 1)
        masses[trials if probability else 0] = 1.0
        return masses
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    k = np.arange(trials + 1)
    logarithms = factorials[-1] - factorials - factorials[::-1]
    logarithms += k * math.log(probability) + (trials - k) * math.log1p(-probability)
    masses = np.exp(logarithms)
    return np.asarray(masses, dtype=np.float64)
