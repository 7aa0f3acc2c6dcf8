"""Networks by name. A site runs only what is installed here; code never travels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fedmed.configuration.groups import ModelConfig, Normalisation
from fedmed.errors import ConfigurationError
from fedmed.models.residual_cnn import (
    Normalise,
    ResidualClassifier,
    ResidualEncoder,
    batch_norm,
    group_norm,
)

Builder = Callable[[ModelConfig, int, int], nn.Module]


def _residual_classifier(config: ModelConfig, channels: int, outputs: int) -> nn.Module:
    normalise: Normalise = (
        batch_norm if config.normalisation == Normalisation.batch else group_norm(config.groups)
    )
    encoder = ResidualEncoder(
        channels,
        width=config.width,
        stages=config.stages,
        blocks=config.blocks,
        normalise=normalise,
    )
    return ResidualClassifier(encoder, outputs)


BUILDERS: dict[str, Builder] = {"residual_cnn": _residual_classifier}


def build_model(config: ModelConfig, *, channels: int, outputs: int, seed: int) -> nn.Module:
    """Build a network with weights that depend on the seed alone.

    Args:
        config: name and size.
        channels: channels of the input image.
        outputs: numbers that the network gives for one image.
        seed: of the initial weights.

    Raises:
        ConfigurationError: if there is no network of that name.
    """
    if config.name not in BUILDERS:
        known = ", ".join(sorted(BUILDERS))
        raise ConfigurationError(f"model.name={config.name}: choose one of {known}.")
    # Initialisers read torch's global generator: fork it, so that nobody else's draws change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BUILDERS[config.name](config, channels, outputs)
