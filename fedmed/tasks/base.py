"""What a task must offer; the three files of each task folder fill this in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedmed.data.manifest import ImageRecord

Aggregate = dict[str, NDArray[np.float64]]
"""Counts and sums over images. Aggregates of two sets of images add up to that of their union."""


class Task(Protocol):
    """A kind of question asked of an image, with its loss and its mergeable metrics."""

    @property
    def name(self) -> str:
        """Name of the task folder."""

    @property
    def outputs(self) -> int:
        """Numbers that the network gives for one image (classification) or pixel."""

    @property
    def primary_metric(self) -> str:
        """Metric that plots and tables show first."""

    @property
    def required_columns(self) -> frozenset[str]:
        """Manifest columns without which a site cannot take part."""

    def encode(self, labels: Sequence[int]) -> Tensor:
        """Turn one image's class indices into its target tensor."""

    def strata(self, records: Sequence[ImageRecord], labels: Sequence[Sequence[int]]) -> list[int]:
        """Return one small integer an image, by which splits are balanced."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one loss an image ``[N]``; per-sample gradients need it unreduced."""

    def aggregate(self, outputs: Tensor, targets: Tensor) -> Aggregate:
        """Count what the metrics need over ``N`` images."""

    @property
    def aggregate_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of each array of an aggregate, checked on receipt."""

    def metrics(self, aggregate: Aggregate) -> dict[str, float]:
        """Compute metrics from an aggregate; NaN where they are not defined."""

    def error_bounds(self, aggregate: Aggregate) -> dict[str, float]:
        """Return how far each inexact metric can be from the one of unbinned answers."""


def merge(aggregates: Sequence[Aggregate]) -> Aggregate:
    """Add aggregates of disjoint sets of images.

    Raises:
        ValueError: if there is none, or if their names differ.
    """
    if not aggregates:
        raise ValueError("nothing to merge")
    names = aggregates[0].keys()
    if any(other.keys() != names for other in aggregates):
        raise ValueError("aggregates of different tasks")
    return {name: np.sum([a[name] for a in aggregates], axis=0) for name in names}
