"""Shamir's sharing: any t shares give the secret, t - 1 say nothing, malformed ones are refused."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmed.errors import ProtocolError
from fedmed.secagg import shamir
from fedmed.secagg.shamir import PRIME, combine, split

secret_bytes = st.one_of(
    st.sampled_from([bytes(32), b"\xff" * 32, b"\x80" + bytes(31), bytes(31) + b"\x01"]),
    st.binary(min_size=32, max_size=32),
)


def test_field_holds_every_secret():
    assert PRIME > 2**256
    assert sympy.nextprime(2**256) == PRIME
    assert (PRIME - 1).bit_length() <= 8 * 33


def test_published_example():
    # Wikipedia, "Shamir's secret sharing": secret 1234, coefficients 166 and 94, prime 1613.
    shares = {1: 1494, 2: 329, 3: 965, 4: 176, 5: 1188, 6: 775}
    found = {point: shamir._evaluate([1234, 166, 94], point, 1613) for point in shares}
    assert found == shares
    for base in itertools.combinations(shares, 3):
        assert shamir._interpolate(shares, base, 0, 1613) == 1234


@given(secret_bytes, st.integers(3, 8), st.data())
@settings(max_examples=60, deadline=None)
def test_any_threshold_of_the_shares_gives_the_secret(secret, holders, data):
    threshold = 2 * holders // 3 + 1
    indices = data.draw(
        st.lists(st.integers(1, 65535), min_size=holders, max_size=holders, unique=True)
    )
    shares = split(secret, indices, threshold)
    assert set(shares) == set(indices)
    assert all(len(share) == 33 for share in shares.values())
    for size in range(threshold, holders + 1):
        for chosen in itertools.combinations(indices, size):
            assert combine({index: shares[index] for index in chosen}, threshold) == secret


def test_fifty_holders():
    secret = bytes(range(32))
    shares = split(secret, range(1, 51), 34)
    assert combine({index: shares[index] for index in range(17, 51)}, 34) == secret


def test_too_few_shares_are_refused_and_give_another_value_if_forced():
    secret = bytes(range(32))
    shares = split(secret, range(1, 6), 4)
    three = {index: shares[index] for index in (1, 2, 5)}
    with pytest.raises(ProtocolError, match="too few"):
        combine(three, 4)
    # With a false threshold the polynomial through three points is another one; its value at zero
    # is a random element, so it may not even be a secret.
    try:
        forced = combine(three, 3)
    except ProtocolError:
        forced = b""
    assert forced != secret


def exhaust(monkeypatch, secret, threshold, points, prime, least=0):
    """Count what the holders at ``points`` see, over all draws that ``split`` can make."""
    monkeypatch.setattr(shamir, "PRIME", prime)
    seen = Counter()
    for draws in itertools.product(range(least, prime), repeat=threshold - 1):
        left = iter(draws)

        def draw(bound, left=left):
            assert bound == prime
            return next(left)

        monkeypatch.setattr(shamir.secrets, "randbelow", draw)
        shares = split(secret.to_bytes(32, "big"), range(1, 5), threshold)
        assert next(left, None) is None
        seen[tuple(shares[point] for point in points)] += 1
    return seen


@pytest.mark.parametrize("threshold", [2, 3])
def test_fewer_shares_than_the_threshold_say_nothing(monkeypatch, threshold):
    # Exhaustive in the field of seven elements, through the very code of ``split``: for each
    # secret the t - 1 shares take every value equally often.
    for points in itertools.combinations(range(1, 5), threshold - 1):
        for secret in range(7):
            seen = exhaust(monkeypatch, secret, threshold, points, 7)
            assert len(seen) == 7 ** (threshold - 1)
            assert set(seen.values()) == {1}


def test_coefficients_that_are_never_zero_would_say_something(monkeypatch):
    # The control: without zero among the draws a holder's share is never the secret.
    seen = exhaust(monkeypatch, 5, 2, (1,), 7, least=1)
    assert (5).to_bytes(33, "big") not in {share for (share,) in seen}
    assert len(seen) == 6


def test_threshold_shares_do_say_it(monkeypatch):
    views = [set(exhaust(monkeypatch, secret, 2, (1, 2), 7)) for secret in range(7)]
    for one, other in itertools.combinations(views, 2):
        assert not one & other


def test_two_sharings_of_one_secret_differ():
    one, other = (split(bytes(32), [1, 2, 3], 3) for _ in range(2))
    assert all(one[index] != other[index] for index in one)


@pytest.mark.parametrize("kept", [4, 5])
def test_a_changed_share_is_found_when_there_are_more_than_enough(kept):
    secret = bytes(range(32))
    shares = split(secret, range(1, 6), 3)
    chosen = {index: shares[index] for index in range(1, kept + 1)}
    for index in chosen:
        bent = int.from_bytes(shares[index], "big") ^ 1
        with pytest.raises(ProtocolError, match="belong"):
            combine({**chosen, index: (bent % PRIME).to_bytes(33, "big")}, 3)


def test_a_secret_beyond_256_bits_is_refused():
    # Shares of a polynomial whose constant is the field's largest element.
    line = [PRIME - 1, 12345]
    shares = {i: shamir._evaluate(line, i, PRIME).to_bytes(33, "big") for i in (1, 2)}
    with pytest.raises(ProtocolError, match="belong"):
        combine(shares, 2)


@pytest.mark.parametrize(
    "share",
    [
        b"",
        bytes(32),
        bytes(34),
        PRIME.to_bytes(33, "big"),
        b"\xff" * 33,
        bytearray(33),
        "0" * 33,
        None,
    ],
)
def test_malformed_shares_are_refused(share):
    shares = split(bytes(32), [1, 2, 3], 2)
    for kept in ([1], [1, 2]):
        with pytest.raises(ProtocolError, match="share"):
            combine({**{index: shares[index] for index in kept}, 3: share}, 2)


@pytest.mark.parametrize("index", [0, -1, 65536, PRIME + 1, True, 1.0, "1"])
def test_impossible_indices_are_refused(index):
    shares = split(bytes(32), [2, 3], 2)
    with pytest.raises(ProtocolError, match="index"):
        split(bytes(32), [index, 2, 3], 2)
    mixed = {index: shares[3]}
    with pytest.raises(ProtocolError, match="index"):
        combine({**shares, **mixed}, 2)


def test_one_index_twice_is_refused():
    with pytest.raises(ProtocolError, match="same index"):
        split(bytes(32), [1, 2, 2], 2)


@pytest.mark.parametrize("threshold", [-1, 0, 1, 4])
def test_impossible_thresholds_are_refused(threshold):
    with pytest.raises(ProtocolError, match="threshold"):
        split(bytes(32), [1, 2, 3], threshold)
    shares = split(bytes(32), [1, 2, 3], 2)
    with pytest.raises(ProtocolError, match="threshold"):
        combine(shares, threshold)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_secrets_of_another_length_are_refused(length):
    with pytest.raises(ProtocolError, match="32 bytes"):
        split(bytes(length), [1, 2, 3], 2)
