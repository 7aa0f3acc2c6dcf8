"""What leaves of a round's work, and what a site refuses to send."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from clients.round_work import bounded, demand_whole_share, train_and_count
from fedmed.configuration import Plan, PrivacyConfig
from fedmed.configuration.groups import PrivacyModel
from fedmed.errors import PrivacyError
from fedmed.federation.counts import Tallies
from fedmed.federation.records import Evaluated, Request
from fedmed.tasks.classification.task import Classification
from fedmed.trust.context import EVALUATION, RoundContext
from fedmed.trust.policy import SitePolicy

PLAN = Plan()
TASK = Classification(PLAN.task)
CONTEXT = RoundContext("r", EVALUATION, 1, 1, ("a", "b", "c"), "", "", "", 1, 0, "")


def plan(model: PrivacyModel) -> Plan:
    return replace(PLAN, privacy=PrivacyConfig(enabled=True, target_epsilon=8.0, model=model))


@pytest.mark.parametrize(
    ("weight", "clipped", "cut"), [(10.0, 0, False), (10.0, 1, True), (17.0, 0, True)]
)
def test_a_share_of_noise_is_sent_whole_or_not_at_all(weight, clipped, cut):
    tallies = Tallies(weight=weight)
    demand_whole_share(plan(PrivacyModel.local), tallies, 16, clipped)  # its own noise is enough
    demand_whole_share(PLAN, tallies, 16, clipped)
    if not cut:
        demand_whole_share(plan(PrivacyModel.distributed), tallies, 16, clipped)
        return
    with pytest.raises(PrivacyError, match=r"transport\.update_bound"):
        demand_whole_share(plan(PrivacyModel.distributed), tallies, 16, clipped)


def test_a_capped_weight_takes_its_loss_with_it():
    found = bounded(Tallies(weight=100.0, weighted_loss=50.0), 64, 3)
    assert found == Tallies(64.0, 32.0, 0.0, 3.0, 1.0)
    assert bounded(Tallies(weight=64.0, weighted_loss=50.0), 64, 0).capped == 0.0


@dataclass
class ScriptedSite:
    """A site with so many validation and test images."""

    sizes: dict[str, int]
    policy: SitePolicy
    splits: dict[str, range] = field(init=False)

    def __post_init__(self):
        self.splits = {split: range(size) for split, size in self.sizes.items()}

    def task(self, _request):
        return TASK

    def cohort(self, _request):
        return self

    def evaluate(self, request, _weights):
        counts = {name: np.ones(shape) for name, shape in TASK.aggregate_shapes.items()}
        return Evaluated("a", request.split), counts


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"val": 14, "test": 26}, {"test"}),
        ({"val": 20, "test": 26}, {"val", "test"}),
        ({"val": 3, "test": 19}, set()),
    ],
)
def test_the_metrics_floor_holds_for_each_set_of_images_by_itself(sizes, told):
    site = ScriptedSite(sizes, SitePolicy(metrics_floor=20))
    work = train_and_count(site, Request("r", 1, ""), CONTEXT, np.zeros(3), ("val", "test"))
    assert {name.split(".")[0] for name in work.report.get("metrics", {})} == told
    assert set(work.aggregates) == {"val", "test"}  # summed under masks, told or not
    assert work.images == min((sizes[split] for split in told), default=0)
    silent = ScriptedSite(sizes, SitePolicy(per_site_metrics=False))
    work = train_and_count(silent, Request("r", 1, ""), CONTEXT, np.zeros(3), ("val", "test"))
    assert work.report == {}
