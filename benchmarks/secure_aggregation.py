"""CPU time and bytes of a round of secure aggregation, at the sites and at the server.

fedmed's figures come from whole rounds on its real sessions: a site's time has keys, shares and
sealed boxes, the checks of all that it receives (the model's hash as well), quantisation, masks,
the hash of the masked update, signatures and its journal. The server's has everything from the
first request to the mean. Training and transport are left out; each round's mean is compared with
the plain one. The ways take turns; figures are medians over the repetitions.

Flower's are those of the client functions of ``secaggplus``: keys, shares, quantisation and masks,
without signatures. TenSEAL's are one site's CKKS encryption, without anything else.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from aggregation_ways.fedmed_round import STEPS, AggregationRound, RoundCost
from aggregation_ways.flower_client import flower_client
from aggregation_ways.tenseal_ckks import tenseal_client
from machine import print_machine, read_arguments, write_figures
from rich import box
from rich.console import Console
from rich.table import Table

from fedmed.secagg.quorum import threshold

PARAMETERS = 10_000_000
SITES = 10
DROP_OUTS = 3
TENSEAL_CIPHERTEXTS = 20
TARGETS = {"client_cpu_s": 0.25, "upload_ratio": 1.01, "upload_ratio_16bit": 0.51}
Update = npt.NDArray[np.float32]


@dataclass
class Samples:
    """What was measured at one number of sites, by repetition."""

    whole: list[RoundCost] = field(default_factory=list)
    with_drop_outs: list[RoundCost] = field(default_factory=list)
    narrow: list[RoundCost] = field(default_factory=list)
    flower_s: list[float] = field(default_factory=list)
    flower_upload: list[float] = field(default_factory=list)
    tenseal_s: list[float] = field(default_factory=list)
    tenseal_upload: list[float] = field(default_factory=list)


def run_round(update: Update, sites: int, drop_outs: int, bits: int) -> RoundCost:
    with tempfile.TemporaryDirectory() as folder:
        return AggregationRound(update, sites, drop_outs, bits, Path(folder)).run()


def most_drop_outs(sites: int) -> int:
    """Return 3, or as many as a round of so few sites stands."""
    return min(DROP_OUTS, sites - threshold(sites))


def measure(update: Update, sites: int, repetitions: int, tenseal: bool) -> Samples:
    """Let the ways take turns."""
    samples = Samples()
    for _ in range(repetitions):
        samples.whole.append(run_round(update, sites, 0, 32))
        flower = flower_client(update, sites)
        samples.flower_s.append(flower.cpu_s)
        samples.flower_upload.append(flower.upload_ratio)
        samples.with_drop_outs.append(run_round(update, sites, most_drop_outs(sites), 32))
        if tenseal:
            ckks = tenseal_client(update, TENSEAL_CIPHERTEXTS)
            samples.tenseal_s.append(ckks.cpu_s)
            samples.tenseal_upload.append(ckks.upload_ratio)
        samples.narrow.append(run_round(update, sites, 0, 16))
    return samples


def median_of(costs: list[RoundCost], value: Callable[[RoundCost], float]) -> float:
    return statistics.median(value(cost) for cost in costs)


def figures_of(samples: Samples, sites: int) -> dict[str, float]:
    """Return the figures of DESIGN section 7, and those beside them."""
    figures = {
        "client_cpu_s": median_of(samples.whole, lambda cost: cost.client_s),
        "client_cpu_16bit_s": median_of(samples.narrow, lambda cost: cost.client_s),
        "upload_ratio": median_of(samples.whole, lambda cost: cost.upload_ratio),
        "upload_ratio_16bit": median_of(samples.narrow, lambda cost: cost.upload_ratio),
        "server_cpu_s": median_of(samples.whole, lambda cost: cost.server_s),
        drop_outs_key(sites): median_of(samples.with_drop_outs, lambda cost: cost.server_s),
        "flower_client_cpu_s": statistics.median(samples.flower_s),
        "flower_upload_ratio": statistics.median(samples.flower_upload),
    }
    for step in STEPS:
        figures[f"client_{step}_s"] = statistics.median(c.steps[step] for c in samples.whole)
    if samples.tenseal_s:
        figures["tenseal_client_cpu_s"] = statistics.median(samples.tenseal_s)
        figures["tenseal_upload_ratio"] = statistics.median(samples.tenseal_upload)
    return {key + suffix_of(sites): value for key, value in figures.items()}


def comparison(figures: dict[str, float]) -> Table:
    """Return a row for each way, at 10 sites."""
    title = f"{PARAMETERS // 10**6} million parameters, {SITES} sites"
    table = Table(title=title, box=box.SIMPLE, show_edge=False)
    table.add_column("way", no_wrap=True)
    for column in ("CPU s per site", "upload to float32"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, cpu, upload in (
        ("fedmed, 32 bits", "client_cpu_s", "upload_ratio"),
        ("fedmed, 16 bits", "client_cpu_16bit_s", "upload_ratio_16bit"),
        ("Flower secaggplus", "flower_client_cpu_s", "flower_upload_ratio"),
        ("TenSEAL CKKS", "tenseal_client_cpu_s", "tenseal_upload_ratio"),
    ):
        if cpu in figures:
            table.add_row(name, f"{figures[cpu]:.3f}", f"{figures[upload]:.4f}")
    return table


def by_sites(figures: dict[str, float], numbers: list[int]) -> Table:
    """Return a row for each number of sites."""
    table = Table(title="by number of sites, CPU s", box=box.SIMPLE, show_edge=False)
    for column in (
        "sites",
        "threshold",
        "site",
        "site, 16 bits",
        "Flower's site",
        "server",
        "server, drop-outs",
        "drop-outs",
        "upload",
    ):
        table.add_column(column, justify="right")
    for sites in numbers:
        suffix = suffix_of(sites)
        seconds = [
            f"{figures[key + suffix]:.3f}"
            for key in (
                "client_cpu_s",
                "client_cpu_16bit_s",
                "flower_client_cpu_s",
                "server_cpu_s",
                drop_outs_key(sites),
            )
        ]
        upload = f"{figures['upload_ratio' + suffix]:.4f}"
        drop_outs = str(most_drop_outs(sites))
        table.add_row(str(sites), str(threshold(sites)), *seconds, drop_outs, upload)
    return table


def drop_outs_key(sites: int) -> str:
    return f"server_cpu_{most_drop_outs(sites)}_dropouts_s"


def suffix_of(sites: int) -> str:
    return "" if sites == SITES else f"_{sites}_sites"


def main() -> None:
    """Measure, print the tables, write the figures."""
    arguments = read_arguments("CPU time and bytes of a round of secure aggregation.")
    console = Console(width=110)
    print_machine(console)
    tenseal = importlib.util.find_spec("tenseal") is not None
    if not tenseal:
        console.print("TenSEAL CKKS: not measured: tenseal is not installed")
    random = np.random.default_rng(0)
    # Some coordinates lie beyond the update bound of the rounds, 0.1: they are clipped.
    update = random.standard_normal(PARAMETERS, dtype=np.float32) * np.float32(0.03)
    numbers = [4, SITES, 20] if arguments.quick else [4, SITES, 20, 30, 40, 50]
    figures = figures_of(measure(update, SITES, 3 if arguments.quick else 7, tenseal), SITES)
    for sites in numbers:
        if sites != SITES:
            samples = measure(update, sites, 1 if arguments.quick else 2, tenseal=False)
            figures |= figures_of(samples, sites)
    console.print(comparison(figures))
    parts = ", ".join(f"{step} {1e3 * figures[f'client_{step}_s']:.1f} ms" for step in STEPS)
    console.print(f"fedmed's site, 32 bits: {parts}\n", highlight=False)
    console.print(by_sites(figures, numbers))
    if arguments.quick:
        console.print("30 to 50 sites: not measured: left out by --quick")
    for key, target in TARGETS.items():
        reached = "reached" if figures[key] <= target else "missed"
        console.print(f"{key} {figures[key]:.4f} (at most {target}; {reached})", highlight=False)
    write_figures(arguments.json, "secure_aggregation", figures)


if __name__ == "__main__":
    main()
