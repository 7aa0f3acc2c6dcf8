"""A strategy that sees the sum of the updates and no single one, perhaps with the server's noise.

For comparisons of who adds the noise (``privacy.model``). With secure aggregation the mean is all
that there is anyway; with other transports the process that averages must be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedmed.federation.strategies.base import Strategy, WeightedUpdate, weighted_mean
from fedmed.models.parameters import FloatVector

ServerNoise = Callable[[int, float], NDArray[np.float64]]
"""From the round's number and the total weight to noise for the mean update ``[parameters]``."""
_ROUNDS = "sum_only.rounds"


class SumOnly:
    """Hands another strategy the mean update under the name ``sum``.

    Args:
        inner: what turns the mean into the next model.
        noise: added to the mean (``privacy.model=central``); None adds nothing.
    """

    def __init__(self, inner: Strategy, noise: ServerNoise | None = None) -> None:
        self._inner = inner
        self._noise = noise
        self._rounds = 0

    def apply(self, weights: FloatVector, updates: Sequence[WeightedUpdate]) -> FloatVector:
        """Average, add noise, and let the inner strategy take its step."""
        mean = weighted_mean(updates)
        total = sum(update.weight for update in updates)
        self._rounds += 1
        if self._noise is not None:
            mean += self._noise(self._rounds, total)
        return self._inner.apply(weights, [WeightedUpdate("sum", mean.astype(np.float32), total)])

    def state(self) -> Mapping[str, NDArray[np.float64]]:
        """Return the inner state and the number of rounds."""
        return {**self._inner.state(), _ROUNDS: np.array([self._rounds], np.float64)}

    def restore(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Take back what :meth:`state` gave."""
        inner = {name: value for name, value in state.items() if name != _ROUNDS}
        self._rounds = int(state[_ROUNDS][0]) if _ROUNDS in state else 0
        self._inner.restore(inner)
