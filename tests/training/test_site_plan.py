"""How a site reads the privacy of a plan: rates, noise, delta, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from fedmed.configuration.groups import (
    FederationConfig,
    Normalisation,
    PrivacyConfig,
    SiteConfig,
    TrainingConfig,
)
from fedmed.configuration.plan import Plan
from fedmed.configuration.validation import validate_plan
from fedmed.data.image_set import ImageSet
from fedmed.errors import ConfigurationError, PrivacyError
from fedmed.training.accounting import epsilon_spent
from fedmed.training.present_plan import PresentPlan
from fedmed.training.site_plan import check_site_policy, site_privacy


def cohort(patients=40, images_each=3):
    count = patients * images_each
    return ImageSet(
        torch.zeros(count, 1, 2, 2),
        torch.zeros(count),
        torch.arange(patients).repeat_interleave(images_each),
    )


def plan(**privacy):
    settings = {"enabled": True, "target_epsilon": 8.0, **privacy}
    return Plan(
        privacy=PrivacyConfig(**settings), federation=FederationConfig(rounds=5, local_epochs=2.0)
    )


@pytest.mark.parametrize(("unit", "count"), [("image", 120), ("patient", 40)])
def test_the_rate_of_a_fixed_batch_is_computed_and_not_rounded(unit, count):
    settings = plan(unit=unit, sample_rate=None, batch_size=37)
    ready = site_privacy(settings, cohort())
    assert ready.mechanism.steps.sample_rate == 37 / count
    assert ready.units == count
    assert ready.images_per_patient == 3


def test_the_whole_planned_run_costs_the_target():
    ready = site_privacy(plan(unit="patient"), cohort())
    steps = ready.mechanism.steps
    whole_run = replace(steps, steps=steps.steps * 5)
    assert epsilon_spent([whole_run], ready.delta) <= 8.0
    less_noise = replace(whole_run, noise_multiplier=whole_run.noise_multiplier * 0.99)
    assert epsilon_spent([less_noise], ready.delta) > 8.0


def test_delta_comes_from_patients_and_not_from_images():
    many = cohort(patients=20_000, images_each=1)
    assert site_privacy(plan(), many).delta == pytest.approx(1 / 200_000)
    with pytest.raises(PrivacyError, match=r"privacy\.delta=null"):
        site_privacy(plan(delta=0.03), cohort())  # above 1 / 40 patients, below 1 / 120 images


@pytest.mark.parametrize("unit", ["image", "patient"])
def test_a_batch_larger_than_the_cohort_is_refused(unit):
    settings = plan(unit=unit, sample_rate=None, batch_size=121)
    with pytest.raises(PrivacyError, match=rf"larger than this site's cohort.*{unit}s"):
        site_privacy(settings, cohort())


def test_a_target_that_needs_too_much_noise_is_refused_with_the_way_out():
    with pytest.raises(PrivacyError, match=r"Raise privacy\.target_epsilon"):
        site_privacy(plan(target_epsilon=1e-4), cohort())


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"sampling": "shuffle"}, r"Choose poisson"),
        ({"sample_rate": None}, r"privacy\.batch_size"),
        ({"batch_size": 8}, r"exactly one"),
        ({"sample_rate": 0.0}, r"privacy\.sample_rate"),
        ({"noise_multiplier": 60.0, "target_epsilon": None}, r"0\.3 to 50"),
        ({"noise_multiplier": 1.0}, r"exactly one"),
        ({"images_per_patient": 0, "unit": "patient"}, r"privacy\.images_per_patient"),
        (
            {"images_per_patient": 40, "unit": "patient", "augmentation_multiplicity": 8},
            r"must fit",
        ),
        ({"augmentation_multiplicity": 0}, r"privacy\.augmentation_multiplicity"),
        ({"ema_decay": 1.0}, r"privacy\.ema_decay"),
        ({"clipping_norm": 0.0}, r"privacy\.clipping_norm"),
        ({"delta": 0.5}, r"privacy\.delta"),
    ],
)
def test_impossible_settings_name_the_key_and_the_way_out(privacy, message):
    validate_plan(plan())
    with pytest.raises(ConfigurationError, match=message):
        validate_plan(plan(**privacy))


def test_settings_outside_the_group_that_privacy_does_not_allow():
    batch = replace(plan().model, normalisation=Normalisation.batch)
    with pytest.raises(ConfigurationError, match=r"model\.normalisation=group"):
        validate_plan(replace(plan(), model=batch))
    with pytest.raises(ConfigurationError, match=r"training\.balance=false"):
        validate_plan(replace(plan(), training=TrainingConfig(balance=True)))
    views = plan(augmentation_multiplicity=4)
    with pytest.raises(ConfigurationError, match=r"training\.augment=true"):
        validate_plan(replace(views, training=TrainingConfig(augment=False)))


def test_a_sites_own_policy_stands_above_the_plan():
    site = SiteConfig(name="cs", max_delta=1e-5)
    check_site_policy(plan(), site)
    with pytest.raises(PrivacyError, match=r"site\.max_delta"):
        check_site_policy(plan(delta=1e-4), site)
    with pytest.raises(PrivacyError, match=r"site\.allow_central_privacy"):
        check_site_policy(plan(model="central"), site)
    check_site_policy(plan(model="central"), replace(site, allow_central_privacy=True))
    off = Plan()
    check_site_policy(off, site)
    with pytest.raises(PrivacyError, match=r"site\.require_privacy"):
        check_site_policy(off, replace(site, require_privacy=True))


def test_the_present_plan_is_read_back_and_a_damaged_one_is_none(tmp_path):
    ready = site_privacy(plan(unit="patient"), cohort())
    noted = PresentPlan(
        "run", 5, "main", ready.mechanism.unit, ready.delta, ready.mechanism.steps, 3
    )
    assert PresentPlan.read(tmp_path) is None
    noted.write(tmp_path)
    assert PresentPlan.read(tmp_path) == noted
    (tmp_path / "present_plan.json").write_text("[1]")
    assert PresentPlan.read(tmp_path) is None
