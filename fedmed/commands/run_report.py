"""The pictures and the page of a finished run, and the way back to one that was stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from fedmed.assurance.report.page import write_report
from fedmed.assurance.report.plots import write_plots
from fedmed.assurance.report.run_folder import read_run


def write_run_report(folder: Path) -> None:
    """Write ``plots/*.png`` and ``report.html`` into a run folder."""
    write_plots(read_run(folder), folder / "plots")
    write_report(folder)


@contextmanager
def say_how_to_resume(command: str, folder: Path, console: Console) -> Iterator[None]:
    """Tell the user who stops a run how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(
            f"Stopped. Go on with: {command} resume={folder}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise
