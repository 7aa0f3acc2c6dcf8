"""Peak memory of a step, in a process of its own: ``python -m dp_steps.memory WAY NETWORK ROWS``.

A step on four rows first brings libraries and optimiser states into memory. Then the highest
resident memory during one step is read, less the level before. glibc is told to give freed memory
back at once: else the peak shows its habits (a third more or less) and not what is in use.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from dp_steps.networks import problem
from dp_steps.ways import WAYS, plain

_STATUS = Path("/proc/self/status")
_WARM_UP_ROWS = 4
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def peak_memory(way: str, network: str, rows: int) -> float:
    """Return mebibytes that one step needs above network, optimiser and data; NaN if unknown."""
    answer = subprocess.run(
        [sys.executable, "-m", "dp_steps.memory", way, network, str(rows)],
        cwd=Path(__file__).parents[1],
        env=os.environ | _GIVE_BACK,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = answer.stdout.split()
    return float(lines[-1]) if answer.returncode == 0 and lines else float("nan")


def peak_memory_cuda(way: str, network: str, rows: int) -> float:
    """Return the same on the GPU, from torch's own count."""
    step = WAYS[way][1](problem(network, rows, torch.device("cuda")))
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _kibibytes(key: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise KeyError(key)


def _measure(way: str, network: str, rows: int) -> float:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    whole = problem(network, rows, device)
    few = replace(whole, inputs=whole.inputs[:_WARM_UP_ROWS], targets=whole.targets[:_WARM_UP_ROWS])
    plain(replace(few, model=problem(network, 1, device).model))()
    make = WAYS[way][1]
    make(replace(few, model=problem(network, 1, device).model))()
    step = make(whole)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the old peak
    before = _kibibytes("VmRSS")
    step()
    return (_kibibytes("VmHWM") - before) / 1024


if __name__ == "__main__":
    print(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3])))
