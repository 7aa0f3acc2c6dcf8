"""``summary.json`` and ``model.json`` of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from fedmed.configuration.groups import TransportMode
from fedmed.configuration.plan import Plan
from fedmed.federation.channels.base import Evaluation
from fedmed.federation.cohort import Participants
from fedmed.federation.guarantees import guarantees
from fedmed.federation.run_folder import Checkpoint
from fedmed.models.parameters import ParameterLayout


def summarise(
    plan: Plan,
    layout: ParameterLayout,
    participants: Participants,
    checkpoint: Checkpoint,
    evaluation: Evaluation,
    noise: str,
) -> dict[str, object]:
    """Return the content of ``summary.json`` (DESIGN section 5).

    Args:
        plan: of the run.
        layout: of the model.
        participants: who joined and who did not.
        checkpoint: after the last round.
        evaluation: of the final model on the test sets.
        noise: what the privacy noise was made from, for the report.
    """
    sites = {}
    for joined in sorted(participants.joined.values(), key=lambda one: one.site):
        sites[joined.site] = {
            "train": joined.train,
            "val": joined.val,
            "test": joined.test,
            "excluded": dict(joined.excluded),
            "epsilon": checkpoint.epsilons.get(joined.site),
            "delta": joined.delta,
            "metrics": dict(evaluation.sites.get(joined.site, {})),
        }
    down, up = checkpoint.traffic
    return {
        "state": "completed",
        "task": plan.task.name,
        "rounds": checkpoint.round,
        "seconds": checkpoint.seconds,
        "parameters": layout.size,
        "metrics": dict(evaluation.metrics),
        "metric_error": dict(evaluation.error_bounds),
        "sites": sites,
        "refused": {one.site: one.reason for one in participants.refused.values()},
        "baselines": {"local": {}, "local_own_test": {}, "pooled": None},
        "privacy": {
            "preset": plan.privacy.preset,
            "unit": plan.privacy.unit.value,
            "model": plan.privacy.model.value,
            "target_epsilon": plan.privacy.target_epsilon if plan.privacy.enabled else None,
            "noise": noise if plan.privacy.enabled else "off",
            "guarantees": [
                asdict(one) for one in guarantees(plan, list(checkpoint.epsilons.values()))
            ],
        },
        "transport": {
            "mode": plan.transport.mode.value,
            "bytes_up": up,
            "bytes_down": down,
            "secure_aggregation": plan.transport.mode == TransportMode.secagg,
        },
        "seed": plan.seed,
        "plan_sha256": plan.sha256(),
    }


def model_card(plan: Plan, layout: ParameterLayout) -> Mapping[str, object]:
    """Return what ``model.json`` says besides the weights' hash."""
    return {
        "task": plan.task.name,
        "labels": list(plan.task.labels),
        "multi_label": plan.task.multi_label,
        "architecture": asdict(plan.model),
        "preprocessing": {
            "size": plan.preprocessing.size,
            "channels": plan.preprocessing.channels,
        },
        "layout_sha256": layout.sha256(),
        "plan_sha256": plan.sha256(),
    }
