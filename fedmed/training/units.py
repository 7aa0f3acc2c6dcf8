"""What differential privacy protects, and which of it is in a step's batch.

The unit is an image, or a patient with all images. Batches are drawn by Poisson sampling of
units: each is in a batch by itself, with the same probability, whoever else is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmed.configuration.groups import Unit
from fedmed.data.image_set import ImageSet


@dataclass(frozen=True)
class UnitBatch:
    """The rows of one step.

    Attributes:
        images: indices into the image set, those of a unit one after the other.
        sizes: number of rows of each unit.
    """

    images: Tensor
    sizes: list[int]

    def repeated(self, times: int) -> UnitBatch:
        """Return the batch with every image ``times`` times, for several views of it."""
        if times == 1:
            return self
        return UnitBatch(
            self.images.repeat_interleave(times), [size * times for size in self.sizes]
        )

    def split(self, rows: int) -> Iterator[UnitBatch]:
        """Cut into batches of at most ``rows`` rows, never within a unit.

        A unit with more rows than that makes a batch of its own. An empty batch yields nothing.
        """
        start = end = first = 0
        for number, size in enumerate(self.sizes):
            if end > start and end + size - start > rows:
                yield UnitBatch(self.images[start:end], self.sizes[first:number])
                start, first = end, number
            end += size
        if end > start:
            yield UnitBatch(self.images[start:end], self.sizes[first:])


class Units:
    """The units of a site's training images.

    Args:
        images: the training images.
        unit: image or patient.
        images_per_patient: most images that a patient lends to one step.
    """

    def __init__(self, images: ImageSet, unit: Unit, images_per_patient: int = 1) -> None:
        if unit == Unit.image:
            self._members: list[Tensor] = [one.view(1) for one in torch.arange(len(images))]
        else:
            patients = images.patients.cpu()
            order = torch.argsort(patients, stable=True)
            _, counts = torch.unique_consecutive(patients[order], return_counts=True)
            self._members = list(torch.tensor_split(order, counts.cumsum(0)[:-1]))
        self._most = images_per_patient if unit == Unit.patient else 1

    def __len__(self) -> int:
        return len(self._members)

    @property
    def largest(self) -> int:
        """Number of images of the unit that has most."""
        return max((len(members) for members in self._members), default=0)

    def batches(
        self, sample_rate: float, steps: int, generator: torch.Generator
    ) -> Iterator[UnitBatch]:
        """Yield ``steps`` Poisson samples, some of them perhaps empty.

        A sampled patient with more images than allowed lends some, drawn anew each time. Which
        ones depends on nothing but the patient's own images, so the patient still makes a
        difference of one clipped gradient.
        """
        for _ in range(steps):
            coins = torch.rand(len(self), generator=generator, dtype=torch.float64)
            drawn = [self._some(int(n), generator) for n in (coins < sample_rate).nonzero()[:, 0]]
            images = torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.long)
            yield UnitBatch(images, [len(one) for one in drawn])

    def _some(self, number: int, generator: torch.Generator) -> Tensor:
        members = self._members[number]
        if len(members) <= self._most:
            return members
        return members[torch.randperm(len(members), generator=generator)[: self._most]]
