"""The tables of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MISSING = "–"
_MOST_FAILURES = 200


@dataclass(frozen=True)
class Table:
    """A table of text; the first cell of a row is its header."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    last_is_total: bool = False
    text_columns: frozenset[int] = frozenset()


def _sites_table(run: RunRecord) -> Table:
    summary = run.summary
    name = run.main_metric
    title = "Quality" if name is None else metric_title(name)
    void = " (void)" if summary.privacy.noise == NOISE_VOID else ""
    rows = []
    for site in summary.sites:
        alone = summary.local.get(site.name, {})
        rows.append(
            [
                site.name,
                *(_count(count) for count in (site.train, site.val, site.test)),
                ", ".join(f"{reason}: {n}" for reason, n in site.excluded.items()) or MISSING,
                _metric(site.metrics, name),
                _metric(alone, name),
                MISSING if site.epsilon is None else epsilon_text(site.epsilon) + void,
                MISSING if site.delta is None else _delta(site.delta),
            ]
        )
    largest = summary.largest_epsilon
    rows.append(
        [
            "All sites",
            *(_count(count) for count in summary.images),
            str(summary.excluded),
            _metric(summary.metrics, name),
            f"pooled {_metric(summary.pooled, name)}" if summary.pooled else MISSING,
            MISSING if largest is None else f"at most {epsilon_text(largest)}{void}",
            MISSING,
        ]
    )
    return Table(
        "Images used, images left out, quality and privacy by site",
        ["Site", "Train", "Validation", "Test", "Left out, by reason", f"{title}, global model",
         f"{title}, local only", "Epsilon", "Delta"],
        rows,
        last_is_total=True,
        text_columns=frozenset({4}),
    )  # fmt: skip


def _metrics_table(run: RunRecord) -> Table:
    summary = run.summary
    models: list[tuple[str, str, Mapping[str, float]]] = []
    for site in summary.sites:
        models.append((site.name, "global", site.metrics))
        if site.name in summary.local:
            models.append((site.name, "local only", summary.local[site.name]))
    models.append(("All sites", "global", summary.metrics))
    models += [
        ("All sites", f"local only, {site}", values)
        for site, values in summary.local_everywhere.items()
    ]
    if summary.pooled:
        models.append(("All sites", "pooled images", summary.pooled))
    measured = dict.fromkeys(name for _, _, metrics in models for name in metrics)
    names = main_metric_first(measured, run.main_metric)
    return Table(
        "Every metric on test images",
        ["Test images of", "Model", *(metric_title(name) for name in names)],
        [
            [site, model, *(_metric(values, name) for name in names)]
            for site, model, values in models
        ],
        text_columns=frozenset({1}),
    )


def _transport_table(run: RunRecord) -> Table:
    summary = run.summary
    rounds = max(1, len(run.rounds) or summary.rounds)
    rows = [
        [way, MISSING if n is None else bytes_text(n), _count(n),
         MISSING if n is None else bytes_text(n // rounds)]
        for way, n in (
            ("Server to sites", summary.bytes_down), ("Sites to server", summary.bytes_up)
        )
    ]  # fmt: skip
    return Table("Bytes sent, all sites", ["Way", "Size", "Bytes", "Mean of a round"], rows)


def _phases_table(run: RunRecord) -> Table:
    totals: dict[str, float] = {}
    for record in run.rounds:
        for phase, seconds in record.seconds.items():
            totals[phase] = totals.get(phase, 0.0) + seconds
    whole = run.summary.seconds
    if whole is not None and whole - sum(totals.values()) > 0.05:
        totals["other (start, joining, final test)"] = whole - sum(totals.values())
    total = sum(totals.values())
    rows = [
        [phase, seconds_text(seconds), f"{seconds / total:.0%}" if total else MISSING]
        for phase, seconds in totals.items()
    ]
    rows.append(["Whole run", MISSING if whole is None else seconds_text(whole), ""])
    return Table("Time by phase", ["Phase", "Time", "Share"], rows, last_is_total=True)


def _failures_table(run: RunRecord) -> Table:
    rows = [
        [str(record.number), name, site.status, site.reason or "no reason given"]
        for record in run.rounds
        for name, site in record.sites.items()
        if site.status in FAILED_STATUSES
    ]
    caption = f"{counted(len(rows), 'reply', 'replies')} missing from a round"
    if len(rows) > _MOST_FAILURES:
        caption += f"; the first {_MOST_FAILURES}, the others are in rounds.jsonl"
    columns = ["Round", "Site", "Status", "Reason"]
    return Table(caption, columns, rows[:_MOST_FAILURES], text_columns=frozenset({1, 2, 3}))


def _refused_table(run: RunRecord) -> Table:
    rows = list(run.summary.refused.items())
    return Table("Sites that took no part", ["Site", "Reason"], rows, text_columns=frozenset({1}))


def _rounds_table(run: RunRecord) -> Table:
    measured = dict.fromkeys(name for record in run.rounds for name in record.metrics)
    names = main_metric_first(measured, run.main_metric)
    columns = ["Round", *(metric_title(name) for name in names), "Loss", "Learning rate",
               "Sites used / asked", "Time", "Down", "Up", "Largest epsilon"]  # fmt: skip
    rows = [_round_row(record, names) for record in run.rounds]
    return Table("Global model on validation images, by round", columns, rows)


def _round_row(record: RoundRecord, names: Sequence[str]) -> list[str]:
    epsilons = [site.epsilon for site in record.sites.values() if site.epsilon is not None]
    rate = record.learning_rate
    return [
        str(record.number),
        *(_metric(record.metrics, name) for name in names),
        MISSING if record.loss is None else f"{record.loss:.4f}",
        MISSING if rate is None else f"{rate:.3g}",
        f"{len(record.replied)} / {len(record.asked)}",
        seconds_text(sum(record.seconds.values())) if record.seconds else MISSING,
        MISSING if record.bytes_down is None else bytes_text(record.bytes_down),
        MISSING if record.bytes_up is None else bytes_text(record.bytes_up),
        epsilon_text(max(epsilons)) if epsilons else MISSING,
    ]


def _metric(metrics: Mapping[str, float], name: str | None) -> str:
    return f"{metrics[name]:.3f}" if name is not None and name in metrics else MISSING


def _count(count: int | None) -> str:
    return MISSING if count is None else f"{count:,}"
