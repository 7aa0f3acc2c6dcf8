"""Secure aggregation costs no accuracy: the same seed gives the same AUROC without it."""

import json
from pathlib import Path

import pytest

from fedmed.cli import main
from fedmed.data.phantom import write_archives

pytestmark = pytest.mark.slow

# A large test set: with few images, one pair in another order is a step of more than 1e-4. And
# SGD: AdamW divides by the size of the gradient, also where that is rounding alone, so that the
# last bit of one weight can move the AUROC by more than secure aggregation is allowed to.
SETTINGS = [
    "privacy=off", "model.width=8", "model.stages=2", "preprocessing.size=32",
    "preprocessing.fractions=[0.3,0.1,0.6]", "federation.rounds=3", "federation.local_epochs=1",
    "training.optimizer=sgd", "training.learning_rate=0.05", "simulation.workers=1",
    "site.threads=1", "seed=1", "tracking.report=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    root = tmp_path_factory.mktemp("archives")
    write_archives(root, sites=3, patients=170, seed=5, workers=1)
    return root


def summary(folder: Path, archives: Path, *settings: str) -> dict:
    assert main([
        "simulate", "data=manifest", f"data.root={archives}", f"tracking.folder={folder}",
        *SETTINGS, *settings,
    ]) == 0  # fmt: skip
    (found,) = folder.glob("*/*/summary.json")
    return json.loads(found.read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory, archives):
    return summary(tmp_path_factory.mktemp("plain"), archives, "transport=plain")


def test_auroc_is_the_same_with_and_without_secure_aggregation(plain, archives, tmp_path):
    masked = summary(tmp_path, archives, "transport=secagg")
    assert sum(site["test"] for site in masked["sites"].values()) >= 500
    assert 0.6 < plain["metrics"]["auroc"] < 0.99
    assert masked["metrics"]["auroc"] == pytest.approx(plain["metrics"]["auroc"], abs=1e-4)
    assert masked["metrics"]["loss"] == pytest.approx(plain["metrics"]["loss"], abs=1e-4)


def test_sealed_updates_give_the_same_auroc(plain, archives, tmp_path):
    sealed = summary(tmp_path, archives, "transport=sealed")
    assert sealed["metrics"]["auroc"] == pytest.approx(plain["metrics"]["auroc"], abs=1e-4)


def test_a_coarse_grid_would_be_seen(plain, archives, tmp_path):
    """Control: updates that are clipped to nearly nothing give another model."""
    settings = ["transport=secagg", "transport.update_bound=1e-3"]
    clipped = summary(tmp_path, archives, *settings)
    assert abs(clipped["metrics"]["auroc"] - plain["metrics"]["auroc"]) > 1e-3
