"""FedAvg against a plain statement of the paper's update, and its symmetries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmed.configuration.groups import StrategyConfig
from fedmed.errors import ConfigurationError
from fedmed.federation.strategies.base import WeightedUpdate, weighted_mean
from fedmed.federation.strategies.registry import build_strategy

SITES = st.lists(
    st.tuples(
        st.integers(1, 10_000), st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3)
    ),
    min_size=1,
    max_size=8,
)


def updates_of(sites):
    return [
        WeightedUpdate(f"site-{n}", np.array(values, np.float32), weight)
        for n, (weight, values) in enumerate(sites)
    ]


@given(SITES)
def test_equals_the_papers_weighted_sum_of_local_models(sites):
    start = np.array([1.0, -2.0, 0.5], np.float32)
    total = sum(weight for weight, _ in sites)
    expected = sum(
        weight / total * (start.astype(float) + np.array(values)) for weight, values in sites
    )
    result = build_strategy(StrategyConfig()).apply(start, updates_of(sites))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@given(SITES, st.randoms())
def test_the_order_of_arrival_changes_not_one_bit(sites, chooser):
    updates = updates_of(sites)
    shuffled = updates[:]
    chooser.shuffle(shuffled)
    assert weighted_mean(updates).tobytes() == weighted_mean(shuffled).tobytes()


@given(SITES, st.integers(2, 50))
def test_only_the_ratio_of_weights_counts(sites, factor):
    scaled = [(weight * factor, values) for weight, values in sites]
    np.testing.assert_allclose(
        weighted_mean(updates_of(sites)), weighted_mean(updates_of(scaled)), rtol=1e-9, atol=1e-12
    )


def test_the_server_learning_rate_scales_the_step():
    half = build_strategy(StrategyConfig(server_learning_rate=0.5))
    update = [WeightedUpdate("a", np.full(3, 2.0, np.float32), 7)]
    np.testing.assert_array_equal(half.apply(np.zeros(3, np.float32), update), np.ones(3))


def test_nothing_to_average_and_unknown_names_are_errors():
    with pytest.raises(ValueError, match="no update"):
        weighted_mean([])
    with pytest.raises(ConfigurationError, match="fedavg"):
        build_strategy(StrategyConfig(name="fedavgg"))
