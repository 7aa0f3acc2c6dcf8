"""Layers whose gradients book-keeping can take apart by unit.

Each runs its layer forward with weights that autograd does not see, and at its turn of the
backward pass gives the gradient for its inputs and what it adds to each unit's gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.models.standardised_convolution import StandardisedConv2d, pull_back, standardise
from fedmed.training.clipping import convolution
from fedmed.training.clipping.contributions import Contribution, GhostGradients, HeldGradients
from fedmed.training.clipping.row_units import RowUnits

Backward = tuple[Tensor | None, list[Contribution]]


class CoveredLayer(Protocol):
    """A layer as book-keeping runs it."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the outputs and what ``backward`` needs."""

    def backward(
        self, saved: tuple[Tensor, ...], grad: Tensor, units: RowUnits, shape: torch.Size | None
    ) -> Backward:
        """Return the gradient for the inputs and the layer's contributions.

        Args:
            saved: from ``forward``.
            grad: loss's gradient for the outputs.
            units: rows of each unit.
            shape: of the inputs; None if their gradient is not wanted.
        """


def cover(layer: nn.Module) -> CoveredLayer | None:
    """Return how book-keeping runs a layer, or None if it does not know the layer.

    The type must match exactly: a subclass may do anything with its weights, and so may a layer
    with a forward function of its own.
    """
    kind = _KINDS.get(type(layer))
    if kind is None or set(layer._parameters) - {"weight", "bias"} or "forward" in vars(layer):
        return None
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and (
        layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    ):
        return None
    return kind(layer)


def _trained(layer: nn.Module, name: str) -> nn.Parameter | None:
    parameter = layer._parameters.get(name)
    return parameter if parameter is not None and parameter.requires_grad else None


def _detached(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach()


def _bias(
    layer: nn.Module, row_gradients: Callable[[], Tensor], units: RowUnits
) -> list[Contribution]:
    """Contribution of a bias, from its gradients by row ``[N, O]``."""
    bias = _trained(layer, "bias")
    return [] if bias is None else [HeldGradients(bias, units.sum_rows(row_gradients()))]


class _Convolution:
    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        self._layer = layer
        self._geometry = convolution.Geometry.of(layer)
        self._standardised = isinstance(layer, StandardisedConv2d)

    def forward(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        g = self._geometry
        weight = self._layer.weight.detach()
        if self._standardised:
            weight = standardise(weight)
        bias = _detached(self._layer.bias)
        if convolution.steps_over_pixels(weight, g):
            inputs, g = convolution.read_pixels(inputs, g)
        if g.transposed:
            outputs = functional.conv_transpose2d(
                inputs, weight, bias, g.stride, g.padding, g.output_padding, g.groups, g.dilation
            )
        else:
            outputs = functional.conv2d(
                inputs, weight, bias, g.stride, g.padding, g.dilation, g.groups
            )
        return outputs, (inputs, weight)

    def backward(
        self, saved: tuple[Tensor, ...], grad: Tensor, units: RowUnits, shape: torch.Size | None
    ) -> Backward:
        inputs, weight = saved
        geometry = self._geometry
        sparse = convolution.steps_over_pixels(weight, geometry)
        if sparse:  # the forward pass has saved only what it read
            geometry = replace(geometry, stride=(1, 1))
        contributions = _bias(self._layer, lambda: _positions_sum(grad), units)
        if _trained(self._layer, "weight") is not None:
            contributions.append(self._weight(inputs, weight, grad, geometry, units))
        if shape is None:
            return None, contributions
        gradient = convolution.input_gradient(grad, inputs, weight, geometry)
        if sparse:
            gradient = convolution.spread_pixels(gradient, shape, self._geometry)
        return gradient, contributions

    def _weight(
        self,
        inputs: Tensor,
        weight: Tensor,
        grad: Tensor,
        geometry: convolution.Geometry,
        units: RowUnits,
    ) -> Contribution:
        parameter = self._layer.weight
        if (
            units.single
            and not self._standardised
            and convolution.prefers_ghost(grad, inputs, weight, geometry)
        ):
            return GhostGradients(
                parameter,
                convolution.ghost_squared_norms(grad, inputs, weight, geometry),
                lambda factors: convolution.weight_gradient(
                    grad * factors[:, None, None, None], inputs, weight, geometry
                ),
            )
        gradients = convolution.unit_gradients(grad, inputs, weight, geometry, units)
        if self._standardised:
            gradients = pull_back(parameter.detach(), gradients)
        return HeldGradients(parameter, gradients)


class _Linear:
    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer

    def forward(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        weight = self._layer.weight.detach()
        return functional.linear(inputs, weight, _detached(self._layer.bias)), (inputs, weight)

    def backward(
        self, saved: tuple[Tensor, ...], grad: Tensor, units: RowUnits, shape: torch.Size | None
    ) -> Backward:
        inputs, weight = saved
        # [N, ..., features] to [N, positions, features]
        columns = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        rows = grad.reshape(len(grad), -1, grad.shape[-1])
        contributions = _bias(self._layer, lambda: rows.sum(dim=1), units)
        if _trained(self._layer, "weight") is not None:
            contributions.append(self._weight(columns, rows, units))
        return (None if shape is None else grad @ weight), contributions

    def _weight(self, inputs: Tensor, grad: Tensor, units: RowUnits) -> Contribution:
        parameter = self._layer.weight
        if units.single and inputs.shape[1] == 1:
            inputs, grad = inputs[:, 0], grad[:, 0]
            return GhostGradients(
                parameter,
                inputs.square().sum(dim=1) * grad.square().sum(dim=1),
                lambda factors: (grad * factors[:, None]).T @ inputs,
            )
        if units.single:
            return HeldGradients(parameter, torch.bmm(grad.transpose(1, 2), inputs))
        gradients = [
            grad[rows].flatten(0, 1).T @ inputs[rows].flatten(0, 1) for rows in units.slices()
        ]
        return HeldGradients(parameter, torch.stack(gradients))


class _GroupNorm:
    """GroupNorm of N rows as that of one row with N times the channels.

    torch's own backward pass then gives the affine parameters' gradients row by row, at no cost.
    """

    def __init__(self, layer: nn.GroupNorm) -> None:
        self._layer = layer

    def forward(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        layer = self._layer
        inputs = inputs.float() if inputs.dtype in _HALF else inputs
        inputs = inputs.contiguous()
        rows, channels = inputs.shape[:2]
        outputs, mean, deviation = torch.native_group_norm(
            inputs,
            _detached(layer.weight),
            _detached(layer.bias),
            rows,
            channels,
            inputs[0, 0].numel(),
            layer.num_groups,
            layer.eps,
        )
        return outputs, (inputs, mean, deviation)

    def backward(
        self, saved: tuple[Tensor, ...], grad: Tensor, units: RowUnits, shape: torch.Size | None
    ) -> Backward:
        layer = self._layer
        inputs, mean, deviation = saved
        rows, channels = inputs.shape[:2]
        input_gradient, weight, bias = torch.ops.aten.native_group_norm_backward(
            grad.reshape(1, rows * channels, -1),
            inputs.reshape(1, rows * channels, -1),
            mean.reshape(1, -1),
            deviation.reshape(1, -1),
            layer.weight.detach().repeat(rows),
            1,
            rows * channels,
            inputs[0, 0].numel(),
            rows * layer.num_groups,
            (shape is not None, True, True),
        )
        contributions = _bias(layer, lambda: bias.view(rows, channels), units)
        trained = _trained(layer, "weight")
        if trained is not None:
            contributions.append(
                HeldGradients(trained, units.sum_rows(weight.view(rows, channels)))
            )
        return (None if shape is None else input_gradient.view(shape)), contributions


def _positions_sum(grad: Tensor) -> Tensor:
    """From ``[N, O, H, W]`` to ``[N, O]``."""
    return grad.flatten(2).sum(dim=2)


_HALF = (torch.bfloat16, torch.float16)
_KINDS: dict[type[nn.Module], Callable[[Any], CoveredLayer]] = {
    nn.Conv2d: _Convolution,
    nn.ConvTranspose2d: _Convolution,
    StandardisedConv2d: _Convolution,
    nn.Linear: _Linear,
    nn.GroupNorm: _GroupNorm,
}
