"""A site's cohort: which images are used, which are not and why, and the tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedmed.configuration.groups import PreprocessingConfig
from fedmed.data.image_set import ImageSet
from fedmed.data.images import read_image
from fedmed.data.labels import LabelMap, LabelSchema, check_labels
from fedmed.data.letterbox import resize_keeping_aspect
from fedmed.data.manifest import ImageRecord, Manifest, read_manifest
from fedmed.data.splits import split_by_patient
from fedmed.errors import EmptyCohortError, ImageError

SPLITS = ("train", "val", "test")
NO_CONSENT = "no consent"
NO_LABEL = "no label"


@dataclass(frozen=True)
class Reading:
    """How a task wants a cohort to be read.

    Attributes:
        preprocessing: size, channels, split fractions.
        schema: the consortium's classes.
        required_columns: manifest columns that the task needs.
        encode: turns an image's class indices into its target.
        strata: a small integer an image, by which splits are balanced.
        seed: of the patient split.
    """

    preprocessing: PreprocessingConfig
    schema: LabelSchema
    required_columns: frozenset[str]
    encode: Callable[[Sequence[int]], Tensor]
    strata: Callable[[Sequence[ImageRecord], Sequence[Sequence[int]]], list[int]]
    seed: int


@dataclass(frozen=True)
class Excluded:
    """One image that is not used. Stays at the site; only counts by reason leave it.

    Attributes:
        row: line of the manifest, the header being line 1.
        reason: short and machine-readable.
        detail: for the site's engineer.
    """

    row: int
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Cohort:
    """Images of one site, by split.

    Attributes:
        splits: train, val and test; those left empty hold no image.
        found: rows of the manifest.
        excluded: every image that is not used.
    """

    splits: Mapping[str, ImageSet]
    found: int
    excluded: tuple[Excluded, ...]

    @property
    def excluded_counts(self) -> dict[str, int]:
        """Number of images left out, by reason."""
        return dict(sorted(Counter(entry.reason for entry in self.excluded).items()))


def load_cohort(folder: Path, reading: Reading) -> Cohort:
    """Read a hospital's archive.

    A broken, missing or unlabelled image and one without consent is left out and counted.

    Args:
        folder: holds ``manifest.csv``.
        reading: what the task wants.

    Raises:
        DataError: if the manifest cannot be used, or a class is not in the schema.
        EmptyCohortError: if no training image is left.
    """
    manifest = read_manifest(folder)
    manifest.require(sorted(reading.required_columns))
    excluded = [Excluded(row.row, str(row.reason), row.detail) for row in manifest.quarantined]
    records = _eligible(manifest, excluded)
    label_map = LabelMap.read(folder)
    check_labels(records, reading.schema, label_map)
    labels = [label_map.encode(record.labels, reading.schema) for record in records]
    places = split_by_patient(
        [record.patient_id for record in records],
        [record.split for record in records],
        rows=[record.row for record in records],
        fractions=_three(reading.preprocessing.fractions),
        seed=reading.seed,
        strata=reading.strata(records, labels),
    )
    numbers = {p: n for n, p in enumerate(sorted({record.patient_id for record in records}))}
    rows: dict[str, list[tuple[Tensor, Tensor, int]]] = {split: [] for split in SPLITS}
    for record, label, place in zip(records, labels, places, strict=True):
        try:
            image = _read(record, reading.preprocessing, folder)
        except ImageError as error:
            excluded.append(Excluded(record.row, str(error.reason), str(error)))
            continue
        rows[place].append((image, reading.encode(label), numbers[record.patient_id]))
    cohort = Cohort(
        {split: _stack(rows[split], reading) for split in SPLITS},
        found=len(manifest.records) + len(manifest.quarantined),
        excluded=tuple(sorted(excluded, key=lambda entry: entry.row)),
    )
    _demand_images(cohort, folder.name)
    return cohort


def _eligible(manifest: Manifest, excluded: list[Excluded]) -> list[ImageRecord]:
    eligible = []
    for record in manifest.records:
        if record.consent in ("no", "withdrawn"):
            excluded.append(Excluded(record.row, NO_CONSENT))
        elif not record.labels and "label" in manifest.columns:
            excluded.append(Excluded(record.row, NO_LABEL))
        else:
            eligible.append(record)
    return eligible


def _three(fractions: Sequence[float]) -> tuple[float, float, float]:
    train, val, test = fractions
    return train, val, test


def _read(record: ImageRecord, preprocessing: PreprocessingConfig, root: Path) -> Tensor:
    image = read_image(record.image, root=root, channels=preprocessing.channels, frame=record.frame)
    resized = resize_keeping_aspect(image, preprocessing.size)
    return torch.from_numpy(np.ascontiguousarray(resized, np.float32))


def _stack(rows: list[tuple[Tensor, Tensor, int]], reading: Reading) -> ImageSet:
    size, channels = reading.preprocessing.size, reading.preprocessing.channels
    if not rows:
        probe = reading.encode([0])
        return ImageSet(
            torch.zeros(0, channels, size, size),
            torch.zeros((0, *probe.shape), dtype=probe.dtype),
            torch.zeros(0, dtype=torch.long),
        )
    images, targets, patients = zip(*rows, strict=True)
    return ImageSet(torch.stack(images), torch.stack(targets), torch.tensor(patients))


def _demand_images(cohort: Cohort, site: str) -> None:
    if len(cohort.splits["train"]):
        return
    counts = ", ".join(f"{count} {reason}" for reason, count in cohort.excluded_counts.items())
    raise EmptyCohortError(
        f"{site}: no training image is left of {cohort.found} in the manifest"
        f" ({counts or 'none was excluded'}). See `fedmed data check` for each row."
    )
