"""What a run shows in a terminal: progress bars for people, plain lines for logs and pipes.

Site names and reasons come from other machines; every text is cleaned of control characters and
never read as rich markup. Output is plain ASCII apart from the bars and the lines of the table.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.cells import set_cell_size
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from fedmed.assurance.report.records import (
    NOISE_OFF,
    NOISE_VOID,
    RoundRecord,
    RunSummary,
    main_metric_first,
)
from fedmed.assurance.report.run_folder import parse_round, parse_summary
from fedmed.assurance.report.wording import (
    clean_text,
    counted,
    epsilon_text,
    metric_title,
    seconds_text,
)
from fedmed.commands.summary_table import MAX_METRICS, NAME_WIDTH, encodable, render_summary_table

__all__ = ["MAX_SITE_BARS", "ConsoleObserver", "render_summary_table"]

MAX_SITE_BARS = 12


class ConsoleObserver:
    """Shows the events of a run; its methods may be called from several threads.

    In a terminal there is one bar for the rounds and one for each site of the current round
    (one for all of them together when there are more than ``MAX_SITE_BARS``). Elsewhere there are
    only lines without control codes. Use it as a context manager, or call :meth:`close`: an open
    bar hides the cursor.

    Attributes:
        console: where everything goes; log through it while a run is on.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console if console is not None else Console(highlight=False)
        self._lock = threading.RLock()
        self._rounds = 0
        self._round = 0
        self._progress: Progress | None = None
        self._round_bar: TaskID | None = None
        self._site_bars: dict[str, TaskID] = {}
        self._sum_bar: TaskID | None = None
        self._fractions: dict[str, float] = {}

    def __enter__(self) -> ConsoleObserver:
        """Return the observer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bars away, also after an error."""
        self.close()

    def close(self) -> None:
        """Take the bars away and show the cursor again; may be called twice."""
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
            self._progress = None
            self._round_bar = self._sum_bar = None
            self._site_bars.clear()

    def run_started(self, run_name: str, rounds: int, sites: Sequence[str]) -> None:
        """Say which run begins."""
        with self._lock:
            self.close()
            self._rounds, self._round = rounds, 0
            self._line(
                f"Run {clean_text(run_name)}: {counted(rounds, 'round')}, "
                f"{counted(len(sites), 'site')}"
            )
            if self.console.is_interactive:
                self._progress = Progress(
                    TextColumn("{task.description}", markup=False),
                    BarColumn(bar_width=30),
                    TaskProgressColumn(),
                    console=self.console,
                    transient=True,
                )
                self._progress.start()
                self._round_bar = self._progress.add_task(
                    self._label("rounds"), total=max(1, rounds)
                )

    def site_joined(
        self, site: str, counts: Mapping[str, int], excluded: Mapping[str, int]
    ) -> None:
        """Say what a site brings: ``counts`` by train, val and test, ``excluded`` by reason."""
        parts = [f"{counts[part]} {part}" for part in ("train", "val", "test") if part in counts]
        line = f"Site {clean_text(site)}: {', '.join(parts) or 'keeps its numbers of images'}"
        if excluded:
            reasons = ", ".join(f"{clean_text(why)} {count}" for why, count in excluded.items())
            line += f"; left out: {reasons}"
        self._line(line)

    def site_refused(self, site: str, reason: str) -> None:
        """Say that a site does not take part in the run, and why."""
        self._line(f"Site {clean_text(site)} refused: {clean_text(reason)}")

    def round_started(self, number: int, participants: Sequence[str]) -> None:
        """Open the bars of a round."""
        with self._lock:
            self._round = number
            self._remove_site_bars()
            self._fractions = dict.fromkeys(participants, 0.0)
            if self._progress is None:
                return
            if len(self._fractions) > MAX_SITE_BARS:
                label = self._label(f"{len(self._fractions)} sites")
                self._sum_bar = self._progress.add_task(label, total=len(self._fractions))
            else:
                self._site_bars = {
                    site: self._progress.add_task(self._label(site), total=1.0)
                    for site in self._fractions
                }

    def site_progress(self, site: str, fraction: float) -> None:
        """Move a site's bar; ``fraction`` outside [0, 1] or of an unknown site is no error."""
        with self._lock:
            if site not in self._fractions:
                return
            self._fractions[site] = min(1.0, max(0.0, fraction))  # NaN counts as 0
            self._update_bars(site)

    def site_replied(self, site: str, status: str, reason: str | None) -> None:
        """Fill a site's bar; say so in a line if its reply is not ``ok``."""
        with self._lock:
            if site in self._fractions:
                self._fractions[site] = 1.0
                self._update_bars(site)
            if status != "ok":
                why = f": {clean_text(reason)}" if reason else ""
                self._line(
                    f"Round {self._round}: site {clean_text(site)} {clean_text(status)}{why}"
                )

    def round_finished(self, record: Mapping[str, object]) -> None:
        """Write the line of a round; ``record`` is a line of ``rounds.jsonl``."""
        with self._lock:
            self._remove_site_bars()
            parsed = parse_round(record)
            if parsed is None:
                return
            if self._progress is not None and self._round_bar is not None:
                self._progress.update(self._round_bar, completed=parsed.number)
            self._line(_round_line(parsed, self._rounds))
            masked = record.get("aggregation")
            if isinstance(masked, Mapping) and (clipped := masked.get("clipped")):
                self._line(
                    f"Round {parsed.number}: {clipped:,.0f} numbers of the updates were clipped "
                    "(transport.update_bound)"
                )

    def run_finished(self, summary: Mapping[str, object]) -> None:
        """Take the bars away and write the table; ``summary`` is that of ``summary.json``."""
        with self._lock:
            self.close()
            parsed = parse_summary(summary)
            took = "" if parsed.seconds is None else f" in {seconds_text(parsed.seconds)}"
            self._line(f"Run {parsed.state}: {counted(parsed.rounds, 'round')}{took}")
            self.console.print(render_summary_table(summary, self.console.encoding))
            for line in _privacy_lines(parsed):
                self._line(line)

    def _line(self, text: str) -> None:
        # soft_wrap: a line stays one line in a log, however narrow the "terminal" seems.
        self.console.print(
            Text(encodable(text, self.console.encoding)),
            soft_wrap=not self.console.is_interactive,
            highlight=False,
        )

    def _label(self, text: str) -> str:
        return set_cell_size(encodable(clean_text(text), self.console.encoding), NAME_WIDTH)

    def _update_bars(self, site: str) -> None:
        if self._progress is None:
            return
        if self._sum_bar is not None:
            self._progress.update(self._sum_bar, completed=sum(self._fractions.values()))
        elif site in self._site_bars:
            self._progress.update(self._site_bars[site], completed=self._fractions[site])

    def _remove_site_bars(self) -> None:
        if self._progress is not None:
            for bar in self._site_bars.values():
                self._progress.remove_task(bar)
            if self._sum_bar is not None:
                self._progress.remove_task(self._sum_bar)
        self._site_bars.clear()
        self._sum_bar = None
        self._fractions = {}


def _privacy_lines(run: RunSummary) -> list[str]:
    if run.privacy.noise == NOISE_VOID:
        return ["VOID: the noise came from a seed, so there is no privacy guarantee."]
    if run.privacy.noise == NOISE_OFF:
        return ["Differential privacy was off."]
    return []


def _round_line(record: RoundRecord, rounds: int) -> str:
    width = len(str(rounds))
    parts = [f"Round {record.number:>{width}}/{rounds}" if rounds else f"Round {record.number}"]
    parts += [
        f"{metric_title(name)} {record.metrics[name]:.3f}"
        for name in main_metric_first(record.metrics)[:MAX_METRICS]
    ]
    if record.loss is not None and not record.metrics:
        parts.append(f"loss {record.loss:.3f}")
    parts.append(f"{len(record.replied)}/{len(record.asked)} sites")
    if record.seconds:
        parts.append(seconds_text(sum(record.seconds.values())))
    epsilons = [site.epsilon for site in record.sites.values() if site.epsilon is not None]
    if epsilons:
        parts.append(f"epsilon {epsilon_text(max(epsilons))}")
    return "  ".join(parts)
