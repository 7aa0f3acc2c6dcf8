"""Exponential moving average of a network's weights (Polyak and Juditsky, 1992)."""

from __future__ import annotations

import torch
from torch import nn


class WeightAverage:
    """Averages the steps of one round; noise of single steps averages out.

    A function of the noised weights alone, so it costs no privacy (De et al., 2022).

    Args:
        model: network whose trained parameters are averaged.
        decay: share of the average that stays at each step, between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._averages = [torch.zeros_like(p) for p in self._parameters]
        self._decay = decay
        self._weight = 0.0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        self._weight = self._decay * self._weight + (1 - self._decay)
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            average.mul_(self._decay).add_(parameter, alpha=1 - self._decay)

    @torch.no_grad()
    def load(self) -> None:
        """Put the average, corrected for its start at zero, into the network."""
        if self._weight == 0:
            return
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            parameter.copy_(average / self._weight)
