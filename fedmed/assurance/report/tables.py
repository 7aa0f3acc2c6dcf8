"""The tables of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmed.assurance.report.records import (
    FAILED_STATUSES,
    NOISE_SECURE,
    NOISE_VOID,
    RoundRecord,
    RunRecord,
    main_metric_first,
)
from fedmed.assurance.report.wording import (
    MISSING,
    bytes_text,
    count_text,
    counted,
    delta_text,
    epsilon_text,
    metric_text,
    metric_title,
    seconds_text,
    share_text,
)

_MOST_FAILURES = 200


@dataclass(frozen=True)
class Table:
    """A table of text; the first cell of a row is its header."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    last_is_total: bool = False
    text_columns: frozenset[int] = frozenset()


def sites_table(run: RunRecord) -> Table:
    """Return images, main metric and privacy by site; the last row is all sites."""
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
                *(
                    "kept" if site.keeps_counts else count_text(count)
                    for count in (site.train, site.val, site.test)
                ),
                "kept by the site"
                if site.keeps_counts
                else ", ".join(f"{reason}: {n}" for reason, n in site.excluded.items()) or MISSING,
                metric_text(site.metrics, name),
                metric_text(alone, name),
                MISSING if site.epsilon is None else epsilon_text(site.epsilon) + void,
                MISSING if site.delta is None else delta_text(site.delta),
            ]
        )
    largest = summary.largest_epsilon
    rows.append(
        [
            "All sites",
            *(count_text(count) for count in summary.images),
            str(summary.excluded),
            metric_text(summary.metrics, name),
            f"pooled {metric_text(summary.pooled, name)}" if summary.pooled else MISSING,
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


def metrics_table(run: RunRecord) -> Table:
    """Return every metric of every model that was measured on test images."""
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
            [site, model, *(metric_text(values, name) for name in names)]
            for site, model, values in models
        ],
        text_columns=frozenset({1}),
    )


def transport_table(run: RunRecord) -> Table:
    """Return the bytes that went each way."""
    summary = run.summary
    rounds = max(1, len(run.rounds) or summary.rounds)
    rows = [
        [way, MISSING if n is None else bytes_text(n), count_text(n),
         MISSING if n is None else bytes_text(n // rounds)]
        for way, n in (
            ("Server to sites", summary.bytes_down), ("Sites to server", summary.bytes_up)
        )
    ]  # fmt: skip
    return Table("Bytes sent, all sites", ["Way", "Size", "Bytes", "Mean of a round"], rows)


def phases_table(run: RunRecord) -> Table:
    """Return the seconds of each phase; what no round recorded is ``other``."""
    totals = run.seconds_by_phase
    whole = run.summary.seconds
    if whole is not None and whole - sum(totals.values()) > 0.05:
        totals["other (start, joining, final test)"] = whole - sum(totals.values())
    total = sum(totals.values())
    rows = [
        [phase, seconds_text(seconds), share_text(seconds / total) if total else MISSING]
        for phase, seconds in totals.items()
    ]
    rows.append(["Whole run", MISSING if whole is None else seconds_text(whole), ""])
    return Table("Time by phase", ["Phase", "Time", "Share"], rows, last_is_total=True)


def failures_table(run: RunRecord) -> Table:
    """Return the replies that are missing, at most ``_MOST_FAILURES`` of them."""
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


def refused_table(run: RunRecord) -> Table:
    """Return the sites that took no part."""
    rows = list(run.summary.refused.items())
    return Table("Sites that took no part", ["Site", "Reason"], rows, text_columns=frozenset({1}))


def guarantees_table(run: RunRecord) -> Table:
    """Return which epsilon holds against whom; no rows where no guarantee can be stated."""
    privacy = run.summary.privacy
    rows = [
        [
            one.adversary.capitalize(),
            "none" if one.epsilon is None else f"at most {epsilon_text(one.epsilon)}",
            one.because or MISSING,
        ]
        for one in privacy.guarantees
        if privacy.noise == NOISE_SECURE
    ]
    caption = f"Which epsilon, per {privacy.unit or 'unit'}, holds against whom"
    return Table(caption, ["Adversary", "Epsilon", "Because"], rows, text_columns=frozenset({2}))


def rounds_table(run: RunRecord) -> Table:
    """Return one row a round."""
    measured = dict.fromkeys(name for record in run.rounds for name in record.metrics)
    names = main_metric_first(measured, run.main_metric)
    columns = [
        "Round", *(metric_title(name) for name in names), "Training loss", "Learning rate",
        "Sites used / asked", "Time", "Down", "Up", "Largest epsilon",
    ]  # fmt: skip
    rows = [_round_row(record, names) for record in run.rounds]
    return Table("Global model on validation images, by round", columns, rows)


def _round_row(record: RoundRecord, names: Sequence[str]) -> list[str]:
    epsilons = [site.epsilon for site in record.sites.values() if site.epsilon is not None]
    rate = record.learning_rate
    return [
        str(record.number),
        *(metric_text(record.metrics, name) for name in names),
        MISSING if record.loss is None else f"{record.loss:.4f}",
        MISSING if rate is None else f"{rate:.3g}",
        f"{len(record.replied)} / {len(record.asked)}",
        seconds_text(sum(record.seconds.values())) if record.seconds else MISSING,
        MISSING if record.bytes_down is None else bytes_text(record.bytes_down),
        MISSING if record.bytes_up is None else bytes_text(record.bytes_up),
        epsilon_text(max(epsilons)) if epsilons else MISSING,
    ]
