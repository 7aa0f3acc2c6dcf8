"""A U-Net with group normalisation for 2-D segmentation.

Per-sample gradients are well defined: no statistic is taken over the batch, no module is used
twice in a forward pass, and no activation works in place.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, cat, nn
from torch.nn import functional

from fedmed.models.residual_cnn import Convolution, Normalise


class DoubleConvolution(nn.Module):
    """Two 3x3 convolutions, each followed by normalisation and ReLU."""

    def __init__(
        self, inputs: int, outputs: int, normalise: Normalise, convolve: Convolution
    ) -> None:
        super().__init__()
        self.conv1 = convolve(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = normalise(outputs)
        self.activation1 = nn.ReLU()
        self.conv2 = convolve(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = normalise(outputs)
        self.activation2 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, H, W]``."""
        hidden = self.activation1(self.norm1(self.conv1(maps)))
        outputs: Tensor = self.activation2(self.norm2(self.conv2(hidden)))
        return outputs


class UNet(nn.Module):
    """Encoder and decoder with skip connections at each resolution (Ronneberger et al., 2015).

    Args:
        channels: channels of the input image.
        outputs: maps that come out, one a class.
        width: channels at full resolution; each stage doubles them.
        stages: number of resolutions, at least 1.
        normalise: maker of normalisation layers.
        convolve: kind of 3x3 convolution.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        width: int,
        stages: int,
        normalise: Normalise,
        convolve: Convolution = nn.Conv2d,
    ) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in range(stages)]
        self.encoder = nn.ModuleList(
            DoubleConvolution(inputs, width, normalise, convolve)
            for inputs, width in zip([channels, *widths], widths, strict=False)
        )
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(deep, shallow, 2, stride=2) for shallow, deep in pairwise(widths)
        )
        self.decoder = nn.ModuleList(
            DoubleConvolution(2 * shallow, shallow, normalise, convolve) for shallow in widths[:-1]
        )
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` in [0, 1], of any H and W, to logits ``[N, outputs, H, W]``."""
        height, width = images.shape[2:]
        multiple = 2 ** len(self.enlarge)
        hidden = (images - 0.5) * 4.0
        # Zero is mid grey here, as it is for the convolutions' own padding.
        hidden = functional.pad(hidden, (0, -width % multiple, 0, -height % multiple))
        skips = []
        for stage, block in enumerate(self.encoder):
            hidden = block(hidden if stage == 0 else functional.max_pool2d(hidden, 2))
            skips.append(hidden)
        for stage in reversed(range(len(self.enlarge))):
            enlarged = self.enlarge[stage](hidden)
            hidden = self.decoder[stage](cat([skips[stage], enlarged], dim=1))
        logits: Tensor = self.head(hidden)
        return logits[:, :, :height, :width]
