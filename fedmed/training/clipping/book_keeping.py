"""Clipping by book-keeping: one forward and one backward pass for any number of units.

While the backward pass goes down the network, each layer works out what it adds to the units'
gradients from its inputs and its outputs' gradient: the gradients themselves where they are
small, their norms alone where they are large. At the end the norms give each unit's factor, and
each layer its weighted sum (Li et al., 2022; Bu et al., 2022 and 2023). Next to an ordinary step
the convolutions' weight gradients only change their grouping.

It is right only where every trained parameter acts through one known layer that runs once in a
forward pass. All of that is checked in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fedmed.errors import PrivacyError
from fedmed.training.clipping.base import WAY_OUT, ClippedSum, RowLoss, trained_parameters
from fedmed.training.clipping.contributions import Contribution
from fedmed.training.clipping.layers import CoveredLayer, cover
from fedmed.training.clipping.row_units import RowUnits, clip_factors, full_precision


class BookKeeping:
    """The quickest way where it applies.

    Args:
        model: network that does not mix rows.
        loss: one loss a row.

    Raises:
        PrivacyError: if a trained parameter is in no known layer, or in two; it names the layer.
    """

    way = "book_keeping"

    def __init__(self, model: nn.Module, loss: RowLoss) -> None:
        self._model, self._loss = model, loss
        self._parameters = trained_parameters(model)
        self._layers = _covered_layers(model)

    def clipped_sum(
        self, inputs: Tensor, targets: Tensor, sizes: Sequence[int], clipping_norm: float
    ) -> ClippedSum:
        """Clip each unit's gradient and add them up; see :class:`Clipper`.

        Raises:
            PrivacyError: if in this pass a layer ran twice or not at all, a parameter was used
                outside its layer, or rows were rearranged.
        """
        units = RowUnits.of(sizes, len(inputs))
        if not sizes:
            return ClippedSum([torch.zeros_like(p) for p in self._parameters], inputs.new_zeros(0))
        contributions = self._contributions(inputs, targets, units)
        with full_precision(inputs.device):
            squared = torch.stack([c.squared_norms for c in contributions.values()])
            norms = squared.sum(dim=0).sqrt()
            factors = clip_factors(norms, clipping_norm)
            sums = [
                contributions.pop(id(parameter)).weighted_sum(factors)
                for parameter in self._parameters
            ]
        return ClippedSum(sums, norms)

    def close(self) -> None:
        """Nothing to take off: the layers are changed only while a pass runs."""

    def _contributions(
        self, inputs: Tensor, targets: Tensor, units: RowUnits
    ) -> dict[int, Contribution]:
        """Run both passes; contributions by the parameter's ``id``."""
        with torch.enable_grad(), _Pass(self._layers, units).running() as run:
            losses = self._loss(self._model(inputs), targets)
            total = (losses * units.row_weights(losses.device, losses.dtype)).sum()
            strays = torch.autograd.grad(total, [run.anchor, *self._parameters], allow_unused=True)
        for (name, _), stray in zip(_trained_by_name(self._model), strays[1:], strict=True):
            if stray is not None:
                _refuse(f"{name} is used outside its layer")
        found = {id(c.parameter): c for c in run.contributions}
        for name, parameter in _trained_by_name(self._model):
            if id(parameter) not in found:
                _refuse(f"{name} took no part in a forward pass")
        return found


class _Pass:
    """One forward and backward pass: which layers ran, and what they contributed."""

    def __init__(self, layers: dict[str, tuple[nn.Module, CoveredLayer]], units: RowUnits) -> None:
        self._layers = layers
        self._ran: set[str] = set()
        self.units = units
        self.anchor = torch.zeros((), requires_grad=True)
        self.contributions: list[Contribution] = []

    @contextmanager
    def running(self) -> Iterator[_Pass]:
        """Put the layers' own forward functions in place for the time of the pass."""
        try:
            for name, (module, layer) in self._layers.items():
                module.forward = self._forward(name, layer)
            yield self
        finally:
            for module, _ in self._layers.values():
                module.__dict__.pop("forward", None)

    def _forward(self, name: str, layer: CoveredLayer) -> Any:
        def forward(inputs: Tensor, *others: Any, **named: Any) -> Tensor:
            if others or named:
                _refuse(f"{name} is called with more than its inputs")
            if name in self._ran:
                _refuse(f"{name} is used twice in a forward pass")
            if inputs.dim() < 2 or len(inputs) != self.units.rows:
                _refuse(f"{name} is given other rows than the batch's")
            self._ran.add(name)
            outputs: Tensor = _Recorded.apply(inputs, self.anchor, layer, self)  # type: ignore[no-untyped-call]
            return outputs

        return forward


class _Recorded(torch.autograd.Function):
    """A layer whose backward pass hands over its contributions.

    The anchor makes autograd call the first layer too, whose inputs need no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, _anchor: Tensor, layer: CoveredLayer, run: _Pass
    ) -> Tensor:
        outputs, saved = layer.forward(inputs)
        ctx.save_for_backward(*saved)
        ctx.layer, ctx.run = layer, run
        ctx.shape, ctx.dtype = inputs.shape, inputs.dtype
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        with full_precision(grad.device):  # under autocast maps come in half precision
            # Detached, or what a contribution holds would keep the whole graph in memory.
            full = tuple(_full(saved.detach()) for saved in ctx.saved_tensors)
            inputs, contributions = ctx.layer.backward(
                full, _full(grad), ctx.run.units, ctx.shape if ctx.needs_input_grad[0] else None
            )
        ctx.run.contributions.extend(contributions)
        return None if inputs is None else inputs.to(ctx.dtype), None, None, None


def _full(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _covered_layers(model: nn.Module) -> dict[str, tuple[nn.Module, CoveredLayer]]:
    """Return the layers with trained parameters by name; each parameter is in exactly one."""
    layers: dict[str, tuple[nn.Module, CoveredLayer]] = {}
    owners: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        own = [p for p in module._parameters.values() if p is not None and p.requires_grad]
        if not own:
            continue
        layer = cover(module)
        if layer is None:
            _refuse(f"{name or 'the network'} ({type(module).__name__}) is of no known kind")
        for parameter in own:
            if id(parameter) in owners:
                _refuse(f"{name} shares a parameter with {owners[id(parameter)]}")
            owners[id(parameter)] = name
        layers[name] = (module, layer)
    return layers


def _trained_by_name(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def _refuse(reason: str) -> NoReturn:
    raise PrivacyError(
        f"privacy.clipping=book_keeping does not fit this network: {reason}. {WAY_OUT}"
    )
