"""Where a site computes."""

from __future__ import annotations

import torch

from fedmed.errors import ConfigurationError


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda:N`` into a device; ``auto`` takes the first GPU there is.

    Raises:
        ConfigurationError: if the name is none of these, or if that GPU is not there.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number or "0").isdigit():
        raise ConfigurationError(f"site.device={name}: choose auto, cpu or cuda:N.")
    found = torch.cuda.device_count()
    if int(number or 0) >= found:
        raise ConfigurationError(
            f"site.device={name}: this machine has {found} CUDA devices that torch can use. "
            "Choose auto or cpu."
        )
    return torch.device("cuda", int(number or 0))
