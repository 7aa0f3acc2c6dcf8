"""Checks of the machine: disk and device."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from fedmed.assurance.doctor.check_result import CheckResult, failed, failed_by, passed, warned
from fedmed.assurance.doctor.round_time import Payload
from fedmed.errors import ConfigurationError
from fedmed.training.device import available_cores, choose_device

DISK = "disk"
DEVICE = "device"

_LEAST_FREE = 100 * 2**20
_GOOD_FREE = 2**30


def check_disk(state: Path, payload: Payload) -> CheckResult:
    """Check that the site's records can be written: without them nothing is trained.

    Args:
        state: the site's state folder; need not exist yet.
        payload: of a round; replies wait on disk nowhere, but logs and weights may.
    """
    folder = state
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return failed(
            DISK,
            f"the state folder {state.name!r} cannot be written to",
            "give site.state=DIR, a folder of this account",
        )
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free for the state folder {state.name!r}"
    remedy = "free some space, or give site.state=DIR on another disk"
    if free < _LEAST_FREE + payload.down:
        return failed(DISK, detail, remedy)
    if free < _GOOD_FREE + 4 * payload.down:
        return warned(DISK, detail, remedy)
    return passed(DISK, detail)


def check_device(name: str, threads: int) -> CheckResult:
    """Check what trains: a GPU where there is one."""
    try:
        device = choose_device(name)
    except ConfigurationError as error:
        return failed_by(DEVICE, error, "choose site.device=auto or cpu, or see to the driver")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return passed(
            DEVICE, f"{device}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        )
    cores = available_cores()
    detail = f"CPU, {threads} threads on {cores} cores"
    if threads > cores:
        return warned(DEVICE, detail, f"lower site.threads to {cores} or less")
    return passed(DEVICE, detail + ("; no GPU that torch can use" if name == "auto" else ""))
