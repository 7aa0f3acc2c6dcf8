"""Units of a batch: which rows belong together, and how much of a unit's gradient is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from fedmed.errors import PrivacyError


@dataclass(frozen=True)
class RowUnits:
    """Runs of contiguous rows.

    Attributes:
        sizes: rows of each unit, all at least 1.
    """

    sizes: tuple[int, ...]

    @classmethod
    def of(cls, sizes: Sequence[int], rows: int) -> RowUnits:
        """Check the sizes against the batch.

        Raises:
            PrivacyError: if a size is below 1 or they do not add up to the number of rows.
        """
        if any(size < 1 for size in sizes) or sum(sizes) != rows:
            raise PrivacyError(
                f"Units with {sum(sizes)} rows in all came with a batch of {rows} rows: each unit "
                "must have at least one row, and each row one unit."
            )
        return cls(tuple(int(size) for size in sizes))

    @property
    def rows(self) -> int:
        """Number of rows of the batch."""
        return sum(self.sizes)

    @property
    def single(self) -> bool:
        """Whether each unit is one row."""
        return all(size == 1 for size in self.sizes)

    def slices(self) -> list[slice]:
        """Return the rows of each unit."""
        ends = list(accumulate(self.sizes))
        return [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]

    def row_weights(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return one over the size of each row's unit ``[rows]``: makes a sum a unit's mean."""
        sizes = torch.tensor(self.sizes, device=device)
        return torch.repeat_interleave(sizes.to(dtype).reciprocal(), sizes)

    def sum_rows(self, values: Tensor) -> Tensor:
        """Add up the rows ``[rows, ...]`` of each unit: ``[units, ...]``."""
        if self.single:
            return values
        sizes = torch.tensor(self.sizes, device=values.device)
        owner = torch.repeat_interleave(torch.arange(len(sizes), device=values.device), sizes)
        sums = values.new_zeros((len(self.sizes), *values.shape[1:]))
        return sums.index_add_(0, owner, values)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Work without autograd and without autocast: norms and sums are made in full precision."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def clip_factors(norms: Tensor, clipping_norm: float) -> Tensor:
    """Return what each unit's gradient is multiplied by, ``min(1, clipping_norm / norm)``."""
    return (clipping_norm / norms).clamp(max=1.0)
