"""Demo archives: real DICOM, an honest manifest, one seed one result, a task worth learning."""

from __future__ import annotations

import csv
import hashlib
from datetime import date
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_rescale, apply_windowing
from pydicom.pixels.decoders import RLELosslessDecoder
from scipy import ndimage
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from fedmed.data.phantom import PhantomPatient, SiteArchive, draw_patient, site_name, write_archives
from fedmed.data.phantom_anatomy import sample_anatomy
from fedmed.data.phantom_dicom import encode_run_length
from fedmed.data.phantom_scanner import scanner_of
from fedmed.errors import ConfigurationError, DataError

COLUMNS = ["image", "mask", "patient_id", "label", "boxes", "sex", "age", "consent"]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[SiteArchive, ...]:
    return write_archives(tmp_path_factory.mktemp("phantom"), patients=24, seed=5, workers=1)


def rows_of(archive: SiteArchive) -> list[dict[str, str]]:
    with (archive.folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def shown(dataset: Dataset) -> np.ndarray:
    """What a viewer shows, [0, 1], by pydicom's own functions: an independent reader."""
    modality = apply_rescale(dataset.pixel_array, dataset)
    low, high = (dataset.RescaleSlope * v + dataset.RescaleIntercept for v in (0, 4095))
    window = apply_windowing(modality.astype(np.float64), dataset)
    # pydicom scales the window's output to the range of the stored values after rescaling.
    image = (window - low) / (high - low)
    return 1 - image if dataset.PhotometricInterpretation == "MONOCHROME1" else image


def digest(root: Path) -> str:
    hashed = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        hashed.update(path.relative_to(root).as_posix().encode())
        hashed.update(hashlib.sha256(path.read_bytes()).digest())
    return hashed.hexdigest()


# --- files -----------------------------------------------------------------------------------


def test_every_file_decodes_to_the_intended_image(archives):
    for site, archive in enumerate(archives):
        rows = rows_of(archive)
        for patient_id in sorted({row["patient_id"] for row in rows})[:6]:
            own = [row for row in rows if row["patient_id"] == patient_id]
            lesion = any(row["label"] == "1" for row in own)
            patient = PhantomPatient(
                archive.name, site, int(patient_id[-5:]), 5, 128, lesion, own[0]["consent"]
            )
            identity, slices = draw_patient(patient)
            assert len(slices) == len(own)
            for row, drawn in zip(own, slices, strict=True):
                dataset = pydicom.dcmread(archive.folder / row["image"])
                assert dataset.PatientID == patient_id == identity.patient_id
                np.testing.assert_allclose(shown(dataset), drawn.image, atol=0.51 / 4095)
                if row["mask"]:
                    mask = np.asarray(Image.open(archive.folder / row["mask"]))
                    np.testing.assert_array_equal(mask > 0, drawn.lesions > 0)


def test_the_hospitals_store_their_images_differently(archives):
    styles = []
    for archive in archives:
        dataset = pydicom.dcmread(archive.folder / rows_of(archive)[0]["image"])
        styles.append(
            (
                dataset.file_meta.TransferSyntaxUID.name,
                dataset.PhotometricInterpretation,
                dataset.Rows,
                float(dataset.RescaleSlope),
                tuple(dataset.PixelSpacing),
            )
        )
        assert dataset.BitsStored == 12
        assert dataset.pixel_array.max() <= 4095
    assert [style[0] for style in styles].count("RLE Lossless") == 1
    assert [style[1] for style in styles].count("MONOCHROME1") == 1
    for of_hospitals in list(zip(*styles, strict=True))[2:]:
        assert len(set(of_hospitals)) == 3


def test_headers_are_valid_and_consistent(archives):
    instances, studies = set(), {}
    pydicom.config.settings.reading_validation_mode = pydicom.config.RAISE
    try:
        for archive in archives:
            rows = rows_of(archive)
            for row in rows:
                dataset = pydicom.dcmread(archive.folder / row["image"])
                for element in dataset:  # each value is parsed, and checked against its VR
                    assert element.VR
                meta = dataset.file_meta
                after_meta = 144 + meta.FileMetaInformationGroupLength
                content = (archive.folder / row["image"]).read_bytes()
                assert content[after_meta : after_meta + 4] == b"\x08\x00\x08\x00"  # Image Type
                assert meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
                assert meta.MediaStorageSOPClassUID == dataset.SOPClassUID
                assert dataset.SOPInstanceUID.is_valid
                instances.add(dataset.SOPInstanceUID)
                studies.setdefault(dataset.StudyInstanceUID, set()).add(dataset.PatientID)
                assert dataset.PatientID == row["patient_id"]
                assert dataset.PatientSex == row["sex"]
                assert int(dataset.PatientAge[:3]) == int(row["age"])
                born, taken = (
                    date.fromisoformat(text)
                    for text in (dataset.PatientBirthDate, dataset.StudyDate)
                )
                age = taken.year - born.year - ((taken.month, taken.day) < (born.month, born.day))
                assert age == int(row["age"])
                assert dataset.PatientName
                assert dataset.ReferringPhysicianName
    finally:
        pydicom.config.settings.reading_validation_mode = pydicom.config.WARN
    assert len(instances) == sum(archive.images for archive in archives)
    assert len(studies) == sum(archive.patients for archive in archives)
    assert all(len(patients) == 1 for patients in studies.values())


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 300)),  # runs longer than one packet
        np.arange(4 * 300).reshape(4, 300),  # literals longer than one packet
        np.tile([7] * 9 + [1, 2, 4000], (3, 11))[:, :131],  # both, odd width
    ],
)
def test_run_length_encoding_agrees_with_pydicoms_decoder(frame):
    stored = frame.astype(np.uint16)
    decoded, _ = RLELosslessDecoder.as_array(
        pydicom.encaps.encapsulate([encode_run_length(stored)]),
        rows=stored.shape[0],
        columns=stored.shape[1],
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=16,
        bits_stored=16,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        pixel_keyword="PixelData",
    )
    np.testing.assert_array_equal(decoded, stored)


# --- manifest --------------------------------------------------------------------------------


def test_manifest_names_every_file_and_no_other(archives):
    for archive in archives:
        rows = rows_of(archive)
        assert list(rows[0]) == COLUMNS
        named = {row["image"] for row in rows} | {row["mask"] for row in rows} - {""}
        written = {
            path.relative_to(archive.folder).as_posix()
            for path in archive.folder.rglob("*")
            if path.is_file()
        }
        assert written == named | {"manifest.csv"}
        assert len(rows) == archive.images
        assert len({row["patient_id"] for row in rows}) == archive.patients
        assert sum(row["label"] == "1" for row in rows) == archive.positives


def test_boxes_frame_the_lesions_of_the_mask(archives):
    boxes = 0
    for archive in archives:
        for row in rows_of(archive):
            assert row["label"] == ("1" if row["mask"] else "0")
            assert bool(row["boxes"]) == bool(row["mask"])
            if not row["mask"]:
                continue
            mask = np.asarray(Image.open(archive.folder / row["mask"]))
            dataset = pydicom.dcmread(archive.folder / row["image"], stop_before_pixels=True)
            assert mask.shape == (dataset.Rows, dataset.Columns)
            assert set(np.unique(mask)) == {0, 255}
            regions, _ = ndimage.label(mask, np.ones((3, 3)))
            expected = {
                (columns.start, rows.start, columns.stop, rows.stop, 1)
                for rows, columns in ndimage.find_objects(regions)
            }
            found = [tuple(int(v) for v in box.split()) for box in row["boxes"].split(";")]
            assert set(found) == expected
            assert len(found) == len(expected)
            boxes += len(found)
    assert boxes > sum(archive.positives for archive in archives)  # some slices show two lesions


def test_patients_have_several_slices_and_lesion_patients_have_both_kinds(archives):
    for archive in archives:
        labels: dict[str, list[str]] = {}
        for row in rows_of(archive):
            labels.setdefault(row["patient_id"], []).append(row["label"])
        assert {len(own) for own in labels.values()} <= {2, 3, 4, 5, 6}
        with_lesion = [own for own in labels.values() if "1" in own]
        assert all("0" in own for own in with_lesion)
        assert 0 < len(with_lesion) < archive.patients


def test_hospitals_are_unequal_in_size_and_balance(archives):
    assert [archive.patients for archive in archives] == [36, 24, 12]
    shares = [archive.positives / archive.images for archive in archives]
    assert shares[0] > shares[1] > shares[2]
    assert shares[0] - shares[2] > 0.1


def test_a_few_patients_withhold_consent_for_all_their_images(tmp_path):
    archives = write_archives(tmp_path, patients=100, seed=1, size=48)
    consent: dict[str, set[str]] = {}
    rows = [row for archive in archives for row in rows_of(archive)]
    for row in rows:
        consent.setdefault(row["patient_id"], set()).add(row["consent"])
    assert all(len(given) == 1 for given in consent.values())
    assert set.union(*consent.values()) == {"yes", "no", "withdrawn"}
    assert 0.02 < np.mean([row["consent"] != "yes" for row in rows]) < 0.04


# --- one seed, one result --------------------------------------------------------------------


def test_bytes_follow_from_the_seed_and_not_from_the_workers(tmp_path):
    settings = {"sites": 3, "patients": 6, "size": 64}
    write_archives(tmp_path / "one", seed=3, workers=1, **settings)
    write_archives(tmp_path / "two", seed=3, workers=2, **settings)
    write_archives(tmp_path / "other", seed=4, workers=1, **settings)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert digest(tmp_path / "one") != digest(tmp_path / "other")


def test_hospitals_beyond_the_first_three_differ_too():
    assert len({scanner_of(site, 0) for site in range(7)}) == 7
    assert scanner_of(4, 0) == scanner_of(4, 0) != scanner_of(4, 1)
    assert len({site_name(site) for site in range(50)}) == 50


@pytest.mark.parametrize("sites", [1, 5])
def test_any_number_of_hospitals(tmp_path, sites):
    archives = write_archives(tmp_path, sites=sites, patients=4, size=48, workers=1)
    assert len(archives) == sites == len(list(tmp_path.iterdir()))
    assert all(0 < archive.positives < archive.images for archive in archives)


@pytest.mark.parametrize("lesion", [True, False])
def test_a_patient_of_any_number_of_slices_has_a_lesion_exactly_if_asked(lesion):
    rng = np.random.default_rng(0)
    for slices in (2, 3, 4, 5, 6) * 40:
        anatomy = sample_anatomy(rng, slices=slices, lesion=lesion, age=60)
        extents = [found.extent for found in anatomy.findings if found.kind == "lesion"]
        assert bool(extents) == lesion
        for extent in extents:
            assert slices / 2 - 0.5 <= np.count_nonzero(extent) < slices


@pytest.mark.parametrize(
    "wrong", [{"sites": 0}, {"patients": 3}, {"seed": -1}, {"size": 47}, {"workers": 0}]
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        write_archives(tmp_path / "root", **wrong)
    assert not (tmp_path / "root").exists()


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "birch").mkdir()
    with pytest.raises(DataError, match="birch/"):
        write_archives(tmp_path, sites=2, patients=4, size=48)
    assert [path.name for path in tmp_path.iterdir()] == ["birch"]


# --- difficulty ------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, 2, 1)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm1, self.norm2 = nn.GroupNorm(4, outputs), nn.GroupNorm(4, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm2(self.second(functional.relu(self.norm1(self.first(images)))))
        return functional.relu(self.shortcut(images) + hidden)


class SmallNetwork(nn.Module):
    """Residual, GroupNorm, about 160,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), Block(16, 48), Block(48, 96)
        )
        self.head = nn.Linear(192, 1)

    def forward(self, images: Tensor) -> Tensor:
        found = self.features(images * 4 - 1).flatten(2)
        return self.head(torch.cat([found.mean(2), found.amax(2)], dim=1)).squeeze(1)


def train_and_score(images: Tensor, labels: Tensor, train: Tensor, test: Tensor) -> float:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = SmallNetwork()
    epochs, batch = 12, 32
    steps = epochs * (len(train) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        order = train[torch.randperm(len(train), generator=generator)]
        for chosen in order[: len(order) // batch * batch].split(batch):
            flips = [d for d in (-1, -2) if torch.rand((), generator=generator) < 0.5]
            shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
            inputs = images[chosen].flip(flips).roll(shift, (-1, -2))
            loss = functional.binary_cross_entropy_with_logits(network(inputs), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        scores = torch.cat([network(images[part]) for part in test.split(256)])
    return float(roc_auc_score(labels[test], scores))


@pytest.mark.slow
def test_a_small_network_learns_the_task_and_no_linear_or_global_model_does(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    images, labels, patients, statistics = [], [], [], []
    for site, archive in enumerate(write_archives(tmp_path, patients=200, seed=0, workers=2)):
        for row in rows_of(archive):
            image = shown(pydicom.dcmread(archive.folder / row["image"]))
            spread = np.percentile(image, [1, 5, 25, 50, 75, 90, 95, 99, 99.5])
            hospital = [float(site == other) for other in range(3)]
            statistics.append([image.mean(), image.std(), image.max(), *spread, *hospital])
            pixels = torch.from_numpy(image).float()[None, None]
            images.append(
                functional.interpolate(pixels, (64, 64), mode="bilinear", antialias=True)[0]
            )
            labels.append(int(row["label"]))
            patients.append(row["patient_id"])
    names = np.unique(patients)
    held_out = np.random.default_rng(0).choice(names, len(names) // 4, replace=False)
    test = np.isin(patients, held_out)
    fine, truth = torch.stack(images), np.array(labels)

    def score(features: np.ndarray, *steps: object) -> float:
        model = make_pipeline(*steps).fit(features[~test], truth[~test])
        return float(roc_auc_score(truth[test], model.predict_proba(features[test])[:, 1]))

    coarse = functional.avg_pool2d(fine, 2).flatten(1).numpy()
    scaled = [StandardScaler()]
    linear = {
        strength: score(coarse, *scaled, LogisticRegression(C=strength, max_iter=1000))
        for strength in (1e-4, 1e-3, 1e-2)
    }
    components = [PCA(100, random_state=0), StandardScaler()]
    linear["components"] = score(
        fine.flatten(1).numpy(), *components, LogisticRegression(C=0.01, max_iter=1000)
    )
    overall = np.array(statistics)
    forest = RandomForestClassifier(200, min_samples_leaf=3, random_state=0)
    simple = {
        "mean": roc_auc_score(truth, overall[:, 0]),
        "maximum": roc_auc_score(truth, overall[:, 2]),
        "regression": score(overall, *scaled, LogisticRegression(max_iter=5000)),
        "forest": score(overall, forest),
    }
    both = (torch.from_numpy(np.flatnonzero(chosen)) for chosen in (~test, test))
    network = train_and_score(fine, torch.tensor(labels, dtype=torch.float32), *both)
    torch.set_num_threads(threads)

    assert max(linear.values()) < 0.80, linear
    assert max(simple.values()) < 0.85, simple
    assert network > 0.90, network
