"""Plots of a run as PNG: its metric, its epsilon, its seconds, its sites."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes

from fedmed.assurance.report.drawing import (
    ALONE_COLOUR,
    LIGHT,
    PHASE_COLOURS,
    Theme,
    draw_sites,
    drawing_lock,
    label_axes,
    label_rounds,
    new_figure,
    png_image,
    shown_text,
    site_series,
)
from fedmed.assurance.report.records import RunRecord
from fedmed.assurance.report.wording import metric_title

_LEAST_SPAN = 0.1  # of the metric axis


def metric_plot(run: RunRecord, theme: Theme = LIGHT) -> bytes | None:
    """Draw the main metric a round: global model thick, sites thin, baselines dashed.

    Rounds are measured on validation images, baselines on test images; the legend says so.

    Returns:
        PNG, or ``None`` if no round measured the metric.
    """
    name = run.main_metric
    if name is None:
        return None
    overall = [(r.number, r.metrics[name]) for r in run.rounds if name in r.metrics]
    sites = site_series(
        (site, record.number, values.metrics.get(name))
        for record in run.rounds
        for site, values in record.sites.items()
    )
    if not overall and not sites:
        return None
    with drawing_lock:
        figure, axes = new_figure(theme)
        entries = draw_sites(axes, sites, theme)
        if overall:
            line = axes.plot(
                *zip(*overall, strict=True), color=theme.ink, linewidth=2.8, marker="o"
            )
            line[0].set_markersize(4 if len(overall) <= 25 else 0)
            entries.insert(0, (line[0], "global model"))
        entries += _draw_baselines(axes, run, name, theme)
        low, high = axes.get_ylim()
        if high - low < _LEAST_SPAN:  # else a change of nothing fills the plot
            middle = (low + high) / 2
            axes.set_ylim(middle - _LEAST_SPAN / 2, middle + _LEAST_SPAN / 2)
        label_axes(axes, f"{metric_title(name)} by round (validation images)", metric_title(name))
        label_rounds(axes, [record.number for record in run.rounds])
        return png_image(figure, entries, theme)


def _draw_baselines(
    axes: Axes, run: RunRecord, name: str, theme: Theme
) -> list[tuple[Artist, str]]:
    local = run.summary.local_everywhere or run.summary.local
    alone = [metrics[name] for metrics in local.values() if name in metrics]
    entries: list[tuple[Artist, str]] = []
    for value, label, dashes in (
        (run.summary.pooled.get(name), "pooled images (test)", (6, 2)),
        (statistics.fmean(alone) if alone else None, "local only, mean (test)", (2, 2)),
    ):
        if value is not None:
            # Across the whole width, and outside the limits of the axis of rounds.
            (line,) = axes.plot(
                [0, 1],
                [value, value],
                transform=axes.get_yaxis_transform(),
                color=theme.ink,
                linewidth=1.3,
                dashes=dashes,
            )
            entries.append((line, label))
    return entries


def epsilon_plot(run: RunRecord, theme: Theme = LIGHT) -> bytes | None:
    """Draw the epsilon that each site has spent after each round, against the target.

    Returns:
        PNG, or ``None`` if no site reported an epsilon.
    """
    sites = site_series(
        (site, record.number, values.epsilon)
        for record in run.rounds
        for site, values in record.sites.items()
    )
    if not sites:
        return None
    with drawing_lock:
        figure, axes = new_figure(theme)
        entries = draw_sites(axes, sites, theme)
        target = run.summary.privacy.target_epsilon
        if target is not None:
            line = axes.axhline(target, color=theme.ink, linewidth=1.3, dashes=(6, 2))
            entries.append((line, f"target {target:g}"))
        label_axes(axes, "Privacy spent by round", "epsilon (no unit)")
        axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
        label_rounds(axes, [record.number for record in run.rounds])
        return png_image(figure, entries, theme)


def seconds_plot(run: RunRecord, theme: Theme = LIGHT) -> bytes | None:
    """Draw the seconds that each round took, stacked by phase.

    Returns:
        PNG, or ``None`` if no round recorded seconds.
    """
    rounds = [record for record in run.rounds if record.seconds]
    phases = list(run.seconds_by_phase)
    if not phases:
        return None
    numbers = [record.number for record in rounds]
    with drawing_lock:
        figure, axes = new_figure(theme)
        bottom = [0.0] * len(rounds)
        entries: list[tuple[Artist, str]] = []
        for index, phase in enumerate(phases):
            heights = [max(0.0, record.seconds.get(phase, 0.0)) for record in rounds]
            colour = PHASE_COLOURS[min(index, len(PHASE_COLOURS) - 1)]
            bars = axes.bar(
                numbers,
                heights,
                bottom=bottom,
                width=0.75 if len(rounds) <= 40 else 1.0,
                color=colour,
                edgecolor=theme.paper,
                linewidth=0.6 if len(rounds) <= 40 else 0,
            )
            if index < len(PHASE_COLOURS):
                entries.append((bars.patches[0], phase))
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        label_axes(axes, "Time by round and phase", "seconds")
        label_rounds(axes, numbers)
        return png_image(figure, entries, theme)


def sites_plot(run: RunRecord, theme: Theme = LIGHT) -> bytes | None:
    """Draw the main metric at each site: global model beside the model trained there alone.

    Returns:
        PNG, or ``None`` if no site has the metric.
    """
    name = run.main_metric
    summary = run.summary
    if name is None:
        return None
    together = {site.name: site.metrics[name] for site in summary.sites if name in site.metrics}
    alone = {site: metrics[name] for site, metrics in summary.local.items() if name in metrics}
    sites = list(dict.fromkeys([*together, *alone]))
    if not sites:
        return None
    many = len(sites) > 20
    thickness = (0.8 if not alone else 0.4) if len(sites) > 1 else 0.3
    with drawing_lock:
        height = 1.5 + (0.17 if many else 0.42 if alone else 0.3) * max(len(sites), 3)
        figure, axes = new_figure(theme, min(height, 40.0))
        entries: list[tuple[Artist, str]] = []
        for values, label, colour, shift in (
            (together, "global model", "#0072B2", -thickness / 2 if alone else 0.0),
            (alone, "local only", ALONE_COLOUR, thickness / 2),
        ):
            rows = [index for index, site in enumerate(sites) if site in values]
            if rows:
                lengths = [values[sites[row]] for row in rows]
                places = [row + shift for row in rows]
                bars = axes.barh(places, lengths, height=thickness, color=colour)
                entries.append((bars.patches[0], label))
                if not many:
                    axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8, color=theme.ink)
        axes.set_yticks(range(len(sites)), labels=[shown_text(site) for site in sites])
        axes.tick_params(axis="y", length=0, labelsize=6 if many else 9)
        axes.set_ylim(len(sites) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x", color=theme.faint, linewidth=0.7)
        longest = max([*together.values(), *alone.values()])
        axes.set_xlim(min(0.0, *together.values(), *alone.values()), max(1.0, longest) * 1.1)
        label_axes(axes, f"{metric_title(name)} by site (test images)", "")
        axes.set_xlabel(metric_title(name))
        return png_image(figure, entries, theme)


PLOTS: dict[str, Callable[[RunRecord, Theme], bytes | None]] = {
    "metric": metric_plot,
    "epsilon": epsilon_plot,
    "seconds": seconds_plot,
    "sites": sites_plot,
}


def write_plots(run: RunRecord, folder: Path) -> list[Path]:
    """Write the plots that have data as ``NAME.png`` (see ``PLOTS``) and return their paths.

    Args:
        run: the run.
        folder: made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name, draw in PLOTS.items():
        image = draw(run, LIGHT)
        if image is not None:
            path = folder / f"{name}.png"
            path.write_bytes(image)
            paths.append(path)
    return paths
