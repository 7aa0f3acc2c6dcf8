"""A compact residual network with group normalisation.

Per-sample gradients are well defined: no statistic is taken over the batch, no module is used
twice in a forward pass, and no activation works in place.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, cat, nn

from fedmed.models.standardised_convolution import StandardisedConv2d

Normalise = Callable[[int], nn.Module]
Convolution = type[nn.Conv2d]


def convolution(weight_standardisation: bool) -> Convolution:
    """Return the kind of convolution that a network is made of."""
    return StandardisedConv2d if weight_standardisation else nn.Conv2d


def group_norm(groups: int) -> Normalise:
    """Return a maker of GroupNorm layers with at most ``groups`` groups (Wu and He, 2018)."""

    def make(channels: int) -> nn.Module:
        fitting = max(g for g in range(1, min(groups, channels) + 1) if channels % g == 0)
        return nn.GroupNorm(fitting, channels)

    return make


def batch_norm(channels: int) -> nn.Module:
    """Return a BatchNorm layer; its statistics mix samples, so it excludes DP-SGD."""
    return nn.BatchNorm2d(channels)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, normalised before activation (He et al., 2016)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        normalise: Normalise,
        convolve: Convolution = nn.Conv2d,
    ) -> None:
        super().__init__()
        self.norm1 = normalise(inputs)
        self.conv1 = convolve(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = normalise(outputs)
        self.conv2 = convolve(outputs, outputs, 3, padding=1, bias=False)
        self.activation1 = nn.ReLU()
        self.activation2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = convolve(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, H / stride, W / stride]``."""
        hidden = self.conv1(self.activation1(self.norm1(images)))
        hidden = self.conv2(self.activation2(self.norm2(hidden)))
        shortcut: Tensor = self.shortcut(images)
        total: Tensor = hidden + shortcut
        return total


class ResidualEncoder(nn.Module):
    """Stem and residual stages; each stage halves the resolution and doubles the channels.

    Attributes:
        channels: channels of the last feature map.
        stage_channels: channels of each stage's feature map.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int,
        stages: int,
        blocks: int,
        normalise: Normalise,
        convolve: Convolution = nn.Conv2d,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolve(channels, width, 3, padding=1, bias=False)]
        current = width
        for stage in range(stages):
            outputs = width * 2**stage
            for block in range(blocks):
                stride = 2 if block == 0 else 1
                layers.append(ResidualBlock(current, outputs, stride, normalise, convolve))
                current = outputs
        self.layers = nn.Sequential(*layers)
        self.norm = normalise(current)
        self.activation = nn.ReLU()
        self.channels = current
        self.stage_channels = [width * 2**stage for stage in range(stages)]
        self._blocks = blocks

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to features ``[N, channels, H / 2**stages, W / 2**stages]``."""
        features: Tensor = self.activation(self.norm(self.layers(images)))
        return features

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Map ``[N, C, H, W]`` to one feature map a stage, the last one activated.

        Stage k has ``stage_channels[k]`` channels and a resolution of ``H / 2**(k + 1)``.
        """
        maps = []
        hidden = images
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if number > 0 and number % self._blocks == 0:
                maps.append(hidden)
        maps[-1] = self.activation(self.norm(maps[-1]))
        return maps


class ResidualClassifier(nn.Module):
    """Encoder, global average and maximum of each feature, one linear layer."""

    def __init__(self, encoder: ResidualEncoder, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(2 * encoder.channels, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` in [0, 1] to logits ``[N, outputs]``."""
        features = self.encoder((images - 0.5) * 4.0)
        # A lesion fills few pixels: the maximum sees it where the mean would drown it.
        pooled = _mean_and_maximum(features)
        logits: Tensor = self.head(pooled)
        return logits


def _mean_and_maximum(features: Tensor) -> Tensor:
    flat = features.flatten(2)
    return cat([flat.mean(dim=2), flat.amax(dim=2)], dim=1)
