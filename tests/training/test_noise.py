"""Noise for privacy: normal, never repeated, and free of the holes of floating point."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fedmed.training.noise import (
    CLIPPING_MARGIN,
    LATTICE_SHARE,
    SecureNoise,
    SeededNoise,
    add_on_lattice,
    lattice_spacing,
)


def test_secure_noise_is_standard_normal_and_never_repeats():
    first, second = SecureNoise(), SecureNoise()
    values = first.normal(torch.Size([200_001])).numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-6
    assert stats.kstest(values * 1.1, "norm").pvalue < 1e-9  # control
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
    assert len(np.unique(values)) == len(values)
    assert not np.array_equal(values[:100], second.normal(torch.Size([100])).numpy())
    assert first.sampling_generator().initial_seed() != second.sampling_generator().initial_seed()


@pytest.mark.parametrize("count", [0, 1, 5, 32_767, 32_768, 32_769, 100_000])
def test_any_number_of_values_can_be_drawn(count):
    values = SecureNoise().normal(torch.Size([count]))
    assert values.shape == (count,)
    assert bool(torch.isfinite(values).all())


def test_both_halves_of_a_box_muller_pair_are_independent():
    values = SecureNoise().normal(torch.Size([1 << 15])).numpy()
    sines, cosines = np.split(values, 2)
    assert abs(np.corrcoef(sines, cosines)[0, 1]) < 0.04
    assert abs(np.corrcoef(sines**2, cosines**2)[0, 1]) < 0.04


def test_seeded_noise_repeats_and_says_that_it_is_void():
    assert "void" in SeededNoise.description
    shape = torch.Size([5])
    assert torch.equal(SeededNoise(1).normal(shape), SeededNoise(1).normal(shape))


def test_the_lattice_is_fine_and_a_power_of_two():
    for norm in (1e-3, 1.0, 7.0):
        for parameters in (1, 5_000, 3_000_000):
            spacing = lattice_spacing(norm, parameters)
            assert spacing * math.sqrt(parameters) <= LATTICE_SHARE * norm
            assert math.frexp(spacing)[0] == 0.5
    assert CLIPPING_MARGIN + LATTICE_SHARE < 1  # what rounding adds, clipping has left room for


def low_bits(values, spacing):
    return np.unique(np.mod(values.double().numpy(), spacing))


def test_neighbours_reach_the_same_points_and_without_the_lattice_they_do_not():
    """Mironov (2012): the low bits of a float sum tell which data set it came from."""
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spacing = lattice_spacing(1.0, 20_000)
    one, other = torch.full((20_000,), 0.1), torch.full((20_000,), 0.1 + 1e-4)
    for clipped in (one, other):
        released = add_on_lattice(clipped, noise, 1.0, spacing)
        assert released.dtype == torch.float32
        assert low_bits(released, spacing).tolist() == [0.0]
    coarse = noise.float().mul(2**12).round().div(2**12)  # a noise source with holes
    naive = {0: low_bits(one + coarse, spacing), 1: low_bits(other + coarse, spacing)}
    assert len(np.intersect1d(naive[0], naive[1])) < len(naive[0])


def test_rounding_to_the_lattice_keeps_the_value():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    spacing = lattice_spacing(1.0, 1000)
    released = add_on_lattice(values, noise, 2.0, spacing).double()
    assert (released - (values.double() + 2.0 * noise)).abs().max() <= spacing * 1.01
