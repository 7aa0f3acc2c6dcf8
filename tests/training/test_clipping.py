"""Every way of clipping gives the clipped sum, and one unit moves it by no more than the norm."""

import pytest
import torch
from clipping_networks import CONFIGS, case, flat, reference, relative, unit_gradients
from torch import nn

from fedmed.errors import PrivacyError
from fedmed.training.clipping import book_keeping, convolution, functional, hooks
from fedmed.training.clipping.base import trained_parameters
from fedmed.training.clipping.book_keeping import BookKeeping
from fedmed.training.clipping.functional import Functional
from fedmed.training.clipping.hooks import Hooks

WAYS = [BookKeeping, Functional, Hooks]
MODULES = {BookKeeping: book_keeping, Functional: functional, Hooks: hooks}
IMAGES = (1,) * 6
PATIENTS = (1, 50, 5)


@pytest.fixture(params=WAYS, ids=lambda way: way.way)
def way(request):
    return request.param


def clip(way, model, loss, inputs, targets, sizes, norm):
    clipper = way(model, loss)
    try:
        return clipper.clipped_sum(inputs, targets, sizes, norm)
    finally:
        clipper.close()


@pytest.mark.parametrize("sizes", [IMAGES, PATIENTS], ids=["images", "patients"])
@pytest.mark.parametrize("network", CONFIGS)
def test_the_clipped_sum_is_that_of_a_loop_over_units(way, network, sizes):
    model, loss, inputs, targets = case(network, sum(sizes))
    _, norms = reference(model, loss, inputs, targets, sizes, 1.0)
    bound = float(norms.median())  # some units are clipped, some are not
    expected, _ = reference(model, loss, inputs, targets, sizes, bound)
    found = clip(way, model, loss, inputs, targets, sizes, bound)
    assert relative(flat(found), expected) < 1e-5
    torch.testing.assert_close(found.norms, norms, rtol=1e-5, atol=0)
    assert [s.shape for s in found.sums] == [p.shape for p in trained_parameters(model)]
    assert not any(s.requires_grad for s in found.sums)
    # Control: the sum without clipping is another one.
    assert relative(unit_gradients(model, loss, inputs, targets, sizes).sum(0), expected) > 1e-2


@pytest.mark.parametrize(
    ("grouped", "ghost"),
    [(10**9, 10**9), (0, 10**9), (0, 0), (10**9, 0)],
    ids=["grouped", "row by row", "ghost", "all ghost"],
)
@pytest.mark.parametrize("network", ["classifier", "unet", "detector"])
def test_each_kernel_for_convolutions_is_right(monkeypatch, network, grouped, ghost):
    monkeypatch.setattr(convolution, "GROUPED_VALUES", grouped)
    monkeypatch.setattr(convolution, "GHOST_FACTOR", ghost)
    model, loss, inputs, targets = case(network, 5)
    expected, norms = reference(model, loss, inputs, targets, (1,) * 5, 0.3)
    found = clip(BookKeeping, model, loss, inputs, targets, (1,) * 5, 0.3)
    assert relative(flat(found), expected) < 1e-10
    torch.testing.assert_close(found.norms, norms)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 4, 3, stride=2, padding=2, dilation=2),
        nn.Conv2d(1, 4, (3, 2), stride=(2, 3), padding=(0, 1)),
        nn.Conv2d(1, 4, 1, stride=3),
        nn.ConvTranspose2d(1, 4, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(1, 4, (2, 3), stride=(1, 2), dilation=(2, 1)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("ghost", [0, 10**9], ids=["ghost", "held"])
def test_unusual_convolutions(monkeypatch, layer, ghost):
    monkeypatch.setattr(convolution, "GHOST_FACTOR", ghost)
    grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    model = nn.Sequential(layer, nn.Tanh(), grouped, nn.Flatten(1), nn.LazyLinear(2))
    inputs, targets = torch.rand(4, 1, 11, 9, dtype=torch.float64), torch.rand(4, 2)
    model.double()(inputs)

    def loss(outputs, wanted):
        return (outputs - wanted).square().sum(dim=1)

    expected, norms = reference(model, loss, inputs, targets, (1,) * 4, 0.5)
    found = clip(BookKeeping, model, loss, inputs, targets, (1,) * 4, 0.5)
    assert relative(flat(found), expected) < 1e-10
    torch.testing.assert_close(found.norms, norms)


@pytest.mark.parametrize("size", [1, 5, 50])
@pytest.mark.parametrize("network", ["classifier", "unet", "detector"])
def test_one_unit_more_moves_the_sum_by_at_most_the_clipping_norm(way, network, size):
    sizes = (3, size, 1)
    bound = 1e-3
    model, loss, inputs, targets = case(network, sum(sizes))
    inputs *= 20  # gradients far above the bound
    without = torch.cat([torch.arange(3), torch.arange(3 + size, sum(sizes))])

    def moved():
        with_unit = clip(way, model, loss, inputs, targets, sizes, bound)
        fewer = clip(way, model, loss, inputs[without], targets[without], (3, 1), bound)
        return float((flat(with_unit) - flat(fewer)).norm()), with_unit.norms

    distance, norms = moved()
    assert float(norms[1]) > 10 * bound
    assert distance <= bound * (1 + 1e-9)
    assert distance > bound * 0.99  # the unit does count
    with pytest.MonkeyPatch.context() as patch:  # control: a unit that is not clipped
        patch.setattr(MODULES[way], "clip_factors", lambda norms, _bound: torch.ones_like(norms))
        assert moved()[0] > 10 * bound


def test_a_patient_counts_by_the_mean_of_the_images_not_their_sum(way):
    model, loss, inputs, targets = case("classifier", 1)
    once = clip(way, model, loss, inputs, targets, (1,), 1e9)
    again = clip(way, model, loss, inputs.repeat(5, 1, 1, 1), targets.repeat(5), (5,), 1e9)
    assert relative(flat(again), flat(once)) < 1e-10


def test_an_empty_batch_gives_zeros(way):
    model, loss, inputs, targets = case("classifier", 0)
    found = clip(way, model, loss, inputs, targets, (), 1.0)
    assert found.norms.shape == (0,)
    assert [s.shape for s in found.sums] == [p.shape for p in trained_parameters(model)]
    assert not flat(found).any()


def test_units_that_do_not_fill_the_batch_are_refused(way):
    model, loss, inputs, targets = case("classifier", 3)
    for sizes in [(1, 1), (3, 1), (3, 0), (4, -1)]:
        with pytest.raises(PrivacyError, match="each unit must have at least one row"):
            clip(way, model, loss, inputs, targets, sizes, 1.0)


def attributes(model):
    """Everything that could be left on a network."""
    return {
        name: (
            sorted(module.__dict__),
            {key: len(value) for key, value in module.__dict__.items() if key.endswith("_hooks")},
        )
        for name, module in model.named_modules()
    } | {name: sorted(p.__dict__) for name, p in model.named_parameters()}


@pytest.mark.parametrize("network", ["classifier", "standardised", "frozen"])
def test_nothing_is_left_on_the_network_and_gradients_are_not_touched(way, network):
    model, loss, inputs, targets = case(network, 4)
    before, weights = attributes(model), [p.clone() for p in model.parameters()]
    marks = [torch.full_like(p, 7.0) for p in model.parameters()]
    for parameter, mark in zip(model.parameters(), marks, strict=True):
        parameter.grad = mark.clone()
    clipper = way(model, loss)
    for _ in range(2):
        clipper.clipped_sum(inputs, targets, (1, 3), 1.0)
    clipper.close()
    assert attributes(model) == before
    for parameter, mark, weight in zip(model.parameters(), marks, weights, strict=True):
        assert torch.equal(parameter.grad, mark)
        assert torch.equal(parameter, weight)


def test_an_error_in_a_pass_leaves_nothing_either(way):
    model, _, inputs, targets = case("classifier", 4)
    before = attributes(model)

    def fails(outputs, targets):
        raise RuntimeError("broken loss")

    with pytest.raises(RuntimeError, match="broken loss"):
        clip(way, model, fails, inputs, targets, (1, 3), 1.0)
    assert attributes(model) == before


def test_float32_is_close_to_float64(way):
    model, loss, inputs, targets = case("classifier", 6)
    expected, _ = reference(model, loss, inputs, targets, (1,) * 6, 0.5)
    single = model.float()
    found = clip(way, single, loss, inputs.float(), targets, (1,) * 6, 0.5)
    assert found.sums[0].dtype == torch.float32
    assert relative(flat(found).double(), expected) < 1e-4


def test_it_works_under_autocast(way):
    model, loss, inputs, targets = case("classifier", 6, dtype=torch.float32)
    expected, _ = reference(model, loss, inputs, targets, (1,) * 6, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        found = clip(way, model, lambda o, t: loss(o.float(), t), inputs, targets, (1,) * 6, 0.5)
    assert all(one.dtype == torch.float32 for one in found.sums)
    assert relative(flat(found), expected) < 0.2  # bfloat16 has 8 bits
