"""A site's cohort: what is used, what is not, and that nothing is lost between the two."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fedmed.configuration.groups import DataConfig, DataSource, PreprocessingConfig, TaskConfig
from fedmed.data.cohort import Reading, load_cohort
from fedmed.data.image_set import ImageSet
from fedmed.data.labels import LabelSchema
from fedmed.data.sources import site_sources
from fedmed.errors import DataError, EmptyCohortError
from fedmed.tasks.classification.task import Classification

TASK = Classification(TaskConfig())


def reading(**settings):
    return Reading(
        PreprocessingConfig(size=32, **settings), LabelSchema(("negative", "positive"), False),
        TASK.required_columns, TASK.encode, TASK.strata, seed=1,
    )  # fmt: skip


@pytest.fixture
def hospital(archives, tmp_path):
    return shutil.copytree(archives / "alder", tmp_path / "alder")


def rewrite(folder, change):
    path = folder / "manifest.csv"
    rows = list(csv.DictReader(path.open()))
    columns = list(rows[0])
    rows = change(rows) or rows
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def total(cohort):
    return sum(len(images) for images in cohort.splits.values())


def test_used_and_excluded_add_up_to_found(hospital):
    next((hospital / "images").glob("*.dcm")).write_bytes(b"")

    def spoil(rows):
        willing = [row for row in rows if row["consent"] == "yes"]
        willing[1]["label"] = ""
        willing[2]["consent"] = "perhaps"
        willing[3]["consent"] = "withdrawn"
        rows.append(dict(willing[5]))

    rewrite(hospital, spoil)
    cohort = load_cohort(hospital, reading())
    assert total(cohort) + len(cohort.excluded) == cohort.found
    assert set(cohort.excluded_counts) >= {"no label", "bad-consent", "no consent", "duplicate"}
    assert sum(cohort.excluded_counts.values()) == len(cohort.excluded)


def test_no_patient_is_in_two_splits_and_the_seed_decides(hospital):
    cohort = load_cohort(hospital, reading())
    owners = [set(images.patients.tolist()) for images in cohort.splits.values()]
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]
    assert not owners[1] & owners[2]
    again = load_cohort(hospital, reading())
    assert torch.equal(cohort.splits["test"].images, again.splits["test"].images)
    other = Reading(**{**vars(reading()), "seed": 2})
    assert not torch.equal(
        cohort.splits["test"].patients, load_cohort(hospital, other).splits["test"].patients
    )


def test_images_are_square_float_in_range_with_their_labels(hospital):
    images = load_cohort(hospital, reading()).splits["train"]
    assert images.images.shape[1:] == (1, 32, 32)
    assert images.images.dtype == torch.float32
    assert 0 <= images.images.min() < images.images.max() <= 1
    assert set(images.targets.tolist()) == {0, 1}
    assert load_cohort(hospital, reading(channels=3)).splits["train"].images.shape[1] == 3


def test_png_and_npy_stand_beside_dicom(hospital):
    picture = np.tile(np.arange(40, dtype=np.uint8) * 6, (40, 1))
    Image.fromarray(picture).save(hospital / "images" / "a.png")
    np.save(hospital / "images" / "b.npy", picture.astype(np.float32))

    def point_at(rows):
        rows[0]["image"], rows[1]["image"] = "images/a.png", "images/b.npy"

    before = total(load_cohort(hospital, reading()))
    rewrite(hospital, point_at)
    assert total(load_cohort(hospital, reading())) == before


def test_a_missing_column_an_unknown_class_and_an_empty_cohort_are_errors(hospital):
    def rename(rows):
        next(row for row in rows if row["consent"] == "yes")["label"] = "tumour"

    rewrite(hospital, rename)
    with pytest.raises(DataError, match="tumour"):
        load_cohort(hospital, reading())
    (hospital / "labels.yaml").write_text("version: 1\nmap:\n  tumour: positive\n")
    load_cohort(hospital, reading())

    def withdraw(rows):
        for row in rows:
            row["consent"] = "withdrawn"

    rewrite(hospital, withdraw)
    with pytest.raises(EmptyCohortError, match="no consent"):
        load_cohort(hospital, reading())
    text = (hospital / "manifest.csv").read_text()
    (hospital / "manifest.csv").write_text(text.replace("label", "lable", 1))
    with pytest.raises(DataError, match="label"):
        load_cohort(hospital, reading())


def test_sites_are_the_folders_in_lower_case(archives, tmp_path):
    shutil.copytree(archives / "alder", tmp_path / "CS")
    config = DataConfig(source=DataSource.manifest, root=str(tmp_path))
    assert list(site_sources(config)) == ["cs"]
    own = DataConfig(source=DataSource.manifest, root=str(tmp_path / "CS"))
    assert list(site_sources(own)) == ["cs"]
    with pytest.raises(DataError, match="no such folder"):
        site_sources(DataConfig(source=DataSource.manifest, root=str(tmp_path / "absent")))


def test_patients_of_different_sites_stay_different_when_pooled():
    def one(patients):
        count = len(patients)
        return ImageSet(torch.zeros(count, 1, 2, 2), torch.zeros(count), torch.tensor(patients))

    pooled = ImageSet.union([one([0, 0, 1]), one([0, 2])])
    assert pooled.patients.tolist() == [0, 0, 1, 2, 4]
    with pytest.raises(ValueError, match="length"):
        ImageSet(torch.zeros(2, 1, 2, 2), torch.zeros(1), torch.zeros(2))
