"""Time and memory of one private training step, by way of clipping.

A step is all of it: forward and backward pass, clipping of each image (or patient) by itself,
noise, and the optimiser. Ratios are to plain SGD on the same network and batch. The ways take
turns on one thread; a ratio is the median over the rounds of this way's time over plain SGD's in
the same round. Memory is the peak of one step above network, optimiser and data, in a process of
its own.

fedmed's noise comes from a cryptographic generator; stock Opacus draws from torch's.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from dp_steps.memory import peak_memory, peak_memory_cuda
from dp_steps.networks import problem
from dp_steps.ways import WAYS, Step
from machine import print_machine, read_arguments, write_figures
from rich import box
from rich.console import Console
from rich.table import Table

from fedmed.training.device import keep_freed_memory

BATCH = 64
NETWORKS = {"classifier": 1.3, "unet": 1.1, "detector": math.nan}
"""Networks, with the largest ratio of time that is aimed at."""
MEMORY_TARGET = 1.2
SPEEDUP_TARGET = 1.8
QUICK_WAYS = ("sgd", "auto", "opacus_hooks")
Times = dict[str, list[float]]


def measure_times(
    network: str, device: torch.device, rounds: int, ways: Sequence[str] = tuple(WAYS)
) -> Times:
    """Return seconds of each round by way; a way that fails is left out."""
    steps: dict[str, Step] = {}
    for way in ways:
        _, make = WAYS[way]
        try:
            step: Step | None = make(problem(network, BATCH, device))
            step()
        except Exception:  # whatever a rival stumbles over: the table says that it fails
            step = None
        if step is not None:
            steps[way] = step
    times: Times = {way: [] for way in steps}
    for _ in range(rounds):
        for way, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            times[way].append(time.perf_counter() - start)
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(times: Times, way: str, to: str) -> float:
    """Return the median over rounds of one way's time over another's; NaN if one failed."""
    if way not in times or to not in times:
        return math.nan
    pairs = zip(times[way], times[to], strict=True)
    return statistics.median(one / other for one, other in pairs)


def figures_of(
    network: str, times: Times, memory: Callable[[str, str, int], float], suffix: str
) -> dict[str, float]:
    """Return the figures of DESIGN section 7 for ``auto``, and the same for each other way."""
    peaks = {way: memory(way, network, BATCH) for way in times}
    figures = {}
    for way in times:
        stem = network if way == "auto" else f"{network}_{way}"
        figures[f"{stem}_s{suffix}"] = statistics.median(times[way])
        figures[f"{stem}_mebibytes{suffix}"] = peaks[way]
        figures[f"{stem}_time_ratio{suffix}"] = ratio(times, way, "sgd")
        figures[f"{stem}_memory_ratio{suffix}"] = peaks[way] / peaks["sgd"]
        figures[f"{stem}_speedup_vs_opacus_hooks{suffix}"] = ratio(times, "opacus_hooks", way)
    return {key: value for key, value in figures.items() if math.isfinite(value)}


def result_table(
    network: str, figures: dict[str, float], where: str, suffix: str, tried: Sequence[str]
) -> Table:
    """Return a row for each way that was tried."""
    title = f"{network}, batch {BATCH}, 1x64x64, {where}"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 0, 0, 1), show_edge=False)
    table.add_column("way", no_wrap=True)
    for column in ("ms", "to SGD", "MiB", "to SGD", "speed-up over Opacus hooks"):
        table.add_column(column, justify="right", no_wrap=True)
    for way, (title, _) in WAYS.items():
        stem = network if way == "auto" else f"{network}_{way}"
        if f"{stem}_s{suffix}" not in figures:
            if way in tried:
                table.add_row(title, "fails")
            continue
        cells = [
            f"{figures[f'{stem}_s{suffix}'] * 1e3:.1f}",
            *(
                f"{figures[f'{stem}_{key}{suffix}']:.{digits}f}"
                if f"{stem}_{key}{suffix}" in figures
                else "-"
                for key, digits in (
                    ("time_ratio", 2),
                    ("mebibytes", 0),
                    ("memory_ratio", 2),
                    ("speedup_vs_opacus_hooks", 2),
                )
            ),
        ]
        table.add_row(title, *cells)
    return table


def verdict(network: str, figures: dict[str, float]) -> str:
    """Return one line: the figures of ``auto`` beside their targets."""
    parts = []
    for key, target, at_most in (
        ("time_ratio", NETWORKS[network], True),
        ("memory_ratio", MEMORY_TARGET, True),
        ("speedup_vs_opacus_hooks", SPEEDUP_TARGET, False),
    ):
        value = figures.get(f"{network}_{key}", math.nan)
        text = f"{key} {value:.2f}"
        if not math.isnan(target):
            reached = value <= target if at_most else value >= target
            words = f"at {'most' if at_most else 'least'} {target}"
            text += f" ({words}; {'reached' if reached else 'missed'})"
        parts.append(text)
    return f"{network}: {', '.join(parts)}"


def main() -> None:
    """Measure, print the tables, write the figures."""
    arguments = read_arguments("Time and memory of one private training step.")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    console = Console(width=110)
    print_machine(console)
    rounds = 5 if arguments.quick else 15
    ways = QUICK_WAYS if arguments.quick else tuple(WAYS)
    figures: dict[str, float] = {}
    for network in NETWORKS:
        cpu = torch.device("cpu")
        found = figures_of(network, measure_times(network, cpu, rounds, ways), peak_memory, "")
        console.print(result_table(network, found, "one thread", "", ways))
        console.print(verdict(network, found) + "\n", highlight=False)
        figures |= found
        if torch.cuda.is_available():
            cuda = torch.device("cuda")
            times = measure_times(network, cuda, 4 * rounds, ways)
            found = figures_of(network, times, peak_memory_cuda, "_cuda")
            console.print(result_table(network, found, torch.cuda.get_device_name(), "_cuda", ways))
            figures |= found
    if keep_freed_memory():
        figures |= _with_freed_memory_kept(console, rounds)
    write_figures(arguments.json, "dp_step", figures)


def _with_freed_memory_kept(console: Console, rounds: int) -> dict[str, float]:
    """Measure again as fedmed's commands run: the C library keeps freed memory. All ways profit."""
    figures = {}
    for network in NETWORKS:
        times = measure_times(network, torch.device("cpu"), rounds, QUICK_WAYS)
        for way in times:
            stem = network if way == "auto" else f"{network}_{way}"
            figures[f"{stem}_s_kept"] = statistics.median(times[way])
        figures[f"{network}_time_ratio_kept"] = ratio(times, "auto", "sgd")
        figures[f"{network}_speedup_vs_opacus_hooks_kept"] = ratio(times, "opacus_hooks", "auto")
        console.print(
            f"{network}, freed memory kept: plain SGD {1e3 * statistics.median(times['sgd']):.1f} "
            f"ms, fedmed auto {1e3 * statistics.median(times['auto']):.1f} ms (ratio "
            f"{figures[f'{network}_time_ratio_kept']:.2f}; "
            f"{figures[f'{network}_speedup_vs_opacus_hooks_kept']:.2f} times as quick as Opacus "
            "hooks)",
            highlight=False,
        )
    return figures


if __name__ == "__main__":
    main()
