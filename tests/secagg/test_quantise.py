"""Quantisation: exact sums, the proven bound against rational arithmetic, clips, refusals."""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmed.errors import ProtocolError
from fedmed.secagg.quantise import MAX_COUNT, Ring, decode_counts, encode_counts

CHUNK = 2**14  # as in the module; sizes around it are the interesting ones
float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
edge = st.sampled_from([0.0, -0.0, 1e9, -1e9, float(-(2**31)), 3.4e38, 1e-45, -1e-30])


def signed(values):
    return values.view(np.int32 if values.itemsize == 4 else np.int16).astype(object)


def exact_mean(updates, used, bound):
    """The weighted mean of the clipped updates, in rational numbers."""
    limit = Fraction(bound)
    weights = [Fraction(weight) for weight in used]
    return [
        sum(
            weight * min(max(Fraction(float(update[i])), -limit), limit)
            for weight, update in zip(weights, updates, strict=True)
        )
        / sum(weights)
        for i in range(len(updates[0]))
    ]


@st.composite
def rounds(draw):
    bits = draw(st.sampled_from([16, 32]))
    sites = draw(st.integers(3, 50))
    summed = draw(st.integers(1, sites))
    bound = draw(st.floats(1e-6, 1e6))
    weight_bound = draw(st.sampled_from([1, 7, 1000, 2**31, 2**40]))
    size = draw(st.integers(1, 6))
    value = st.one_of(edge, float32, st.floats(-bound, bound))
    updates = draw(
        st.lists(st.lists(value, min_size=size, max_size=size), min_size=summed, max_size=summed)
    )
    weight = st.one_of(
        st.sampled_from([1, weight_bound, weight_bound + 5]), st.integers(1, weight_bound)
    )
    weights = draw(st.lists(weight, min_size=summed, max_size=summed))
    with np.errstate(over="ignore"):
        arrays = [np.clip(np.array(row), -3.4e38, 3.4e38).astype(np.float32) for row in updates]
    return Ring(bits, bound, weight_bound, sites), arrays, weights


@given(rounds())
@settings(max_examples=150, deadline=None)
def test_sum_is_exact_and_the_mean_within_the_proven_bound(drawn):
    ring, updates, weights = drawn
    encoded = [ring.encode(u, w) for u, w in zip(updates, weights, strict=True)]
    total = np.zeros_like(encoded[0].values)
    for one in encoded:
        total += one.values
    # Unbounded integers are the reference: nothing wrapped around.
    assert list(signed(total)) == list(sum(signed(one.values) for one in encoded))
    assert all(abs(q) <= ring.largest for one in encoded for q in signed(one.values))

    used = [one.weight for one in encoded]
    assert used == [min(w, ring.weight_bound) for w in weights]
    mean = ring.mean(total, sum(used))
    bound = Fraction(ring.error_bound(sum(used), len(updates)))
    for found, wanted in zip(mean, exact_mean(updates, used, ring.update_bound), strict=True):
        assert abs(Fraction(float(found)) - wanted) <= bound


@pytest.mark.parametrize("sites", [3, 10, 50])
@pytest.mark.parametrize("value", [10.499, 10.501, -10.499, -10.501])
def test_bound_is_nearly_reached_from_both_sides_and_kept(sites, value):
    # At full weight and C = S a step of the ring is 1: x is the update itself.
    ring = Ring(32, (2**31 - 1) // sites, 5, sites)
    update = np.full(1, value, np.float32)
    total = np.zeros(1, np.uint32)
    for _ in range(sites):
        total += ring.encode(update, 5).values
    error = abs(ring.mean(total, 5 * sites)[0] - float(update[0]))
    assert 0.99 * ring.error_bound(5 * sites, sites) < error
    assert error < ring.error_bound(5 * sites, sites)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("sign", [1, -1])
def test_full_range_fits_the_ring_and_one_site_more_does_not(bits, sign):
    ring = Ring(bits, 0.3, 100, 3)
    values = ring.encode(np.full(2, sign * 1e9, np.float32), 100).values
    assert list(signed(values)) == [sign * ring.largest] * 2
    total = 3 * values
    assert ring.mean(total, 300) == pytest.approx(sign * 0.3, rel=1e-12)
    # The control: the room for three sites is used to the last step.
    assert np.sign(ring.mean(total + values, 400)[0]) == -sign


def test_16_bits_round_without_bias():
    ring = Ring(16, 3276, 1, 10)
    assert ring.largest == 3276
    size = 200_000
    for value in (10.25, -10.25, 0.25):
        found = signed(ring.encode(np.full(size, value, np.float32), 1).values).astype(float)
        assert set(found) == {math.floor(value), math.floor(value) + 1}
        # Six standard deviations; rounding to nearest would be 0.25 off.
        assert abs(found.mean() - value) < 6 * math.sqrt(0.25 * 0.75 / size)


def test_16_bits_leave_whole_numbers_alone():
    ring = Ring(16, 3276, 1, 10)
    whole = np.arange(-3276, 3277, dtype=np.float32)
    assert list(signed(ring.encode(whole, 1).values)) == list(whole.astype(int))


def test_16_bits_use_fresh_randomness_each_time():
    ring = Ring(16, 3276, 1, 10)
    update = np.full(1000, 0.5, np.float32)
    first, second = (ring.encode(update, 1).values for _ in range(2))
    assert not np.array_equal(first, second)
    # Nor does a second chunk of one update get the first one's.
    values = ring.encode(np.full(2 * CHUNK, 0.5, np.float32), 1).values
    assert not np.array_equal(values[:CHUNK], values[CHUNK:])


@given(
    st.lists(st.one_of(edge, st.floats(-3, 3, width=32)), min_size=1, max_size=30),
    st.sampled_from([1.0, 0.1, 2.5]),
    st.sampled_from([1, CHUNK - 3, CHUNK]),
)
@settings(max_examples=60, deadline=None)
def test_clipped_coordinates_are_counted(values, bound, offset):
    update = np.zeros(offset + len(values), np.float32)
    update[offset:] = values
    before = update.copy()
    encoded = Ring(32, bound, 10, 4).encode(update, 10)
    assert encoded.clipped == sum(abs(float(v)) > bound for v in update)
    assert np.array_equal(update, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, CHUNK - 1, CHUNK, 2 * CHUNK])
@pytest.mark.parametrize("bits", [16, 32])
def test_nan_and_infinity_are_refused(bad, where, bits):
    update = np.zeros(2 * CHUNK + 1, np.float32)
    ring = Ring(bits, 1.0, 10, 4)
    ring.encode(update, 10)
    update[where] = bad
    with pytest.raises(ProtocolError, match="NaN"):
        ring.encode(update, 10)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -1, -1e-9])
def test_impossible_weights_are_refused(weight):
    with pytest.raises(ProtocolError, match="weight"):
        Ring(32, 1.0, 10, 4).encode(np.zeros(1, np.float32), weight)


def test_weight_zero_contributes_nothing():
    encoded = Ring(32, 1.0, 10, 4).encode(np.ones(3, np.float32), 0)
    assert not encoded.values.any()
    assert encoded.weight == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (8, 1.0, 10, 4),
        (64, 1.0, 10, 4),
        (32, 0.0, 10, 4),
        (32, -1.0, 10, 4),
        (32, math.nan, 10, 4),
        (32, math.inf, 10, 4),
        (32, 1e-300, 10, 4),
        (32, 1.0, 0, 4),
        (32, 1.0, 2**41, 4),
        (32, 1.0, 10, 2),
        (32, 1.0, 10, 0),
        (32, 1.0, 10, -5),
        (16, 1.0, 10, 2**15),
    ],
)
def test_impossible_rings_are_refused(arguments):
    with pytest.raises(ProtocolError):
        Ring(*arguments)


def test_wrong_dtypes_are_defects_of_the_caller():
    ring = Ring(32, 1.0, 10, 4)
    with pytest.raises(ValueError, match="float32"):
        ring.encode(np.zeros(3), 1)
    with pytest.raises(ValueError, match="float32"):
        ring.encode(np.zeros((3, 1), np.float32), 1)
    with pytest.raises(ValueError, match="bits"):
        ring.mean(np.zeros(3, np.uint16), 1)


@pytest.mark.parametrize("weight_sum", [0, -1, math.nan, math.inf])
def test_no_mean_without_weight(weight_sum):
    ring = Ring(32, 1.0, 10, 4)
    with pytest.raises(ProtocolError, match="weights"):
        ring.mean(np.zeros(3, np.uint32), weight_sum)
    with pytest.raises(ProtocolError, match="weights"):
        ring.error_bound(weight_sum, 3)


@pytest.mark.parametrize("sites", [0, 5])
def test_no_bound_for_more_sites_than_there_is_room_for(sites):
    with pytest.raises(ProtocolError, match="room"):
        Ring(32, 1.0, 10, 4).error_bound(1, sites)


def test_empty_update():
    assert Ring(32, 1.0, 10, 4).encode(np.zeros(0, np.float32), 1).values.size == 0


@pytest.mark.parametrize("bits", [16, 32])
def test_encoding_takes_little_memory_beside_the_result(bits):
    update = np.ones(2_000_000, np.float32)
    ring = Ring(bits, 0.5, 10, 4)  # everything is clipped: the longer way
    ring.encode(update[:10], 1)
    tracemalloc.start()
    try:
        ring.encode(update, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert update.size * bits // 8 < peak < update.size * bits // 8 + 2**20


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=5), st.integers(1, 127))
@settings(max_examples=100, deadline=None)
def test_sums_of_whole_counts_are_exact(counts, sites):
    one = encode_counts(np.array(counts, np.float64), sites)
    total = np.zeros_like(one)
    for _ in range(sites):
        total += one
    assert [int(value) for value in decode_counts(total)] == [sites * count for count in counts]
    assert one.dtype == np.uint64


@given(st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=20))
def test_losses_are_within_half_a_step_each(losses):
    total = np.zeros(1, np.uint64)
    for loss in losses:
        total += encode_counts(np.array([loss]), len(losses))
    exact = sum(Fraction(loss) for loss in losses)
    assert abs(Fraction(float(decode_counts(total)[0])) - exact) <= len(losses) * Fraction(1, 2**17)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2 * MAX_COUNT, -1e300])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(ProtocolError):
        encode_counts(np.array([1.0, bad]), 3)


@pytest.mark.parametrize("sites", [0, 128])
def test_counts_have_room_for_127_sites(sites):
    with pytest.raises(ProtocolError):
        encode_counts(np.array([1.0]), sites)
