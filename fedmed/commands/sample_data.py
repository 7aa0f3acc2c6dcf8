"""Phantom archives for a simulation that names no data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fedmed.configuration.commands import SimulateSettings
from fedmed.configuration.groups import DataSource
from fedmed.data.phantom import write_archives
from fedmed.data.sources import MANIFEST_NAME
from fedmed.federation.run_folder import RunFolder


def ensure_archives(
    settings: SimulateSettings, folder: RunFolder, console: Console
) -> SimulateSettings:
    """Write phantom archives where the settings ask for them, and point the settings there."""
    if settings.data.source != DataSource.phantom:
        return settings
    root = Path(settings.data.root) if settings.data.root else folder.path / "data"
    if not any(root.glob(f"*/{MANIFEST_NAME}")):
        console.print(
            f"Making phantom archives: {settings.data.sites} hospitals of "
            f"{settings.data.patients} patients on average"
        )
        write_archives(
            root,
            sites=settings.data.sites,
            patients=settings.data.patients,
            seed=settings.seed,
        )
    return replace(settings, data=replace(settings.data, root=str(root)))
