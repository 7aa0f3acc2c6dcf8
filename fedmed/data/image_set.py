"""Preprocessed images of one split, held in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Images with their targets.

    Attributes:
        images: float32 in [0, 1], ``[N, C, S, S]``.
        targets: one target an image, ``[N, ...]``; the task says which.
        patients: index of each image's patient within the site, ``[N]``.
    """

    images: Tensor
    targets: Tensor
    patients: Tensor

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.targets) == len(self.patients):
            raise ValueError("images, targets and patients differ in length")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def patient_count(self) -> int:
        """Number of different patients."""
        return len(torch.unique(self.patients))

    def to(self, device: torch.device) -> ImageSet:
        """Copy to a device; the same object if it is there already."""
        if self.images.device == device:
            return self
        return ImageSet(self.images.to(device), self.targets.to(device), self.patients.to(device))

    @staticmethod
    def union(sets: list[ImageSet]) -> ImageSet:
        """Pool the sets of several sites; patients of different sites stay different."""
        offset, patients = 0, []
        for one in sets:
            patients.append(one.patients + offset)
            offset += int(one.patients.max()) + 1 if len(one) else 0
        return ImageSet(
            torch.cat([one.images for one in sets]),
            torch.cat([one.targets for one in sets]),
            torch.cat(patients),
        )
