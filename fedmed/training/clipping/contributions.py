"""What one layer adds to each unit's gradient, held until the units' norms are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Contribution(Protocol):
    """The units' gradients for one parameter.

    Attributes:
        parameter: the parameter.
        squared_norms: squared L2 norm of each unit's gradient for it, ``[units]``.
    """

    parameter: Tensor
    squared_norms: Tensor

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """Return the sum over units of factor times gradient, in the parameter's shape."""


class HeldGradients:
    """Gradients of all units, held as they are: for layers with few parameters."""

    def __init__(self, parameter: Tensor, gradients: Tensor) -> None:
        """Take gradients ``[units, ...]``."""
        self.parameter = parameter
        self._gradients = gradients.reshape(len(gradients), -1)
        self.squared_norms = torch.linalg.vector_norm(self._gradients, dim=1).square()

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """Return the sum over units of factor times gradient, in the parameter's shape."""
        return (factors @ self._gradients).view(self.parameter.shape)


class GhostGradients:
    """Norms now, the weighted sum later: no unit's gradient is ever made.

    For layers with many parameters and few positions (Li et al., 2022; Bu et al., 2023).
    """

    def __init__(
        self, parameter: Tensor, squared_norms: Tensor, summed: Callable[[Tensor], Tensor]
    ) -> None:
        self.parameter = parameter
        self.squared_norms = squared_norms
        self._summed = summed

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """Return the sum over units of factor times gradient, in the parameter's shape."""
        return self._summed(factors).view(self.parameter.shape)
