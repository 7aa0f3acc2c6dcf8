"""Demo hospitals: folders of invented MR slices in DICOM with a manifest, made on the fly.

The hospitals differ as real ones do: in size, in the share of patients with a lesion, and in their
scanners (see :mod:`fedmed.data.phantom_scanner`). All of it follows from a seed.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from fedmed.data.phantom_anatomy import sample_anatomy
from fedmed.data.phantom_dicom import Identity, invent_identity, write_slices
from fedmed.data.phantom_drawing import draw_slice
from fedmed.data.phantom_fields import Image
from fedmed.data.phantom_scanner import matrix_of, scan, scanner_of
from fedmed.errors import ConfigurationError, DataError

COLUMNS = ("image", "mask", "patient_id", "label", "boxes", "sex", "age", "consent")

_NAMES = (
    "alder", "birch", "cedar", "dogwood", "elm", "fir", "ginkgo", "hazel", "ivy", "juniper",
    "katsura", "larch", "maple", "nutmeg", "oak", "pine", "quince", "rowan", "spruce", "teak",
)  # fmt: skip
_WITHOUT_CONSENT = 0.03
_POOL_PAYS_FROM = 100  # patients; starting the processes takes as long as drawing fewer
# First number of each SeedSequence's key: what it is for.
_FOR_PLAN, _FOR_PATIENT = 1, 2

_Task = tuple[Path, "PhantomPatient"]
_Run = Callable[[Iterable[_Task]], Iterable[list[dict[str, str]]]]


@dataclass(frozen=True)
class SiteArchive:
    """What was written for one hospital; ``images`` and ``positives`` count files."""

    name: str
    folder: Path
    patients: int
    images: int
    positives: int


@dataclass(frozen=True)
class PhantomPatient:
    """What one patient's slices and rows are made from."""

    hospital: str
    site: int
    number: int
    seed: int
    size: int
    lesion: bool
    consent: str


@dataclass(frozen=True)
class PhantomSlice:
    """One finished slice: image in [0, 1] and lesions, both (size, size), see ``draw_slice``."""

    image: Image
    lesions: NDArray[np.uint8]


def write_archives(
    root: Path,
    *,
    sites: int = 3,
    patients: int = 60,
    seed: int = 0,
    size: int = 128,
    workers: int | None = None,
) -> tuple[SiteArchive, ...]:
    """Write the archives of several demo hospitals, one folder each with ``manifest.csv``.

    The same seed gives the same bytes, whatever the number of workers. The largest hospital has
    1.5 times and the smallest 0.5 times the mean number of patients; a patient has 2 to 6 slices.
    A program that calls this with more than one worker needs the usual guard
    ``if __name__ == "__main__":``, since the processes are spawned.

    Args:
        root: folder that gets one folder for each hospital; made if missing.
        sites: number of hospitals.
        patients: mean number of patients of a hospital, at least 4.
        seed: seed of everything, at least 0.
        size: rows and columns of an image at the first hospital, at least 48; other scanners have
            up to one eighth more or less.
        workers: processes, at least 1; None is one for each CPU core, if there is enough to do.

    Returns:
        The hospitals, the largest first.

    Raises:
        ConfigurationError: if a number is out of range.
        DataError: if a hospital's folder is there already.
    """
    _check(sites=sites, patients=patients, seed=seed, size=size, workers=workers)
    plans = [_plan_site(site, sites, patients, seed, size) for site in range(sites)]
    names = [plan[0].hospital for plan in plans]
    for name in names:
        if (root / name).exists():
            raise DataError(
                f"{name}/ is in the data root already: delete it or choose another folder."
            )
    archives = []
    with _mapping(workers, sum(len(plan) for plan in plans)) as run:
        for name, plan in zip(names, plans, strict=True):
            folder = root / name
            (folder / "images").mkdir(parents=True)
            (folder / "masks").mkdir()
            rows = [row for part in run((folder, patient) for patient in plan) for row in part]
            _write_manifest(folder / "manifest.csv", rows)
            positives = sum(row["label"] == "1" for row in rows)
            archives.append(SiteArchive(name, folder, len(plan), len(rows), positives))
    return tuple(archives)


def site_name(site: int) -> str:
    """Short name of a fictitious hospital: alder, birch, cedar, ...; after 20, alder2, ..."""
    turn, place = divmod(site, len(_NAMES))
    return _NAMES[place] + (str(turn + 1) if turn else "")


def draw_patient(patient: PhantomPatient) -> tuple[Identity, list[PhantomSlice]]:
    """Invent one patient and draw the slices as the scanner of the hospital shows them.

    Args:
        patient: what it follows from.

    Returns:
        The identity, and 2 to 6 slices; of a patient with lesions, at least one slice shows a
        lesion and at least one shows none.
    """
    key = (_FOR_PATIENT, patient.site, patient.number)
    rng = np.random.default_rng(np.random.SeedSequence(patient.seed, spawn_key=key))
    identity = invent_identity(
        rng,
        patient_id=f"{patient.hospital.upper()}-{patient.number:05d}",
        hospital=patient.hospital,
        unique=f"{patient.seed}/{patient.hospital}/{patient.number}",
    )
    scanner = scanner_of(patient.site, patient.seed)
    size = matrix_of(scanner, patient.size)
    count = int(rng.integers(2, 7))
    anatomy = sample_anatomy(rng, slices=count, lesion=patient.lesion, age=identity.age)
    slices = []
    for index in range(count):
        tissue, lesions = draw_slice(rng, anatomy, index, size, scanner.contrast)
        slices.append(PhantomSlice(scan(rng, tissue, scanner), lesions))
    return identity, slices


def _check(**numbers: int | None) -> None:
    """Raise ConfigurationError for a number out of range."""
    smallest = {"sites": 1, "patients": 4, "seed": 0, "size": 48, "workers": 1}
    for name, value in numbers.items():
        if value is not None and value < smallest[name]:
            raise ConfigurationError(f"{name} is {value}: give at least {smallest[name]}.")


def _plan_site(
    site: int, sites: int, patients: int, seed: int, size: int
) -> tuple[PhantomPatient, ...]:
    """Decide who has a lesion and who has withheld consent; the counts are exact."""
    place = site / (sites - 1) if sites > 1 else 0.5
    count = round(patients * (1.5 - place))
    with_lesion = min(count - 1, max(1, round(count * (0.8 - 0.4 * place))))
    without_consent = round(count * _WITHOUT_CONSENT)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_FOR_PLAN, site)))
    lesion = rng.permutation(count) < with_lesion
    refusal = rng.permutation(count)
    return tuple(
        PhantomPatient(
            hospital=site_name(site),
            site=site,
            number=number,
            seed=seed,
            size=size,
            lesion=bool(lesion[number]),
            consent="yes" if rank >= without_consent else ("no", "withdrawn")[rank % 2],
        )
        for number, rank in enumerate(refusal.tolist())
    )


def _write_patient(task: _Task) -> list[dict[str, str]]:
    """Write one patient's files; return the rows of the manifest."""
    folder, patient = task
    identity, slices = draw_patient(patient)
    stems = [f"{patient.number:05d}-{index}" for index in range(1, len(slices) + 1)]
    write_slices(
        [folder / "images" / f"{stem}.dcm" for stem in stems],
        [drawn.image for drawn in slices],
        identity,
        scanner_of(patient.site, patient.seed),
    )
    rows = []
    for stem, drawn in zip(stems, slices, strict=True):
        boxes = "; ".join(_boxes(drawn.lesions))
        if boxes:
            mask = np.where(drawn.lesions > 0, np.uint8(255), np.uint8(0))
            PillowImage.fromarray(mask).save(folder / "masks" / f"{stem}.png", compress_level=1)
        rows.append(
            {
                "image": f"images/{stem}.dcm",
                "mask": f"masks/{stem}.png" if boxes else "",
                "patient_id": identity.patient_id,
                "label": "1" if boxes else "0",
                "boxes": boxes,
                "sex": identity.sex,
                "age": str(identity.age),
                "consent": patient.consent,
            }
        )
    return rows


def _boxes(lesions: NDArray[np.uint8]) -> Iterator[str]:
    """``x0 y0 x1 y1 1`` of each lesion, half-open, in pixels."""
    for number in range(1, int(lesions.max()) + 1):
        rows, columns = np.nonzero(lesions == number)
        if len(rows):
            yield f"{columns.min()} {rows.min()} {columns.max() + 1} {rows.max() + 1} 1"


def _write_manifest(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@contextmanager
def _mapping(workers: int | None, patients: int) -> Iterator[_Run]:
    """A function that writes patients in order, in this process or in a pool."""
    if workers is None:
        workers = _cores() if patients >= _POOL_PAYS_FROM else 1
    if workers <= 1:
        yield lambda tasks: map(_write_patient, tasks)
        return
    # Spawned, not forked: a fork of a process with torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield lambda tasks: pool.map(_write_patient, tasks, chunksize=8)


def _cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
