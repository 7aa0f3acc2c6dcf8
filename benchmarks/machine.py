"""What every benchmark says of the machine it ran on, and how it writes its figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

_PACKAGES = ("torch", "flwr", "opacus", "ray")
_GIBIBYTE = 2**30


def describe_machine() -> dict[str, str | int | float]:
    """Return processor, cores that this process may use, memory, system and versions."""
    facts: dict[str, str | int | float] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["memory_gib"] = round(memory / _GIBIBYTE, 1)
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def read_arguments(description: str) -> argparse.Namespace:
    """Read ``--quick`` and ``--json FILE`` from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="end within a minute or two")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser.parse_args()


def write_figures(path: Path | None, name: str, figures: Mapping[str, float]) -> None:
    """Write ``{"name", "machine", "figures"}`` as JSON; no path, no file."""
    if path is None:
        return
    content = {"name": name, "machine": describe_machine(), "figures": dict(figures)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def print_machine(console: Console) -> None:
    """Print the machine in one line."""
    facts = describe_machine()
    console.print(
        ", ".join(f"{key} {value}" for key, value in facts.items()), style="dim", highlight=False
    )


def _processor() -> str:
    """Return the model of the processor, which ``platform`` does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


if __name__ == "__main__":
    print_machine(Console())
