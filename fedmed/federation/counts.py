"""What a site adds to the sums besides its update: its weight, its loss, its evaluation counts.

One vector with an agreed layout, so that it can be summed under the masks: the server learns the
sums of weights, losses and counts over the sites, and no site's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod

import numpy as np
from numpy.typing import NDArray

from fedmed.federation.records import Shapes
from fedmed.tasks.base import Aggregate


@dataclass(frozen=True)
class Tallies:
    """Numbers of one site, or their sums over the sites.

    Attributes:
        weight: of the update in the average: numbers of units or images.
        weighted_loss: mean training loss times weight; 0 with differential privacy.
        lossless: weight of the sites that give no loss.
        clipped: numbers of the update that were beyond ``transport.update_bound``.
        capped: sites whose weight was cut to the round's bound.
    """

    weight: float = 0.0
    weighted_loss: float = 0.0
    lossless: float = 0.0
    clipped: float = 0.0
    capped: float = 0.0

    def mean_loss(self) -> float | None:
        """Return the mean loss of the sites that told theirs; None if there is none."""
        told = self.weight - self.lossless
        return self.weighted_loss / told if told > 0 else None


_TALLIES = tuple(entry.name for entry in fields(Tallies))


@dataclass(frozen=True)
class CountsLayout:
    """Where what stands in the vector.

    Attributes:
        shapes: of the arrays of the task's aggregate, by name.
        splits: sets of images that are evaluated, such as ``val``.
    """

    shapes: Shapes
    splits: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Numbers in the vector."""
        return len(_TALLIES) + len(self.splits) * sum(prod(s) for s in self.shapes.values())

    def join(self, tallies: Tallies, aggregates: Mapping[str, Aggregate]) -> NDArray[np.float64]:
        """Return the vector ``[size]``.

        Args:
            tallies: of the training; zeros in an evaluation.
            aggregates: one for each of ``splits``.
        """
        pieces = [np.array([getattr(tallies, name) for name in _TALLIES], np.float64)]
        for split in self.splits:
            pieces += [aggregates[split][name].reshape(-1) for name in sorted(self.shapes)]
        return np.concatenate(pieces)

    def split(self, vector: NDArray[np.float64]) -> tuple[Tallies, dict[str, Aggregate]]:
        """Return what :meth:`join` was given, or sums of it.

        Raises:
            ValueError: if the vector has another size.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"expected {self.size} numbers")
        tallies = Tallies(*(float(value) for value in vector[: len(_TALLIES)]))
        start = len(_TALLIES)
        aggregates: dict[str, Aggregate] = {}
        for split in self.splits:
            aggregate: Aggregate = {}
            for name in sorted(self.shapes):
                shape = self.shapes[name]
                aggregate[name] = vector[start : start + prod(shape)].reshape(shape)
                start += prod(shape)
            aggregates[split] = aggregate
        return tallies, aggregates
