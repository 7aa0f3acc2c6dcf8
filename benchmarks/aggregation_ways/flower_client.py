"""Flower's ``secaggplus`` client functions, called as its legacy client mod calls them.

Flower quantises and masks; it signs nothing, and its masks come from NumPy's MT19937 with a seed
of 32 bits. The settings are the defaults of Flower's workflow.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.common import ndarrays_to_parameters

_MOD = "flwr.client.mod.secure_aggregation.secaggplus_mod"
_CLIPPING_RANGE = 8.0
_QUANTISATION_RANGE = 2**22
_RING = 2**32
_MAX_WEIGHT = 1000.0


@dataclass(frozen=True)
class FlowerClient:
    """What one site spends and sends.

    Attributes:
        cpu_s: from keys to the masked update.
        upload_ratio: bytes of the masked update to those of float32.
    """

    cpu_s: float
    upload_ratio: float


def flower_client(update: npt.NDArray[np.float32], sites: int) -> FlowerClient:
    """Run the stages setup, share keys and collect masked vectors, and time the first site's.

    Raises:
        ImportError: if this version of Flower has no such functions.
    """
    mod: Any = importlib.import_module(_MOD)
    parameters = ndarrays_to_parameters([update])
    states = [mod.SecAggPlusState() for _ in range(sites)]
    settings = {
        mod.Key.SAMPLE_NUMBER: sites,
        mod.Key.SHARE_NUMBER: sites,
        mod.Key.THRESHOLD: 2 * sites // 3 + 1,
        mod.Key.CLIPPING_RANGE: _CLIPPING_RANGE,
        mod.Key.TARGET_RANGE: _QUANTISATION_RANGE,
        mod.Key.MOD_RANGE: _RING,
        mod.Key.MAX_WEIGHT: _MAX_WEIGHT,
    }
    first, others = states[0], states[1:]
    keys, dealt = {}, {}
    for nid, state in enumerate(states):
        state.nid = nid
    start = time.process_time()
    mine = mod._setup(first, settings)
    spent = time.process_time() - start
    for state in (first, *others):
        public = mine if state is first else mod._setup(state, settings)
        keys[str(state.nid)] = (public[mod.Key.PUBLIC_KEY_1], public[mod.Key.PUBLIC_KEY_2])
    for state in others:
        shares = mod._share_keys(state, keys)
        to = shares[mod.Key.DESTINATION_LIST].index(0)
        dealt[state.nid] = shares[mod.Key.CIPHERTEXT_LIST][to]
    start = time.process_time()
    mod._share_keys(first, keys)
    boxes = {
        mod.Key.SOURCE_LIST: list(dealt),
        mod.Key.CIPHERTEXT_LIST: list(dealt.values()),
    }
    masked = mod._collect_masked_vectors(first, boxes, 500, parameters)
    spent += time.process_time() - start
    sent = sum(len(array) for array in masked[mod.Key.MASKED_PARAMETERS])
    return FlowerClient(spent, sent / update.nbytes)
