"""The records of a run: what its summary, its rounds and its model card say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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
        keeps_counts: whether the site's policy keeps its numbers of images.
        epsilon: spent at ``delta``; ``None`` without differential privacy.
        metrics: finite values of the global model on the site's test images.
    """

    name: str
    train: int | None = None
    val: int | None = None
    test: int | None = None
    excluded: Mapping[str, int] = field(default_factory=dict)
    keeps_counts: bool = False
    epsilon: float | None = None
    delta: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GuaranteeRecord:
    """What differential privacy says about one adversary.

    Attributes:
        adversary: who, as ``server``.
        epsilon: that holds against it; ``None`` where nothing does.
        because: why.
    """

    adversary: str
    epsilon: float | None = None
    because: str | None = None


@dataclass(frozen=True)
class PrivacySummary:
    """What the run says of differential privacy; ``None`` where it says nothing.

    Attributes:
        unit: ``image`` or ``patient``: whose presence the epsilon hides.
        model: who adds the noise: ``local``, ``distributed`` or ``central``.
        noise: one of ``NOISE_SECURE``, ``NOISE_VOID``, ``NOISE_OFF``.
    """

    preset: str | None = None
    unit: str | None = None
    target_epsilon: float | None = None
    noise: str | None = None
    model: str | None = None
    guarantees: tuple[GuaranteeRecord, ...] = ()


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
        transport_mode: how updates travelled: ``secagg``, ``sealed`` or ``plain``.
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
    transport_mode: str | None = None
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
        configuration: ``config.yaml`` as text, without the settings of one machine; ``None`` if
            there is none that can be read.
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

    @property
    def seconds_by_phase(self) -> dict[str, float]:
        """Seconds of all rounds by phase, the longest phase first."""
        totals: dict[str, float] = {}
        for record in self.rounds:
            for phase, seconds in record.seconds.items():
                totals[phase] = totals.get(phase, 0.0) + seconds
        return dict(sorted(totals.items(), key=lambda item: -item[1]))


def main_metric(task: str, models: Iterable[Mapping[str, float]]) -> str | None:
    """Return the metric that ``task`` is judged by, if measured, else the first measured one."""
    measured = list(dict.fromkeys(name for metrics in models for name in metrics))
    usual = _MAIN_METRIC.get(task)
    if usual in measured:
        return usual
    return measured[0] if measured else None


def main_metric_first(names: Iterable[str], main: str | None = None) -> list[str]:
    """Return ``names`` with ``main`` (else any task's main metric) first, otherwise as given."""
    first = set(_MAIN_METRIC.values()) if main is None else {main}
    return sorted(names, key=lambda name: name not in first)


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if counts and len(known) == len(counts) else None
