"""How much one member may ask of the server, by a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rates import BURST_SECONDS, MemberRates, Rates, TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    st.floats(0.1, 100.0),
    st.floats(1.0, 50.0),
    st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60),
)
def test_never_more_than_burst_and_rate(rate: float, burst: float, pauses: list[float]) -> None:
    """In any time T, at most burst + rate * T requests pass; one that waits as told passes."""
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    passed = 0
    for pause in pauses:
        clock.now += pause
        while bucket.wait(1.0) == 0.0:
            bucket.take(1.0)
            passed += 1
        assert passed <= burst + rate * (clock.now - 1000.0) + 1e-6
        clock.now += bucket.wait(1.0) + 1e-9
        assert bucket.wait(1.0) == 0.0


def test_debt_is_paid_off_first() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=10.0, burst=100.0, clock=clock)
    assert bucket.wait(1000.0) == 0.0  # more than ever gathers: a full bucket will do
    bucket.take(1000.0)
    assert bucket.wait(1.0) == pytest.approx(90.1)
    clock.now += 90.0
    assert bucket.wait(1.0) == pytest.approx(0.1)
    clock.now += 1000.0
    assert bucket.wait(100.0) == 0.0
    bucket.take(0.5)
    assert bucket.wait(100.0) == pytest.approx(0.05)


def test_members_have_limits_of_their_own() -> None:
    clock = Clock()
    rates = MemberRates(Rates(requests_per_second=2.0), clock)
    burst = int(2.0 * BURST_SECONDS)
    assert [rates.wait("north") for _ in range(burst + 1)] == [0] * burst + [1]
    assert rates.wait("south") == 0
    clock.now += 0.5
    assert [rates.wait("north"), rates.wait("north")] == [0, 1]


def test_bytes_count() -> None:
    clock = Clock()
    rates = MemberRates(Rates(bytes_per_second=100.0, burst_bytes=1000.0), clock)
    assert rates.wait("north") == 0
    rates.received("north", 1500)
    assert rates.wait("north") == 6  # 501 bytes at 100 a second, in whole seconds
    assert rates.wait("south") == 0
    clock.now += 6.0
    assert rates.wait("north") == 0


def test_requests_at_a_time_are_bounded() -> None:
    rates = MemberRates(Rates(under_way=2), Clock())
    with rates.under_way("north"):
        assert rates.wait("north") == 0
        with rates.under_way("north"):
            assert rates.wait("north") == 1
            assert rates.wait("south") == 0
    assert rates.wait("north") == 0
