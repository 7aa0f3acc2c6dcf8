"""Epsilon agrees with independent accountants; impossible demands are refused."""

import itertools
import logging
import math
import time

import numpy as np
import pytest
from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from fedmed.configuration.groups import Unit
from fedmed.errors import PrivacyError
from fedmed.training import privacy_loss
from fedmed.training.accounting import (
    GaussianSteps,
    Spending,
    choose_delta,
    epsilon_for,
    epsilon_spent,
    solve_noise_multiplier,
)
from fedmed.training.closed_forms import single_step_epsilon
from fedmed.training.loss_distributions import binomial_support
from fedmed.training.loss_steps import LossSteps
from fedmed.training.opacus_accountants import renyi_epsilon

NOISES = (0.3, 1.0, 20.0)
RATES = (0.001, 0.1, 0.9, 1.0)
COUNTS = (1, 100, 10_000, 100_000)
DELTAS = (1e-5, 1e-8)


def google_epsilon(history, delta, near):
    """Google's accountant on a grid that is fine for an epsilon of about ``near``."""
    if all(entry.sample_rate == 1 for entry in history):
        square = sum(entry.steps / entry.noise_multiplier**2 for entry in history)
        return get_epsilon_gaussian(1 / math.sqrt(square), delta)
    count = sum(entry.steps for entry in history)
    deviation = min(
        e.sample_rate * math.sqrt(math.expm1(min(1 / e.noise_multiplier**2, 30.0))) for e in history
    )
    interval = min(near / 2000, deviation / 8, math.sqrt(0.0005 * near / count))
    total = pld.identity(value_discretization_interval=interval)
    for entry in history:
        step = pld.from_gaussian_mechanism(
            entry.noise_multiplier,
            sampling_prob=entry.sample_rate,
            value_discretization_interval=interval,
        )
        total = total.compose(step.self_compose(entry.steps))
    return total.get_epsilon_for_delta(delta)


def cells():
    found = []
    for noise, rate, steps, delta in itertools.product(NOISES, RATES, COUNTS, DELTAS):
        quick = delta == 1e-5 and steps in (1, 100_000) and rate in (0.1, 1.0)
        marks = () if quick else pytest.mark.slow
        found.append(pytest.param(noise, rate, steps, delta, marks=marks))
    return found


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), cells())
def test_agrees_with_googles_dp_accounting_to_one_percent(noise, rate, steps, delta):
    history = [GaussianSteps(noise, rate, steps)]
    epsilon = epsilon_spent(history, delta)
    assert epsilon == pytest.approx(google_epsilon(history, delta, epsilon), rel=0.01)


@pytest.mark.parametrize(
    "history",
    [
        [GaussianSteps(1.1, 0.1, 50), GaussianSteps(2.0, 0.2, 50)],
        [GaussianSteps(1.0, 0.01, 300), GaussianSteps(5.0, 1.0, 20)],
        [GaussianSteps(3.0, 1.0, 4), GaussianSteps(5.0, 1.0, 20)],
        # Google's search for epsilon overflows here on a coarse grid.
        [GaussianSteps(0.3, 0.01, 100_000)],
        [GaussianSteps(0.5, 0.01, 40), GaussianSteps(20.0, 0.9, 400), GaussianSteps(2.0, 0.3, 1)],
    ],
)
def test_different_mechanisms_compose(history):
    epsilon = epsilon_spent(history, 1e-5)
    assert epsilon == pytest.approx(google_epsilon(history, 1e-5, epsilon), rel=0.01)


def hockey_stick(noise, rate, alpha):
    """``sup P(A) - alpha Q(A)``: one step with the unit against without, in closed form."""
    if alpha <= 1 - rate:
        return 1 - alpha
    edge = noise**2 * math.log((alpha - 1 + rate) / rate) + 0.5
    without, shifted = stats.norm.sf(edge / noise), stats.norm.sf((edge - 1) / noise)
    return (1 - rate) * without + rate * shifted - alpha * without


def two_steps(noise, rate, epsilon):
    """Exact delta of two steps: condition on the first one's privacy loss, and integrate."""

    def integrand(x):
        loss = np.log1p(rate * np.expm1((x - 0.5) / noise**2))
        density = (1 - rate) * stats.norm.pdf(x, 0, noise) + rate * stats.norm.pdf(x, 1, noise)
        return density * hockey_stick(noise, rate, math.exp(epsilon - loss))

    edges = np.linspace(-12 * noise, 1 + 12 * noise, 60)
    return sum(
        integrate.quad(integrand, a, b, limit=200, epsabs=1e-13)[0]
        for a, b in itertools.pairwise(edges)
    )


@pytest.mark.parametrize(
    ("noise", "rate"), [(0.3, 0.1), (1.0, 0.01), (1.0, 0.9), (4.0, 0.2), (20.0, 0.9)]
)
def test_two_steps_agree_with_direct_integration(noise, rate):
    epsilon = epsilon_spent([GaussianSteps(noise, rate, 2)], 1e-5)
    assert two_steps(noise, rate, epsilon) <= 1e-5 * 1.0001
    assert two_steps(noise, rate, epsilon * 0.99) > 1e-5


@pytest.mark.parametrize("noise", [0.3, 1.0, 20.0])
def test_one_step_is_exact(noise):
    epsilon = epsilon_spent([GaussianSteps(noise, 0.1, 1)], 1e-6)
    assert hockey_stick(noise, 0.1, math.exp(epsilon)) == pytest.approx(1e-6, rel=1e-6)


@given(
    noise=st.floats(0.4, 10),
    rate=st.floats(0.01, 1.0),
    steps=st.integers(1, 300),
)
@settings(max_examples=8, deadline=None)
def test_never_above_renyi_and_never_below_one_step(noise, rate, steps):
    entry = LossSteps(noise, rate, steps)
    epsilon = epsilon_spent([GaussianSteps(noise, rate, steps)], 1e-6)
    assert epsilon <= renyi_epsilon((entry,), 1e-6) * (1 + 1e-9)
    assert epsilon >= single_step_epsilon(entry, 1e-6) * (1 - 1e-9)


def test_a_tiny_delta_falls_back_to_the_renyi_bound():
    history = [GaussianSteps(1.0, 0.1, 100)]
    entries = (LossSteps(1.0, 0.1, 100),)
    assert epsilon_spent(history, 1e-12) == renyi_epsilon(entries, 1e-12)
    assert epsilon_spent(history, 1e-12) > epsilon_spent(history, 1e-10)


@pytest.mark.parametrize("wrong", [1e-3, 1e3])
def test_an_accountant_that_goes_wrong_is_noticed_and_not_believed(monkeypatch, caplog, wrong):
    monkeypatch.setattr(privacy_loss, "random_variable_epsilon", lambda _entries, _delta: wrong)
    privacy_loss.random_variable_epsilon.__name__ = "random_variable_epsilon"
    history = [GaussianSteps(1.02, 0.1, 100)]
    privacy_loss.composed_epsilon.cache_clear()
    with caplog.at_level(logging.WARNING):
        epsilon = epsilon_spent(history, 1e-5)
    privacy_loss.composed_epsilon.cache_clear()
    assert "contradict" in caplog.text
    assert epsilon == pytest.approx(google_epsilon(history, 1e-5, epsilon), rel=0.01)


def test_when_all_accountants_contradict_the_largest_figure_counts(monkeypatch):
    for name in ("random_variable_epsilon", "loss_distribution_epsilon"):
        stub = lambda _entries, _delta: 777.0  # noqa: E731
        stub.__name__ = name
        monkeypatch.setattr(privacy_loss, name, stub)
    privacy_loss.composed_epsilon.cache_clear()
    assert epsilon_spent([GaussianSteps(1.03, 0.1, 100)], 1e-5) == 777.0
    privacy_loss.composed_epsilon.cache_clear()


def test_composition_over_rounds_equals_one_uninterrupted_run():
    one_run = epsilon_spent([GaussianSteps(1.1, 0.1, 100)], 1e-5)
    rounds = epsilon_spent([GaussianSteps(1.1, 0.1, 10)] * 10, 1e-5)
    assert rounds == one_run
    # The mistake that this guards against: adding up nothing, or each round by itself.
    assert rounds > epsilon_spent([GaussianSteps(1.1, 0.1, 10)], 1e-5) * 1.2


def test_nothing_done_costs_nothing():
    assert epsilon_spent([], 1e-5) == 0.0
    assert epsilon_for(Unit.patient, [], 1e-5) == 0.0


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [
        (0.0, 0.1, 1, 1e-5),
        (-1.0, 0.1, 1, 1e-5),
        (math.nan, 0.1, 1, 1e-5),
        (math.inf, 0.1, 1, 1e-5),
        (1.0, 0.0, 1, 1e-5),
        (1.0, 1.01, 1, 1e-5),
        (1.0, 0.1, 0, 1e-5),
        (1.0, 0.1, 1, 0.0),
        (1.0, 0.1, 1, 1.0),
    ],
)
def test_values_that_make_no_sense_are_refused(noise, rate, steps, delta):
    with pytest.raises(PrivacyError):
        epsilon_spent([GaussianSteps(noise, rate, steps)], delta)


def test_a_history_that_was_seen_is_not_computed_again(monkeypatch):
    history = [GaussianSteps(1.5, 0.1, 10), GaussianSteps(1.5, 0.1, 20), GaussianSteps(2.0, 1.0, 1)]
    epsilon = epsilon_spent(history, 1e-5)
    for name in ("random_variable_epsilon", "loss_distribution_epsilon", "renyi_epsilon"):
        monkeypatch.setattr(privacy_loss, name, None)
    assert epsilon_spent(history[::-1], 1e-5) == epsilon


@pytest.mark.slow
def test_a_growing_history_of_four_runs_takes_seconds_at_most():
    history = [GaussianSteps(0.9 + run / 10, 0.1 + run / 50, 300) for run in range(3)]
    epsilon_spent(history, 1e-5)
    started = time.process_time()
    for round_number in range(1, 6):
        epsilon_spent([*history, GaussianSteps(1.3, 0.07, 10 * round_number)], 1e-5)
    assert (time.process_time() - started) / 5 < 2.0  # measured: 0.3 s


# Conversions between units


def converted(unit, entry, delta=1e-5):
    return epsilon_for(unit, [entry], delta)


def gaussian_mixture(points, weights, noise, grid):
    density = np.zeros_like(grid)
    for point, weight in zip(points, weights, strict=True):
        density = density + weight * stats.norm.pdf(grid, point, noise)
    return density


@pytest.mark.parametrize(
    ("images", "noise", "rate"), [(2, 1.0, 0.1), (6, 4.0, 0.3), (20, 5.0, 0.05)]
)
def test_one_step_for_a_patient_of_many_images_agrees_with_direct_integration(images, noise, rate):
    entry = Spending(GaussianSteps(noise, rate, 1), Unit.image, images)
    epsilon = converted(Unit.patient, entry)
    grid = np.linspace(-10 * noise, images + 10 * noise, 400_001)
    counts = np.arange(images + 1)
    present = gaussian_mixture(counts, stats.binom.pmf(counts, images, rate), noise, grid)
    absent = stats.norm.pdf(grid, 0, noise)

    def delta(alpha):
        one = np.trapezoid(np.maximum(present - alpha * absent, 0), grid)
        other = np.trapezoid(np.maximum(absent - alpha * present, 0), grid)
        return max(one, other)

    assert delta(math.exp(epsilon)) <= 1e-5 * 1.001
    assert delta(math.exp(epsilon * 0.98)) > 1e-5


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.1), (0.7, 0.5), (5.0, 0.3)])
def test_no_change_of_a_patients_gradient_costs_more_than_the_bound(noise, rate):
    entry = Spending(GaussianSteps(noise, rate, 1), Unit.patient, 5)
    epsilon = converted(Unit.image, entry, 1e-4)
    axis = np.linspace(-1 - 7 * noise, 1 + 7 * noise, 401)
    x, y = np.meshgrid(axis, axis)
    cell = (axis[1] - axis[0]) ** 2

    def density(vector):
        base = np.exp(-(x**2 + y**2) / (2 * noise**2))
        moved = np.exp(-((x - vector[0]) ** 2 + (y - vector[1]) ** 2) / (2 * noise**2))
        return ((1 - rate) * base + rate * moved) / (2 * math.pi * noise**2)

    def delta(before, after, alpha):
        return np.maximum(density(before) - alpha * density(after), 0).sum() * cell

    draws = np.random.default_rng(0)
    for _pair in range(20):
        before, after = draws.normal(size=(2, 2))
        before, after = before / np.linalg.norm(before), after / np.linalg.norm(after)
        shorter = draws.uniform(size=2)
        assert delta(before, after, math.exp(epsilon)) <= 1e-4 * 1.001
        assert delta(before * shorter[0], after * shorter[1], math.exp(epsilon)) <= 1e-4 * 1.001
    # The opposite vector is the worst, and the bound is tight there.
    worst = np.array([1.0, 0.0])
    assert delta(worst, -worst, math.exp(epsilon * 0.98)) > 1e-4


@given(
    noise=st.floats(1.0, 20.0),
    rate=st.sampled_from([0.02, 0.1, 0.5, 1.0]),
    steps=st.integers(1, 100),
    images=st.integers(1, 12),
    unit=st.sampled_from(list(Unit)),
)
@settings(max_examples=8, deadline=None)
def test_a_conversion_is_never_below_the_direct_figure(noise, rate, steps, images, unit):
    entry = Spending(GaussianSteps(noise, rate, steps), unit, images)
    direct = converted(unit, entry)
    other = Unit.patient if unit == Unit.image else Unit.image
    # The direct figure may be up to 0.5 % above the truth.
    assert converted(other, entry) >= direct * 0.994
    assert direct == epsilon_spent([entry.steps], 1e-5)


def test_more_images_cost_a_patient_more_and_one_image_costs_the_same():
    steps = GaussianSteps(4.0, 0.1, 50)
    costs = [converted(Unit.patient, Spending(steps, Unit.image, k)) for k in (1, 2, 5, 20)]
    assert costs == sorted(costs)
    assert costs[0] == epsilon_spent([steps], 1e-5)
    # Sampling amplifies: far less than a patient whose images are all in every step.
    everywhere = Spending(GaussianSteps(4.0, 1.0, 50), Unit.image, 20)
    assert costs[-1] < converted(Unit.patient, everywhere) / 5


def test_without_sampling_conversions_are_one_gaussian():
    steps = GaussianSteps(8.0, 1.0, 9)
    for_patient = converted(Unit.patient, Spending(steps, Unit.image, 5))
    assert for_patient == pytest.approx(get_epsilon_gaussian(8 / (5 * 3), 1e-5), rel=1e-6)
    for_image = converted(Unit.image, Spending(steps, Unit.patient, 5))
    assert for_image == pytest.approx(get_epsilon_gaussian(8 / (2 * 3), 1e-5), rel=1e-6)


def test_both_units_compose():
    by_image = Spending(GaussianSteps(6.0, 0.1, 30), Unit.image, 3)
    by_patient = Spending(GaussianSteps(2.0, 0.1, 60), Unit.patient, 3)
    for unit in Unit:
        both = epsilon_for(unit, [by_image, by_patient], 1e-5)
        assert both > max(converted(unit, by_image), converted(unit, by_patient)) * 1.001
        assert both < converted(unit, by_image, 5e-6) + converted(unit, by_patient, 5e-6)


def test_no_guarantee_worth_a_number_is_infinite_and_no_error():
    assert (
        converted(Unit.patient, Spending(GaussianSteps(0.3, 0.9, 9999), Unit.image, 400))
        == math.inf
    )


def test_a_support_that_is_cut_keeps_all_probability_and_only_moves_it_up():
    counts, weights = binomial_support(400, 0.02)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-15)
    assert len(counts) < 100
    assert counts[-1] <= 400
    above = [
        math.fsum(w for c, w in zip(counts, weights, strict=True) if c >= n) for n in range(60)
    ]
    true = stats.binom.sf(np.arange(60) - 1, 400, 0.02)
    assert all(np.array(above)[true > 0] >= true[true > 0] * (1 - 1e-9))


# Noise and delta


@pytest.mark.parametrize(
    ("target", "rate", "steps"),
    [
        (3.0, 0.1, 100),
        (8.0, 1.0, 30),
        pytest.param(1.0, 0.1, 100, marks=pytest.mark.slow),
        pytest.param(8.0, 0.1, 100, marks=pytest.mark.slow),
        pytest.param(0.5, 0.01, 50, marks=pytest.mark.slow),
    ],
)
def test_the_solved_noise_is_the_smallest_to_a_thousandth(target, rate, steps):
    noise = solve_noise_multiplier(target, 1e-5, rate, steps)
    assert epsilon_spent([GaussianSteps(noise, rate, steps)], 1e-5) <= target
    assert epsilon_spent([GaussianSteps(noise / 1.001, rate, steps)], 1e-5) > target


def test_a_target_that_needs_too_much_noise_is_refused():
    with pytest.raises(PrivacyError, match=r"Raise privacy\.target_epsilon"):
        solve_noise_multiplier(0.001, 1e-5, 1.0, 10_000)


def test_delta_is_below_one_over_patients():
    assert choose_delta(None, 60) == 1e-5
    assert choose_delta(None, 10**6) == pytest.approx(1e-7)
    assert choose_delta(1e-3, 60) == 1e-3
    with pytest.raises(PrivacyError, match=r"privacy\.delta=null"):
        choose_delta(1 / 60, 60)
