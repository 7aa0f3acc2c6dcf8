"""The choice of a way: the quickest that is right, and never one that is silently wrong."""

import logging

import pytest
import torch
from clipping_networks import SIDE, Attentive, case, classification_loss, flat, reference, relative
from torch import nn

from fedmed.configuration.groups import Clipping
from fedmed.errors import PrivacyError
from fedmed.training.clipping import choice
from fedmed.training.clipping.base import ClippedSum
from fedmed.training.clipping.book_keeping import BookKeeping
from fedmed.training.clipping.choice import choose_clipper

HEAD = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 1))


class UsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.again, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 1)

    def forward(self, images):
        hidden = torch.tanh(self.again(torch.tanh(self.again(self.stem(images)))))
        return self.head(hidden.mean((2, 3)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(SIDE, SIDE), nn.Linear(SIDE, SIDE)
        self.second.weight = self.first.weight
        self.head = nn.Linear(SIDE, 1)

    def forward(self, images):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(images[:, 0])))).mean(1))


class LooseParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((SIDE,), 0.7))
        self.head = nn.Linear(SIDE, 1)

    def forward(self, images):
        return self.head(images[:, 0].mean(1) * self.scale)


class UsedOutside(nn.Module):
    """The layer's weight also acts past the layer."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(SIDE, SIDE), nn.Linear(SIDE, 1)

    def forward(self, images):
        hidden = torch.tanh(self.layer(images[:, 0].mean(1)))
        return self.head(hidden @ self.layer.weight)


class PartlyUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.spare = nn.Linear(SIDE, 1), nn.Linear(SIDE, 3)

    def forward(self, images):
        return self.head(images[:, 0].mean(1))


class RowsFirstLost(nn.Module):
    """Works on [positions, N, features]: the first axis is not the row."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(SIDE, 4), nn.Linear(4, 1)

    def forward(self, images):
        hidden = torch.tanh(self.layer(images[:, 0].transpose(0, 1)))
        return self.head(hidden.mean(0))


class ConditionalReuse(nn.Module):
    """Runs a layer once more on bright batches alone: a trial on small values cannot see it."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(SIDE, SIDE), nn.Linear(SIDE, 1)
        self.bright = False

    def forward(self, images):
        hidden = torch.tanh(self.layer(images[:, 0].mean(1)))
        if self.bright:
            hidden = torch.tanh(self.layer(hidden))
        return self.head(hidden)


class Doubled(nn.Conv2d):
    """A subclass that does with its weight what nn.Conv2d does not."""

    def forward(self, input):
        return self._conv_forward(input, self.weight * self.weight, self.bias)


def convolutional(*layers):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers, *HEAD)


def with_own_forward():
    model = Attentive()
    layer = model.first
    layer.forward = lambda images: nn.functional.linear(images, 2 * layer.weight, layer.bias)
    return model


def with_dropout():
    return convolutional(nn.Dropout(0.5), nn.Dropout2d(0.5))


NETWORKS = {
    # name: (maker, the way that auto ends with, part of book-keeping's refusal)
    "used twice": (UsedTwice, "functional", "again is used twice"),
    "tied weights": (Tied, "functional", "second shares a parameter with first"),
    "loose parameter": (LooseParameter, "functional", r"the network \(LooseParameter\)"),
    "used outside": (UsedOutside, "functional", "layer.weight is used outside"),
    "unused layer": (PartlyUnused, "functional", "spare.weight took no part"),
    "rows lost": (RowsFirstLost, "functional", "layer is given other rows"),
    "subclass": (lambda: convolutional(Doubled(4, 4, 3)), "functional", r"1 \(Doubled\)"),
    "reflecting": (
        lambda: convolutional(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
        "functional",
        "1 .Conv2d. is of no known kind",
    ),
    "padding by name": (
        lambda: convolutional(nn.Conv2d(4, 4, 3, padding="same")),
        "functional",
        "1 .Conv2d. is of no known kind",
    ),
    "parametrised": (
        lambda: convolutional(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))),
        "functional",
        "is of no known kind",
    ),
    "forward of its own": (with_own_forward, "functional", r"first \(Linear\)"),
    "in place": (lambda: convolutional(nn.GroupNorm(2, 4), nn.ReLU(inplace=True)), None, None),
    "grouped and dilated": (
        lambda: convolutional(nn.Conv2d(4, 4, 3, groups=2, dilation=2), nn.Tanh()),
        None,
        None,
    ),
    "linear on three axes": (Attentive, None, None),
}


def network(name, dtype=torch.float32):
    torch.manual_seed(0)
    return NETWORKS[name][0]().to(dtype)


def batch(rows, dtype=torch.float32):
    draws = torch.Generator().manual_seed(2)
    inputs = torch.rand(rows, 1, SIDE, SIDE, generator=draws, dtype=dtype)
    return inputs, torch.randint(0, 2, (rows,), generator=draws)


@pytest.mark.parametrize("sizes", [(1,) * 5, (1, 5, 2)], ids=["images", "patients"])
@pytest.mark.parametrize("name", NETWORKS)
def test_auto_gives_the_right_sum_on_any_network(name, sizes):
    model = network(name, torch.float64)
    inputs, targets = batch(sum(sizes), torch.float64)
    _, norms = reference(model, classification_loss, inputs, targets, sizes, 1.0)
    bound = float(norms.median())
    expected, _ = reference(model, classification_loss, inputs, targets, sizes, bound)
    clipper = choose_clipper(model, classification_loss, Clipping.auto)
    found = clipper.clipped_sum(inputs, targets, sizes, bound)
    clipper.close()
    assert clipper.way == (NETWORKS[name][1] or "book_keeping")
    assert relative(flat(found), expected) < 1e-5
    torch.testing.assert_close(found.norms, norms, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [name for name, row in NETWORKS.items() if row[1]])
def test_book_keeping_by_name_is_refused_where_it_does_not_fit(name):
    inputs, targets = batch(4)
    with pytest.raises(PrivacyError, match=NETWORKS[name][2]) as caught:  # noqa: PT012
        clipper = choose_clipper(network(name), classification_loss, Clipping.book_keeping)
        clipper.clipped_sum(inputs, targets, (1,) * 4, 1.0)
    assert "privacy.clipping=auto" in str(caught.value)


def test_a_layer_that_runs_twice_only_later_is_noticed_then(caplog):
    model = ConditionalReuse().double()
    inputs, targets = batch(4, torch.float64)
    clipper = choose_clipper(model, classification_loss, Clipping.auto)
    clipper.clipped_sum(inputs, targets, (1,) * 4, 0.1)
    assert clipper.way == "book_keeping"
    model.bright = True
    with caplog.at_level(logging.WARNING):
        found = clipper.clipped_sum(inputs, targets, (1,) * 4, 0.1)
    expected, _ = reference(model, classification_loss, inputs, targets, (1,) * 4, 0.1)
    assert relative(flat(found), expected) < 1e-5
    assert clipper.way == "functional"
    assert "layer is used twice" in caplog.text


@pytest.mark.parametrize("network", ["classifier", "unet", "detector", "standardised", "frozen"])
def test_our_own_networks_are_clipped_by_book_keeping(network, caplog):
    model, loss, inputs, targets = case(network, 3, dtype=torch.float32)
    clipper = choose_clipper(model, loss, Clipping.auto)
    clipper.clipped_sum(inputs, targets, (1, 1, 1), 1.0)
    assert clipper.way == "book_keeping"
    assert not caplog.records


class Wrong(BookKeeping):
    """A way with a mistake that no check of structure sees."""

    def clipped_sum(self, inputs, targets, sizes, clipping_norm):
        right = super().clipped_sum(inputs, targets, sizes, clipping_norm)
        return ClippedSum([*right.sums[:-1], right.sums[-1] * 1.01], right.norms)


class Failing(BookKeeping):
    def clipped_sum(self, inputs, targets, sizes, clipping_norm):
        raise TypeError("no such kernel")


@pytest.mark.parametrize("broken", [Wrong, Failing])
def test_a_way_that_fails_its_trial_is_not_used(monkeypatch, caplog, broken):
    monkeypatch.setitem(choice.WAYS, Clipping.book_keeping, broken)
    model, loss, inputs, targets = case("classifier", 3)
    expected, _ = reference(model, loss, inputs, targets, (1, 2), 0.5)
    clipper = choose_clipper(model, loss, Clipping.auto)
    found = clipper.clipped_sum(inputs, targets, (1, 2), 0.5)
    assert clipper.way == "functional"
    assert relative(flat(found), expected) < 1e-5
    assert "trying privacy.clipping=functional" in caplog.text
    by_name = choose_clipper(model, loss, Clipping.book_keeping)
    with pytest.raises(PrivacyError, match=r"trial|fails with"):
        by_name.clipped_sum(inputs, targets, (1, 2), 0.5)


def test_dropout_does_not_fail_the_trial(caplog):
    torch.manual_seed(0)
    model = with_dropout()
    inputs, targets = batch(4)
    clipper = choose_clipper(model, classification_loss, Clipping.auto)
    found = clipper.clipped_sum(inputs, targets, (1, 3), 0.5)
    assert clipper.way == "book_keeping"
    assert float(flat(found).norm()) <= 1.0 + 1e-6
    assert [m.p for m in model.modules() if hasattr(m, "p")] == [0.5, 0.5]
    assert not caplog.records


def test_a_layer_that_starts_at_zero_hides_no_mistake(monkeypatch):
    """With a head of zeros no gradient reaches the layers below: the trial must still see them."""

    class WrongBelow(BookKeeping):
        def clipped_sum(self, inputs, targets, sizes, clipping_norm):
            right = super().clipped_sum(inputs, targets, sizes, clipping_norm)
            return ClippedSum([right.sums[0] * 2, *right.sums[1:]], right.norms)

    monkeypatch.setitem(choice.WAYS, Clipping.book_keeping, WrongBelow)
    model, loss, inputs, targets = case("classifier", 3)
    nn.init.zeros_(model.head.weight)
    clipper = choose_clipper(model, loss, Clipping.auto)
    clipper.clipped_sum(inputs, targets, (1, 2), 0.5)
    assert clipper.way == "functional"


def test_if_no_way_fits_nothing_is_trained(monkeypatch):
    for way in list(choice.WAYS):
        monkeypatch.setitem(choice.WAYS, way, Wrong)
    model, loss, inputs, targets = case("classifier", 3)
    clipper = choose_clipper(model, loss, Clipping.auto)
    with pytest.raises(PrivacyError):
        clipper.clipped_sum(inputs, targets, (1, 2), 0.5)


def test_a_network_that_is_frozen_altogether_is_refused():
    model, loss, _, _ = case("classifier", 1)
    model.requires_grad_(False)
    with pytest.raises(PrivacyError, match="frozen"):
        choose_clipper(model, loss, Clipping.auto)


@pytest.mark.parametrize("way", list(Clipping))
def test_the_trial_changes_neither_the_network_nor_the_callers_random_numbers(way):
    model, loss, inputs, targets = case("classifier", 3, dtype=torch.float32)
    before = [p.clone() for p in model.parameters()]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    clipper = choose_clipper(model, loss, way)
    clipper.clipped_sum(inputs[:0], targets[:0], (), 1.0)  # an empty batch is no trial
    clipper.clipped_sum(inputs, targets, (1, 2), 1.0)
    clipper.close()
    assert torch.equal(torch.rand(2), expected)
    assert model.training
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert not any(p.grad is not None for p in model.parameters())
