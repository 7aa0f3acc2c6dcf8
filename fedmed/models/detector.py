"""An anchor-free detector: objects are peaks of a heat map (CenterNet, Zhou et al., 2019).

Per-sample gradients are well defined: no statistic is taken over the batch, no module is used
twice in a forward pass, and no activation works in place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.models.residual_cnn import Convolution, Normalise, ResidualEncoder

BOX_CHANNELS = 4
FINEST_STAGE = 1
PRIOR = 0.1


class Detector(nn.Module):
    """Residual encoder, top-down path (Lin et al., 2017), one head at a quarter of the resolution.

    Args:
        encoder: its stages from the second on are joined; with one stage, that one.
        classes: kinds of objects.
        normalise: maker of normalisation layers.
        convolve: kind of 3x3 convolution.

    Attributes:
        stride: pixels of the image for each position of the output: 4, or 2 with one stage.
    """

    def __init__(
        self,
        encoder: ResidualEncoder,
        classes: int,
        *,
        normalise: Normalise,
        convolve: Convolution = nn.Conv2d,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self._finest = min(FINEST_STAGE, len(encoder.stage_channels) - 1)
        self.stride = 2 ** (self._finest + 1)
        used = encoder.stage_channels[self._finest :]
        width = used[0]
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in used)
        self.norm1 = normalise(width)
        self.activation1 = nn.ReLU()
        self.smooth = convolve(width, 2 * width, 3, padding=1, bias=False)
        self.norm2 = normalise(2 * width)
        self.activation2 = nn.ReLU()
        self.head = nn.Conv2d(2 * width, classes + BOX_CHANNELS, 1)
        bias = torch.zeros(classes + BOX_CHANNELS)
        # Most positions hold no object: start there, or they drown the loss (Lin et al., 2017).
        bias[:classes] = -math.log((1 - PRIOR) / PRIOR)
        self.head.bias = nn.Parameter(bias)

    def forward(self, images: Tensor) -> Tensor:
        """Find objects in images of any size.

        Args:
            images: ``[N, C, H, W]`` in [0, 1].

        Returns:
            ``[N, classes + 4, ceil(H / stride), ceil(W / stride)]``: a heat map of logits for each
            class, then width and height of the box and the offset (x, y) of its centre from the
            position, all four in positions of the output and of any sign.
        """
        maps = self.encoder.feature_maps((images - 0.5) * 4.0)[self._finest :]
        joined = self.lateral[-1](maps[-1])
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            joined = lateral(finer) + functional.interpolate(joined, size=finer.shape[2:])
        hidden = self.activation1(self.norm1(joined))
        hidden = self.activation2(self.norm2(self.smooth(hidden)))
        found: Tensor = self.head(hidden)
        return found
