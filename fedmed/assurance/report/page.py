"""``report.html``: one page that tells what a run did, from the numbers in its folder.

The page needs no network and runs no script; a content security policy in it says so to the
browser. jinja2 (a requirement of torch) escapes everything that comes from the run.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from fedmed.assurance.report.drawing import DARK, LIGHT
from fedmed.assurance.report.plots import PLOTS
from fedmed.assurance.report.records import RunRecord, main_metric_first
from fedmed.assurance.report.run_folder import read_run
from fedmed.assurance.report.statements import aggregation_statement, findings, privacy_statement
from fedmed.assurance.report.tables import (
    failures_table,
    guarantees_table,
    metrics_table,
    phases_table,
    refused_table,
    rounds_table,
    sites_table,
    transport_table,
)
from fedmed.assurance.report.wording import (
    count_text,
    counted,
    metric_text,
    metric_title,
    seconds_text,
)


@dataclass(frozen=True)
class Plot:
    """A plot as data URIs for light and dark."""

    light: str
    dark: str
    description: str


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Args:
        folder: a run folder (see :func:`fedmed.assurance.report.run_folder.read_run`).

    Raises:
        DataError: if it is no run folder.
    """
    page = render_report(read_run(folder))
    target = folder / "report.html"
    unfinished = folder / "report.html.part"
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(target)
    return target


def render_report(run: RunRecord) -> str:
    """Return the page as HTML."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("fedmed.assurance.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        run=run,
        summary=run.summary,
        tiles=[_quality_tiles(run), _run_tiles(run)],
        notes=_notes(run),
        findings=findings(run),
        privacy=privacy_statement(run),
        aggregation=aggregation_statement(run),
        guarantees=guarantees_table(run),
        sites=sites_table(run),
        metrics=metrics_table(run),
        plots=_plots(run),
        transport=transport_table(run),
        phases=phases_table(run),
        refused=refused_table(run),
        failures=failures_table(run),
        rounds=rounds_table(run),
    )


def _quality_tiles(run: RunRecord) -> list[tuple[str, str]]:
    main = run.main_metric
    names = main_metric_first(run.summary.metrics, main)
    tiles = [(metric_title(name), metric_text(run.summary.metrics, name)) for name in names]
    return tiles or [("Global model", "not measured")]


def _run_tiles(run: RunRecord) -> list[tuple[str, str]]:
    summary = run.summary
    recorded = len(run.rounds)
    rounds = str(summary.rounds)
    if recorded != summary.rounds:
        rounds = f"{summary.rounds} ({recorded} recorded)"
    return [
        ("Rounds", rounds),
        ("Sites", str(len(summary.sites))),
        ("Time", "not measured" if summary.seconds is None else seconds_text(summary.seconds)),
        ("Parameters", count_text(summary.parameters)),
    ]


def _notes(run: RunRecord) -> list[str]:
    notes = []
    if run.summary.state == "unfinished":
        notes.append("The run wrote no summary: it was cut off or is still going on.")
    elif run.summary.state != "completed":
        notes.append(f"The run did not reach its end: {run.summary.state}.")
    if run.unreadable_lines:
        lines = counted(run.unreadable_lines, "line")
        notes.append(f"Left out of this report: {lines} of rounds.jsonl that cannot be read.")
    return notes


def _plots(run: RunRecord) -> list[Plot]:
    name = run.main_metric
    title = "Quality" if name is None else metric_title(name)
    descriptions = {
        "metric": f"Line plot: {title} of the global model and at each site after each round. "
        "The values are in the table of rounds.",
        "epsilon": "Line plot: epsilon spent at each site after each round, and the target.",
        "seconds": "Stacked bars: seconds of each round by phase. Totals are in the table of time.",
        "sites": f"Bars: {title} of the global model and of the local-only model at each site. "
        "The values are in the table of sites.",
    }
    plots = []
    for key, draw in PLOTS.items():
        light, dark = draw(run, LIGHT), draw(run, DARK)
        if light is not None and dark is not None:
            plots.append(Plot(_data_uri(light), _data_uri(dark), descriptions[key]))
    return plots


def _data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")
