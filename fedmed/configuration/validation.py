"""Checks of values and of combinations of settings; types are checked by the schema."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from fedmed.configuration.groups import (
    Normalisation,
    Optimizer,
    PrivacyModel,
    Sampling,
    TransportMode,
    Unit,
)
from fedmed.errors import ConfigurationError

if TYPE_CHECKING:
    from fedmed.configuration.plan import Plan


COARSE_BOUND = 1.0
"""Largest bound on an update's numbers where 16 bits are to hold them."""
SMALLEST_SUM = 3
"""Sites in a sum that hides each of them."""
_NOT_FOR_CLASSIFICATION = ("unet", "detector")
_SCATTERING_CELLS = 4
"""Pixels that the coarsest map of ``fedmed/models/scattering.py`` has at least on a side."""


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigurationError(message)


def validate_plan(plan: Plan) -> None:
    """Check a plan's values; used by the server before it starts and by each site on receipt.

    Raises:
        ConfigurationError: naming the key and what would be right.
    """
    _validate_task(plan)
    _validate_training(plan)
    _validate_federation(plan)
    _validate_transport(plan)
    if plan.privacy.enabled:
        _validate_privacy(plan)


def _validate_task(plan: Plan) -> None:
    labels = plan.task.labels
    _demand(
        plan.task.name != "classification" or plan.model.name not in _NOT_FOR_CLASSIFICATION,
        f"model.name={plan.model.name} gives one answer a pixel, and task=classification wants one "
        "an image. Choose model=residual_cnn.",
    )
    _demand(len(labels) >= 2, "task.labels: name at least two classes.")
    _demand(len(set(labels)) == len(labels), "task.labels: a class name appears twice.")
    size, channels = plan.preprocessing.size, plan.preprocessing.channels
    _demand(8 <= size <= 4096, f"preprocessing.size={size}: choose 8 to 4096 pixels.")
    _demand(channels in (1, 3), f"preprocessing.channels={channels}: choose 1 (grey) or 3 (RGB).")
    fractions = plan.preprocessing.fractions
    _demand(
        len(fractions) == 3 and min(fractions) >= 0 and math.isclose(sum(fractions), 1.0),
        "preprocessing.fractions: give three shares (train, validation, test) that add up to 1.",
    )
    _demand(fractions[0] > 0, "preprocessing.fractions: the training share must be above 0.")
    model = plan.model
    _demand(1 <= model.width <= 1024, f"model.width={model.width}: choose 1 to 1024.")
    _demand(1 <= model.stages <= 8, f"model.stages={model.stages}: choose 1 to 8.")
    _demand(1 <= model.blocks <= 16, f"model.blocks={model.blocks}: choose 1 to 16.")
    _demand(model.groups >= 1, "model.groups: choose 1 or more.")
    _demand(
        model.init is None or re.fullmatch(r"[0-9a-f]{64}", model.init) is not None,
        "model.init: a plan holds the SHA-256 of the first weights, not a path.",
    )
    _demand(
        len(model.freeze) <= 32 and all(0 < len(pattern) <= 128 for pattern in model.freeze),
        "model.freeze: give at most 32 patterns of at most 128 characters.",
    )
    # A plan comes from outside: it must not make a site allocate hundreds of gigabytes.
    widest = model.width * 2 ** (model.stages - 1)
    _demand(widest <= 4096, f"model: {widest} channels in the last stage; keep to 4096.")
    if model.name == "scattering":
        _validate_scattering(plan)


def _validate_scattering(plan: Plan) -> None:
    """Features grow with the square of the orientations; the coarsest map must fill a grid."""
    model, size = plan.model, plan.preprocessing.size
    _demand(
        model.width <= 16,
        f"model.width={model.width} is the number of orientations of model=scattering: choose 1 "
        "to 16.",
    )
    smallest = _SCATTERING_CELLS * 2 ** (model.stages - 1)
    most = int(math.log2(size // _SCATTERING_CELLS)) + 1
    _demand(
        size >= smallest,
        f"model.stages={model.stages} of model=scattering needs images of {smallest} pixels, and "
        f"preprocessing.size={size}. Choose model.stages={most} or preprocessing.size={smallest}.",
    )


def _validate_training(plan: Plan) -> None:
    training = plan.training
    _demand(
        0 < training.learning_rate <= 100,
        "training.learning_rate: choose a value above 0, up to 100.",
    )
    _demand(training.batch_size >= 1, "training.batch_size: choose 1 or more.")
    _demand(0 <= training.momentum < 1, "training.momentum: choose 0 up to, but not, 1.")
    _demand(training.weight_decay >= 0, "training.weight_decay: choose 0 or more.")


def _validate_federation(plan: Plan) -> None:
    federation = plan.federation
    _demand(1 <= federation.rounds <= 100_000, "federation.rounds: choose 1 to 100000.")
    _demand(0 < federation.local_epochs <= 1000, "federation.local_epochs: choose above 0.")
    _demand(
        0 < federation.fraction_sites <= 1, "federation.fraction_sites: choose above 0, up to 1."
    )
    _demand(federation.minimum_sites >= 1, "federation.minimum_sites: choose 1 or more.")
    _demand(federation.deadline_seconds > 0, "federation.deadline_seconds: choose above 0.")
    _demand(federation.evaluate_every >= 0, "federation.evaluate_every: choose 0 or more.")


def _validate_transport(plan: Plan) -> None:
    transport, federation = plan.transport, plan.federation
    _demand(transport.bits in (16, 32), f"transport.bits={transport.bits}: choose 32 or 16.")
    _demand(0 < transport.update_bound <= 1e6, "transport.update_bound: choose above 0.")
    _demand(
        transport.bits == 32 or transport.update_bound <= COARSE_BOUND,
        f"transport.update_bound={transport.update_bound:g} with transport.bits=16: the grid would "
        "be coarser than most updates. Choose about the largest number that an update has, such as "
        f"transport.update_bound=0.05, and at most {COARSE_BOUND:g}.",
    )
    _demand(1 <= transport.attempts <= 100, "transport.attempts: choose 1 to 100.")
    _demand(transport.step_seconds > 0, "transport.step_seconds: choose above 0.")
    if transport.mode == TransportMode.secagg:
        _demand(
            federation.minimum_sites >= SMALLEST_SUM,
            f"federation.minimum_sites={federation.minimum_sites}: a sum of fewer than "
            f"{SMALLEST_SUM} sites hides nobody. Raise it, or give up secure aggregation "
            "(transport=sealed).",
        )


def _validate_privacy(plan: Plan) -> None:
    privacy = plan.privacy
    given = [value for value in (privacy.target_epsilon, privacy.noise_multiplier) if value]
    _demand(
        len(given) == 1,
        "privacy: set exactly one of privacy.target_epsilon and privacy.noise_multiplier "
        "(privacy.noise_multiplier=1.1 privacy.target_epsilon=null fixes the noise).",
    )
    if privacy.target_epsilon is not None:
        _demand(0 < privacy.target_epsilon <= 1000, "privacy.target_epsilon: choose above 0.")
    if privacy.noise_multiplier is not None:
        _demand(
            0.3 <= privacy.noise_multiplier <= 50, "privacy.noise_multiplier: choose 0.3 to 50."
        )
    _demand(
        privacy.delta is None or 0 < privacy.delta < 0.1,
        "privacy.delta: choose null (computed) or a small value such as 1e-5.",
    )
    _demand(0 < privacy.clipping_norm <= 1e6, "privacy.clipping_norm: choose above 0.")
    _demand(
        privacy.sampling == Sampling.poisson,
        f"privacy.sampling={privacy.sampling}: the accounting holds for Poisson sampling alone; "
        "batches from a shuffled list would spend more than is reported. Choose poisson.",
    )
    rates = [value for value in (privacy.sample_rate, privacy.batch_size) if value is not None]
    _demand(
        len(rates) == 1,
        "privacy: set exactly one of privacy.sample_rate and privacy.batch_size "
        "(privacy.batch_size=256 privacy.sample_rate=null fixes the batch).",
    )
    _demand(
        privacy.sample_rate is None or 0 < privacy.sample_rate <= 1,
        "privacy.sample_rate: choose above 0, up to 1.",
    )
    _demand(
        privacy.batch_size is None or privacy.batch_size >= 1,
        "privacy.batch_size: choose 1 or more.",
    )
    _demand(privacy.max_physical_batch >= 1, "privacy.max_physical_batch: choose 1 or more.")
    _demand(
        1 <= privacy.augmentation_multiplicity <= 64,
        "privacy.augmentation_multiplicity: choose 1 to 64.",
    )
    _demand(
        privacy.augmentation_multiplicity == 1 or plan.training.augment,
        "privacy.augmentation_multiplicity averages over random views, and training.augment=false "
        "makes them all the same. Set training.augment=true or the multiplicity to 1.",
    )
    _demand(privacy.images_per_patient >= 1, "privacy.images_per_patient: choose 1 or more.")
    images = privacy.images_per_patient if privacy.unit == Unit.patient else 1
    rows = images * privacy.augmentation_multiplicity
    _demand(
        rows <= privacy.max_physical_batch,
        f"privacy.max_physical_batch={privacy.max_physical_batch}: one {privacy.unit} takes up to "
        f"{rows} rows (images times views), which must fit. Raise it or lower "
        "privacy.images_per_patient or privacy.augmentation_multiplicity.",
    )
    _demand(
        privacy.ema_decay is None or 0 < privacy.ema_decay < 1,
        "privacy.ema_decay: choose null or a value between 0 and 1, such as 0.9.",
    )
    _demand(
        not plan.training.balance,
        "training.balance=true weighs the loss by the site's class counts, which differential "
        "privacy does not cover. Set training.balance=false or privacy=off.",
    )
    _demand(
        privacy.learning_rate is None or 0 < privacy.learning_rate <= 100,
        "privacy.learning_rate: choose null (training.learning_rate) or a value above 0.",
    )
    if plan.model.normalisation == Normalisation.batch:
        raise ConfigurationError(
            "model.normalisation=batch cannot be trained with differential privacy: batch "
            "statistics mix patients. Choose model.normalisation=group or privacy=off."
        )
    if privacy.model != PrivacyModel.local:
        _validate_shared_noise(plan)


def _validate_shared_noise(plan: Plan) -> None:
    """Noise that is not a site's own is known to be right for a sum of single steps only."""
    privacy, name = plan.privacy, f"privacy.model={plan.privacy.model}"
    _demand(
        privacy.model != PrivacyModel.distributed or plan.transport.mode == TransportMode.secagg,
        f"{name}: each update by itself carries too little noise, so nobody may see one. Choose "
        "transport=secagg, or privacy.model=local.",
    )
    _demand(
        privacy.model != PrivacyModel.distributed or plan.transport.bits == 32,
        f"{name}: rounding to 16 bits comes after each site's share of the noise and is coarse. "
        "Choose transport.bits=32.",
    )
    _demand(
        privacy.sample_rate is not None
        and math.isclose(plan.federation.local_epochs, privacy.sample_rate),
        f"{name}: the noise of a sum covers one step a round. Set privacy.sample_rate and give "
        "federation.local_epochs the same value, and more federation.rounds instead.",
    )
    _demand(
        plan.training.optimizer == Optimizer.sgd,
        f"{name}: only updates of training.optimizer=sgd add up to one noised step.",
    )
    _demand(
        privacy.delta is not None,
        f"{name}: all sites share one noise multiplier, so set privacy.delta, such as 1e-5.",
    )
    _demand(
        privacy.ema_decay is None, f"{name}: one step has no average; set privacy.ema_decay=null."
    )
    _demand(
        privacy.honest_sites is None or 2 <= privacy.honest_sites <= plan.federation.minimum_sites,
        "privacy.honest_sites: choose 2 up to federation.minimum_sites, or null.",
    )
