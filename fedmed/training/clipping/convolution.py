"""Kernels for convolutions: each unit's weight gradient, or only its norm.

The limits below were measured on one thread of an AMD EPYC with torch 2.13 (oneDNN 3.12), batch
64: kernels of 1 and 3, 16 to 256 channels, 4x4 to 64x64 positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.training.clipping.row_units import RowUnits

# One grouped convolution does the rows' weight gradients at nearly the price of the ordinary one,
# as long as they all stay in the cache: so many values at a time.
GROUPED_VALUES = 2**19
# The norm by inner products costs about inputs' x outputs' positions: it is the quicker way where
# the weights are more than 16 times as many. At 8 times it costs 1 % of a step and saves the
# memory of the largest gradients.
GHOST_FACTOR = 8


@dataclass(frozen=True)
class Geometry:
    """Settings of a convolution, as ``aten::convolution_backward`` takes them."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    transposed: bool
    output_padding: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.ConvTranspose2d) -> Geometry:
        """Read the settings of a layer that pads with zeros by a number of pixels."""
        padding = layer.padding
        if isinstance(padding, str):
            raise TypeError("padding by name")  # refused before, by the choice of layers
        return cls(
            (layer.stride[0], layer.stride[1]),
            (padding[0], padding[1]),
            (layer.dilation[0], layer.dilation[1]),
            layer.transposed,
            (layer.output_padding[0], layer.output_padding[1]),
            layer.groups,
        )


def input_gradient(grad: Tensor, inputs: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the loss's gradient for a convolution's inputs, in their shape."""
    return _backward(grad, inputs, weight, geometry, geometry.groups, (True, False, False))[0]


def steps_over_pixels(weight: Tensor, geometry: Geometry) -> bool:
    """Whether a convolution reads single pixels and skips some, as a residual shortcut does."""
    pointwise = tuple(weight.shape[2:]) == (1, 1) and geometry.padding == (0, 0)
    return pointwise and geometry.stride != (1, 1) and not geometry.transposed


def read_pixels(inputs: Tensor, geometry: Geometry) -> tuple[Tensor, Geometry]:
    """Return the pixels that such a convolution reads, and its settings without the stride."""
    down, along = geometry.stride
    return inputs[:, :, ::down, ::along].contiguous(), replace(geometry, stride=(1, 1))


def spread_pixels(pixels: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """Inverse of :func:`read_pixels` for gradients: zero where nothing was read.

    oneDNN takes about ten times as long for the same (torch 2.13, AMD EPYC).
    """
    down, along = geometry.stride
    spread = pixels.new_zeros(shape)
    spread[:, :, ::down, ::along] = pixels
    return spread


def weight_gradient(grad: Tensor, inputs: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the weight's gradient summed over all rows, in the weight's shape."""
    return _backward(grad, inputs, weight, geometry, geometry.groups, (False, True, False))[1]


def unit_gradients(
    grad: Tensor, inputs: Tensor, weight: Tensor, geometry: Geometry, units: RowUnits
) -> Tensor:
    """Return the weight's gradient of each unit.

    Args:
        grad: loss's gradient for the outputs ``[N, O, H', W']``.
        inputs: ``[N, I, H, W]``.
        weight: only its shape and type count.
        geometry: settings.
        units: rows of each unit.

    Returns:
        ``[units, *weight.shape]``.
    """
    if units.single and _is_product(weight, geometry):
        # A 1x1 convolution is a matrix product at each pixel; oneDNN does not take it in groups.
        products = torch.bmm(grad.flatten(2), inputs.flatten(2).transpose(1, 2))
        return products.view(len(inputs), *weight.shape)
    gradients = weight.new_empty((len(units.sizes), *weight.shape))
    if units.single:
        at_once = max(1, GROUPED_VALUES // weight.numel())
        for start in range(0, len(inputs), at_once):
            rows = slice(start, start + at_once)
            gradients[rows] = _grouped(grad[rows], inputs[rows], weight, geometry)
    else:
        for unit, rows in enumerate(units.slices()):
            gradients[unit] = weight_gradient(grad[rows], inputs[rows], weight, geometry)
    return gradients


def _is_product(weight: Tensor, geometry: Geometry) -> bool:
    plain = Geometry((1, 1), (0, 0), geometry.dilation, False, (0, 0), 1)
    return tuple(weight.shape[2:]) == (1, 1) and geometry == plain


def _grouped(grad: Tensor, inputs: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """One convolution with a group for each row: the groups' weight gradients are the rows'."""
    rows = len(inputs)
    # Never read: the weight's gradient does not depend on the weight.
    shape = weight.new_empty((rows * weight.shape[0], *weight.shape[1:]))
    gradient = _backward(
        grad.reshape(1, -1, *grad.shape[2:]),
        inputs.reshape(1, -1, *inputs.shape[2:]),
        shape,
        geometry,
        rows * geometry.groups,
        (False, True, False),
    )[1]
    return gradient.view(rows, *weight.shape)


def prefers_ghost(grad: Tensor, inputs: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether norms by inner products are quicker than making each row's gradient."""
    if geometry.groups != 1:
        return False
    positions = math.prod(inputs.shape[2:]) * math.prod(grad.shape[2:])
    return GHOST_FACTOR * positions <= weight.numel()


def ghost_squared_norms(grad: Tensor, inputs: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the squared norm of each row's weight gradient ``[N]`` without making it.

    With ``A`` the inner products of the inputs' pixels and ``B`` those of the gradient's, it is
    the sum over kernel offsets d and positions t, u of ``A[st + d, su + d] * B[t, u]`` with stride
    s (Rochette et al., 2019; Bu et al., 2022). Taking the products before the offsets saves a
    factor of the kernel's area against unfolding. Single precision, as the gradients themselves
    are made in: ``noise.CLIPPING_MARGIN`` pays for the rounding of both.
    """
    if geometry.transposed:  # the same sum with the two maps in each other's place
        grad, inputs = inputs, grad
    rows, height, width = len(inputs), *inputs.shape[2:]
    above, beside = geometry.padding
    products = _inner_products(inputs).view(rows, height, width, height, width)
    products = functional.pad(products, (beside, beside, above, above) * 2)
    out_height, out_width = grad.shape[2:]
    total = torch.zeros_like(products[:, :out_height, :out_width, :out_height, :out_width])
    for y in range(weight.shape[2]):
        for x in range(weight.shape[3]):
            down = _taps(y, geometry.dilation[0], geometry.stride[0], out_height)
            along = _taps(x, geometry.dilation[1], geometry.stride[1], out_width)
            total += products[:, down, along, down, along]
    return (total.flatten(1) * _inner_products(grad).flatten(1)).sum(dim=1).clamp_(min=0.0)


def _taps(offset: int, dilation: int, stride: int, count: int) -> slice:
    start = offset * dilation
    return slice(start, start + stride * (count - 1) + 1, stride)


def _inner_products(maps: Tensor) -> Tensor:
    """From ``[N, C, H, W]`` to ``[N, H*W, H*W]``."""
    flat = maps.flatten(2)
    return torch.bmm(flat.transpose(1, 2), flat)


def _backward(
    grad: Tensor,
    inputs: Tensor,
    weight: Tensor,
    geometry: Geometry,
    groups: int,
    mask: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad,
        inputs,
        weight,
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.transposed,
        geometry.output_padding,
        groups,
        mask,
    )
    return result
