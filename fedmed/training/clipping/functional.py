"""Clipping with ``torch.func``: the gradient of one unit's loss, mapped over the units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fedmed.training.clipping.base import ClippedSum, RowLoss, trained_parameters
from fedmed.training.clipping.row_units import RowUnits, clip_factors, full_precision

ROWS_AT_ONCE = 16
"""Rows whose gradients are made together: more need more memory and are no quicker."""


class Functional:
    """Fits any network that ``torch.func.vmap`` can run, whatever its layers do.

    Args:
        model: network that does not mix rows.
        loss: one loss a row.
    """

    way = "functional"

    def __init__(self, model: nn.Module, loss: RowLoss) -> None:
        self._model, self._loss = model, loss
        self._parameters = trained_parameters(model)
        named = dict(model.named_parameters())
        self._names = [name for name, value in named.items() if value.requires_grad]

    def clipped_sum(
        self, inputs: Tensor, targets: Tensor, sizes: Sequence[int], clipping_norm: float
    ) -> ClippedSum:
        """Clip each unit's gradient and add them up; see :class:`Clipper`."""
        units = RowUnits.of(sizes, len(inputs))
        sums = [torch.zeros_like(p, requires_grad=False) for p in self._parameters]
        norms = self._parameters[0].new_zeros(len(sizes), requires_grad=False)
        values = {n: p.detach() for n, p in zip(self._names, self._parameters, strict=True)}
        mapped = torch.func.vmap(
            torch.func.grad(self._unit_loss), in_dims=(None, 0, 0), randomness="different"
        )
        for numbers, rows in _chunks(units):
            gradients = mapped(values, inputs[rows], targets[rows])
            flat = [gradients[name].flatten(1) for name in self._names]
            with full_precision(inputs.device):
                squared = torch.stack([torch.linalg.vector_norm(f, dim=1).square() for f in flat])
                norms[numbers] = squared.sum(dim=0).sqrt()
                factors = clip_factors(norms[numbers], clipping_norm)
                for total, one in zip(sums, flat, strict=True):
                    total.view(-1).add_(factors @ one)
        return ClippedSum(sums, norms)

    def close(self) -> None:
        """Nothing to take off: the network is never changed."""

    def _unit_loss(self, values: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a unit's rows ``[rows, ...]``."""
        outputs = torch.func.functional_call(self._model, values, (inputs,))
        return self._loss(outputs, targets).mean()


def _chunks(units: RowUnits) -> Iterator[tuple[list[int], Tensor]]:
    """Yield units of one size together: their numbers, and their rows ``[units, size]``."""
    slices = units.slices()
    for size in sorted(set(units.sizes)):
        members = [number for number, rows in enumerate(units.sizes) if rows == size]
        at_once = max(1, ROWS_AT_ONCE // size)
        for start in range(0, len(members), at_once):
            numbers = members[start : start + at_once]
            firsts = torch.tensor([slices[number].start for number in numbers])
            yield numbers, firsts[:, None] + torch.arange(size)
