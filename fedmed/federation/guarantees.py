"""Which epsilon holds against whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmed.configuration.groups import PrivacyModel, TransportMode
from fedmed.configuration.plan import Plan
from fedmed.training.site_plan import honest_sites


@dataclass(frozen=True)
class Guarantee:
    """What differential privacy says about one adversary.

    Attributes:
        adversary: ``server``, ``other sites`` or ``reader of the model``.
        epsilon: largest of the sites'; None where differential privacy protects nothing.
        because: why, in a sentence.
    """

    adversary: str
    epsilon: float | None
    because: str


def guarantees(plan: Plan, epsilons: Sequence[float]) -> list[Guarantee]:
    """Return the guarantee against each adversary of the threat model.

    Args:
        plan: of the run.
        epsilons: what each site has spent. Their largest is the federation's only if no patient
            is at two sites: a patient of two hospitals spends the sum of both.
    """
    privacy = plan.privacy
    secure_aggregation = plan.transport.mode == TransportMode.secagg
    if not privacy.enabled or not epsilons:
        why = "differential privacy was off"
        return [
            Guarantee(who, None, why) for who in ("server", "other sites", "reader of the model")
        ]
    worst = max(epsilons)
    if privacy.model == PrivacyModel.local:
        return [
            Guarantee("server", worst, "each update carries its site's noise when it leaves"),
            Guarantee("other sites", worst, "they see models made of noised updates only"),
            Guarantee("reader of the model", worst, "the model is made of noised updates only"),
        ]
    if privacy.model == PrivacyModel.distributed:
        honest = honest_sites(plan)
        server = (
            Guarantee("server", worst, f"it sees sums with the noise of {honest} honest sites")
            if secure_aggregation
            else Guarantee(
                "server", None, "it saw single updates, each with a share of the noise only"
            )
        )
        return [
            server,
            Guarantee("other sites", worst, f"if at least {honest} sites do not collude with them"),
            Guarantee("reader of the model", worst, f"the sum carries {honest} sites' noise"),
        ]
    return [
        Guarantee("server", None, "it sees updates before it adds the noise"),
        Guarantee("other sites", worst, "if the server adds the noise as planned"),
        Guarantee("reader of the model", worst, "if the server adds the noise as planned"),
    ]
