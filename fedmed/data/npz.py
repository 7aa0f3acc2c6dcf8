"""One ``.npz`` file of images dealt to simulated sites.

Expected arrays, as in MedMNIST (Yang et al., 2023): ``{train,val,test}_images`` uint8
``[N, H, W]`` or ``[N, H, W, 3]`` and ``{train,val,test}_labels`` ``[N, 1]``. Each image counts as
one patient.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedmed.configuration.groups import Partition
from fedmed.data.cohort import SPLITS, Cohort, Reading
from fedmed.data.image_set import ImageSet
from fedmed.data.letterbox import resize_keeping_aspect
from fedmed.errors import DataError, EmptyCohortError

MAX_BYTES = 8 * 2**30


def partition_indices(
    labels: NDArray[np.int64], sites: int, kind: Partition, alpha: float, seed: int
) -> list[NDArray[np.int64]]:
    """Deal images to sites.

    ``dirichlet`` draws for each class the sites' shares from a symmetric Dirichlet distribution
    (Hsu et al., 2019); ``iid`` deals a shuffled pack.

    Args:
        labels: class index of each image, ``[N]``.
        sites: number of sites.
        kind: ``dirichlet`` or ``iid``.
        alpha: concentration; small means unlike sites.
        seed: of the deal.

    Returns:
        Sorted image indices of each site; every image belongs to exactly one.
    """
    chooser = np.random.default_rng(seed)
    if kind == Partition.iid:
        shuffled = chooser.permutation(len(labels))
        return [np.sort(part) for part in np.array_split(shuffled, sites)]
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(sites)]
    for label in np.unique(labels):
        members = chooser.permutation(np.flatnonzero(labels == label))
        shares = chooser.dirichlet(np.full(sites, alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for part, dealt in zip(parts, np.split(members, cuts), strict=True):
            part.append(dealt)
    return [np.sort(np.concatenate(part)) for part in parts]


def load_npz_site(
    path: Path, site: int, reading: Reading, *, sites: int, kind: Partition, alpha: float
) -> Cohort:
    """Read what one simulated site holds of the file.

    Training and validation images are dealt as asked; test images are dealt evenly, so that
    together the sites hold the official test set.

    Args:
        path: the file.
        site: index of the site, from 0.
        reading: what the task wants.
        sites: number of sites.
        kind: of partition.
        alpha: of the Dirichlet partition.

    Raises:
        DataError: if the file lacks an array or holds one of another shape.
        EmptyCohortError: if the deal left the site without a training image.
    """
    arrays = _read_arrays(path)
    splits = {}
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        deal = Partition.iid if split == "test" else kind
        chosen = partition_indices(labels.max(axis=1), sites, deal, alpha, reading.seed)[site]
        splits[split] = _image_set(images[chosen], labels[chosen], reading)
    if not len(splits["train"]):
        raise EmptyCohortError(
            f"Site {site + 1} got no training image. Lower data.sites or raise data.alpha."
        )
    return Cohort(splits, found=sum(map(len, splits.values())), excluded=())


def _read_arrays(path: Path) -> dict[str, NDArray[np.int64]]:
    wanted = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise DataError(f"{path.name}: its arrays need {size} bytes, above {MAX_BYTES}.")
        with np.load(path, allow_pickle=False) as stored:
            missing = [name for name in wanted if name not in stored.files]
            if missing:
                raise DataError(f"{path.name}: lacks the arrays {', '.join(missing)}.")
            arrays = {name: stored[name] for name in wanted}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"data.path={path.name}: no readable .npz file.") from error
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.ndim not in (3, 4) or images.dtype != np.uint8 or len(images) != len(labels):
            raise DataError(f"{path.name}: {split} images are not uint8 [N, H, W] with labels.")
        arrays[f"{split}_labels"] = labels.reshape(len(labels), -1).astype(np.int64)
    return arrays


def _image_set(images: NDArray[np.int64], labels: NDArray[np.int64], reading: Reading) -> ImageSet:
    settings = reading.preprocessing
    if images.ndim == 3:
        images = images[..., np.newaxis]
    scaled = images.astype(np.float32).transpose(0, 3, 1, 2) / 255.0
    if scaled.shape[1] != settings.channels:
        scaled = scaled.mean(axis=1, keepdims=True).repeat(settings.channels, axis=1)
    if scaled.shape[2:] != (settings.size, settings.size):
        resized = [resize_keeping_aspect(image, settings.size) for image in scaled]
        scaled = (
            np.stack(resized)
            if resized
            else np.zeros((0, settings.channels, settings.size, settings.size), np.float32)
        )
    multi = labels.shape[1] > 1
    indices = [np.flatnonzero(row) if multi else row for row in labels]
    targets = [reading.encode([int(i) for i in row]) for row in indices]
    probe = reading.encode([0])
    stacked = torch.stack(targets) if targets else probe.new_zeros((0, *probe.shape))
    return ImageSet(torch.from_numpy(scaled), stacked, torch.arange(len(targets)))
