"""Who wants to know how a run goes: a terminal, a page, a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Observer(Protocol):
    """Told of each event of a run, from any thread."""

    def run_started(self, run_name: str, rounds: int, sites: Sequence[str]) -> None:
        """Say that the rounds begin."""

    def site_joined(
        self, site: str, counts: Mapping[str, int], excluded: Mapping[str, int]
    ) -> None:
        """Say that a site takes part, with its images by split and left out by reason."""

    def site_refused(self, site: str, reason: str) -> None:
        """Say that a site takes no part."""

    def round_started(self, number: int, participants: Sequence[str]) -> None:
        """Say that a round begins."""

    def site_progress(self, site: str, fraction: float) -> None:
        """Tell the share of a site's training that is done, 0 to 1."""

    def site_replied(self, site: str, status: str, reason: str | None) -> None:
        """Tell the outcome at a site: ok, refused, failed or late."""

    def round_finished(self, record: Mapping[str, object]) -> None:
        """Hand over the line of ``rounds.jsonl``."""

    def run_finished(self, summary: Mapping[str, object]) -> None:
        """Hand over ``summary.json``."""


class SilentObserver(Observer):
    """Tells nobody."""
