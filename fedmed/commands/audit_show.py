"""``fedmed audit show``: read a run's transparency log, without checking it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedmed.errors import ConfigurationError, ProtocolError
from fedmed.trust.audit.bundle import Bundle
from fedmed.trust.audit.leaf_reading import read_leaf
from fedmed.trust.audit.leaves import (
    AbandonedLeaf,
    Leaf,
    OpenRoundLeaf,
    ResumedLeaf,
    RoundLeaf,
    StartLeaf,
)
from fedmed.trust.audit.log import LOG_FILE
from fedmed.trust.envelope import Envelope

_UNCHECKED = "Not checked: only `fedmed audit verify` tells whether this holds."
_EXAMPLES = """\
examples:
  fedmed audit show outputs/2026-01-31/12-00-00/audit
      a line for each leaf
  fedmed audit show audit.zip --round 3
      who took part in round 3, and what each signed"""


def show_command(arguments: Sequence[str], console: Console) -> int:
    """Run ``fedmed audit show``; ``arguments`` are the words after that.

    Returns:
        0.

    Raises:
        ProtocolError: if a line cannot be read.
        ConfigurationError: if there is no bundle, or no such round.
    """
    parsed = _parse(arguments)
    leaves = _leaves(Bundle(parsed.bundle))
    console.print(_UNCHECKED, style="dim", highlight=False)
    if parsed.round is None:
        console.print(leaves_table(leaves))
        return 0
    shown = False
    for number, leaf in leaves:
        if isinstance(leaf, RoundLeaf | OpenRoundLeaf | AbandonedLeaf):
            if leaf.context.round != parsed.round:
                continue
            shown = True
            for line in _round_lines(number, leaf):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            if not isinstance(leaf, AbandonedLeaf):
                console.print(inputs_table(leaf))
    if not shown:
        raise ConfigurationError(f"There is no round {parsed.round} in this log.")
    return 0


def leaves_table(leaves: Iterator[tuple[int, Leaf]]) -> Table:
    """Return all leaves as a table for 80 columns."""
    table = Table(box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("leaf", justify="right", no_wrap=True)
    table.add_column("time (UTC)", no_wrap=True)
    table.add_column("what")
    for column in ("asked", "sum", "confirmed"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("model", no_wrap=True)
    for number, leaf in leaves:
        table.add_row(str(number), _time(leaf), Text(_what(leaf)), *_figures(leaf))
    return table


def inputs_table(leaf: RoundLeaf | OpenRoundLeaf) -> Table:
    """Return what each site signed in a round, as a table for 80 columns."""
    table = Table(box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("site", no_wrap=True)
    table.add_column("part")
    table.add_column("input")
    table.add_column("epsilon", justify="right", no_wrap=True)
    inputs = leaf.masked if isinstance(leaf, RoundLeaf) else leaf.updates
    for site in leaf.context.cohort:
        if site not in inputs:
            shared = isinstance(leaf, RoundLeaf) and site in leaf.sharers
            table.add_row(site, "dropped out" if shared else "did not take part", "", "")
            continue
        envelope = Envelope.from_bytes(inputs[site])
        parts = [f"{name[:20]} {part.sha256[:12]}..." for name, part in envelope.parts.items()]
        confirmed = isinstance(leaf, RoundLeaf) and site in leaf.confirmed
        table.add_row(
            site,
            "in the sum, confirmed" if confirmed else "in the sum",
            Text("\n".join("".join(c for c in text if c.isprintable()) for text in parts)),
            _epsilon(envelope),
        )
    return table


def _leaves(bundle: Bundle) -> Iterator[tuple[int, Leaf]]:
    for number, line in enumerate(bundle.log_lines(), start=1):
        try:
            yield number, read_leaf(line)
        except ProtocolError as error:
            raise ProtocolError(f"{LOG_FILE}, line {number}: {error}") from error


def _round_lines(number: int, leaf: RoundLeaf | OpenRoundLeaf | AbandonedLeaf) -> list[str]:
    context = leaf.context
    lines = [
        f"Leaf {number}: {_what(leaf)}, {_time(leaf)} UTC",
        f"  run {context.run}, weight bound {context.weight_bound:,}",
        f"  log before it: {context.log_size} leaves, root {context.log_root}",
        f"  roster {context.roster}",
        f"  plan   {context.plan}",
        f"  model  {context.model}",
    ]
    if isinstance(leaf, AbandonedLeaf):
        return [*lines, f"  asked: {', '.join(context.cohort)}", f"  reason: {leaf.reason}"]
    return [*lines, f"  after  {leaf.model_out}"]


def _what(leaf: Leaf) -> str:
    if isinstance(leaf, RoundLeaf | OpenRoundLeaf | AbandonedLeaf):
        kinds = {"train": "round", "evaluate": "evaluation"}
        text = f"{kinds.get(leaf.context.purpose, 'round')} {leaf.context.round}"
        if leaf.context.attempt > 1:
            text += f", attempt {leaf.context.attempt}"
        if isinstance(leaf, AbandonedLeaf):
            return f"{text}, given up"
        return text if isinstance(leaf, RoundLeaf) else f"{text} (unmasked)"
    if isinstance(leaf, ResumedLeaf):
        return f"resumed after round {leaf.round}"
    return "start of the run" if isinstance(leaf, StartLeaf) else "new roster"


def _figures(leaf: Leaf) -> tuple[str, str, str, str]:
    if isinstance(leaf, AbandonedLeaf):
        return str(len(leaf.context.cohort)), "", "", ""
    if isinstance(leaf, RoundLeaf | OpenRoundLeaf):
        confirmed = str(len(leaf.confirmed)) if isinstance(leaf, RoundLeaf) else "-"
        asked, summed = str(len(leaf.context.cohort)), str(len(leaf.survivors))
        return asked, summed, confirmed, leaf.model_out[:8]
    model = leaf.model[:8] if isinstance(leaf, StartLeaf | ResumedLeaf) else ""
    return "", "", "", model


def _epsilon(envelope: Envelope) -> str:
    report = envelope.body.get("report")
    value = report.get("epsilon") if isinstance(report, dict) else None
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _time(leaf: Leaf) -> str:
    try:
        return f"{datetime.fromtimestamp(leaf.time, UTC):%Y-%m-%d %H:%M}"
    except (OverflowError, ValueError, OSError):
        return "no time"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fedmed audit show",
        description="Read a run's transparency log. Nothing is checked.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder or zip file")
    parser.add_argument("--round", type=int, metavar="N", help="all of one round")
    return parser.parse_args(list(arguments))
