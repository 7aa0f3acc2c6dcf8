"""The U-Net: any size in, maps of that size out, safe for per-sample gradients."""

import pytest
import torch
from torch import nn

from fedmed.configuration.groups import ModelConfig
from fedmed.models.parameters import flatten
from fedmed.models.registry import build_model


def unet(seed=0, outputs=3, channels=1, **settings):
    config = ModelConfig(name="unet", **{"width": 4, "stages": 3} | settings)
    return build_model(config, channels=channels, outputs=outputs, seed=seed)


@pytest.mark.parametrize("size", [(64, 64), (37, 50), (5, 3), (4, 4)])
@pytest.mark.parametrize("stages", [1, 3])
def test_the_output_has_the_size_of_the_image(size, stages):
    images = torch.rand(2, 3, *size)
    assert unet(channels=3, stages=stages)(images).shape == (2, 3, *size)


def test_an_odd_size_is_as_good_as_a_grey_margin():
    network = unet().double()
    image = torch.rand(1, 1, 21, 19, dtype=torch.float64)
    margin = nn.functional.pad(image, (0, 1, 0, 3), value=0.5)
    torch.testing.assert_close(network(image), network(margin)[..., :21, :19])


def test_the_seed_alone_decides_the_weights():
    assert (flatten(unet(seed=1)) == flatten(unet(seed=1))).all()
    assert (flatten(unet(seed=1)) != flatten(unet(seed=2))).any()


def test_rows_do_not_mix_nothing_works_in_place_and_no_layer_runs_twice():
    network = unet().train()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    assert not any(getattr(layer, "inplace", False) for layer in network.modules())
    runs: dict[str, int] = {}
    for name, layer in network.named_modules():
        if name and next(layer.children(), None) is None:
            layer.register_forward_hook(
                lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1})
            )
    images = torch.rand(3, 1, 16, 16)
    together = network(images)
    assert set(runs.values()) == {1}
    assert len(runs) == sum(1 for m in network.modules() if not list(m.children()))
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_width_and_stages_set_its_size():
    count = {
        key: sum(p.numel() for p in unet(width=key[0], stages=key[1]).parameters())
        for key in [(16, 4), (16, 5), (8, 4)]
    }
    assert 400_000 < count[16, 4] < 600_000
    assert 3.5 < count[16, 5] / count[16, 4] < 4.5
    assert 3.5 < count[16, 4] / count[8, 4] < 4.5


def test_it_learns_to_segment_a_bright_square():
    network = unet(outputs=1)
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(8, 1, 16, 16, generator=draws) * 0.3
    masks = torch.zeros_like(images)
    for number in range(8):
        masks[number, :, number : number + 6, 4:10] = 1
    images += masks * 0.6
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(images), masks).backward()
        optimizer.step()
    found = network(images) > 0
    assert ((found == masks.bool()).float().mean()) > 0.97
