"""Networks, losses and the reference for the tests of clipping."""

import torch
from torch import nn
from torch.nn import functional

from fedmed.configuration.groups import ModelConfig
from fedmed.models.registry import build_model

SIDE = 16
CONFIGS = {
    "classifier": ModelConfig(width=4, stages=3),
    "unet": ModelConfig(name="unet", width=4, stages=3),
    "detector": ModelConfig(name="detector", width=4, stages=3),
    "standardised": ModelConfig(width=4, stages=2, weight_standardisation=True),
    "frozen": ModelConfig(width=4, stages=2, freeze=["encoder.layers.0*", "*.norm2.*"]),
}


def classification_loss(outputs, targets):
    return functional.binary_cross_entropy_with_logits(
        outputs[:, 0], targets.to(outputs), reduction="none"
    )


def segmentation_loss(outputs, targets):
    """Dice and cross-entropy of each image."""
    targets = targets.to(outputs)
    entropy = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    shares = outputs.sigmoid()
    overlap = 2 * (shares * targets).sum((1, 2, 3)) + 1
    return entropy.mean((1, 2, 3)) + 1 - overlap / ((shares + targets).sum((1, 2, 3)) + 1)


def detection_loss(outputs, targets):
    """Focal-like loss of the heat map and L1 of size and offset at the objects."""
    targets = targets.to(outputs)
    objects = targets[:, :1]
    entropy = functional.binary_cross_entropy_with_logits(outputs[:, :1], objects, reduction="none")
    focal = entropy * (objects - outputs[:, :1].sigmoid()).square()
    boxes = (outputs[:, 1:] - targets[:, 1:]).abs() * objects
    return focal.sum((1, 2, 3)) + boxes.sum((1, 2, 3))


LOSSES = {"unet": segmentation_loss, "detector": detection_loss}


def case(name, rows, seed=0, dtype=torch.float64):
    """Return a network, its loss, and a batch with gradients of very different sizes."""
    model = build_model(CONFIGS[name], channels=1, outputs=1, seed=seed).to(dtype)
    draws = torch.Generator().manual_seed(seed + 1)
    inputs = torch.rand(rows, 1, SIDE, SIDE, generator=draws, dtype=torch.float64)
    inputs *= torch.rand(rows, 1, 1, 1, generator=draws, dtype=torch.float64) * 4
    shape = {"unet": (1, SIDE, SIDE), "detector": (5, SIDE // 4, SIDE // 4)}.get(name, ())
    targets = torch.randint(0, 2, (rows, *shape), generator=draws)
    return model, LOSSES.get(name, classification_loss), inputs.to(dtype), targets


def unit_gradients(model, loss, inputs, targets, sizes):
    """Reference: one unit at a time, one backward pass a row, by nothing but autograd."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    start, units = 0, []
    for size in sizes:
        rows = []
        for row in range(start, start + size):
            one = loss(model(inputs[row : row + 1]), targets[row : row + 1]).sum()
            found = torch.autograd.grad(one, parameters, allow_unused=True)
            rows.append(
                torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g).flatten()
                        for p, g in zip(parameters, found, strict=True)
                    ]
                )
            )
        units.append(torch.stack(rows).mean(dim=0))
        start += size
    return torch.stack(units)


def reference(model, loss, inputs, targets, sizes, clipping_norm):
    gradients = unit_gradients(model, loss, inputs, targets, sizes)
    norms = gradients.norm(dim=1)
    return sum(
        g * min(1.0, clipping_norm / float(n)) for g, n in zip(gradients, norms, strict=True)
    ), norms


def flat(clipped):
    return torch.cat([one.flatten() for one in clipped.sums])


def relative(found, expected):
    return float((found - expected).detach().norm() / expected.detach().norm())


class Attentive(nn.Module):
    """Linear layers on [N, positions, features]."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(SIDE, 8)
        self.last = nn.Linear(8, 1)

    def forward(self, images):
        hidden = torch.relu(self.first(images[:, 0]))
        return self.last(hidden.mean(dim=1))
