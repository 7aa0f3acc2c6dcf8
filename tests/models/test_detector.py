"""The detector: one map a class and four for the boxes, safe for per-sample gradients."""

import pytest
import torch
from torch import nn

from fedmed.configuration.groups import ModelConfig
from fedmed.models.parameters import flatten
from fedmed.models.registry import build_model


def detector(seed=0, classes=2, channels=1, **settings):
    config = ModelConfig(name="detector", **{"width": 4, "stages": 3} | settings)
    return build_model(config, channels=channels, outputs=classes, seed=seed)


@pytest.mark.parametrize(("size", "expected"), [((64, 64), (16, 16)), ((37, 50), (10, 13))])
@pytest.mark.parametrize("blocks", [1, 2])
def test_it_answers_at_a_quarter_of_the_resolution(size, expected, blocks):
    network = detector(channels=3, blocks=blocks)
    assert network.stride == 4
    assert network(torch.rand(2, 3, *size)).shape == (2, 2 + 4, *expected)


@pytest.mark.parametrize(("stages", "stride"), [(1, 2), (2, 4), (4, 4)])
def test_few_stages_work_too(stages, stride):
    network = detector(stages=stages)
    assert network.stride == stride
    assert network(torch.rand(1, 1, 32, 32)).shape == (1, 6, 32 // stride, 32 // stride)


def test_it_starts_with_few_objects():
    with torch.no_grad():
        shares = detector()(torch.rand(4, 1, 64, 64))[:, :2].sigmoid()
    assert 0.02 < float(shares.mean()) < 0.3


def test_the_seed_alone_decides_the_weights():
    assert (flatten(detector(seed=1)) == flatten(detector(seed=1))).all()
    assert (flatten(detector(seed=1)) != flatten(detector(seed=2))).any()


def test_rows_do_not_mix_nothing_works_in_place_and_every_layer_runs_once():
    network = detector().train()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    assert not any(getattr(layer, "inplace", False) for layer in network.modules())
    runs: dict[str, int] = {}
    for name, layer in network.named_modules():
        if next(layer.children(), None) is None:
            layer.register_forward_hook(
                lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1})
            )
    images = torch.rand(3, 1, 32, 32)
    together = network(images)
    assert set(runs.values()) == {1}
    assert len(runs) == sum(1 for m in network.modules() if not list(m.children()))
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_it_learns_where_the_objects_are():
    network = detector(classes=1)
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(8, 1, 32, 32, generator=draws) * 0.2
    peaks = torch.zeros(8, 1, 8, 8)
    for number in range(8):
        row, column = number, (3 * number) % 8
        images[number, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1.0
        peaks[number, 0, row, column] = 1.0
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        outputs = network(images)[:, :1]
        nn.functional.binary_cross_entropy_with_logits(outputs, peaks).backward()
        optimizer.step()
    found = network(images)[:, 0].flatten(1).argmax(dim=1)
    assert torch.equal(found, peaks.flatten(1).argmax(dim=1))
