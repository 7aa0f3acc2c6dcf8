"""What every way of clipping offers: the sum of the units' clipped gradients.

A unit is what differential privacy protects: an image, or a patient with several images. Its rows
lie together in the batch; its gradient is the mean over its rows, clipped as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""From a network's outputs ``[N, ...]`` and targets ``[N, ...]`` to one loss a row ``[N]``."""

WAY_OUT = "Choose privacy.clipping=auto, which finds a way that fits."
"""What to do about a way that does not fit the network."""


@dataclass(frozen=True)
class ClippedSum:
    """Sum over units of ``gradient * min(1, clipping_norm / norm of gradient)``.

    Attributes:
        sums: one tensor for each trained parameter, in the order of ``trained_parameters``.
        norms: L2 norm of each unit's gradient before clipping, ``[units]``; never leaves the site.
    """

    sums: list[Tensor]
    norms: Tensor


class Clipper(Protocol):
    """One way of clipping, bound to a network and a loss.

    Attributes:
        way: its name, as in ``privacy.clipping``.
    """

    way: str

    def clipped_sum(
        self, inputs: Tensor, targets: Tensor, sizes: Sequence[int], clipping_norm: float
    ) -> ClippedSum:
        """Clip each unit's gradient and add them up; leaves ``parameter.grad`` alone.

        Args:
            inputs: rows ``[N, C, H, W]``, those of a unit one after the other; N may be 0.
            targets: ``[N, ...]``.
            sizes: number of rows of each unit, all at least 1, adding up to N.
            clipping_norm: L2 bound on one unit's gradient.
        """

    def close(self) -> None:
        """Take every hook and attribute off the network again."""


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are trained, in the order of ``model.parameters()``."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
