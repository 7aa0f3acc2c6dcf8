"""What privacy costs in accuracy: AUROC at epsilon 1, 3, 8 and without, on real images.

Each figure comes from whole runs of ``fedmed simulate`` with three sites and noise from the secure
generator, one run for each seed. Epsilon is that which the sites' ledgers report, each site for
itself, at a delta of 1e-5; a run that spends more than its target is an error. Means are over the
seeds, spreads are sample standard deviations.

With privacy the network is ``scattering``: fixed features, one trained layer. ``--ablation`` trains
the small residual network with privacy from end to end, and adds one option at a time.

Within a seed the noise alone moves the figures of small sites by as much as the split does.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from machine import print_machine, write_figures
from privacy_recipes.recipes import DATA_SETS, PNEUMONIA, DataSet, Recipe, ablation, recipes
from privacy_recipes.runs import Outcome, RunError, outcomes
from rich import box
from rich.console import Console
from rich.table import Table

SEEDS = (3, 4, 5)
"""Not those that the settings were chosen with."""
GOALS = {"pneumoniamnist_image_eps1": 0.88, "pneumoniamnist_image_eps8": 0.92}
"""AUROC that is aimed at."""
UNITS = ("image", "patient")
ROWS = {
    "eps1": "epsilon 1",
    "eps3": "epsilon 3",
    "eps8": "epsilon 8",
    "epsoff": "off, same network",
    "epsoff_residual_cnn": "off, residual_cnn",
}


def measure(
    chosen: Sequence[Recipe], arguments: argparse.Namespace, console: Console
) -> list[Outcome]:
    """Run everything and tell of each run as it ends."""
    found = []
    for outcome in outcomes(chosen, arguments.seeds, arguments.data, arguments.jobs):
        epsilon = "none" if outcome.epsilon is None else f"{outcome.epsilon:.4f}"
        console.print(
            f"{' '.join(outcome.recipe.stems)} seed {outcome.seed}: AUROC {outcome.auroc:.4f}, "
            f"epsilon {epsilon}, {outcome.seconds:.0f} s",
            style="dim",
            highlight=False,
        )
        found.append(outcome)
    return found


def figures_of(found: Sequence[Outcome]) -> dict[str, float]:
    """Return the figures of DESIGN section 7 and the seconds; one seed has no spread."""
    by_stem: dict[str, list[Outcome]] = {}
    for outcome in found:
        for stem in outcome.recipe.stems:
            by_stem.setdefault(stem, []).append(outcome)
    figures = {}
    for stem, runs in by_stem.items():
        values = [one.auroc for one in runs]
        figures[f"{stem}_auroc_mean"] = statistics.fmean(values)
        if len(values) > 1:
            figures[f"{stem}_auroc_std"] = statistics.stdev(values)
        figures[f"{stem}_seconds"] = statistics.fmean(one.seconds for one in runs)
    return figures


def result_table(data: DataSet, figures: dict[str, float], seeds: Sequence[int]) -> Table:
    """Return a row an epsilon and a column a unit, with the seconds of a run."""
    table = Table(
        title=f"{data.title}, 3 sites, AUROC, seeds {' '.join(map(str, seeds))}",
        caption=None
        if "patient" in data.units
        else "Without patient ids there is no unit patient.",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("privacy", no_wrap=True)
    for unit in UNITS:
        table.add_column(f"unit {unit}", justify="right", no_wrap=True)
        table.add_column("s a run", justify="right", no_wrap=True)
    for row, title in ROWS.items():
        cells = [cell for unit in UNITS for cell in _cells(f"{data.name}_{unit}_{row}", figures)]
        if any(cell != "-" for cell in cells):
            table.add_row(title, *cells)
    return table


def ablation_table(figures: dict[str, float]) -> Table:
    """Return a row an option of end-to-end private training."""
    title = f"{PNEUMONIA.title}, epsilon 8, unit image, residual_cnn_small, AUROC"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("option", no_wrap=True)
    for column in ("AUROC", "s a run"):
        table.add_column(column, justify="right", no_wrap=True)
    for recipe in ablation():
        table.add_row(recipe.row.removeprefix("eps8_cnn_"), *_cells(recipe.stems[0], figures))
    return table


def _cells(stem: str, figures: dict[str, float]) -> list[str]:
    mean = figures.get(f"{stem}_auroc_mean")
    if mean is None:
        return ["-", "-"]
    spread = figures.get(f"{stem}_auroc_std", math.nan)
    text = f"{mean:.3f}" if math.isnan(spread) else f"{mean:.3f} ± {spread:.3f}"
    return [text, f"{figures[f'{stem}_seconds']:.0f}"]


def verdicts(figures: dict[str, float]) -> list[str]:
    """Return one line for each goal that was measured."""
    lines = []
    for stem, goal in GOALS.items():
        mean = figures.get(f"{stem}_auroc_mean")
        if mean is not None:
            word = "reached" if mean >= goal else "missed"
            lines.append(f"{stem}: AUROC {mean:.3f} (at least {goal}; {word})")
    return lines


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser = argparse.ArgumentParser(description="What privacy costs in accuracy.")
    parser.add_argument("--quick", action="store_true", help="two figures of one seed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument(
        "--data", type=Path, default=beside, metavar="DIR", help="folder of the data sets"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), metavar="SEED")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side")
    parser.add_argument(
        "--ablation", action="store_true", help="instead, options of end-to-end private training"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds = arguments.seeds[:1]
    return arguments


def measure_tables(arguments: argparse.Namespace, console: Console) -> dict[str, float]:
    """Measure and print one table a data set; one that is absent is left out."""
    figures: dict[str, float] = {}
    for data in DATA_SETS[:1] if arguments.quick or arguments.ablation else DATA_SETS:
        if not (arguments.data / data.location).exists():
            console.print(f"{data.title}: not measured: {data.location} is not there (--data DIR)")
            continue
        chosen = ablation() if arguments.ablation else recipes(data)
        if arguments.quick:
            chosen = [recipe for recipe in chosen if recipe.row in ("eps1", "eps8")] or chosen[:1]
        found = figures_of(measure(chosen, arguments, console))
        if arguments.ablation:
            console.print(ablation_table(found))
            # Keys of the ablation say no mean, also where there are several seeds.
            found = {key.replace("_auroc_mean", "_auroc"): value for key, value in found.items()}
        else:
            console.print(result_table(data, found, arguments.seeds))
        figures |= found
    return figures


def main() -> int:
    """Measure, print the tables, write the figures."""
    arguments = read_arguments()
    console = Console()
    print_machine(console)
    try:
        figures = measure_tables(arguments, console)
    except RunError as error:
        console.print(str(error), markup=False)
        return 1
    for line in verdicts(figures):
        console.print(line, highlight=False)
    write_figures(arguments.json, "privacy_utility", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
