"""A run folder, read into frozen records.

The folder may come from a run that was killed, or from another machine: a torn line, a metric
that is ``NaN`` or a missing part is not an error, and text from sites is cleaned here, once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import cast

from fedmed.errors import DataError

MAX_TEXT = 300
NOISE_SECURE = "secure"
NOISE_VOID = "void (seeded noise)"
NOISE_OFF = "off"
FAILED_STATUSES = ("refused", "failed", "late")

_MAIN_METRIC = {"classification": "auroc", "segmentation": "dice", "detection": "map"}


@dataclass(frozen=True)
class SiteSummary:
    """One site over the whole run.

    Attributes:
        train: training images used; ``None`` where it was not recorded, as for the other fields.
        excluded: images left out, by reason.
        epsilon: spent at ``delta``; ``None`` without differential privacy.
        metrics: finite values of the global model on the site's test images.
    """

    name: str
    train: int | None = None
    val: int | None = None
    test: int | None = None
    excluded: Mapping[str, int] = field(default_factory=dict)
    epsilon: float | None = None
    delta: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PrivacySummary:
    """What the run says of differential privacy; ``None`` where it says nothing.

    Attributes:
        unit: ``image`` or ``patient``: whose presence the epsilon hides.
        noise: one of ``NOISE_SECURE``, ``NOISE_VOID``, ``NOISE_OFF``.
    """

    preset: str | None = None
    unit: str | None = None
    target_epsilon: float | None = None
    noise: str | None = None


@dataclass(frozen=True)
class RunSummary:
    """``summary.json``.

    Attributes:
        state: ``completed``, ``stopped``, or ``unfinished`` for a run that wrote no summary.
        seconds: wall clock of the whole run.
        metrics: finite values of the global model on all test images.
        metric_error: how far a metric that was summed in bins can be from the exact one. It is
            not a confidence interval: chance is no part of it.
        local: metrics of the model that a site trained alone, on its own test images, by site.
        local_everywhere: the same models on the test images of all sites.
        pooled: metrics of a model trained on all images in one place.
        refused: reasons of sites that took no part, by site.
    """

    task: str
    state: str
    rounds: int
    seconds: float | None = None
    parameters: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    metric_error: Mapping[str, float] = field(default_factory=dict)
    sites: tuple[SiteSummary, ...] = ()
    local: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    local_everywhere: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pooled: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    bytes_up: int | None = None
    bytes_down: int | None = None
    secure_aggregation: bool | None = None
    privacy: PrivacySummary = field(default_factory=PrivacySummary)
    seed: int | None = None
    plan_sha256: str | None = None

    @property
    def main_metric(self) -> str | None:
        """The metric that the task is judged by, else the first measured one."""
        models = [self.metrics, *(site.metrics for site in self.sites), self.pooled]
        return main_metric(self.task, models)

    @property
    def largest_epsilon(self) -> float | None:
        """The epsilon of the site that spent most."""
        return max((s.epsilon for s in self.sites if s.epsilon is not None), default=None)

    @property
    def images(self) -> tuple[int | None, int | None, int | None]:
        """Train, validation and test images of all sites; ``None`` if one site's is unknown."""
        return (
            _sum([site.train for site in self.sites]),
            _sum([site.val for site in self.sites]),
            _sum([site.test for site in self.sites]),
        )

    @property
    def excluded(self) -> int:
        """Images left out at all sites."""
        return sum(sum(site.excluded.values()) for site in self.sites)


@dataclass(frozen=True)
class SiteRound:
    """One site in one round; ``status`` is ok, refused, failed, late or not sampled."""

    status: str
    reason: str | None = None
    examples: int | None = None
    loss: float | None = None
    epsilon: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundRecord:
    """One line of ``rounds.jsonl``; ``seconds`` by phase, ``metrics`` on validation images.

    ``participants`` may be the sites that were asked or those whose update was used;
    :attr:`asked` and :attr:`replied` tell them apart.
    """

    number: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    loss: float | None = None
    learning_rate: float | None = None
    participants: tuple[str, ...] = ()
    sites: Mapping[str, SiteRound] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    bytes_up: int | None = None
    bytes_down: int | None = None

    @property
    def replied(self) -> tuple[str, ...]:
        """Sites whose update was used."""
        return tuple(name for name, site in self.sites.items() if site.status == "ok")

    @property
    def asked(self) -> tuple[str, ...]:
        """Sites that were asked for an update."""
        asked = (name for name, site in self.sites.items() if site.status != "not sampled")
        return tuple(dict.fromkeys([*asked, *self.participants]))


@dataclass(frozen=True)
class ModelCard:
    """``model.json``; ``architecture`` is the settings of the network as text, by name."""

    architecture: Mapping[str, str] = field(default_factory=dict)
    parameters: int | None = None
    labels: tuple[str, ...] = ()
    sha256: str | None = None


@dataclass(frozen=True)
class RunRecord:
    """A run folder.

    Attributes:
        name: last parts of the folder's path, never an absolute path.
        configuration: ``config.yaml`` as text.
        unreadable_lines: lines of ``rounds.jsonl`` that were torn or no record of a round.
    """

    name: str
    summary: RunSummary
    rounds: tuple[RoundRecord, ...] = ()
    model: ModelCard | None = None
    configuration: str | None = None
    unreadable_lines: int = 0

    @property
    def main_metric(self) -> str | None:
        """The metric that the task is judged by, else the first measured one."""
        summary = self.summary
        models = [summary.metrics, *(site.metrics for site in summary.sites), summary.pooled]
        models += [record.metrics for record in self.rounds]
        models += [site.metrics for record in self.rounds for site in record.sites.values()]
        return main_metric(summary.task, models)


def main_metric(task: str, models: Iterable[Mapping[str, float]]) -> str | None:
    """Return the metric that ``task`` is judged by, if measured, else the first measured one."""
    measured = list(dict.fromkeys(name for metrics in models for name in metrics))
    usual = _MAIN_METRIC.get(task)
    if usual in measured:
        return usual
    return measured[0] if measured else None


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


def main_metric_first(names: Iterable[str], main: str | None = None) -> list[str]:
    """Return ``names`` with ``main`` (else any task's main metric) first, otherwise as given."""
    first = set(_MAIN_METRIC.values()) if main is None else {main}
    return sorted(names, key=lambda name: name not in first)


def epsilon_text(epsilon: float) -> str:
    """Return epsilon with two decimals, rounded up: a report must not promise more than holds."""
    return str(Decimal(repr(round(epsilon, 9))).quantize(Decimal("0.01"), rounding=ROUND_CEILING))


def seconds_text(seconds: float) -> str:
    """Return a duration such as ``4.2 s``, ``3 min 07 s`` or ``2 h 05 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


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


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Of ``summary.json`` and ``rounds.jsonl`` one is enough. A line of ``rounds.jsonl`` that cannot
    be read is counted; of a round that was run twice (after a resume) the last record is taken.

    Raises:
        DataError: if the folder holds neither file, or ``summary.json`` or ``model.json`` is no
            JSON object.
    """
    stored = _json_object(folder / "summary.json")
    lines = _bytes(folder / "rounds.jsonl")
    if stored is None and lines is None:
        raise DataError(
            f"'{_folder_name(folder)}' is no run folder: it has neither summary.json nor "
            "rounds.jsonl. Name the folder that a run wrote, such as outputs/DATE/TIME."
        )
    rounds, unreadable = _read_rounds(lines or b"")
    card = _json_object(folder / "model.json")
    configuration = _bytes(folder / "config.yaml")
    return RunRecord(
        name=_folder_name(folder),
        summary=_summary_of_unfinished(rounds) if stored is None else parse_summary(stored),
        rounds=rounds,
        model=None if card is None else _parse_model(card),
        configuration=None if configuration is None else _lines_of_text(configuration),
        unreadable_lines=unreadable,
    )


def parse_summary(stored: Mapping[str, object]) -> RunSummary:
    """Read the object of ``summary.json``; what is missing or of another type becomes ``None``.

    ``baselines.local`` is taken as measured on each site's own test images, unless there is
    ``baselines.local_own_test``: then that is, and ``local`` is on the test images of all sites.
    """
    baselines = _object(stored.get("baselines"))
    transport = _object(stored.get("transport"))
    privacy = _object(stored.get("privacy"))
    all_tests = _metrics_by_site(baselines.get("local"))
    own_test = _metrics_by_site(baselines.get("local_own_test"))
    secure_aggregation = transport.get("secure_aggregation")
    return RunSummary(
        task=clean_text(stored.get("task") or "unknown task"),
        state=clean_text(stored.get("state") or "state not recorded"),
        rounds=_count(stored.get("rounds")) or 0,
        seconds=_number(stored.get("seconds")),
        parameters=_count(stored.get("parameters")),
        metrics=_numbers(stored.get("metrics")),
        metric_error=_numbers(stored.get("metric_error")),
        sites=tuple(
            _parse_site(clean_text(name), _object(site))
            for name, site in _object(stored.get("sites")).items()
        ),
        local=own_test or all_tests,
        local_everywhere=all_tests if own_test else {},
        refused={
            clean_text(name): clean_text(reason)
            for name, reason in _object(stored.get("refused")).items()
        },
        pooled=_numbers(baselines.get("pooled")),
        bytes_up=_count(transport.get("bytes_up")),
        bytes_down=_count(transport.get("bytes_down")),
        secure_aggregation=secure_aggregation if isinstance(secure_aggregation, bool) else None,
        privacy=PrivacySummary(
            preset=_text(privacy.get("preset")),
            unit=_text(privacy.get("unit")),
            target_epsilon=_number(privacy.get("target_epsilon")),
            noise=_text(privacy.get("noise")),
        ),
        seed=_count(stored.get("seed")),
        plan_sha256=_text(stored.get("plan_sha256")),
    )


def parse_round(stored: Mapping[str, object]) -> RoundRecord | None:
    """Read the object of one line of ``rounds.jsonl``; ``None`` if it has no round number."""
    number = _count(stored.get("round"))
    if number is None:
        return None
    participants = stored.get("participants")
    transferred = _object(stored.get("bytes"))
    return RoundRecord(
        number=number,
        metrics=_numbers(stored.get("metrics")),
        loss=_number(stored.get("loss")),
        learning_rate=_number(stored.get("learning_rate")),
        participants=tuple(
            clean_text(name)
            for name in (participants if isinstance(participants, list | tuple) else ())
        ),
        sites={
            clean_text(name): _parse_site_round(_object(site))
            for name, site in _object(stored.get("sites")).items()
        },
        seconds=_numbers(stored.get("seconds")),
        bytes_up=_count(transferred.get("up")),
        bytes_down=_count(transferred.get("down")),
    )


def _parse_site(name: str, stored: Mapping[str, object]) -> SiteSummary:
    return SiteSummary(
        name=name,
        train=_count(stored.get("train")),
        val=_count(stored.get("val")),
        test=_count(stored.get("test")),
        excluded=_counts(stored.get("excluded")),
        epsilon=_number(stored.get("epsilon")),
        delta=_number(stored.get("delta")),
        metrics=_numbers(stored.get("metrics")),
    )


def _parse_site_round(stored: Mapping[str, object]) -> SiteRound:
    return SiteRound(
        status=clean_text(stored.get("status") or "not recorded"),
        reason=_text(stored.get("reason")),
        examples=_count(stored.get("examples")),
        loss=_number(stored.get("loss")),
        epsilon=_number(stored.get("epsilon")),
        metrics=_numbers(stored.get("metrics")),
    )


def _parse_model(stored: Mapping[str, object]) -> ModelCard:
    labels = stored.get("labels")
    return ModelCard(
        architecture={
            clean_text(key): clean_text(value)
            for key, value in _object(stored.get("architecture")).items()
        },
        parameters=_count(stored.get("parameters")),
        labels=tuple(clean_text(label) for label in (labels if isinstance(labels, list) else ())),
        sha256=_text(stored.get("sha256")),
    )


def _read_rounds(content: bytes) -> tuple[tuple[RoundRecord, ...], int]:
    records: dict[int, RoundRecord] = {}
    unreadable = 0
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            stored = json.loads(line)
        except (ValueError, RecursionError):
            stored = None
        record = parse_round(stored) if isinstance(stored, dict) else None
        if record is None:
            unreadable += 1
        else:
            records[record.number] = record
    return tuple(records[number] for number in sorted(records)), unreadable


def _summary_of_unfinished(rounds: tuple[RoundRecord, ...]) -> RunSummary:
    """Return what the rounds alone tell: names of sites and their last epsilon."""
    epsilons: dict[str, float | None] = {}
    for record in rounds:
        for name, site in record.sites.items():
            epsilons[name] = epsilons.get(name) if site.epsilon is None else site.epsilon
    return RunSummary(
        task="unknown task",
        state="unfinished",
        rounds=len(rounds),
        sites=tuple(SiteSummary(name, epsilon=epsilon) for name, epsilon in epsilons.items()),
    )


def _folder_name(folder: Path) -> str:
    return clean_text("/".join(folder.resolve().parts[-2:]))


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(
            f"'{_folder_name(path.parent)}/{path.name}' cannot be read: {error.strerror}."
        ) from error


def _lines_of_text(content: bytes) -> str:
    lines = content.decode("utf-8", errors="replace").splitlines()
    return "\n".join(clean_text(line, limit=1000) for line in lines)


def _json_object(path: Path) -> dict[str, object] | None:
    content = _bytes(path)
    if content is None:
        return None
    try:
        stored = json.loads(content)
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        raise DataError(
            f"'{_folder_name(path.parent)}/{path.name}' is not a JSON object. Remove the file to "
            "report what the rest of the run folder tells."
        )
    return stored


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if counts and len(known) == len(counts) else None


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
