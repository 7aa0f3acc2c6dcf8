"""Overhead of a round: everything but the training.

Three sites answer at once with an update of a million float32 parameters. The engines take turns
in the same run; start-up, joining and the first round do not count. Figures are means: engines that
poll are quick in one round and slow in the next, between which a median would choose by chance.

``ray_s`` and ``stock_flower_s`` are with fedmed's apps and round loop on Flower's engines: the
same aggregation and the same checkpoint on disk on all engines. ``..._exchange_s`` is the part of
it from the first request to the last answer. ``..._flower_loop_s`` are with Flower's own FedAvg
as a plain Flower app has it, without a checkpoint.

All of these send plain updates: like is compared with like. ``..._secagg_s`` are the same rounds
with secure aggregation, signed messages and the transparency log, which is what fedmed does unless
told otherwise; there the exchange holds all four exchanges of a round.
"""

from __future__ import annotations

import logging
import math
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from machine import print_machine, read_arguments, write_figures
from rich import box
from rich.console import Console
from rich.table import Table
from round_engines.echo import PARAMETERS, SITES, RoundTime
from round_engines.fedmed_engines import (
    deployed,
    deployed_secagg,
    in_process,
    in_process_secagg,
)
from round_engines.ray_engine import on_ray, on_ray_with_flower_loop
from round_engines.stock_flower import NotMeasuredError, stock_flower

Engine = Callable[[Path, int], list[RoundTime]]

TARGET_RATIO = 20
TITLES = {
    "in_process": "fedmed, one process",
    "in_process_secagg": "same, secagg",
    "ray": "Flower, Ray",
    "ray_flower_loop": "Flower, Ray, FedAvg",
    "deployed": "fedmed deployed, TLS",
    "deployed_secagg": "same, secagg",
    "stock_flower": "Flower deployed",
    "stock_flower_loop": "Flower deployed, FedAvg",
}


def measure(quick: bool, console: Console) -> dict[str, list[RoundTime]]:
    """Return the times of each round by engine; an engine that is not there is left out."""
    engines: dict[str, tuple[Engine, int]] = {
        "in_process": (in_process, 20 if quick else 50),
        "in_process_secagg": (in_process_secagg, 10 if quick else 20),
        "ray": (on_ray, 10 if quick else 20),
        "ray_flower_loop": (on_ray_with_flower_loop, 2 if quick else 10),
        "deployed": (deployed, 10 if quick else 20),
        "deployed_secagg": (deployed_secagg, 10 if quick else 20),
    }
    if quick:
        console.print("Flower deployed: not measured: left out by --quick")
    else:
        engines["stock_flower"] = (stock_flower, 3)
        engines["stock_flower_loop"] = (partial(stock_flower, flower_loop=True), 3)
    times: dict[str, list[RoundTime]] = {}
    for _ in range(2 if quick else 3):
        for name, (engine, rounds) in list(engines.items()):
            console.print(f"{TITLES[name]}: {rounds} rounds", style="dim")
            try:
                with tempfile.TemporaryDirectory() as folder:
                    times.setdefault(name, []).extend(engine(Path(folder), rounds))
            except (ImportError, NotMeasuredError) as error:
                console.print(f"{TITLES[name]}: not measured: {error}", markup=False)
                del engines[name]
    return {name: values for name, values in times.items() if values}


def means(times: dict[str, list[RoundTime]]) -> dict[str, float]:
    """Return the figures of DESIGN section 7, and the exchange's part of them."""
    figures: dict[str, float] = {}
    for name, values in times.items():
        figures[f"{name}_s"] = statistics.fmean(value.whole for value in values)
        exchange = statistics.fmean(value.exchange for value in values)
        if not math.isnan(exchange):
            figures[f"{name}_exchange_s"] = exchange
    if "ray_s" in figures:
        figures["ratio"] = figures["ray_s"] / figures["in_process_s"]
        figures["exchange_ratio"] = figures["ray_exchange_s"] / figures["in_process_exchange_s"]
    return figures


def result_table(times: dict[str, list[RoundTime]], figures: dict[str, float]) -> Table:
    """Return a row an engine: rounds, seconds, and how many times those of one process."""
    title = f"A round of {len(SITES)} sites, {PARAMETERS:,} parameters, no training"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 0, 0, 1), show_edge=False)
    table.add_column("engine", no_wrap=True)
    for column in ("rounds", "mean s", "range s", "ratio", "exchange", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, values in times.items():
        whole, exchange = figures[f"{name}_s"], figures.get(f"{name}_exchange_s")
        wholes = [value.whole for value in values]
        table.add_row(
            TITLES[name],
            str(len(values)),
            f"{whole:.4f}",
            f"{min(wholes):.2g}-{max(wholes):.2g}",
            f"{whole / figures['in_process_s']:.1f}",
            "-" if exchange is None else f"{exchange:.4f}",
            "-" if exchange is None else f"{exchange / figures['in_process_exchange_s']:.1f}",
        )
    return table


def main() -> None:
    """Measure, print the table, write the figures."""
    arguments = read_arguments("Overhead of a round: everything but the training.")
    console = Console()
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    print_machine(console)
    times = measure(arguments.quick, console)
    figures = means(times)
    console.print(result_table(times, figures))
    if "ratio" in figures:
        verdict = "reached" if figures["ratio"] >= TARGET_RATIO else "missed"
        console.print(
            f"Ray to one process: whole round {figures['ratio']:.1f} "
            f"(target: at least {TARGET_RATIO}; {verdict}), exchange alone "
            f"{figures['exchange_ratio']:.1f}"
        )
    write_figures(arguments.json, "round_overhead", figures)


if __name__ == "__main__":
    main()
