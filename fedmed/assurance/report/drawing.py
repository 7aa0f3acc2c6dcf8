"""How plots look: themes, colours, axes, legend; drawn with matplotlib's object-oriented API.

Colours are those of Okabe and Ito, "Color Universal Design" (2008), which people with a colour
vision deficiency can tell apart; each site has its own marker as well.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

_SITE_STYLES = (
    ("#0072B2", "o"),
    ("#E69F00", "s"),
    ("#009E73", "^"),
    ("#D55E00", "D"),
    ("#CC79A7", "v"),
    ("#56B4E9", "P"),
)
PHASE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
ALONE_COLOUR = "#E69F00"
_WIDTH, _HEIGHT = 5.4, 3.6  # inches; small, so that the text stays legible on a phone
_DOTS_PER_INCH = 160

# Fonts and text layout are shared inside matplotlib, which promises nothing about threads.
drawing_lock = threading.Lock()


@dataclass(frozen=True)
class Theme:
    """Colours of paper and ink."""

    paper: str
    ink: str
    faint: str
    many: str


LIGHT = Theme(paper="#ffffff", ink="#1b1f24", faint="#d4d9df", many="#7fb3d5")
DARK = Theme(paper="#171b21", ink="#e6e9ed", faint="#3a424c", many="#3f7ba3")


def new_figure(theme: Theme, height: float = _HEIGHT) -> tuple[Figure, Axes]:
    """Return an empty figure of the theme; ``height`` is in inches."""
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


def label_axes(axes: Axes, title: str, y_label: str) -> None:
    """Set the title and the label of the vertical axis."""
    axes.set_title(
        shown_text(title, 60),
        loc="left",
        fontsize=11,
        fontweight="bold",
        color=axes.xaxis.label.get_color(),
    )
    axes.set_ylabel(shown_text(y_label))


def label_rounds(axes: Axes, numbers: Sequence[int]) -> None:
    """Make the horizontal axis one of whole rounds."""
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(numbers) <= 12:
        axes.set_xticks(numbers)
    margin = max(0.6, (3 - len(numbers)) / 2)
    axes.set_xlim(min(numbers) - margin, max(numbers) + margin)
    axes.ticklabel_format(axis="y", useOffset=False)


def site_series(
    values: Iterable[tuple[str, int, float | None]],
) -> dict[str, list[tuple[int, float]]]:
    """Return the points (round, value) of each site; missing values are left out."""
    series: dict[str, list[tuple[int, float]]] = {}
    for site, number, value in values:
        if value is not None:
            series.setdefault(site, []).append((number, value))
    return series


def draw_sites(
    axes: Axes, series: dict[str, list[tuple[int, float]]], theme: Theme
) -> list[tuple[Artist, str]]:
    """Draw one thin line a site; more sites than colours share one colour and one entry.

    A line that a later one covers exactly is drawn wider, so that both can be seen.
    """
    many = len(series) > len(_SITE_STYLES)
    entries: list[tuple[Artist, str]] = []
    lines = list(series.values())
    for index, (site, points) in enumerate(series.items()):
        colour, marker = (theme.many, "o") if many else _SITE_STYLES[index]
        covered = lines[index + 1 :].count(points)
        (line,) = axes.plot(
            *zip(*points, strict=True),
            color=colour,
            linewidth=0.7 if many else 1.3 + 2.0 * covered,
            alpha=0.6 if many else 1.0,
            marker=marker,
            markersize=2 if many else 4 + 3.5 * covered,
            markevery=max(1, len(points) // 12),
        )
        if not many:
            entries.append((line, site))
        elif index == 0:
            entries.append((line, f"{len(series)} sites"))
    return entries


def shown_text(text: str, limit: int = 22) -> str:
    """Return text that the built-in font has glyphs for, never read as a formula."""
    known = "".join(c if c < "\u0250" or "\u0370" <= c < "\u0530" else "?" for c in text)
    short = known if len(known) <= limit else known[: limit - 1] + "\u2026"
    return short.replace("$", r"\$")


def _legend_columns(lengths: Sequence[int]) -> int:
    """Return how many columns of entries fit; matplotlib fills one column after the other.

    The characters that fit beside each other were found by trying.
    """
    for columns, characters in ((4, 44), (3, 58), (2, 58)):
        rows = -(-len(lengths) // columns)
        widths = [max(lengths[start : start + rows]) for start in range(0, len(lengths), rows)]
        if len(lengths) >= columns and sum(widths) <= characters:
            return columns
    return 1


def png_image(figure: Figure, entries: Sequence[tuple[Artist, str]], theme: Theme) -> bytes:
    """Return the figure as PNG, with its legend below."""
    if entries:
        legend = figure.legend(
            [handle for handle, _ in entries],
            ["x" for _ in entries],
            loc="outside lower center",
            ncols=_legend_columns([len(shown_text(label, 24)) for _, label in entries]),
            frameon=False,
            fontsize=8.5,
            labelcolor=theme.ink,
        )
        # Set afterwards: a label that begins with "_" would be left out of the legend.
        for text, (_, label) in zip(legend.get_texts(), entries, strict=True):
            text.set_text(shown_text(label, 24))
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()
