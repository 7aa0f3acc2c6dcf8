"""What a strategy is: from the sites' updates to the next global model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedmed.models.parameters import FloatVector


@dataclass(frozen=True)
class WeightedUpdate:
    """One site's update.

    Attributes:
        site: name; updates are summed in the order of names, so that a sum is repeatable.
        update: local weights minus global weights, ``[parameters]``.
        weight: number of training images.
    """

    site: str
    update: FloatVector
    weight: float


class Strategy(Protocol):
    """Turns updates into the next global model; may keep state between rounds."""

    def apply(self, weights: FloatVector, updates: Sequence[WeightedUpdate]) -> FloatVector:
        """Return the next global weights ``[parameters]``."""

    def state(self) -> Mapping[str, NDArray[np.float64]]:
        """Return what a checkpoint must hold besides the weights."""

    def restore(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Take back what :meth:`state` gave."""


def weighted_mean(updates: Sequence[WeightedUpdate]) -> NDArray[np.float64]:
    """Average updates by weight, in float64, in the order of the sites' names.

    Raises:
        ValueError: if there is no update, or if the weights do not add up to more than 0.
    """
    total = sum(update.weight for update in updates)
    if not updates or total <= 0:
        raise ValueError("no update to average")
    mean = np.zeros(updates[0].update.shape, np.float64)
    for update in sorted(updates, key=lambda one: one.site):
        mean += update.update.astype(np.float64) * (update.weight / total)
    return mean
