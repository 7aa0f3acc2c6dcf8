"""The three networks at their default size, each with a loss and a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.configuration.groups import ModelConfig
from fedmed.models.registry import build_model
from fedmed.training.clipping.base import RowLoss

SIDE = 64


@dataclass(frozen=True)
class Problem:
    """A network with a loss for each row and one batch ``[N, 1, 64, 64]``."""

    model: nn.Module
    loss: RowLoss
    inputs: Tensor
    targets: Tensor


def problem(name: str, rows: int, device: torch.device) -> Problem:
    """Build ``classifier``, ``unet`` or ``detector``; the same every time."""
    builder, loss, shape = {
        "classifier": ("residual_cnn", classification_loss, ()),
        "unet": ("unet", segmentation_loss, (1, SIDE, SIDE)),
        "detector": ("detector", detection_loss, (5, SIDE // 4, SIDE // 4)),
    }[name]
    model = build_model(ModelConfig(name=builder), channels=1, outputs=1, seed=0).to(device)
    draws = torch.Generator().manual_seed(1)
    inputs = torch.rand(rows, 1, SIDE, SIDE, generator=draws)
    targets = (torch.rand(rows, *shape, generator=draws) < 0.1).float()
    return Problem(model, loss, inputs.to(device), targets.to(device))


def classification_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of one logit an image."""
    return functional.binary_cross_entropy_with_logits(outputs[:, 0], targets, reduction="none")


def segmentation_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy and soft Dice of each image."""
    entropy = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    shares = outputs.sigmoid()
    overlap = 2 * (shares * targets).sum((1, 2, 3)) + 1
    return entropy.mean((1, 2, 3)) + 1 - overlap / ((shares + targets).sum((1, 2, 3)) + 1)


def detection_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Focal loss of the heat map, L1 of size and offset where there is an object."""
    objects = targets[:, :1]
    entropy = functional.binary_cross_entropy_with_logits(outputs[:, :1], objects, reduction="none")
    focal = entropy * (objects - outputs[:, :1].sigmoid()).square()
    boxes = (outputs[:, 1:] - targets[:, 1:]).abs() * objects
    return focal.sum((1, 2, 3)) + boxes.sum((1, 2, 3))
