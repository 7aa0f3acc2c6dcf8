"""Values from JSON that another program wrote, read without trust.

What is missing or of another type becomes ``None`` or empty; text is cleaned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from fedmed.assurance.report.wording import clean_text


def _object(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _count(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number >= 0 else None


def _numbers(value: object) -> dict[str, float]:
    numbers = {clean_text(key): _number(item) for key, item in _object(value).items()}
    return {key: number for key, number in numbers.items() if number is not None}


def _metrics_by_site(value: object) -> dict[str, dict[str, float]]:
    return {clean_text(name): _numbers(metrics) for name, metrics in _object(value).items()}


def _counts(value: object) -> dict[str, int]:
    counts = {clean_text(key): _count(item) for key, item in _object(value).items()}
    return {key: count for key, count in counts.items() if count is not None}


def _text(value: object) -> str | None:
    return clean_text(value) if isinstance(value, str) and value else None
