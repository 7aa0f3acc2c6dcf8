"""Independent seeds for every purpose, site and round, from the one seed of a plan."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a seed in [0, 2**63) that is a hash of the plan's seed and the purpose.

    The same purpose gives the same seed whatever else was drawn before: results do not depend on
    the number of workers or on what was run earlier in the process.
    """
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
