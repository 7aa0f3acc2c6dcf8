"""Convolution with standardised filters."""

from __future__ import annotations

from torch import Tensor, nn

VARIANCE_FLOOR = 1e-5


class StandardisedConv2d(nn.Conv2d):
    """Convolution whose filters are given mean 0 and variance 1 before use (Qiao et al., 2019).

    The stored weight is free; each filter, over its inputs and positions, is standardised anew in
    every forward pass. De et al. (2022) found it to help under differential privacy.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, H', W']``, as ``nn.Conv2d`` does."""
        outputs: Tensor = self._conv_forward(input, standardise(self.weight), self.bias)
        return outputs


def standardise(weight: Tensor) -> Tensor:
    """Return filters ``[outputs, ...]`` with mean 0 and variance 1 over all but the first axis."""
    filters = weight.flatten(1)
    centred = filters - filters.mean(dim=1, keepdim=True)
    return (centred * _inverse_deviation(centred)).view_as(weight)


def pull_back(weight: Tensor, gradients: Tensor) -> Tensor:
    """Turn gradients for the standardised filters into gradients for the stored weight.

    The derivative of :func:`standardise` is symmetric, so one formula serves any number of
    gradients.

    Args:
        weight: stored weight ``[outputs, ...]``.
        gradients: for the standardised weight, ``[K, outputs, ...]``.

    Returns:
        ``[K, outputs, ...]``.
    """
    filters = weight.flatten(1)
    centred = filters - filters.mean(dim=1, keepdim=True)
    scale = _inverse_deviation(centred)
    standardised = centred * scale
    flat = gradients.flatten(2)
    along = (flat * standardised).mean(dim=2, keepdim=True)
    pulled = flat - flat.mean(dim=2, keepdim=True)
    pulled.sub_(along * standardised).mul_(scale)
    return pulled.view_as(gradients)


def _inverse_deviation(centred: Tensor) -> Tensor:
    return (centred.square().mean(dim=1, keepdim=True) + VARIANCE_FLOOR).rsqrt()
