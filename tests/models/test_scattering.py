"""Scattering: the filters are Gabor's, features are each image's own, only the head is trained."""

import logging
import math
import re

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from fedmed.cli import main
from fedmed.configuration.commands import SimulateSettings
from fedmed.configuration.groups import Clipping, ModelConfig
from fedmed.configuration.loading import load_settings
from fedmed.errors import ConfigurationError
from fedmed.models.parameters import ParameterLayout, flatten, load_flat, trained_mask
from fedmed.models.registry import build_model
from fedmed.models.scattering import CELLS, Scattering, gabor_filters
from fedmed.training.clipping.choice import choose_clipper


def model(channels=1, seed=0, **settings):
    config = ModelConfig(**{"name": "scattering", "width": 4, "stages": 3} | settings)
    return build_model(config, channels=channels, outputs=2, seed=seed)


def images(count=4, channels=1, size=32, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, size, size, generator=draws)


def gabor(direction):
    """A filter and its quadrature by the formula, pixel by pixel, in plain Python."""
    width, frequency = 0.8, 0.75 * math.pi / 0.8
    wave, envelope = np.zeros((7, 7), complex), np.zeros((7, 7))
    for row in range(7):
        for column in range(7):
            down, right = row - 3, column - 3
            along = right * math.cos(direction) + down * math.sin(direction)
            squared = right**2 + down**2 - along**2  # across the wave
            envelope[row, column] = math.exp(-(along**2 + squared / 2) / (2 * width**2))
            wave[row, column] = envelope[row, column] * np.exp(1j * frequency * along)
    real = wave.real - envelope * wave.real.sum() / envelope.sum()
    return real / np.linalg.norm(real), wave.imag / np.linalg.norm(wave.imag)


def modulus(picture, direction):
    """Modulus of one filter's answers by scipy's correlation."""
    parts = [
        ndimage.correlate(np.asarray(picture, float), part, mode="nearest")
        for part in gabor(direction)
    ]
    return np.hypot(*parts)


def halved(picture):
    rows, columns = (side // 2 for side in picture.shape)
    return picture[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean((1, 3))


def grid(picture):
    parts = [np.array_split(strip, CELLS, axis=1) for strip in np.array_split(picture, CELLS)]
    return np.array([[cell.mean() for cell in strip] for strip in parts]).ravel()


def test_every_feature_agrees_with_scipy():
    """All of the network by independent code: correlation, pyramid, grid, standardising."""
    encoder = Scattering(1, orientations=3, scales=2).double()
    encoder.filters = gabor_filters(3).double()
    picture = images(1, seed=5)[0, 0].double()
    directions = [math.pi * number / 3 for number in range(3)]
    plain = picture.numpy()
    first = [modulus(plain, direction) for direction in directions]
    second = [modulus(halved(one), direction) for one in first for direction in directions]
    coarse = [modulus(halved(plain), direction) for direction in directions]
    parts = [
        np.concatenate([grid(one) for one in maps]) for maps in ([plain], first, second, coarse)
    ]
    expected = np.concatenate(
        [(p - p.mean()) / (p.std(ddof=1) + 1e-3) / math.sqrt(p.size) for p in parts]
    )
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(encoder(picture[None, None])[0], expected, atol=1e-6)


def test_a_filter_answers_to_waves_of_its_own_direction():
    along = torch.arange(32.0)
    stripes = torch.cos(0.75 * math.pi / 0.8 * along).expand(32, 32)  # they change to the right
    answers = functional.conv2d(stripes[None, None], gabor_filters(4)).view(4, 2, 26, 26)
    energy = answers.square().sum((1, 2, 3))
    assert energy.argmax() == 0
    assert energy[0] > 5 * energy[2]
    turned = functional.conv2d(stripes.T[None, None], gabor_filters(4)).view(4, 2, 26, 26)
    torch.testing.assert_close(turned.square().sum((1, 2, 3))[[2, 3, 0]], energy[[0, 1, 2]])


def test_brightness_changes_nothing_and_contrast_little():
    encoder, pictures = Scattering(3, orientations=4, scales=3), images(channels=3) / 2
    features = encoder(pictures)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(encoder(pictures + 0.4), features, atol=1e-5, rtol=0)
    assert functional.cosine_similarity(encoder(pictures / 2), features).min() > 0.999
    # Control: what is in the image does change them.
    assert functional.cosine_similarity(encoder(pictures.flip(3)), features).max() < 0.99


def test_an_even_image_has_no_features():
    features = Scattering(1, orientations=4, scales=3)(torch.full((1, 1, 28, 28), 0.6))
    assert features.abs().max() < 1e-3


@pytest.mark.parametrize("size", [16, 28, 64, 97])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_number_of_channels(size, channels):
    network = model(channels)
    assert network.encoder.features == channels * CELLS**2 * (1 + 3 * 4 + 3 * 4**2)
    assert network.encoder(images(2, channels, size)).shape == (2, network.encoder.features)
    assert network(images(2, channels, size)).shape == (2, 2)


def test_an_images_features_do_not_depend_on_its_neighbours():
    encoder, pictures = model().encoder.train(), images()
    alone = torch.cat([encoder(picture[None]) for picture in pictures])
    torch.testing.assert_close(encoder(pictures), alone, atol=1e-6, rtol=0)
    others = torch.cat([pictures[:1], images(3, seed=9)])
    torch.testing.assert_close(encoder(others)[0], alone[0], atol=1e-6, rtol=0)


def test_half_precision_elsewhere_does_not_change_the_features():
    encoder, pictures = model().encoder, images()
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(pictures)
        assert (pictures[0, 0] @ pictures[0, 0]).dtype == torch.bfloat16  # control: it is on
    assert torch.equal(features, encoder(pictures))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_gives_the_same_features():
    encoder, pictures = model().encoder, images(size=64)
    here = encoder(pictures)
    with torch.autocast("cuda", torch.bfloat16):
        there = encoder.cuda()(pictures.cuda()).cpu()
    torch.testing.assert_close(there, here, atol=2e-3, rtol=0)  # convolutions may be in TF32


def test_images_have_finite_derivatives_even_where_they_are_black():
    pictures = images(2)
    pictures[0, :, :16] = 0  # as beside a body: exactly 0, unlike the sums of other greys
    pictures[1] = 0
    pictures.requires_grad_()
    model().encoder(pictures).square()[:, ::3].sum().backward()
    assert torch.isfinite(pictures.grad).all()
    assert pictures.grad[0].abs().max() > 0


def test_only_the_head_is_trained_and_travels():
    network = model()
    assert {name for name, _ in network.named_parameters()} == {"head.weight", "head.bias"}
    assert set(network.state_dict()) == {"head.weight", "head.bias"}
    assert trained_mask(network).all()
    assert ParameterLayout.of(network).size == 2 * (976 + 1)


def test_it_starts_without_an_opinion_whatever_the_seed():
    assert torch.equal(model(seed=1)(images()), torch.zeros(4, 2))
    assert (flatten(model(seed=1)) == flatten(model(seed=2))).all()


def test_weights_survive_the_journey_and_give_the_same_answers():
    source, target = model(), model(seed=3)
    torch.nn.init.normal_(source.head.weight, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(target(images()), source(images()))
    load_flat(target, flatten(source))
    assert torch.equal(target(images()), source(images()))
    other = model(width=3)
    assert ParameterLayout.of(other).sha256() != ParameterLayout.of(source).sha256()


def row_loss(outputs, targets):
    return functional.cross_entropy(outputs, targets, reduction="none")


@pytest.mark.parametrize("sizes", [(1,) * 6, (1, 3, 2)])
def test_clipping_stays_on_book_keeping_and_is_exact(sizes, caplog):
    network, pictures = model(channels=3), images(6, channels=3)
    targets = torch.tensor([0, 1, 1, 0, 1, 0])
    with caplog.at_level(logging.WARNING):
        clipper = choose_clipper(network, row_loss, Clipping.auto)
        found = clipper.clipped_sum(pictures, targets, sizes, 0.3)
    assert clipper.way == "book_keeping"
    assert not caplog.records
    # By hand: the gradient of a linear layer is the outer product of error and features.
    features = torch.cat([network.encoder(pictures), torch.ones(6, 1)], dim=1).double()
    errors = (network(pictures).softmax(1) - functional.one_hot(targets, 2)).detach().double()
    rows = torch.einsum("no,nf->nof", errors, features.detach())
    units = torch.stack([part.mean(0) for part in rows.split(list(sizes))])
    norms = units.flatten(1).norm(dim=1)
    assert (norms > 0.3).any()
    expected = (units * (0.3 / norms).clamp(max=1)[:, None, None]).sum(0)
    torch.testing.assert_close(found.norms.double(), norms, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.sums[0].double(), expected[:, :-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.sums[1].double(), expected[:, -1], atol=1e-5, rtol=1e-5)


def test_it_learns_what_the_direction_of_stripes_says():
    draws = torch.Generator().manual_seed(0)
    pictures = images(64, seed=1) * 0.2
    targets = torch.randint(0, 2, (64,), generator=draws)
    stripes = (torch.arange(32) % 4 < 2).float().expand(32, 32) * 0.5
    pictures += torch.where(targets[:, None, None, None] == 1, stripes, stripes.T)
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=4)
    for _ in range(20):
        optimizer.zero_grad()
        functional.cross_entropy(network(pictures[:32]), targets[:32]).backward()
        optimizer.step()
    answers = network(pictures[32:]).argmax(1)
    assert (answers == targets[32:]).float().mean() > 0.95


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["model.width=17"], r"model\.width=17 .*choose 1 to 16"),
        (["model.stages=6"], r"needs images of 128 pixels.*model\.stages=5 or .*size=128"),
        (["preprocessing.size=8"], r"needs images of 16 pixels.*stages=2 or preprocessing.size=16"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(settings, expected, capsys):
    assert main(["simulate", "model=scattering", *settings]) == 2
    shown = capsys.readouterr().err.strip()
    assert re.search(expected, shown), shown


def test_there_is_nothing_in_the_features_to_freeze():
    with pytest.raises(ConfigurationError, match=r"no parameter matches encoder\.\*"):
        model(freeze=["encoder.*"])


@pytest.mark.parametrize(("size", "stages"), [(16, 3), (28, 3), (64, 5), (8, 2)])
def test_the_smallest_image_that_is_allowed_works(size, stages):
    settings = ["model=scattering", f"preprocessing.size={size}", f"model.stages={stages}"]
    config = load_settings(SimulateSettings, "simulate", settings).model
    network = build_model(config, channels=1, outputs=1, seed=0)
    assert torch.isfinite(network(images(2, size=size))).all()
