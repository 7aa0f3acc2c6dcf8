"""One whole federated run as a command of its own, and what it reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from privacy_recipes.recipes import Recipe


class RunError(Exception):
    """A run failed, sat a site out, or spent more than it may."""


@dataclass(frozen=True)
class Outcome:
    """What one run reached.

    Attributes:
        recipe: what was run.
        seed: of the split and of the first weights; the noise follows no seed.
        auroc: of the global model on the union of the sites' test images.
        epsilon: the largest of the sites; ``None`` without privacy.
        seconds: of the whole command, its start and the evaluation included.
    """

    recipe: Recipe
    seed: int
    auroc: float
    epsilon: float | None
    seconds: float


def outcomes(
    recipes: Sequence[Recipe], seeds: Sequence[int], data: Path, jobs: int
) -> Iterator[Outcome]:
    """Run each recipe with each seed, as many side by side as there are jobs.

    Raises:
        RunError: if a run failed.
    """
    pool = ThreadPoolExecutor(max_workers=jobs)
    try:
        waiting = [pool.submit(run, recipe, seed, data) for recipe in recipes for seed in seeds]
        for done in as_completed(waiting):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def run(recipe: Recipe, seed: int, data: Path) -> Outcome:
    """Run ``fedmed simulate`` in a temporary folder, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        settings = (
            *recipe.data.data_settings(data),
            *recipe.settings,
            f"seed={seed}",
            f"tracking.folder={folder}",
        )
        start = time.perf_counter()
        finished = subprocess.run(
            [sys.executable, "-m", "fedmed.cli", "simulate", *settings],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - start
        if finished.returncode != 0:
            last = "\n".join(finished.stdout.splitlines()[-5:])
            raise RunError(f"{recipe.stems[0]}, seed {seed}, failed:\n{last}")
        (path,) = Path(folder).rglob("summary.json")
        summary = json.loads(path.read_text(encoding="utf-8"))
    auroc, epsilon = float(summary["metrics"]["auroc"]), spent(recipe, summary)
    return Outcome(recipe, seed, auroc, epsilon, seconds)


def spent(recipe: Recipe, summary: dict[str, object]) -> float | None:
    """Return the largest epsilon of the sites.

    Raises:
        RunError: if it is not what the recipe promises.
    """
    sites = summary["sites"]
    if summary["refused"] or not isinstance(sites, dict):
        raise RunError(f"{recipe.stems[0]}: a site refused a round.")
    found: list[float | None] = [site["epsilon"] for site in sites.values()]
    if recipe.target is None:
        if any(value is not None for value in found):
            raise RunError(f"{recipe.stems[0]}: epsilon was spent without privacy.")
        return None
    unit = recipe.units[0]
    privacy = summary["privacy"]
    if not isinstance(privacy, dict) or (privacy["unit"], privacy["noise"]) != (unit, "secure"):
        raise RunError(f"{recipe.stems[0]}: the run was not private for each {unit}.")
    values = [value for value in found if value is not None and 0 < value <= recipe.target]
    if len(values) < len(found):
        raise RunError(f"{recipe.stems[0]}: the sites spent {found}, over {recipe.target:g}.")
    return max(values)
