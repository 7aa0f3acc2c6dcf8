"""Gaussian noise for differential privacy.

In production the noise is made from AES-256 in counter mode under a key from the operating system,
so that nobody can predict or repeat it. torch's own generator (Mersenne Twister) is predictable
from its output and is used in the seeded mode for tests alone.
"""

from __future__ import annotations

import secrets
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

_KEY_BYTES = 32
_COUNTER_BYTES = 16


class NoiseSource(Protocol):
    """Draws standard normal values and the seeds of Poisson sampling."""

    @property
    def description(self) -> str:
        """What the report says about this noise."""

    def normal(self, shape: torch.Size) -> Tensor:
        """Return independent standard normal float32 values of a shape, on the CPU."""

    def sampling_generator(self) -> torch.Generator:
        """Return the generator that decides which images are in a batch."""


class SecureNoise:
    """Standard normal values from a cryptographic generator by the Box-Muller transform.

    Uniform values have 53 bits. The sum of noise and gradient is rounded to float32, as in every
    implementation in floating point; docs/privacy.md says what that means (Mironov, 2012).
    """

    description = "secure"

    def __init__(self) -> None:
        key, counter = secrets.token_bytes(_KEY_BYTES), secrets.token_bytes(_COUNTER_BYTES)
        self._stream = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()

    def _uniform(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        words = np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)
        # 53 random bits, shifted by one half so that neither 0 nor 1 occurs: log(0) is undefined.
        return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def normal(self, shape: torch.Size) -> Tensor:
        """Return independent standard normal float32 values of a shape, on the CPU."""
        count = shape.numel()
        half = (count + 1) // 2
        radius = np.sqrt(-2.0 * np.log(self._uniform(half)))
        angle = 2.0 * np.pi * self._uniform(half)
        values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
        return torch.from_numpy(values.astype(np.float32)).reshape(shape)

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
