"""Learning rate over a whole federated run."""

from __future__ import annotations

import math

from fedmed.configuration.groups import Schedule

FINAL_SHARE = 0.02


def learning_rate(base: float, schedule: Schedule, progress: float) -> float:
    """Return the learning rate at ``progress`` in [0, 1] of the run.

    The cosine schedule (Loshchilov and Hutter, 2017, without restarts) falls to 2 % of the base.
    """
    if schedule == Schedule.constant:
        return base
    progress = min(max(progress, 0.0), 1.0)
    return base * (FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * progress)) / 2)
