"""Homomorphic encryption with TenSEAL's CKKS: one site's encryption of an update.

Whoever holds the secret key can open each single update, so it protects against less. A part of
the update is encrypted and the figures are scaled up to all of it.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_DEGREE = 8192
_MODULI = [60, 40, 40]
_SCALE = 2.0**40
_SLOTS = _DEGREE // 2


@dataclass(frozen=True)
class TensealClient:
    """What one site spends and sends.

    Attributes:
        cpu_s: encryption and serialisation, scaled up.
        upload_ratio: bytes of the ciphertexts to those of float32.
    """

    cpu_s: float
    upload_ratio: float


def tenseal_client(update: npt.NDArray[np.float32], ciphertexts: int) -> TensealClient:
    """Encrypt as many ciphertexts of 4,096 values each, and scale up.

    Raises:
        ImportError: if TenSEAL is not installed.
    """
    tenseal: Any = importlib.import_module("tenseal")
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, _DEGREE, coeff_mod_bit_sizes=_MODULI)
    context.global_scale = _SCALE
    chunks = [update[i * _SLOTS : (i + 1) * _SLOTS] for i in range(ciphertexts)]
    start = time.process_time()
    sent = sum(len(tenseal.ckks_vector(context, chunk).serialize()) for chunk in chunks)
    spent = time.process_time() - start
    values = ciphertexts * _SLOTS
    return TensealClient(spent * update.size / values, sent / (4 * values))
