"""Figures and names in words, the same on the page, in the plots and in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal

MAX_TEXT = 300
MISSING = "–"


def metric_title(name: str) -> str:
    """Return a metric's name as people write it."""
    titles = {
        "auroc": "AUROC",
        "ece": "ECE",
        "iou": "IoU",
        "map": "mAP",
        "map50": "mAP50",
    }
    return titles.get(name, name[:1].upper() + name[1:])


def epsilon_text(epsilon: float) -> str:
    """Return epsilon with two decimals, rounded up: a report must not promise more than holds."""
    return str(Decimal(repr(round(epsilon, 9))).quantize(Decimal("0.01"), rounding=ROUND_CEILING))


def seconds_text(seconds: float) -> str:
    """Return a duration such as ``4.2 s``, ``3 min 07 s`` or ``2 h 05 min``."""
    if 0 < seconds < 0.05:
        return "< 0.1 s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def share_text(share: float) -> str:
    """Return a share of 1 in percent, such as ``11%``; a small one is not called nothing."""
    return "< 1%" if 0 < share < 0.005 else f"{share:.0%}"


def bytes_text(number: int) -> str:
    """Return a size in decimal units, such as ``12.3 MB``."""
    size, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.95:
            break
        size, unit = size / 1000, larger
    return f"{number} B" if unit == "B" else f"{size:.1f} {unit}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return ``1 site`` or ``3 sites``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def clean_text(value: object, limit: int = MAX_TEXT) -> str:
    """Return text without control, direction or surrogate characters, at most ``limit`` long.

    Site names and reasons come from other machines; a terminal must not obey them.
    """
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def difference_text(value: float) -> str:
    """Return a difference with its sign, such as ``+0.079``."""
    return f"{value:+.3f}".replace("-", "−")


def delta_text(delta: float) -> str:
    """Return delta in few characters, such as ``1.5e-5``."""
    mantissa, _, exponent = f"{delta:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def metric_text(metrics: Mapping[str, float], name: str | None) -> str:
    """Return a metric with three decimals, or a dash."""
    return f"{metrics[name]:.3f}" if name is not None and name in metrics else MISSING


def count_text(count: int | None) -> str:
    """Return a count with separators, or a dash."""
    return MISSING if count is None else f"{count:,}"
