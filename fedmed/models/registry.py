"""Networks by name. A site runs only what is installed here; code never travels."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import nn

from fedmed.configuration.groups import ModelConfig, Normalisation
from fedmed.errors import ConfigurationError
from fedmed.models.detector import Detector
from fedmed.models.residual_cnn import (
    Normalise,
    ResidualClassifier,
    ResidualEncoder,
    batch_norm,
    convolution,
    group_norm,
)
from fedmed.models.scattering import ScatteringClassifier
from fedmed.models.unet import UNet

Builder = Callable[[ModelConfig, int, int], nn.Module]


def _normalise(config: ModelConfig) -> Normalise:
    if config.normalisation == Normalisation.batch:
        return batch_norm
    return group_norm(config.groups)


def _encoder(config: ModelConfig, channels: int) -> ResidualEncoder:
    return ResidualEncoder(
        channels,
        width=config.width,
        stages=config.stages,
        blocks=config.blocks,
        normalise=_normalise(config),
        convolve=convolution(config.weight_standardisation),
    )


def _residual_classifier(config: ModelConfig, channels: int, outputs: int) -> nn.Module:
    return ResidualClassifier(_encoder(config, channels), outputs)


def _scattering_classifier(config: ModelConfig, channels: int, outputs: int) -> nn.Module:
    return ScatteringClassifier(channels, outputs, orientations=config.width, scales=config.stages)


def _unet(config: ModelConfig, channels: int, outputs: int) -> nn.Module:
    return UNet(
        channels,
        outputs,
        width=config.width,
        stages=config.stages,
        normalise=_normalise(config),
        convolve=convolution(config.weight_standardisation),
    )


def _detector(config: ModelConfig, channels: int, outputs: int) -> nn.Module:
    return Detector(
        _encoder(config, channels),
        outputs,
        normalise=_normalise(config),
        convolve=convolution(config.weight_standardisation),
    )


BUILDERS: dict[str, Builder] = {
    "residual_cnn": _residual_classifier,
    "scattering": _scattering_classifier,
    "unet": _unet,
    "detector": _detector,
}


def build_model(config: ModelConfig, *, channels: int, outputs: int, seed: int) -> nn.Module:
    """Build a network with weights that depend on the seed alone.

    Args:
        config: name and size.
        channels: channels of the input image.
        outputs: numbers for one image (``residual_cnn``, ``scattering``), maps of the image's size
            (``unet``), or classes (``detector``, which adds four maps for the boxes).
        seed: of the initial weights.

    Raises:
        ConfigurationError: if there is no network of that name, or ``model.freeze`` names no
            parameter or all of them.
    """
    if config.name not in BUILDERS:
        known = ", ".join(sorted(BUILDERS))
        raise ConfigurationError(f"model.name={config.name}: choose one of {known}.")
    # Initialisers read torch's global generator: fork it, so that nobody else's draws change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BUILDERS[config.name](config, channels, outputs)
    _freeze(model, config.freeze)
    return model


def _freeze(model: nn.Module, patterns: list[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            close = ", ".join(get_close_matches(pattern, names, n=3, cutoff=0.0))
            raise ConfigurationError(
                f"model.freeze: no parameter matches {pattern}. Names close to it: {close}."
            )
        for name in matching:
            model.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigurationError(
            f"model.freeze={','.join(patterns)} leaves nothing to train; leave out a pattern, so "
            f"that at least the last layer ({names[-1]}) is trained."
        )
