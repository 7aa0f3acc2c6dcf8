"""Counts and sums of a model's answers on a site's images."""

from __future__ import annotations

import torch
from torch import nn

from fedmed.data.image_set import ImageSet
from fedmed.tasks.base import Aggregate, Task, merge

BATCH = 256


def evaluate(model: nn.Module, images: ImageSet, task: Task) -> Aggregate:
    """Run a model over images and return the mergeable aggregate of its metrics.

    An empty set gives the aggregate of zeros.
    """
    device = next(model.parameters()).device
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, max(len(images), 1), BATCH):
            batch = images.images[start : start + BATCH].to(device)
            targets = images.targets[start : start + BATCH]
            parts.append(task.aggregate(model(batch), targets))
    return merge(parts)
