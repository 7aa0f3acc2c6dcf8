"""What a run's numbers say, in plain sentences: its quality, its privacy, who saw what."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fedmed.assurance.report.records import (
    NOISE_OFF,
    NOISE_SECURE,
    NOISE_VOID,
    RunRecord,
    SiteSummary,
)
from fedmed.assurance.report.wording import (
    MISSING,
    counted,
    delta_text,
    difference_text,
    epsilon_text,
    metric_title,
)

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
    mean = difference_text(statistics.fmean(gains))
    where = " where both were measured" if len(gains) < len(run.summary.sites) else ""
    sentences = [
        f"It is better than the model that a site trained alone at {better} of "
        f"{counted(len(gains), 'site')}{where}; the mean difference is {mean}."
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
    return f"{sentence}; the global model differs from it by {difference_text(difference)}."


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
    delta = f" at delta {delta_text(max(deltas))}" if len(deltas) == len(spent) else ""
    title = f"Differential privacy holds per {unit}: epsilon at most {epsilon_text(worst)}{delta}"
    sentences = [
        f"Whoever sees the model can tell only within these bounds whether one {unit} of a site "
        "was in its training set. The noise came from a cryptographic generator."
    ]
    if privacy.unit == "image":
        sentences.append(
            "The unit is one image: for a patient with several training images the guarantee is "
            "weaker. Each site can see by how much (fedmed ledger show); privacy.unit=patient "
            "protects all images of a patient together."
        )
    level = "good"
    exposed = [one.adversary for one in privacy.guarantees if one.epsilon is None]
    if exposed:
        level = "warning"
        title += f"; it does not hold against: {', '.join(exposed)}"
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
    if not secure and _noised_before_the_server(run):
        return Statement(
            "warning",
            "Secure aggregation was off: the server saw each site's noised update",
            (
                "Each update carried its site's own noise, so the epsilon above holds against the "
                "server too. Secure aggregation would hide the updates besides.",
                *_on_the_way(run),
            ),
        )
    if not secure:
        return Statement(
            "warning",
            "Secure aggregation was off: the server saw each site's update",
            (
                "An update by itself can reveal more about a site's images than the model does. "
                "The sites trust whoever runs the server.",
                *_on_the_way(run),
            ),
        )
    fewest = min((len(r.replied) for r in run.rounds if r.replied), default=None)
    sentences = [
        "The server saw the sum of the updates of a round and who took part, not the update of "
        "one site. Secure aggregation hides updates; it does not bound what the model reveals.",
        "Losses, weights and evaluation counts went into the same sums. What a site told by "
        "itself, such as its own metrics, is what its policy lets leave.",
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


def _on_the_way(run: RunRecord) -> list[str]:
    """Return what others than the server could see of single updates."""
    return {
        "sealed": [
            "Updates were sealed for the server (transport=sealed): nobody on the way saw them."
        ],
        "plain": [
            "Messages were neither signed nor sealed (transport=plain), which is for tests only."
        ],
    }.get(run.summary.transport_mode or "", [])


def _noised_before_the_server(run: RunRecord) -> bool:
    privacy = run.summary.privacy
    return privacy.noise == NOISE_SECURE and any(
        one.adversary == "server" and one.epsilon is not None for one in privacy.guarantees
    )


def _with_exactness(run: RunRecord, name: str) -> str:
    error = run.summary.metric_error.get(name)
    value = f"{run.summary.metrics[name]:.3f}"
    return f"{value} (exact to ± {error:.2g})" if error else value
