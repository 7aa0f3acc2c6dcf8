"""One array file dealt to simulated sites."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmed.configuration.groups import (
    DataConfig,
    DataSource,
    Partition,
    PreprocessingConfig,
    TaskConfig,
)
from fedmed.data.cohort import Reading
from fedmed.data.labels import LabelSchema
from fedmed.data.npz import partition_indices
from fedmed.data.sources import site_sources
from fedmed.errors import DataError
from fedmed.tasks.classification.task import Classification

TASK = Classification(TaskConfig())


def reading(size=28):
    return Reading(
        PreprocessingConfig(size=size), LabelSchema(("negative", "positive"), False),
        TASK.required_columns, TASK.encode, TASK.strata, seed=1,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=200),
    st.integers(1, 9),
    st.sampled_from(list(Partition)),
    st.floats(0.05, 10),
    st.integers(0, 99),
)
def test_every_image_goes_to_exactly_one_site(labels, sites, kind, alpha, seed):
    parts = partition_indices(np.array(labels), sites, kind, alpha, seed)
    assert len(parts) == sites
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))


def test_a_small_alpha_makes_sites_unlike_and_iid_makes_them_alike():
    labels = np.arange(4000) % 2

    def spread(kind, alpha):
        parts = partition_indices(labels, 5, kind, alpha, 0)
        return np.std([labels[part].mean() for part in parts if len(part)])

    assert spread(Partition.dirichlet, 0.1) > 0.15
    assert spread(Partition.iid, 0.1) < 0.03


def write(path, **changes):
    draws = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 60), ("val", 10), ("test", 20)):
        arrays[f"{split}_images"] = draws.integers(0, 255, (count, 28, 28)).astype(np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    arrays |= changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return DataConfig(source=DataSource.npz, path=str(path), sites=3)


def test_together_the_sites_hold_the_official_splits(tmp_path):
    cohorts = [load(reading()) for load in site_sources(write(tmp_path / "x.npz")).values()]
    for split, count in (("train", 60), ("val", 10), ("test", 20)):
        assert sum(len(cohort.splits[split]) for cohort in cohorts) == count
    assert cohorts[0].splits["train"].images.shape[1:] == (1, 28, 28)
    assert cohorts[0].splits["train"].images.min() >= 0
    assert cohorts[0].splits["train"].images.max() <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"val_labels": None},
        {"test_images": np.zeros((20, 28, 28), np.float64)},
        {"test_images": np.zeros((19, 28, 28), np.uint8)},
        {"train_labels": np.array([{"an": "object"}] * 60, dtype=object)},
    ],
    ids=["missing", "dtype", "length", "pickled"],
)
def test_another_file_is_a_clear_error(tmp_path, changes):
    with pytest.raises(DataError, match=r"x\.npz"):
        site_sources(write(tmp_path / "x.npz", **changes))["site-1"](reading())
