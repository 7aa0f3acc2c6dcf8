"""How much one member may ask of the server."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Clock = Callable[[], float]
"""Seconds that never go back."""

BURST_SECONDS = 10.0
"""A member that was quiet may use the requests of so many seconds at once."""


@dataclass(frozen=True)
class Rates:
    """Limits for each member.

    Attributes:
        requests_per_second: in the long run; see :data:`BURST_SECONDS`.
        bytes_per_second: of request bodies, in the long run.
        burst_bytes: of request bodies, at once; at least one body of the largest size passes
            whatever this is.
        under_way: requests at a time; bounds the memory that half-sent bodies hold.
    """

    requests_per_second: float = 100.0
    bytes_per_second: float = 64.0 * 2**20
    burst_bytes: float = 4.0 * 2**30
    under_way: int = 16


class TokenBucket:
    """Lets a rate through in the long run and a burst after a pause.

    Args:
        rate: tokens that come back each second.
        burst: most tokens that gather.
        clock: see :data:`Clock`.
    """

    def __init__(self, rate: float, burst: float, clock: Clock = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = burst
        self._at = clock()

    def wait(self, amount: float) -> float:
        """Return the seconds until this amount is there, or the bucket is full; 0.0: it is."""
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (min(amount, self._burst) - self._level) / self._rate)

    def take(self, amount: float) -> None:
        """Take an amount, also one that is not there: the debt is paid off first."""
        self.wait(0.0)
        self._level -= amount


class MemberRates:
    """The buckets of all members; for one event loop.

    Args:
        rates: limits for each member.
        clock: see :data:`Clock`.
    """

    def __init__(self, rates: Rates, clock: Clock = time.monotonic) -> None:
        self._rates = rates
        self._clock = clock
        self._members: dict[str, _Member] = {}

    def wait(self, name: str) -> int:
        """Count a request of a member.

        Returns:
            Whole seconds after which the member may ask again; 0 when this request may go on.
        """
        member = self._member(name)
        if member.under_way >= self._rates.under_way:
            return 1
        seconds = max(member.requests.wait(1.0), member.bytes.wait(1.0))
        if seconds > 0.0:
            return math.ceil(seconds)
        member.requests.take(1.0)
        return 0

    @contextmanager
    def under_way(self, name: str) -> Iterator[None]:
        """Count a request as under way."""
        member = self._member(name)
        member.under_way += 1
        try:
            yield
        finally:
            member.under_way -= 1

    def received(self, name: str, count: int) -> None:
        """Count bytes of a request's body."""
        self._member(name).bytes.take(float(count))

    def _member(self, name: str) -> _Member:
        if name not in self._members:
            rates = self._rates
            self._members[name] = _Member(
                TokenBucket(
                    rates.requests_per_second,
                    max(1.0, rates.requests_per_second * BURST_SECONDS),
                    self._clock,
                ),
                TokenBucket(rates.bytes_per_second, rates.burst_bytes, self._clock),
            )
        return self._members[name]


@dataclass
class _Member:
    requests: TokenBucket
    bytes: TokenBucket
    under_way: int = 0
