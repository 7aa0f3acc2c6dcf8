"""Networks are repeatable, safe for per-sample gradients, and travel as one declared vector."""

import numpy as np
import pytest
import torch
from torch import nn

from fedmed.configuration.groups import ModelConfig
from fedmed.errors import ConfigurationError, ProtocolError
from fedmed.models.parameters import ParameterLayout, flatten, load_flat
from fedmed.models.registry import build_model


def model(seed=0, **settings):
    return build_model(ModelConfig(**settings), channels=1, outputs=3, seed=seed)


@pytest.mark.parametrize("size", [28, 64, 97])
def test_any_image_size_gives_one_row_of_logits(size):
    assert model(width=4)(torch.rand(2, 1, size, size)).shape == (2, 3)


def test_the_seed_alone_decides_the_weights_and_nobody_elses_draws_change():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = flatten(model(seed=1))
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(first, flatten(model(seed=1)))
    assert not np.array_equal(first, flatten(model(seed=2)))


def test_an_images_answer_does_not_depend_on_its_neighbours():
    network = model(width=4).train()
    images = torch.rand(4, 1, 32, 32)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone, atol=1e-5, rtol=1e-5)


def test_no_activation_works_in_place_and_no_module_is_used_twice():
    network = model(width=4)
    assert not any(getattr(layer, "inplace", False) for layer in network.modules())
    calls: dict[str, int] = {}
    for name, layer in network.named_modules():
        if next(layer.children(), None) is None and list(layer.parameters()):
            layer.register_forward_hook(
                lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1})
            )
    network(torch.rand(1, 1, 32, 32))
    assert set(calls.values()) == {1}


def test_there_is_no_batch_normalisation_unless_asked_for():
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model().modules())
    asked = model(normalisation="batch")
    assert any("running_mean" in name for name, _ in ParameterLayout.of(asked).entries)


def test_weights_survive_the_journey():
    source, target = model(seed=1), model(seed=2)
    vector = flatten(source)
    assert vector.dtype == np.float32
    assert vector.shape == (ParameterLayout.of(source).size,)
    load_flat(target, vector)
    np.testing.assert_array_equal(flatten(target), vector)


def test_layout_splits_and_joins():
    layout = ParameterLayout.of(model(width=4))
    vector = np.arange(layout.size, dtype=np.float32)
    np.testing.assert_array_equal(layout.join(layout.split(vector)), vector)
    assert layout.sha256() != ParameterLayout.of(model(width=8)).sha256()


def test_foreign_weights_are_refused():
    network = model(width=4)
    with pytest.raises(ProtocolError, match="parameters"):
        load_flat(network, np.zeros(3, np.float32))
    broken = flatten(network)
    broken[0] = np.nan
    with pytest.raises(ProtocolError, match="NaN"):
        load_flat(network, broken)
    with pytest.raises(ConfigurationError, match=r"choose one of .*residual_cnn"):
        model(name="transformer")
