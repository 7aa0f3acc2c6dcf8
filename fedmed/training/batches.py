"""Which images make up each step's batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def shuffled_batches(
    images: int, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield ``steps`` batches of image indices, each epoch a new permutation.

    Batches are full; what is left at the end of an epoch opens the next one.
    """
    size = min(batch_size, images)
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(images, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]


def steps_per_round(local_epochs: float, images: int, batch_size: int) -> int:
    """Number of steps without differential privacy: at least one."""
    return max(1, round(local_epochs * images / min(batch_size, images)))
