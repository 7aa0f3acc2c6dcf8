"""Epsilon agrees with an independent accountant; impossible demands are refused."""

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from fedmed.errors import PrivacyError
from fedmed.training.accounting import (
    GaussianSteps,
    choose_delta,
    epsilon_spent,
    solve_noise_multiplier,
)


def google_epsilon(history, delta):
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    for entry in history:
        event = dp_accounting.PoissonSampledDpEvent(
            entry.sample_rate, dp_accounting.GaussianDpEvent(entry.noise_multiplier)
        )
        accountant.compose(event, entry.steps)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [
        (1.0, 64 / 5000, 3900, 1e-5),
        (0.8, 0.1, 100, 1e-5),
        (2.0, 0.25, 200, 1e-4),
        (4.0, 1.0, 50, 1e-5),
        (1.0, 1.0, 1, 1e-5),
        (20.0, 0.05, 10_000, 1e-6),
    ],
)
def test_agrees_with_googles_dp_accounting_to_one_percent(noise, rate, steps, delta):
    history = [GaussianSteps(noise, rate, steps)]
    reference = google_epsilon(history, delta)
    assert epsilon_spent(history, delta) == pytest.approx(reference, rel=0.01)


def test_composition_over_rounds_equals_one_uninterrupted_run():
    one_run = epsilon_spent([GaussianSteps(1.1, 0.1, 100)], 1e-5)
    rounds = epsilon_spent([GaussianSteps(1.1, 0.1, 10)] * 10, 1e-5)
    assert rounds == one_run
    # The mistake that this guards against: adding up nothing, or each round by itself.
    assert rounds > epsilon_spent([GaussianSteps(1.1, 0.1, 10)], 1e-5) * 1.2


def test_different_mechanisms_compose():
    history = [GaussianSteps(1.1, 0.1, 50), GaussianSteps(2.0, 0.2, 50)]
    assert epsilon_spent(history, 1e-5) == pytest.approx(google_epsilon(history, 1e-5), rel=0.01)


def test_nothing_done_costs_nothing():
    assert epsilon_spent([], 1e-5) == 0.0


@pytest.mark.parametrize("target", [1.0, 3.0, 8.0])
def test_the_solved_noise_meets_the_target_closely_and_never_passes_it(target):
    noise = solve_noise_multiplier(target, 1e-5, 0.1, 100)
    spent = epsilon_spent([GaussianSteps(noise, 0.1, 100)], 1e-5)
    assert 0.98 * target < spent <= target


def test_a_target_that_needs_too_much_noise_is_refused():
    with pytest.raises(PrivacyError, match=r"Raise privacy\.target_epsilon"):
        solve_noise_multiplier(0.001, 1e-5, 1.0, 10_000)


def test_delta_is_below_one_over_patients():
    assert choose_delta(None, 60) == 1e-5
    assert choose_delta(None, 10**6) == pytest.approx(1e-7)
    assert choose_delta(1e-3, 60) == 1e-3
    with pytest.raises(PrivacyError, match="1 / patients"):
        choose_delta(1 / 60, 60)
