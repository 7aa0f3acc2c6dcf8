"""How an audit ends."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What an attack says about a privacy claim."""

    holds = "holds"
    """The attack stays within the claim, and could have shown otherwise."""
    broken = "broken"
    """The attack shows more leakage than is claimed."""
    inconclusive = "inconclusive"
    """The attack could not have refuted this claim."""
