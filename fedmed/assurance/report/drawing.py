"""Plots of a run as PNG, drawn with matplotlib's object-oriented API.

Colours are those of Okabe and Ito, "Color Universal Design" (2008), which people with a colour
vision deficiency can tell apart; each site has its own marker as well.
"""

from __future__ import annotations

import io
import statistics
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from fedmed.assurance.report.run_folder import RunRecord, metric_title


_SITE_STYLES = (
    ("#0072B2", "o"),
    ("#E69F00", "s"),
    ("#009E73", "^"),
    ("#D55E00", "D"),
    ("#CC79A7", "v"),
    ("#56B4E9", "P"),
)
_PHASE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
_ALONE_COLOUR = "#E69F00"
_WIDTH, _HEIGHT = 5.4, 3.6  # inches; small, so that the text stays legible on a phone
_DOTS_PER_INCH = 160
_LEAST_SPAN = 0.1  # of the metric axis
_LEGEND_CHARACTERS = 58  # that fit beside each other

# Fonts and text layout are shared inside matplotlib, which promises nothing about threads.
_drawing = threading.Lock()


@dataclass(frozen=True)
class Theme:
    """Colours of paper and ink."""

    paper: str
    ink: str
    faint: str
    many: str


LIGHT = Theme(paper="#ffffff", ink="#1b1f24", faint="#d4d9df", many="#7fb3d5")
DARK = Theme(paper="#171b21", ink="#e6e9ed", faint="#3a424c", many="#3f7ba3")


def _figure(theme: Theme, height: float = _HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(
        figsize=(_WIDTH, height),
        dpi=_DOTS_PER_INCH,
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
        facecolor=theme.paper,
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=theme.paper)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.ink)
    axes.tick_params(colors=theme.ink, labelsize=9)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    axes.grid(visible=True, axis="y", color=theme.faint, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _label(axes: Axes, title: str, y_label: str) -> None:
    axes.set_title(
        _shown(title, 60),
        loc="left",
        fontsize=11,
        fontweight="bold",
        color=axes.xaxis.label.get_color(),
    )
    axes.set_ylabel(_shown(y_label))


def _round_axis(axes: Axes, numbers: Sequence[int]) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(numbers) <= 12:
        axes.set_xticks(numbers)
    margin = max(0.6, (3 - len(numbers)) / 2)
    axes.set_xlim(min(numbers) - margin, max(numbers) + margin)
    axes.ticklabel_format(axis="y", useOffset=False)


def _site_series(
    values: Iterable[tuple[str, int, float | None]],
) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {}
    for site, number, value in values:
        if value is not None:
            series.setdefault(site, []).append((number, value))
    return series


def _draw_sites(
    axes: Axes, series: dict[str, list[tuple[int, float]]], theme: Theme
) -> list[tuple[Artist, str]]:
    """Draw one thin line a site; more sites than colours share one colour and one entry."""
    many = len(series) > len(_SITE_STYLES)
    entries: list[tuple[Artist, str]] = []
    for index, (site, points) in enumerate(series.items()):
        colour, marker = (theme.many, "o") if many else _SITE_STYLES[index]
        (line,) = axes.plot(
            *zip(*points, strict=True),
            color=colour,
            linewidth=0.7 if many else 1.3,
            alpha=0.6 if many else 1.0,
            marker=marker,
            markersize=2 if many else 4,
            markevery=max(1, len(points) // 12),
        )
        if not many:
            entries.append((line, site))
        elif index == 0:
            entries.append((line, f"{len(series)} sites"))
    return entries


def _shown(text: str, limit: int = 22) -> str:
    """Return text that the built-in font has glyphs for, never read as a formula."""
    known = "".join(c if c < "\u0250" or "\u0370" <= c < "\u0530" else "?" for c in text)
    short = known if len(known) <= limit else known[: limit - 1] + "\u2026"
    return short.replace("$", r"\$")


def _legend_columns(lengths: Sequence[int]) -> int:
    """Return how many columns of entries fit; matplotlib fills one column after the other."""
    for columns in (3, 2):
        rows = -(-len(lengths) // columns)
        widths = [max(lengths[start : start + rows]) for start in range(0, len(lengths), rows)]
        if len(lengths) >= columns and sum(widths) <= _LEGEND_CHARACTERS:
            return columns
    return 1


def _png(figure: Figure, entries: Sequence[tuple[Artist, str]], theme: Theme) -> bytes:
    if entries:
        legend = figure.legend(
            [handle for handle, _ in entries],
            ["x" for _ in entries],
            loc="outside lower center",
            ncols=_legend_columns([len(_shown(label, 24)) for _, label in entries]),
            frameon=False,
            fontsize=8.5,
            labelcolor=theme.ink,
        )
        # Set afterwards: a label that begins with "_" would be left out of the legend.
        for text, (_, label) in zip(legend.get_texts(), entries, strict=True):
            text.set_text(_shown(label, 24))
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()
