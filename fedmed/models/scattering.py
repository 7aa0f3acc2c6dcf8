"""Fixed wavelet features and one trained linear layer: for small budgets and small hospitals.

Differential privacy pays for every trained parameter with noise. Features that are the same for
every data set cost nothing (Tramer and Boneh, 2021): here the moduli of oriented Gabor filters on
an image pyramid, and those of the moduli again (scattering; Bruna and Mallat, 2013).

Per-sample gradients are well defined: no statistic is taken over the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

CELLS = 4
"""Each feature map is averaged over a grid of 4 x 4 cells."""
_KERNEL = 7
_WIDTH = 0.8
_FREQUENCY = 0.75 * math.pi / _WIDTH
_ELONGATION = 0.5
_FLOOR = 1e-3
_SMALLEST = 1e-9


def gabor_filters(orientations: int) -> Tensor:
    """Return complex Gabor filters as pairs of real and imaginary part.

    The envelope is a Gaussian, 0.8 pixels along the wave and sqrt(2) times that across; the wave
    has 0.47 periods a pixel, just below the finest that pixels can show. Each part has norm 1, the
    real part has mean 0 as the imaginary part has by symmetry: brightness gives no answer.

    Returns:
        ``[2 x orientations, 1, 7, 7]``, float32; the direction of the wave turns from right to
        down in steps of 180 degrees / orientations.
    """
    # In double precision, so that machines agree on the last digit kept.
    reach = torch.arange(_KERNEL, dtype=torch.float64) - _KERNEL // 2
    down, right = torch.meshgrid(reach, reach, indexing="ij")
    filters = []
    for number in range(orientations):
        angle = math.pi * number / orientations
        along = right * math.cos(angle) + down * math.sin(angle)
        across = down * math.cos(angle) - right * math.sin(angle)
        envelope = torch.exp(-(along**2 + _ELONGATION * across**2) / (2 * _WIDTH**2))
        real = envelope * (_FREQUENCY * along).cos()
        imaginary = envelope * (_FREQUENCY * along).sin()
        real = real - envelope * (real.sum() / envelope.sum())
        filters += [real / real.norm(), imaginary / imaginary.norm()]
    return torch.stack(filters).unsqueeze(1).float()


class Scattering(nn.Module):
    """The image, and scattering features of first and second order; nothing is trained.

    Each scale halves the resolution of the one before.

    Attributes:
        filters: Gabor filters ``[2 x orientations, 1, 7, 7]``.
        features: numbers for one image.
    """

    filters: Tensor

    def __init__(self, channels: int, *, orientations: int, scales: int) -> None:
        super().__init__()
        self._scales = scales
        # Not persistent: nothing that is the same everywhere need travel.
        self.register_buffer("filters", gabor_filters(orientations), persistent=False)
        pairs = scales * (scales - 1) // 2
        maps = channels * (1 + scales * orientations + pairs * orientations**2)
        self.features = maps * CELLS**2

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` in [0, 1] to ``[N, features]`` of norm 1 (0 for an even image).

        They do not change with the brightness of the whole image, and little with its contrast.
        H and W are at least ``CELLS x 2**(scales - 1)``.
        """
        # In half precision sites with and without a GPU would see different features.
        with torch.autocast(images.device.type, enabled=False):
            maps = self._maps(images.to(self.filters.dtype))
            parts = [_standardised(part) for part in maps]
            # Rounding errors of an even image must not be blown up to norm 1.
            return functional.normalize(torch.cat(parts, dim=1), dim=1, eps=0.1)

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Return the image, and for each scale its moduli and the coarser moduli of those."""
        maps, low = [images], images
        for scale in range(self._scales):
            if scale > 0:
                low = functional.avg_pool2d(low, 2)
            fine = self._moduli(low)
            maps.append(fine)
            for _ in range(scale + 1, self._scales):
                fine = functional.avg_pool2d(fine, 2)
                maps.append(self._moduli(fine))
        return maps

    def _moduli(self, maps: Tensor) -> Tensor:
        """Map ``[N, M, H, W]`` to moduli of oriented edges, ``[N, M x orientations, H, W]``."""
        count, channels, height, width = maps.shape
        alone = maps.reshape(count * channels, 1, height, width)
        padded = functional.pad(alone, [_KERNEL // 2] * 4, mode="replicate")
        answers = functional.conv2d(padded, self.filters)
        pairs = answers.view(count * channels, -1, 2, height, width)
        # The root of 0 has no derivative, which saliency maps would stumble over.
        moduli = (pairs.square().sum(dim=2) + _SMALLEST**2).sqrt()
        return moduli.view(count, -1, height, width)


def _standardised(maps: Tensor) -> Tensor:
    """Average over the cells; mean 0 and variance 1 within each image, equal weight a part."""
    cells = functional.adaptive_avg_pool2d(maps, CELLS).flatten(1)
    centred = cells - cells.mean(dim=1, keepdim=True)
    # The square root of the number gives each part the same norm whatever its number of maps.
    return centred / (cells.std(dim=1, keepdim=True) + _FLOOR) / math.sqrt(cells.shape[1])


class ScatteringClassifier(nn.Module):
    """Scattering features and a linear layer that starts at zero, so that it starts unbiased.

    Args:
        channels: of the image.
        outputs: logits for one image.
        orientations: directions of the filters over 180 degrees.
        scales: resolutions, each half of the one before.
    """

    def __init__(self, channels: int, outputs: int, *, orientations: int, scales: int) -> None:
        super().__init__()
        self.encoder = Scattering(channels, orientations=orientations, scales=scales)
        self.head = nn.Linear(self.encoder.features, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` in [0, 1] to logits ``[N, outputs]``."""
        logits: Tensor = self.head(self.encoder(images))
        return logits
