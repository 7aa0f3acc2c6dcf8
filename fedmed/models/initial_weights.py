"""Weights to start from: of an earlier run, or of any safetensors file with matching names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fedmed.errors import ConfigurationError


@dataclass(frozen=True)
class Matched:
    """What was found in a file of weights.

    Attributes:
        loaded: entries of the network that were set.
        missing: entries of the network that the file lacks or has in another shape, as the last
            layer of a network for other labels; they keep their random weights.
        unused: entries of the file that the network lacks.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def load_initial_weights(model: nn.Module, path: Path) -> Matched:
    """Copy the entries whose names and shapes match into a network.

    Args:
        model: network.
        path: safetensors file; never unpickled.

    Raises:
        ConfigurationError: if the file cannot be read, holds values that are not
            finite, or has nothing in common with the network.
    """
    state = model.state_dict()
    loaded = []
    try:
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
            for name in names:
                # The shape is in the header: nothing is allocated for one that does not match.
                shape = tuple(file.get_slice(name).get_shape())
                if name in state and tuple(state[name].shape) == shape:
                    values = file.get_tensor(name).to(state[name].dtype)
                    if not bool(torch.isfinite(values).all()):
                        raise ConfigurationError(f"model.init={path}: {name} is not finite.")
                    state[name].copy_(values)
                    loaded.append(name)
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(
            f"model.init={path}: cannot be read as safetensors. Give the model.safetensors of a "
            "run folder."
        ) from error
    if not loaded:
        raise ConfigurationError(
            f"model.init={path}: no name and shape of its entries match this network. Choose the "
            "model (model.name, model.width, model.stages) that the weights were made for."
        )
    return Matched(
        loaded=tuple(loaded),
        missing=tuple(name for name in state if name not in loaded),
        unused=tuple(name for name in names if name not in loaded),
    )
