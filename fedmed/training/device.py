"""Where a site computes."""

from __future__ import annotations

import ctypes
import os

import torch

from fedmed.errors import ConfigurationError

_MOST_THREADS = 8
# Numbers of mallopt(3) options, from glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3


def available_cores() -> int:
    """CPU cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """Threads of a client that names no number: half of the cores, at most 8.

    Threads that outnumber the cores wait for one another at every layer: three clients with four
    threads each took twenty times as long on four cores as with two each.
    """
    return min(_MOST_THREADS, max(1, available_cores() // 2))


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda:N`` into a device; ``auto`` takes the first GPU there is.

    Raises:
        ConfigurationError: if the name is none of these, or if that GPU is not there.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number or "0").isdigit():
        raise ConfigurationError(f"site.device={name}: choose auto, cpu or cuda:N.")
    found = torch.cuda.device_count()
    if int(number or 0) >= found:
        raise ConfigurationError(
            f"site.device={name}: this machine has {found} CUDA devices that torch can use. "
            "Choose auto or cpu."
        )
    return torch.device("cuda", int(number or 0))


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next step instead of giving it back to the system.

    Every step frees and takes the same tensors of many megabytes. By default each of them is
    mapped anew and zeroed page by page, which takes about a fifth of a step's time on CPU.
    Resident memory then stays at the peak of a step. Without glibc nothing changes.

    Returns:
        Whether it was set.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    wanted = ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1))
    return all(mallopt(option, value) == 1 for option, value in wanted)
