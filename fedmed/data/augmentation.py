"""Random changes of training images, in torch, on the device that holds them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

MAX_ROTATION = math.radians(15)
MAX_SCALE = 0.15
MAX_SHIFT = 0.08
MAX_CONTRAST = 0.2
MAX_BRIGHTNESS = 0.1


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip, rotate, scale, shift, and change contrast and brightness, each image by itself.

    Args:
        images: ``[N, C, S, S]`` in [0, 1].
        generator: a CPU generator, so that a seed means the same on every device.

    Returns:
        A new tensor of the same shape, in [0, 1].
    """
    if len(images) == 0:
        return images

    def draw(low: float, high: float) -> Tensor:
        uniform = torch.rand(len(images), generator=generator)
        return (low + (high - low) * uniform).to(images.device)

    angle = draw(-MAX_ROTATION, MAX_ROTATION)
    scale = draw(1 - MAX_SCALE, 1 + MAX_SCALE)
    flip = torch.where(draw(-1, 1) < 0, -1.0, 1.0)
    shift_x, shift_y = draw(-MAX_SHIFT, MAX_SHIFT), draw(-MAX_SHIFT, MAX_SHIFT)
    contrast = draw(1 - MAX_CONTRAST, 1 + MAX_CONTRAST).view(-1, 1, 1, 1)
    brightness = draw(-MAX_BRIGHTNESS, MAX_BRIGHTNESS).view(-1, 1, 1, 1)

    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.stack([cosine * flip, -sine, 2 * shift_x], dim=1),
        torch.stack([sine * flip, cosine, 2 * shift_y], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, align_corners=False, padding_mode="zeros")
    return ((moved - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)
