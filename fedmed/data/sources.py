"""Which sites there are and how each one's cohort is loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from fedmed.configuration.groups import DataConfig, DataSource
from fedmed.data.cohort import Cohort, Reading, load_cohort
from fedmed.data.npz import load_npz_site
from fedmed.errors import DataError

CohortLoader = Callable[[Reading], Cohort]
MANIFEST_NAME = "manifest.csv"


def site_sources(data: DataConfig) -> dict[str, CohortLoader]:
    """Return a loader for each site, by name, in the order of names.

    A hospital's name is that of its folder, in lower case.

    Raises:
        DataError: if there is no site.
    """
    if data.source == DataSource.npz:
        path = Path(data.path or "")
        if not path.is_file():
            raise DataError(f"data.path={data.path}: there is no such file.")
        return {
            f"site-{number + 1}": partial(_load_npz, path, number, data.sites, data)
            for number in range(data.sites)
        }
    folders = _hospital_folders(data)
    return {name: partial(load_cohort, folder) for name, folder in sorted(folders.items())}


def _load_npz(path: Path, number: int, sites: int, data: DataConfig, reading: Reading) -> Cohort:
    return load_npz_site(path, number, reading, sites=sites, kind=data.partition, alpha=data.alpha)


def _hospital_folders(data: DataConfig) -> dict[str, Path]:
    root = Path(data.root or "")
    if not root.is_dir():
        raise DataError(f"data.root={data.root}: there is no such folder.")
    folders = [path for path in sorted(root.iterdir()) if (path / MANIFEST_NAME).is_file()]
    if not folders and (root / MANIFEST_NAME).is_file():
        folders = [root]
    if not folders:
        raise DataError(
            f"data.root={data.root}: no folder in it holds {MANIFEST_NAME}. Make demo archives "
            "with `fedmed data phantom DIR`, or write a manifest (README, 'Your own data')."
        )
    named = {folder.resolve().name.lower(): folder for folder in folders}
    if len(named) != len(folders):
        raise DataError(f"data.root={data.root}: two folders differ in upper and lower case only.")
    return named
