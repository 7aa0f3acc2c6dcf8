"""Gaussian noise for differential privacy.

In production the noise is made from AES-256 in counter mode under a key from the operating system,
so that nobody can predict or repeat it. torch's own generator (Mersenne Twister) is predictable
from its output and is used in the seeded mode for tests alone.

Noise in floating point has holes: some sums can be reached from one data set and not from its
neighbour, which gives the neighbour away (Mironov, 2012). So sum and noise are both rounded to one
lattice before they are added: every data set reaches the same points.
"""

from __future__ import annotations

import math
import secrets
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

_KEY_BYTES = 32
_COUNTER_BYTES = 16
_CHUNK = 1 << 15
_ZEROS = bytes(8 * _CHUNK)
_ONE = np.uint64(0x3FF << 52)
_SHIFT = np.uint64(12)
LATTICE_SHARE = 2.0**-13
"""How far rounding to the lattice may move a sum's neighbour, as a share of the clipping norm."""
CLIPPING_MARGIN = 1 - 2 * LATTICE_SHARE
"""Units are clipped to this share of the clipping norm. The rest pays for the lattice and for the
rounding of float32 sums, so that the noise is right for the norm that is accounted."""


class NoiseSource(Protocol):
    """Draws standard normal values and the seeds of Poisson sampling."""

    @property
    def description(self) -> str:
        """What the report says about this noise."""

    def normal(self, shape: torch.Size) -> Tensor:
        """Return independent standard normal values of a shape, on the CPU."""

    def sampling_generator(self) -> torch.Generator:
        """Return the generator that decides which units are in a batch."""


class SecureNoise:
    """Standard normal values from a cryptographic generator (Box and Muller, 1958).

    The uniform values have 52 bits, so no value exceeds 8.6; a true normal value does so with
    probability 1e-17.
    """

    description = "secure"

    def __init__(self) -> None:
        key, counter = secrets.token_bytes(_KEY_BYTES), secrets.token_bytes(_COUNTER_BYTES)
        self._stream = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()

    def _pairs(self) -> Tensor:
        """Return ``_CHUNK`` normal values; a chunk stays in the processor's cache."""
        words = np.frombuffer(bytearray(self._stream.update(_ZEROS)), dtype=np.uint64)
        # Random mantissa bits under the exponent of 1 give [1, 2) without a slow conversion.
        words >>= _SHIFT
        words |= _ONE
        uniform = torch.from_numpy(words.view(np.float64))
        uniform.sub_(1 - 2.0**-53)  # neither 0, whose logarithm is undefined, nor 1
        radius = uniform[: _CHUNK // 2].log_().mul_(-2).sqrt_()
        angle = uniform[_CHUNK // 2 :].mul_(2 * math.pi)
        return torch.cat([torch.sin(angle).mul_(radius), angle.cos_().mul_(radius)])

    def normal(self, shape: torch.Size) -> Tensor:
        """Return independent standard normal float64 values of a shape, on the CPU."""
        values = torch.empty(shape.numel(), dtype=torch.float64)
        for start in range(0, len(values), _CHUNK):
            part = values[start : start + _CHUNK]
            part.copy_(self._pairs()[: len(part)])
        return values.reshape(shape)

    def sampling_generator(self) -> torch.Generator:
        """Return a generator seeded by the operating system: who is sampled is secret too."""
        return torch.Generator().manual_seed(secrets.randbits(63))


class SeededNoise:
    """Repeatable noise for tests: voids the guarantee, and every output says so."""

    description = "void (seeded noise)"

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, shape: torch.Size) -> Tensor:
        """Return repeatable standard normal float32 values of a shape, on the CPU."""
        return torch.randn(shape, generator=self._generator)

    def sampling_generator(self) -> torch.Generator:
        """Return a generator that depends on the seed alone."""
        return torch.Generator().manual_seed(self._seed ^ 0x5DEECE66D)


def lattice_spacing(clipping_norm: float, parameters: int) -> float:
    """Return the lattice's spacing: a power of two, small beside clipping norm and noise.

    Rounding moves each of ``parameters`` coordinates by at most half a spacing, so that the sums
    of two neighbours move apart by at most ``LATTICE_SHARE * clipping_norm``.
    """
    largest = LATTICE_SHARE * clipping_norm / math.sqrt(max(parameters, 1))
    return 2.0 ** math.floor(math.log2(largest))


def add_on_lattice(clipped_sum: Tensor, noise: Tensor, scale: float, spacing: float) -> Tensor:
    """Return ``clipped_sum + scale * noise`` as a point of the lattice.

    Args:
        clipped_sum: any shape; bounded by clipping.
        noise: standard normal values of that shape.
        scale: standard deviation of the noise, far above ``spacing``.
        spacing: from :func:`lattice_spacing`.

    Returns:
        Same shape and dtype as ``clipped_sum``. Both terms are whole multiples of the spacing
        below 2**53, hence exact in float64; the rounding to float32 at the end sees only the
        noised sum.
    """
    points = torch.round(clipped_sum.double() / spacing)
    points += torch.round(noise.to(clipped_sum.device, torch.float64) * (scale / spacing))
    return (points * spacing).to(clipped_sum.dtype)
