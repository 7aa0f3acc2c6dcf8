"""Weight standardisation and frozen parameters: what the settings do to a network."""

import hashlib

import pytest
import torch
from torch import nn

from fedmed.configuration.groups import ModelConfig
from fedmed.errors import ConfigurationError
from fedmed.models.parameters import flatten
from fedmed.models.registry import build_model
from fedmed.models.standardised_convolution import StandardisedConv2d, pull_back, standardise

DIGEST = "d763f272b841b0a53c72545f70cb09b164746902c8add155238ffd545bb8ed18"


def model(seed=0, **settings):
    config = ModelConfig(**{"width": 4, "stages": 2} | settings)
    return build_model(config, channels=1, outputs=1, seed=seed)


def test_filters_have_mean_0_and_variance_1():
    filters = standardise(torch.randn(6, 4, 3, 3) * 5 + 2).flatten(1)
    torch.testing.assert_close(filters.mean(1), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(filters.var(1, correction=0), torch.ones(6), atol=1e-4, rtol=0)


def test_pull_back_is_the_derivative():
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    gradients = torch.randn(5, 3, 2, 3, 3, dtype=torch.float64)
    expected = [torch.autograd.grad(standardise(weight), weight, g)[0] for g in gradients]
    torch.testing.assert_close(pull_back(weight.detach(), gradients), torch.stack(expected))


def test_scale_and_shift_of_a_filter_change_nothing():
    layer = StandardisedConv2d(4, 3, 3, padding=1)
    images = torch.rand(2, 4, 8, 8)
    before = layer(images)
    layer.weight.data.mul_(3.0).add_(0.7)
    torch.testing.assert_close(layer(images), before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["residual_cnn", "unet", "detector"])
def test_the_setting_reaches_each_network(name):
    def standardised(on):
        network = model(name=name, weight_standardisation=on)
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        return sum(isinstance(layer, StandardisedConv2d) for layer in layers), network

    count, network = standardised(True)
    assert count >= 5
    assert network(torch.rand(2, 1, 32, 32)).shape[0] == 2
    off, plain = standardised(False)
    assert off == 0
    assert (flatten(network) == flatten(plain)).all()  # the stored weights start alike


def test_the_default_network_starts_as_it_always_did():
    """Digest of the weights at seed 0, taken before this setting was there."""
    weights = flatten(build_model(ModelConfig(), channels=1, outputs=1, seed=0))
    assert hashlib.sha256(weights.tobytes()).hexdigest() == DIGEST


def test_frozen_parameters_are_not_trained():
    network = model(freeze=["encoder.layers.0*", "*.conv1.weight"])
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {
        "encoder.layers.0.weight",
        "encoder.layers.1.conv1.weight",
        "encoder.layers.2.conv1.weight",
    }
    assert (flatten(network) == flatten(model())).all()


def test_a_pattern_that_matches_nothing_is_refused_with_close_names():
    with pytest.raises(ConfigurationError, match=r"encodr.*encoder\."):
        model(freeze=["encodr.layers.0*"])


def test_freezing_everything_is_refused():
    with pytest.raises(ConfigurationError, match=r"nothing to train.*head\.bias"):
        model(freeze=["encoder.*", "head.*"])
