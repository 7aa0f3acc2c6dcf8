"""The table at the end of a run, for a terminal of 80 columns."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from fedmed.assurance.report.records import NOISE_VOID, RunSummary, main_metric_first
from fedmed.assurance.report.run_folder import parse_summary
from fedmed.assurance.report.wording import epsilon_text, metric_title

NAME_WIDTH = 20
MAX_METRICS = 2
_MISSING = "-"
_KEPT = "kept by site"


def render_summary_table(summary: Mapping[str, object], encoding: str = "utf-8") -> Table:
    """Return the sites and the global model as a table for 80 columns.

    Shown are the task's main metric (see ``RunSummary.main_metric``) and one more; the caption
    holds all metrics of the global model.

    Args:
        summary: the object of ``summary.json``; missing parts are shown as ``-``.
        encoding: of the terminal; characters that it lacks are replaced.
    """
    run = parse_summary(summary)
    main = run.main_metric or "metric"
    names = [main, *(name for name in run.metrics if name != main)][:MAX_METRICS]
    table = Table(box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    # Only the first column gives way when the terminal is narrow: a cut figure misleads.
    table.add_column("site", overflow="ellipsis", max_width=NAME_WIDTH)
    for title in ("train/val/test", "left out", *map(metric_title, names), "alone", "epsilon"):
        table.add_column(Text(encodable(title, encoding)), justify="right", no_wrap=True)
    for site in run.sites:
        _add_row(
            table,
            encodable(site.name, encoding),
            _KEPT if site.keeps_counts else _images((site.train, site.val, site.test)),
            str(sum(site.excluded.values())) if site.excluded else _MISSING,
            *(_value(site.metrics, name) for name in names),
            _value(run.local.get(site.name, {}), main),
            _epsilon(run, site.epsilon),
        )
    table.add_section()
    if run.pooled:
        pooled = [_value(run.pooled, name) for name in names]
        _add_row(table, "pooled images", _MISSING, _MISSING, *pooled, _MISSING, _MISSING)
    _add_row(
        table,
        "global model",
        _images(run.images),
        str(run.excluded) if run.excluded else _MISSING,
        *(_value(run.metrics, name) for name in names),
        _MISSING,
        _epsilon(run, run.largest_epsilon),
    )
    if run.metrics:
        table.caption = Text(encodable(_caption(run, main), encoding))
    return table


def _add_row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(cell) for cell in cells))


def _images(counts: Iterable[int | None]) -> str:
    return "/".join(_MISSING if count is None else str(count) for count in counts)


def _value(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.3f}" if name in metrics else _MISSING


def _epsilon(run: RunSummary, epsilon: float | None) -> str:
    if epsilon is None:
        return _MISSING
    return epsilon_text(epsilon) + (" void" if run.privacy.noise == NOISE_VOID else "")


def _caption(run: RunSummary, main: str) -> str:
    figures = [_figure(run, name) for name in main_metric_first(run.metrics, main)]
    caption = f"Global model: {', '.join(figures)}"
    alone = [metrics[main] for metrics in run.local_everywhere.values() if main in metrics]
    if alone:
        mean = f"{metric_title(main)} {statistics.fmean(alone):.3f}"
        caption += f"\nTrained alone, mean on the same images: {mean}"
    return caption


def _figure(run: RunSummary, name: str) -> str:
    error = run.metric_error.get(name)
    exactness = f" (exact to +-{error:.2g})" if error else ""
    return f"{metric_title(name)} {run.metrics[name]:.3f}{exactness}"


def encodable(text: str, encoding: str) -> str:
    """Replace what a terminal's encoding lacks: a site's name must not end a run."""
    return text.encode(encoding, errors="replace").decode(encoding)
