"""``fedmed data``: make demo archives, check an archive before joining."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedmed.configuration.commands import SimulateSettings
from fedmed.configuration.loading import load_settings
from fedmed.data.cohort import Cohort, Reading
from fedmed.data.labels import LabelSchema
from fedmed.data.phantom import write_archives
from fedmed.data.sources import site_sources
from fedmed.errors import DataError
from fedmed.tasks.registry import build_task
from fedmed.training.seeds import derive_seed

_ROWS_SHOWN = 20


def data_command(arguments: Sequence[str], console: Console) -> int:
    """Run ``fedmed data phantom`` or ``fedmed data check``.

    Raises:
        FedmedError: with what is wrong and the way out.
    """
    parser = argparse.ArgumentParser(
        prog="fedmed data",
        description="Make demo archives, or check archives before joining.",
        epilog="examples:\n  fedmed data phantom demo --sites 3 --patients 60\n"
        "  fedmed data check demo\n  fedmed data check DIR task.labels=[normal,pneumonia]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    phantom = commands.add_parser("phantom", help="write demo archives of fictitious patients")
    phantom.add_argument("folder", type=Path, help="new or empty folder")
    phantom.add_argument("--sites", type=int, default=3, help="number of hospitals (3)")
    phantom.add_argument("--patients", type=int, default=60, help="mean patients a hospital (60)")
    phantom.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")
    check = commands.add_parser("check", help="read every image and tell what would be used")
    check.add_argument("folder", type=Path, help="holds one folder a hospital, or manifest.csv")
    check.add_argument("overrides", nargs="*", help="settings, such as preprocessing.size=128")
    parsed = parser.parse_args(arguments)
    if parsed.command == "phantom":
        return _phantom(parsed, console)
    return _check(parsed.folder, parsed.overrides, console)


def _phantom(parsed: argparse.Namespace, console: Console) -> int:
    if parsed.folder.exists() and any(parsed.folder.iterdir()):
        raise DataError(f"{parsed.folder} is not empty; name a new folder.")
    archives = write_archives(
        parsed.folder, sites=parsed.sites, patients=parsed.patients, seed=parsed.seed
    )
    table = Table("hospital", "patients", "images", "with lesion")
    for archive in archives:
        table.add_row(
            archive.name, str(archive.patients), str(archive.images), str(archive.positives)
        )
    console.print(table)
    return 0


def _check(folder: Path, overrides: Sequence[str], console: Console) -> int:
    settings = load_settings(
        SimulateSettings,
        "simulate",
        ["data=manifest", f"data.root='{folder}'", "privacy=off", *overrides],
    )
    plan = settings.plan()
    task = build_task(plan.task)
    reading = Reading(
        preprocessing=plan.preprocessing,
        schema=LabelSchema(tuple(plan.task.labels), plan.task.multi_label),
        required_columns=task.required_columns,
        encode=task.encode,
        strata=task.strata,
        seed=derive_seed(plan.seed, "split"),
    )
    for name, load in site_sources(settings.data).items():
        _show(name, load(reading), console)
    return 0


def _show(name: str, cohort: Cohort, console: Console) -> None:
    sizes = {split: len(images) for split, images in cohort.splits.items()}
    used = ", ".join(f"{count} {split}" for split, count in sizes.items())
    console.print(f"{name}: {cohort.found} images found; used: {used}", markup=False)
    for reason, count in cohort.excluded_counts.items():
        console.print(f"  {count} left out: {reason}", markup=False)
    for entry in cohort.excluded[:_ROWS_SHOWN]:
        detail = f": {entry.detail}" if entry.detail else ""
        console.print(f"    line {entry.row}: {entry.reason}{detail}", markup=False)
    rest = len(cohort.excluded) - _ROWS_SHOWN
    if rest > 0:
        console.print(f"    and {rest} more")
