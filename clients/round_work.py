"""A round's work at a site, before it is masked or sealed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clients.site import Site
from fedmed.configuration.groups import PrivacyModel
from fedmed.configuration.plan import Plan
from fedmed.errors import PrivacyError
from fedmed.federation.counts import Tallies
from fedmed.federation.records import Request
from fedmed.models.parameters import FloatVector
from fedmed.tasks.base import Aggregate
from fedmed.trust.canonical import Json
from fedmed.trust.context import TRAINING, RoundContext
from fedmed.trust.policy import allowed_metrics


@dataclass(frozen=True)
class Work:
    """What a round's work gave.

    Attributes:
        update: ``[parameters]``; empty in an evaluation.
        tallies: weight and loss.
        aggregates: counts by split.
        report: what leaves unmasked: epsilon, seconds, and metrics if the policy lets them.
        images: smallest number of images that a metric is over.
    """

    update: FloatVector
    tallies: Tallies
    aggregates: dict[str, Aggregate]
    report: dict[str, Json]
    images: int


def train_and_count(
    site: Site,
    request: Request,
    context: RoundContext,
    weights: FloatVector,
    evaluate: Sequence[str],
) -> Work:
    """Evaluate the global model on the way, then train it if that is what the round is for.

    Args:
        site: whose images.
        request: names run, round and plan.
        context: of the attempt; its purpose says whether to train.
        weights: of the global model, ``[parameters]``.
        evaluate: sets of images to evaluate on.

    Raises:
        PrivacyError: before training, if the site's budget would be passed.
    """
    task, cohort = site.task(request), site.cohort(request)
    aggregates: dict[str, Aggregate] = {}
    metrics: dict[str, Json] = {}
    images: list[int] = []
    for split in evaluate:
        asked = Request(request.run, request.round, request.plan, split)
        _, aggregates[split] = site.evaluate(asked, weights)
        size = len(cohort.splits[split])
        if not allowed_metrics(site.policy, size):
            continue
        images.append(size)
        metrics |= {
            f"{split}.{name}": value
            for name, value in task.metrics(aggregates[split]).items()
            if np.isfinite(value)
        }
    report: dict[str, Json] = {"metrics": metrics} if metrics else {}
    smallest = min(images, default=0)
    if context.purpose != TRAINING:
        return Work(np.empty(0, np.float32), Tallies(), aggregates, report, smallest)
    trained, update = site.train(request, weights, context.attempt)
    weight = float(trained.examples)
    told = trained.loss is not None
    tallies = Tallies(
        weight=weight,
        weighted_loss=weight * (trained.loss or 0.0),
        lossless=0.0 if told else weight,
    )
    report |= {"epsilon": trained.epsilon, "delta": site.delta(request)}
    if site.policy.per_site_counts:
        # How long training took tells roughly how many images there are.
        report["seconds"] = trained.seconds
    return Work(update, tallies, aggregates, report, smallest)


def demand_whole_share(plan: Plan, tallies: Tallies, bound: int, clipped: int) -> None:
    """Refuse to send a share of noise that clipping or capping has made smaller.

    Bounds come from the server, and are applied after the noise. A site that adds all the noise it
    needs may be clipped afterwards; one that adds a share of a sum's noise may not.

    Raises:
        PrivacyError: with ``privacy.model=distributed``, if anything was cut.
    """
    shared = plan.privacy.enabled and plan.privacy.model == PrivacyModel.distributed
    if shared and (clipped or tallies.weight > bound):
        raise PrivacyError(
            "The round's bounds would cut this site's share of the noise (privacy.model="
            "distributed), and the sum would carry less than was counted. Raise "
            "transport.update_bound, or choose privacy.model=local."
        )


def bounded(tallies: Tallies, bound: int, clipped: int) -> Tallies:
    """Cut a weight to the round's bound, as the ring does, and count that."""
    weight = min(tallies.weight, float(bound))
    scale = weight / tallies.weight if tallies.weight else 0.0
    return Tallies(
        weight=weight,
        weighted_loss=tallies.weighted_loss * scale,
        lossless=tallies.lossless * scale,
        clipped=float(clipped),
        capped=float(weight < tallies.weight),
    )
