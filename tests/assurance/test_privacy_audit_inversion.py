"""An unprotected update gives the image back; a protected one does not."""

import numpy as np
import pytest
import torch

from fedmed.assurance.privacy_audit.inversion import (
    ATTACKS,
    RECOGNISED,
    SIDE,
    Reconstruction,
    audit_inversion,
    correlation,
    peak_signal_to_noise,
    phantom_image,
)
from fedmed.assurance.privacy_audit.verdict import Verdict
from fedmed.training.accounting import GaussianSteps
from fedmed.training.noise import SeededNoise
from fedmed.training.private import Mechanism

EPSILON_8 = Mechanism(GaussianSteps(1.13, 0.1, 20), clipping_norm=1.0, max_physical_batch=256)


class NoNoise(SeededNoise):
    def normal(self, shape):
        return torch.zeros(shape)


def test_measures_of_likeness():
    draws = torch.Generator().manual_seed(0)
    one, two = torch.rand(2, 8, 8, generator=draws)
    assert correlation(one, two) == pytest.approx(
        np.corrcoef(one.flatten().numpy(), two.flatten().numpy())[0, 1], abs=1e-6
    )
    assert correlation(one, 0.3 * one + 0.2) == pytest.approx(1.0)
    assert correlation(torch.zeros(8, 8), one) == 0.0
    assert peak_signal_to_noise(one + 0.1, one) == pytest.approx(20.0, abs=1e-3)


def test_the_image_is_an_image():
    image, other = phantom_image(0, 0), phantom_image(0, 1)
    assert image.shape == (1, 1, SIDE, SIDE)
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.std() > 0.05
    assert not torch.equal(image, other)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_closed_form_reads_the_image_and_noise_stops_it(seed):
    result = audit_inversion("closed form", EPSILON_8, SeededNoise(seed), seed)
    assert correlation(result.unprotected, result.original) > 0.99
    assert peak_signal_to_noise(result.unprotected, result.original) > 40
    assert abs(correlation(result.protected, result.original)) < 0.2 < result.unrelated
    assert result.verdict == Verdict.holds


def test_clipping_alone_does_not_stop_it():
    """Planted fault: without noise the protected update gives the image away, and it is seen."""
    result = audit_inversion("closed form", EPSILON_8, NoNoise(0), 0)
    assert correlation(result.protected, result.original) > RECOGNISED
    assert result.verdict == Verdict.broken


def test_an_attack_that_fails_on_the_control_says_nothing():
    image = phantom_image(0, 0)[0, 0]
    noise = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert Reconstruction("any", image, noise, noise, 0.5).verdict == Verdict.inconclusive


@pytest.mark.slow
def test_cosine_matching_finds_the_image_and_noise_stops_it():
    assert set(ATTACKS) == {"closed form", "cosine matching"}
    result = audit_inversion("cosine matching", EPSILON_8, SeededNoise(0), 0)
    assert correlation(result.unprotected, result.original) > 0.95
    assert peak_signal_to_noise(result.unprotected, result.original) > 25
    assert abs(correlation(result.protected, result.original)) < 0.3 < result.unrelated
    assert result.verdict == Verdict.holds
