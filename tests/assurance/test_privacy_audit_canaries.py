"""The canary audit passes the real training code and finds every planted fault.

The noise is seeded here, so that outcomes repeat. With production noise the bound of a right
mechanism would pass the claim with probability below 1e-9 (noise multiplier 3, 5,000 canaries).
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import brentq

import fedmed.training.private as private
from fedmed.assurance.privacy_audit.canaries import (
    PLAIN_PRIVACY,
    PLAIN_SGD,
    CanaryDesign,
    CanaryTask,
)
from fedmed.assurance.privacy_audit.one_run import (
    PROBE_RATES,
    PROBE_ROUNDS,
    audit_canaries,
    count_guesses,
    guess_plans,
    probe_of,
    unprotected_bound,
)
from fedmed.assurance.privacy_audit.verdict import Verdict
from fedmed.configuration.groups import TaskConfig, Unit
from fedmed.training.accounting import GaussianSteps
from fedmed.training.clipping.base import ClippedSum
from fedmed.training.noise import SeededNoise
from fedmed.training.private import Mechanism
from fedmed.training.trainer import LocalRound

DELTA = 1e-5
PLANNED = Mechanism(GaussianSteps(3.0, 0.1, 20), clipping_norm=0.7, max_physical_batch=256)
PER_PATIENT = replace(PLANNED, unit=Unit.patient, images_per_patient=8)
DESIGN = CanaryDesign(outputs=50)
PATIENTS = CanaryDesign(outputs=50, images=3)


class ScaledNoise(SeededNoise):
    """Planted fault: noise of the wrong size."""

    def __init__(self, seed, factor):
        super().__init__(seed)
        self.factor = factor

    def normal(self, shape):
        return super().normal(shape) * self.factor


def audit(noise_of_round=SeededNoise, mechanism=PLANNED, design=DESIGN):
    probe = probe_of(mechanism, DELTA, design.canaries)
    return audit_canaries(design, probe, PROBE_ROUNDS, DELTA, noise_of_round)


class BrokenClipper:
    """Planted fault around the real clipper."""

    way = "broken"

    def __init__(self, real):
        self.real = real
        self.close = real.close


class ClipsTheMean(BrokenClipper):
    def clipped_sum(self, inputs, targets, sizes, clipping_norm):
        whole = self.real.clipped_sum(inputs, targets, sizes, 1e9)
        mean = torch.cat([one.flatten() for one in whole.sums]) / max(len(sizes), 1)
        factor = min(1.0, clipping_norm / max(float(mean.norm()), 1e-12))
        return ClippedSum([one * factor for one in whole.sums], whole.norms)


class ClipsImages(BrokenClipper):
    def clipped_sum(self, inputs, targets, sizes, clipping_norm):
        return self.real.clipped_sum(inputs, targets, [1] * len(inputs), clipping_norm)


class ClipsNothing(BrokenClipper):
    def clipped_sum(self, inputs, targets, sizes, clipping_norm):
        return self.real.clipped_sum(inputs, targets, sizes, 1e9)


def plant_clipper(monkeypatch, broken):
    choose = private.choose_clipper
    monkeypatch.setattr(private, "choose_clipper", lambda *given: broken(choose(*given)))


def test_a_canary_moves_its_own_weight_alone_through_the_real_training_code():
    design = CanaryDesign(side=3, outputs=4)
    included = design.included()
    assert 0 < included.sum() < design.canaries
    mechanism = replace(PLANNED, steps=GaussianSteps(1e-12, 1.0, 1))
    task = CanaryTask(TaskConfig(labels=[str(n) for n in range(design.outputs)]), pull=10.0)
    model, images = design.network(), design.image_set(included)
    local = LocalRound(1, 1, 1.0, seed=0)
    private.train_privately(
        model, images, task, PLAIN_SGD, PLAIN_PRIVACY, mechanism, SeededNoise(0), local
    )
    moved = -model[1].weight.detach().flatten().numpy() * included.sum()
    expected = np.where(included, mechanism.clipping_norm, 0.0)
    np.testing.assert_allclose(moved, expected, atol=2e-3 * mechanism.clipping_norm)


def test_inclusion_is_a_fair_coin_that_depends_on_the_seed():
    first, second = CanaryDesign(seed=1).included(), CanaryDesign(seed=2).included()
    assert abs(first.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(first))
    assert 0.45 < (first == second).mean() < 0.55
    assert np.array_equal(first, CanaryDesign(seed=1).included())


def test_guesses_are_counted_from_both_ends():
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    included = np.array([True, False, True, False, True, False])
    count = count_guesses(scores, included, 2, 3)
    assert (count.guesses, count.correct) == (5, 1 + 2)
    assert count_guesses(scores, included, 1, 0).correct == 1


@pytest.mark.parametrize("rate", PROBE_RATES)
def test_no_more_guesses_than_a_perfect_attacker_could_get_right(rate):
    for positive, negative in guess_plans(20_000, GaussianSteps(1.0, rate, PROBE_ROUNDS)):
        assert 0 < positive < 10_000 * rate
        assert negative in (0, positive)


@pytest.mark.parametrize("noise", [0.7, 1.13, 3.0, 5.4])
@pytest.mark.parametrize("canaries", [5_000, 20_000])
def test_the_probe_can_be_refuted_and_keeps_the_plans_noise(noise, canaries):
    planned = replace(PLANNED, steps=GaussianSteps(noise, 0.1, 20))
    probe = probe_of(planned, DELTA, canaries)
    assert probe.steps.noise_multiplier == noise
    assert probe.clipping_norm == planned.clipping_norm
    design = CanaryDesign(outputs=canaries // 100)
    assert audit_canaries(
        design, probe, PROBE_ROUNDS, DELTA, lambda n: ScaledNoise(n, 0.0)
    ).verdict == (Verdict.broken)


def test_several_images_make_a_patient():
    with pytest.raises(ValueError, match="patient"):
        audit(design=PATIENTS)


def test_a_claim_too_large_for_the_canaries_is_inconclusive_not_passed():
    result = audit(mechanism=replace(PLANNED, steps=GaussianSteps(0.2, 0.1, 20)))
    assert result.claimed > result.provable
    assert result.verdict == Verdict.inconclusive


def exact_epsilon_of_two_full_steps(noise):
    """The Gaussian mechanism's epsilon in closed form (Balle and Wang, 2018)."""
    shift, normal = math.sqrt(2) / noise, stats.norm

    def excess(epsilon):
        far = normal.cdf(-shift / 2 - epsilon / shift)
        return normal.cdf(shift / 2 - epsilon / shift) - math.exp(epsilon) * far - DELTA

    return brentq(excess, 0, 20)


@pytest.mark.parametrize(("mechanism", "design"), [(PLANNED, DESIGN), (PER_PATIENT, PATIENTS)])
def test_the_claim_holds_for_the_installed_code_and_the_bound_is_not_vacuous(mechanism, design):
    result = audit(mechanism=mechanism, design=design)
    assert 0.25 * result.claimed < result.lower_bound < result.claimed
    assert result.claimed == pytest.approx(exact_epsilon_of_two_full_steps(3.0), rel=0.02)
    assert result.verdict == Verdict.holds
    assert unprotected_bound(design, result) > 2 * result.claimed


@pytest.mark.parametrize(
    "noise_of_round",
    [
        pytest.param(lambda number: ScaledNoise(number, 0.0), id="no noise"),
        pytest.param(lambda number: ScaledNoise(number, 1 / 8), id="an eighth of the noise"),
        pytest.param(lambda _number: SeededNoise(7), id="the same noise in every round"),
    ],
)
@pytest.mark.parametrize(("mechanism", "design"), [(PLANNED, DESIGN), (PER_PATIENT, PATIENTS)])
def test_wrong_noise_is_found(noise_of_round, mechanism, design):
    result = audit(noise_of_round, mechanism, design)
    assert result.lower_bound > 1.5 * result.claimed
    assert result.verdict == Verdict.broken


def test_noise_scaled_for_the_average_but_added_to_the_sum_is_found(monkeypatch):
    expected_batch = 64
    scale = property(lambda m: m.steps.noise_multiplier * m.clipping_norm / expected_batch)
    monkeypatch.setattr(Mechanism, "noise_scale", scale)
    assert audit().verdict == Verdict.broken


@pytest.mark.parametrize("broken", [ClipsTheMean, ClipsNothing])
def test_clipping_of_the_batch_instead_of_the_unit_is_found(monkeypatch, broken):
    plant_clipper(monkeypatch, broken)
    result = audit()
    assert result.lower_bound > 1.5 * result.claimed


def test_clipping_images_under_a_claim_about_patients_is_found(monkeypatch):
    """The sum of three clipped gradients is three times too long; averaging them hides nothing."""
    plant_clipper(monkeypatch, ClipsImages)
    assert audit(mechanism=PER_PATIENT, design=PATIENTS).verdict == Verdict.broken
    assert audit().verdict == Verdict.holds  # one image each: nothing is wrong


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, Verdict.holds), (1 / 8, Verdict.broken)])
def test_a_whole_run_of_many_subsampled_steps(factor, verdict):
    """Two hundred steps at rate 0.1 in ten rounds: epsilon 1."""
    mechanism = replace(PLANNED, steps=GaussianSteps(5.44, 0.1, 20))
    result = audit_canaries(DESIGN, mechanism, 10, DELTA, lambda n: ScaledNoise(n, factor))
    assert result.claimed == pytest.approx(1.0, abs=0.02)
    assert result.verdict == verdict
    assert result.lower_bound > 0.1
