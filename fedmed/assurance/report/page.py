"""``report.html``: one page that tells what a run did, from the numbers in its folder.

The page needs no network and runs no script; a content security policy in it says so to the
browser. jinja2 (a requirement of torch) escapes everything that comes from the run.
"""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from fedmed.assurance.report.plots import DARK, LIGHT, PLOTS
from fedmed.assurance.report.run_folder import (
    FAILED_STATUSES,
    NOISE_OFF,
    NOISE_SECURE,
    NOISE_VOID,
    RoundRecord,
    RunRecord,
    SiteSummary,
    bytes_text,
    counted,
    epsilon_text,
    main_metric_first,
    metric_title,
    read_run,
    seconds_text,
)

MISSING = "–"
_MOST_FAILURES = 200
_LOWER_IS_BETTER = frozenset({"ece", "loss"})
_MEANINGS = {
    "auroc": "An AUROC of 0.5 is guessing, 1 is a perfect ranking.",
    "dice": "A Dice of 0 is no overlap with the reference, 1 is the same outline.",
    "map": "An mAP of 0 is no finding found, 1 is every finding found and nothing else.",
    "accuracy": "Accuracy is the share of images with the right answer.",
}


@dataclass(frozen=True)
class Statement:
    """What the page says about a guarantee; ``level`` is good, warning or void."""

    level: str
    title: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table of text; the first cell of a row is its header."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    last_is_total: bool = False
    text_columns: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Plot:
    """A plot as data URIs for light and dark."""

    light: str
    dark: str
    description: str


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Args:
        folder: a run folder (see :func:`fedmed.assurance.report.run_folder.read_run`).

    Raises:
        DataError: if it is no run folder.
    """
    page = render_report(read_run(folder))
    target = folder / "report.html"
    unfinished = folder / "report.html.part"
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(target)
    return target


def render_report(run: RunRecord) -> str:
    """Return the page as HTML."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("fedmed.assurance.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        run=run,
        summary=run.summary,
        tiles=[_quality_tiles(run), _run_tiles(run)],
        notes=_notes(run),
        findings=findings(run),
        privacy=privacy_statement(run),
        aggregation=aggregation_statement(run),
        sites=_sites_table(run),
        metrics=_metrics_table(run),
        plots=_plots(run),
        transport=_transport_table(run),
        phases=_phases_table(run),
        refused=_refused_table(run),
        failures=_failures_table(run),
        rounds=_rounds_table(run),
    )


def findings(run: RunRecord) -> list[str]:
    """Return what the numbers say, in plain sentences; what was not measured is said so."""
    summary = run.summary
    name = run.main_metric
    sentences = [
        f"{counted(len(summary.sites), 'site')} trained one model ({summary.task}) in "
        f"{counted(len(run.rounds) or summary.rounds, 'round')}."
    ]
    if summary.refused:
        sentences.append(f"{counted(len(summary.refused), 'site')} took no part.")
    if name is None:
        sentences.append("How good the model is was not measured.")
    else:
        sentences += [
            *_quality(run, name),
            *_against_alone(run, name),
            _against_pooled(run, name),
        ]
    sentences.append(privacy_statement(run).title + ".")
    sentences.append(
        "These are figures of one run on one set of test images; how much chance is in them was "
        "not measured."
    )
    return sentences


def _quality(run: RunRecord, name: str) -> list[str]:
    summary = run.summary
    title = metric_title(name)
    if name not in summary.metrics:
        sentences = [f"{title} of the global model on test images was not measured."]
    else:
        total = summary.images[2]
        images = "the test images" if total is None else f"the {total:,} test images"
        sentences = [
            f"On {images} of all sites together, the global model reaches {title} "
            f"{_with_exactness(run, name)}."
        ]
    if name in _MEANINGS:
        sentences.append(_MEANINGS[name])
    measured = [(site.metrics[name], site.name) for site in summary.sites if name in site.metrics]
    if len(measured) > 1:
        (low, low_site), (high, high_site) = min(measured), max(measured)
        sentences.append(
            f"Between sites it ranges from {low:.3f} ({low_site}) to {high:.3f} ({high_site})."
        )
    return sentences


def _against_alone(run: RunRecord, name: str) -> list[str]:
    local = run.summary.local
    sign = -1 if name in _LOWER_IS_BETTER else 1
    gains = [
        site.metrics[name] - local[site.name][name]
        for site in run.summary.sites
        if name in site.metrics and name in local.get(site.name, {})
    ]
    if not gains:
        return ["Models that the sites trained alone were not measured."]
    better = sum(sign * gain > 0 for gain in gains)
    mean = _difference(statistics.fmean(gains))
    sentences = [
        f"It is better than the model that a site trained alone at {better} of "
        f"{counted(len(gains), 'site')}; the mean difference is {mean}."
    ]
    everywhere = [m[name] for m in run.summary.local_everywhere.values() if name in m]
    if everywhere:
        sentences.append(
            "On the test images of all sites, the models trained alone reach "
            f"{statistics.fmean(everywhere):.3f} on average."
        )
    return sentences


def _against_pooled(run: RunRecord, name: str) -> str:
    pooled = run.summary.pooled.get(name)
    together = run.summary.metrics.get(name)
    if pooled is None:
        return "A model trained on all images in one place was not measured."
    sentence = f"A model trained on all images in one place reaches {pooled:.3f}"
    if together is None:
        return sentence + "."
    difference = together - pooled
    return f"{sentence}; the global model differs from it by {_difference(difference)}."


def privacy_statement(run: RunRecord) -> Statement:
    """Return which differential privacy guarantee holds, if any."""
    privacy = run.summary.privacy
    spent = [site for site in run.summary.sites if site.epsilon is not None]
    if privacy.noise == NOISE_VOID:
        return Statement(
            "void",
            "VOID: there is no privacy guarantee, because the noise came from a seed",
            (
                "Whoever knows the seed can compute the noise and take it away. Seeded noise is "
                "for tests; the epsilons in this report only check the book-keeping.",
                "Do not use this model as if it were private.",
            ),
        )
    if privacy.noise == NOISE_OFF:
        return Statement(
            "warning",
            "Differential privacy was off: the model may reveal images it was trained on",
            ("Nothing bounds what can be learnt from the model about one image or one patient.",),
        )
    if privacy.noise != NOISE_SECURE or not spent:
        return Statement(
            "warning",
            "No privacy guarantee can be stated: the run did not record one",
            ("Treat the model as trained without differential privacy.",),
        )
    return _guarantee(run, spent)


def _guarantee(run: RunRecord, spent: Sequence[SiteSummary]) -> Statement:
    privacy = run.summary.privacy
    unit = privacy.unit or "unit not recorded"
    worst = max(site.epsilon for site in spent if site.epsilon is not None)
    deltas = [site.delta for site in spent if site.delta is not None]
    delta = f" at delta {_delta(max(deltas))}" if len(deltas) == len(spent) else ""
    title = f"Differential privacy holds per {unit}: epsilon at most {epsilon_text(worst)}{delta}"
    sentences = [
        f"Whoever sees the model can tell only within these bounds whether one {unit} of a site "
        "was in its training set. The noise came from a cryptographic generator."
    ]
    if privacy.unit == "image":
        sentences.append(
            "The unit is one image: for a patient with several training images the guarantee is "
            "weaker, about epsilon times the number of images at a larger delta."
        )
    level = "good"
    missing = [s.name for s in run.summary.sites if s.epsilon is None and s.train != 0]
    if missing:
        level = "warning"
        title += f"; none is known for {counted(len(missing), 'site')}"
        sentences.append(f"No epsilon was recorded for: {', '.join(missing)}.")
    if len(deltas) < len(spent):
        level = "warning"
        sentences.append("A delta was not recorded for every site; without it epsilon says little.")
    target = privacy.target_epsilon
    if target is not None:
        above = [s.name for s in spent if s.epsilon is not None and s.epsilon > target + 1e-9]
        sentences.append(f"The target was epsilon {target:g} (preset {privacy.preset or MISSING}).")
        if above:
            level = "warning"
            sentences.append(f"More than the target was spent at: {', '.join(above)}.")
    sentences.append(
        "Epsilon is about the model; the counts and metrics in this report are not covered by it."
    )
    return Statement(level, title, tuple(sentences))


def aggregation_statement(run: RunRecord) -> Statement:
    """Return what the server could see of the updates."""
    secure = run.summary.secure_aggregation
    if secure is None:
        return Statement(
            "warning",
            "Whether secure aggregation was on is not recorded",
            ("Assume that the server saw each site's update.",),
        )
    if not secure:
        return Statement(
            "warning",
            "Secure aggregation was off: the server saw each site's update",
            (
                "An update by itself can reveal more about a site's images than the model does. "
                "The sites trust whoever runs the server.",
            ),
        )
    fewest = min((len(r.replied) for r in run.rounds if r.replied), default=None)
    sentences = [
        "The server saw the sum of the updates of a round and who took part, not the update of "
        "one site. Secure aggregation hides updates; it does not bound what the model reveals."
    ]
    if fewest is not None:
        sentences.append(f"The smallest sum was over {counted(fewest, 'site')}.")
    if fewest is not None and fewest < 3:
        sentences.append(
            "That is too few: of one site the sum is the update itself, and of two sites each "
            "can subtract its own from the sum."
        )
        return Statement("warning", "Secure aggregation was on, but hid little", tuple(sentences))
    return Statement(
        "good", "Secure aggregation was on: the server saw sums only", tuple(sentences)
    )


def _quality_tiles(run: RunRecord) -> list[tuple[str, str]]:
    main = run.main_metric
    names = main_metric_first(run.summary.metrics, main)
    tiles = [(metric_title(name), _metric(run.summary.metrics, name)) for name in names]
    return tiles or [("Global model", "not measured")]


def _run_tiles(run: RunRecord) -> list[tuple[str, str]]:
    summary = run.summary
    recorded = len(run.rounds)
    rounds = str(summary.rounds)
    if recorded != summary.rounds:
        rounds = f"{summary.rounds} ({recorded} recorded)"
    return [
        ("Rounds", rounds),
        ("Sites", str(len(summary.sites))),
        ("Time", "not measured" if summary.seconds is None else seconds_text(summary.seconds)),
        ("Parameters", _count(summary.parameters)),
    ]


def _notes(run: RunRecord) -> list[str]:
    notes = []
    if run.summary.state == "unfinished":
        notes.append("The run wrote no summary: it was cut off or is still going on.")
    elif run.summary.state != "completed":
        notes.append(f"The run did not reach its end: {run.summary.state}.")
    if run.unreadable_lines:
        lines = counted(run.unreadable_lines, "line")
        notes.append(f"Left out of this report: {lines} of rounds.jsonl that cannot be read.")
    return notes


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


def _plots(run: RunRecord) -> list[Plot]:
    name = run.main_metric
    title = "Quality" if name is None else metric_title(name)
    descriptions = {
        "metric": f"Line plot: {title} of the global model and at each site after each round. "
        "The values are in the table of rounds.",
        "epsilon": "Line plot: epsilon spent at each site after each round, and the target.",
        "seconds": "Stacked bars: seconds of each round by phase. Totals are in the table of time.",
        "sites": f"Bars: {title} of the global model and of the local-only model at each site. "
        "The values are in the table of sites.",
    }
    plots = []
    for key, draw in PLOTS.items():
        light, dark = draw(run, LIGHT), draw(run, DARK)
        if light is not None and dark is not None:
            plots.append(Plot(_data_uri(light), _data_uri(dark), descriptions[key]))
    return plots


def _data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def _with_exactness(run: RunRecord, name: str) -> str:
    error = run.summary.metric_error.get(name)
    value = f"{run.summary.metrics[name]:.3f}"
    return f"{value} (exact to ± {error:.2g})" if error else value


def _metric(metrics: Mapping[str, float], name: str | None) -> str:
    return f"{metrics[name]:.3f}" if name is not None and name in metrics else MISSING


def _count(count: int | None) -> str:
    return MISSING if count is None else f"{count:,}"


def _difference(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _delta(delta: float) -> str:
    mantissa, _, exponent = f"{delta:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"
