"""Who adds the noise: what a sum carries, and what the report says against whom."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fedmed.configuration.groups import (
    FederationConfig,
    PrivacyConfig,
    PrivacyModel,
    StrategyConfig,
    TrainingConfig,
    TransportConfig,
    TransportMode,
)
from fedmed.configuration.plan import Plan
from fedmed.configuration.validation import validate_plan
from fedmed.errors import ConfigurationError
from fedmed.federation.central_noise import CentralNoise, with_privacy_model
from fedmed.federation.guarantees import guarantees
from fedmed.federation.strategies.base import WeightedUpdate
from fedmed.federation.strategies.fedavg import FedAvg
from fedmed.federation.strategies.sum_only import SumOnly
from fedmed.secagg.quorum import colluders, honest_survivors, threshold
from fedmed.training.noise import SecureNoise
from fedmed.training.site_plan import honest_sites, noise_share

SIZE = 20_000


def plan(model, mode=TransportMode.secagg, **privacy):
    settings = {
        "enabled": True,
        "model": model,
        "noise_multiplier": 2.0,
        "clipping_norm": 0.5,
        "sample_rate": 0.25,
        "delta": 1e-6,
        "learning_rate": 0.1,
        **privacy,
    }
    return Plan(
        training=TrainingConfig(optimizer="sgd", schedule="constant"),
        federation=FederationConfig(local_epochs=0.25, minimum_sites=3),
        privacy=PrivacyConfig(**settings),
        transport=TransportConfig(mode=mode),
    )


def silent_sites(*weights):
    zero = np.zeros(SIZE, np.float32)
    return [WeightedUpdate(f"s{n}", zero, weight) for n, weight in enumerate(weights)]


def test_central_noise_on_the_mean_hides_one_unit_of_the_whole_federation():
    central = with_privacy_model(
        FedAvg(StrategyConfig()), plan("central"), np.ones(SIZE, bool), SecureNoise()
    )
    moved = central.apply(np.zeros(SIZE, np.float32), silent_sites(100, 300, 400))
    expected = 0.1 * 2.0 * 0.5 / (0.25 * 800)
    assert moved.std() == pytest.approx(expected, rel=0.03)


def test_central_noise_leaves_frozen_weights_alone_and_follows_the_schedule():
    trained = np.arange(SIZE) % 2 == 0
    cosine = replace(plan("central"), training=TrainingConfig(optimizer="sgd"))
    noise = CentralNoise(cosine, trained, SecureNoise())
    drawn = noise(1, 800)
    assert not drawn[~trained].any()
    assert drawn[trained].std() == pytest.approx(noise.scale(1, 800), rel=0.05)
    assert noise.scale(10, 800) < 0.1 * noise.scale(1, 800)


def test_a_resumed_run_goes_on_with_the_round_that_is_next():
    rounds = []
    first = SumOnly(FedAvg(StrategyConfig()), lambda number, _units: rounds.append(number) or 0.0)
    weights = np.zeros(SIZE, np.float32)
    first.apply(weights, silent_sites(1, 1))
    second = SumOnly(FedAvg(StrategyConfig()), lambda number, _units: rounds.append(number) or 0.0)
    second.restore(first.state())
    second.apply(weights, silent_sites(1, 1))
    assert rounds == [1, 2]


def test_the_sum_gives_the_same_model_as_single_updates():
    draws = np.random.default_rng(0)
    updates = [
        WeightedUpdate(f"s{n}", draws.normal(size=SIZE).astype(np.float32), n + 1.0)
        for n in range(3)
    ]
    weights = np.zeros(SIZE, np.float32)
    single = FedAvg(StrategyConfig()).apply(weights, updates)
    summed = SumOnly(FedAvg(StrategyConfig())).apply(weights, updates)
    assert np.allclose(single, summed, atol=1e-6)


@pytest.mark.parametrize(
    ("sites", "asked", "honest"), [(3, None, 2), (10, None, 4), (10, 3, 3), (10, 9, 4)]
)
def test_the_smallest_honest_cohort_already_carries_the_target(sites, asked, honest):
    settings = replace(
        plan("distributed", honest_sites=asked),
        federation=FederationConfig(local_epochs=0.25, minimum_sites=sites),
    )
    # Of 4 sites, 3 open a sum and 1 may be the server's; of 10 sites 7 and 3.
    assert honest_sites(settings) == honest
    assert math.sqrt(honest) * noise_share(settings) == pytest.approx(1.0)
    assert noise_share(plan("local")) == 1.0
    assert noise_share(plan("central")) == 0.0


@pytest.mark.parametrize("sites", range(3, 61))
def test_the_noise_is_for_the_sums_that_secure_aggregation_can_open(sites):
    settings = replace(plan("distributed"), federation=FederationConfig(minimum_sites=sites))
    assert honest_sites(settings) == honest_survivors(sites)
    # Of all cohorts that the plan allows, none leaves fewer.
    assert honest_survivors(sites) == min(
        threshold(n) - colluders(n) for n in range(sites, sites + 100)
    )


@pytest.mark.parametrize("mode", ["sealed", "plain"])
def test_distributed_noise_needs_secure_aggregation(mode):
    with pytest.raises(ConfigurationError, match="transport=secagg"):
        validate_plan(plan("distributed", TransportMode(mode)))
    validate_plan(plan("distributed"))
    validate_plan(plan("central", TransportMode(mode)))


@pytest.mark.parametrize(
    ("transport", "message"),
    [
        ({"bits": 24}, r"transport\.bits"),
        ({"update_bound": 0.0}, r"transport\.update_bound"),
        ({"bits": 16}, r"transport\.update_bound=0\.05"),
        ({"attempts": 0}, r"transport\.attempts"),
        ({"step_seconds": 0.0}, r"transport\.step_seconds"),
    ],
)
def test_settings_of_the_transport_are_checked(transport, message):
    with pytest.raises(ConfigurationError, match=message):
        validate_plan(replace(Plan(), transport=TransportConfig(**transport)))


def test_a_sum_of_two_sites_hides_nobody():
    two = replace(
        Plan(),
        federation=FederationConfig(minimum_sites=2),
        transport=TransportConfig(mode=TransportMode.secagg),
    )
    with pytest.raises(ConfigurationError, match=r"federation\.minimum_sites=2"):
        validate_plan(two)
    validate_plan(replace(two, transport=TransportConfig(mode=TransportMode.sealed)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"privacy": {"delta": None}}, r"privacy\.delta"),
        ({"privacy": {"sample_rate": None, "batch_size": 8}}, r"privacy\.sample_rate"),
        ({"privacy": {"ema_decay": 0.9}}, r"privacy\.ema_decay"),
        ({"privacy": {"honest_sites": 9}}, r"privacy\.honest_sites"),
        ({"training": TrainingConfig(optimizer="adamw")}, r"training\.optimizer"),
        ({"federation": FederationConfig(local_epochs=2.0)}, r"federation\.local_epochs"),
    ],
)
@pytest.mark.parametrize("model", ["distributed", "central"])
def test_shared_noise_is_refused_where_a_sum_would_not_carry_it(model, change, message):
    validate_plan(plan(model))
    wrong = plan(model, **change.get("privacy", {}))
    wrong = replace(wrong, **{key: value for key, value in change.items() if key != "privacy"})
    with pytest.raises(ConfigurationError, match=message):
        validate_plan(wrong)


def epsilon_against(settings):
    held = guarantees(settings, [3.0, 5.0])
    return {one.adversary: one.epsilon for one in held}


def test_each_adversary_has_its_own_epsilon():
    server, sites, reader = "server", "other sites", "reader of the model"
    assert epsilon_against(plan("local")) == {server: 5.0, sites: 5.0, reader: 5.0}
    assert epsilon_against(plan("central")) == {server: None, sites: 5.0, reader: 5.0}
    unmasked = plan("distributed", TransportMode.sealed)
    assert epsilon_against(unmasked) == {server: None, sites: 5.0, reader: 5.0}
    assert epsilon_against(plan("distributed"))[server] == 5.0
    off = Plan(privacy=PrivacyConfig(model=PrivacyModel.local))
    assert set(epsilon_against(off).values()) == {None}
