"""Values from JSON that another program wrote, read without trust.

What is missing or of another type becomes ``None`` or empty; text is cleaned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from fedmed.assurance.report.wording import clean_text


def object_from(value: object) -> Mapping[str, object]:
    """Return a JSON object, else an empty one."""
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def number_from(value: object) -> float | None:
    """Return a finite number, else ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def count_from(value: object) -> int | None:
    """Return a number that is not negative, without its fraction, else ``None``."""
    number = number_from(value)
    return int(number) if number is not None and number >= 0 else None


def numbers_from(value: object) -> dict[str, float]:
    """Return the finite numbers of an object by name."""
    numbers = {clean_text(key): number_from(item) for key, item in object_from(value).items()}
    return {key: number for key, number in numbers.items() if number is not None}


def metrics_by_site(value: object) -> dict[str, dict[str, float]]:
    """Return an object of objects of numbers."""
    return {clean_text(name): numbers_from(metrics) for name, metrics in object_from(value).items()}


def counts_from(value: object) -> dict[str, int]:
    """Return the counts of an object by name."""
    counts = {clean_text(key): count_from(item) for key, item in object_from(value).items()}
    return {key: count for key, count in counts.items() if count is not None}


def text_from(value: object) -> str | None:
    """Return clean text that is not empty, else ``None``."""
    return clean_text(value) if isinstance(value, str) and value else None
