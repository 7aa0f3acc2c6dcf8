"""Fixtures that several areas share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# One thread: tests run side by side, and float sums must not depend on how many there are.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small phantom hospitals, read-only to tests."""
    from fedmed.data.phantom import write_archives

    root = tmp_path_factory.mktemp("archives")
    write_archives(root, sites=3, patients=12, seed=1, workers=1)
    return root


@pytest.fixture(scope="session")
def lgg_mri() -> Path:
    """Real brain MRI of three hospitals."""
    root = SHARED_DATA / "lgg_mri"
    if not root.is_dir():
        pytest.skip("the shared data set lgg_mri is not beside the repository")
    return root


@pytest.fixture(scope="session")
def pneumonia() -> Path:
    """PneumoniaMNIST as one array file."""
    path = SHARED_DATA / "pneumoniamnist" / "pneumoniamnist.npz"
    if not path.is_file():
        pytest.skip("the shared data set pneumoniamnist is not beside the repository")
    return path
