"""The one-run bound is the paper's, holds at its confidence, and says something."""

import math

import numpy as np
import pytest
from scipy import stats

from fedmed.assurance.privacy_audit.bounds import (
    GuessCount,
    epsilon_lower_bound,
    largest_advantage,
    largest_provable_epsilon,
    one_run_p_value,
)


def p_value_by_definition(canaries, guesses, correct, epsilon, delta):
    """The theorem, term by term, with scipy's binomial distribution."""
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    law = stats.binom(guesses, right)
    worst = max(
        (sum(law.pmf(k) for k in range(correct - i, correct)) / i for i in range(1, correct + 1)),
        default=0.0,
    )
    return min(1.0, law.sf(correct - 1) + 2 * canaries * delta * worst)


@pytest.mark.parametrize(
    ("count", "delta", "published"),
    [
        # Steinke, Nasr and Jagielski (2023), Appendix D and section 7
        (GuessCount(1000, 100, 75), 1e-4, 0.673),
        (GuessCount(100_000, 1510, 1439), 1e-5, 2.675),
    ],
)
def test_the_bound_is_that_of_the_paper(count, delta, published):
    assert epsilon_lower_bound(count, delta) == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize("counts", [(50, 40, 33), (50, 40, 0), (40, 40, 40), (60, 20, 11)])
def test_the_p_value_is_that_of_the_theorem(epsilon, delta, counts):
    expected = p_value_by_definition(*counts, epsilon, delta)
    assert one_run_p_value(GuessCount(*counts), epsilon, delta) == pytest.approx(expected, rel=1e-9)


def test_all_guesses_right_gives_the_closed_form_without_delta():
    right = 0.05 ** (1 / 100)  # probability whose hundredth power is 5 %
    by_hand = math.log(right / (1 - right))
    assert largest_provable_epsilon(100, 100, 0.0) == pytest.approx(by_hand, abs=1e-6)


def bounds_of_randomised_response(epsilon, claimed_delta=0.0, runs=400, canaries=1000):
    """Randomised response is exactly epsilon-DP, and its outcome is the best guess."""
    draws = np.random.default_rng(5)
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    correct = draws.binomial(canaries, right, runs)
    return np.array(
        [
            epsilon_lower_bound(GuessCount(canaries, canaries, int(v)), claimed_delta)
            for v in correct
        ]
    )


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0])
def test_the_bound_holds_at_its_confidence_and_is_not_vacuous(epsilon):
    bounds = bounds_of_randomised_response(epsilon, runs=300)
    allowed = stats.binom(300, 0.05).ppf(1 - 1e-4)
    assert (bounds > epsilon).sum() <= allowed
    assert bounds.mean() > 0.6 * epsilon
    # Control: a mechanism with twice the claimed epsilon is found out.
    assert (bounds_of_randomised_response(2 * epsilon, runs=50) > epsilon).mean() > 0.9


def test_the_delta_term_covers_a_mechanism_that_now_and_then_tells_all():
    """With probability delta a canary is given away, else the guess is a coin: (0, delta)-DP."""
    delta, canaries, runs = 0.05, 200, 500
    correct = np.random.default_rng(6).binomial(canaries, 0.5 + delta / 2, runs)
    counts = [GuessCount(canaries, canaries, int(v)) for v in correct]
    refuted = sum(one_run_p_value(count, 0.0, delta) < 0.05 for count in counts)
    assert refuted <= stats.binom(runs, 0.05).ppf(1 - 1e-4)
    without = sum(one_run_p_value(count, 0.0, 0.0) < 0.05 for count in counts)
    assert without > stats.binom(runs, 0.05).ppf(1 - 1e-4)  # control: the term is needed


def test_a_larger_delta_and_more_canaries_weaken_the_bound():
    base = epsilon_lower_bound(GuessCount(1000, 200, 170), 1e-4)
    assert epsilon_lower_bound(GuessCount(1000, 200, 170), 1e-3) < base
    assert epsilon_lower_bound(GuessCount(5000, 200, 170), 1e-4) < base
    assert epsilon_lower_bound(GuessCount(1000, 200, 175), 1e-4) > base


def test_chance_proves_nothing_and_counts_are_checked():
    assert epsilon_lower_bound(GuessCount(100, 100, 50), 1e-5) == 0.0
    with pytest.raises(ValueError, match="order"):
        GuessCount(100, 50, 51)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 8.0])
def test_the_largest_advantage_is_that_of_randomised_response(epsilon):
    expected = (math.exp(epsilon) - 1 + 2e-5) / (math.exp(epsilon) + 1)
    assert largest_advantage(epsilon, 1e-5) == pytest.approx(expected)
    assert largest_advantage(1e6, 1e-5) == pytest.approx(1.0)
