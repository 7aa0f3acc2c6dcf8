"""Updates and counts as integers of a ring, in which sums over sites are exact.

A site's update u (clipped to the bound C) with weight w (capped at the bound W) becomes

    q = round( clip(u, -C, C) * (w / W) / C * S ),   S = floor((2^(bits-1) - 1) / n),

so that |q| <= S and no sum over at most n sites leaves the signed range of the ring. The weighted
mean over the sites that took part is (sum of q) / S * C * W / (sum of w).

Rounding: to the nearest integer with 32 bits, where a step is about a billionth of the bound. With
16 bits, rounding is stochastic: nearest rounding would have half the worst-case error of one
round, but it rounds each coordinate below half a step (n * C / 65534 at full weight) to zero in
every round, an error that adds up over rounds; the stochastic error has mean zero, so it averages
out over sites and rounds.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from fedmed.errors import ProtocolError
from fedmed.secagg.masking import KEY_BYTES, keystream

MIN_SITES: Final = 3
MAX_COUNT: Final = 2.0**40
"""Largest value that :func:`encode_counts` takes."""
MAX_SITES_OF_COUNTS: Final = 127
_BOUND_RANGE: Final = (1e-30, 1e30)
_MAX_WEIGHT_BOUND: Final = 2**40
_COUNT_STEPS: Final = 2.0**16
_CHUNK: Final = 2**14
_ROUNDING_VALUES: Final = 2**16
_FLOAT_SLACK: Final = 2.0**-20
"""Float64 round-off of one site's share of a sum, in steps; see :meth:`Ring.error_bound`."""

Unsigned = npt.NDArray[np.uint32] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Encoded:
    """A quantised update, not yet masked.

    Attributes:
        values: residues [p], uint32 or uint16.
        clipped: how many coordinates lay beyond the update bound.
        weight: the weight that was used: the one asked for, or the weight bound if that is less.
    """

    values: Unsigned
    clipped: int
    weight: float


@dataclass(frozen=True)
class Ring:
    """How one round's updates become integers modulo 2^bits.

    Attributes:
        bits: 32 or 16.
        update_bound: C, the largest magnitude of a coordinate; what lies beyond is clipped.
        weight_bound: W, the largest weight of one site (number of examples).
        sites: n, the largest number of updates that are summed, at least 3.
        largest: S, the largest magnitude of one site's integer.

    Raises:
        ProtocolError: if a value is out of range.
    """

    bits: int
    update_bound: float
    weight_bound: int
    sites: int
    largest: int = field(init=False)

    def __post_init__(self) -> None:
        if self.bits not in {16, 32}:
            raise ProtocolError("Secure aggregation works with transport.bits 16 or 32.")
        least, most = _BOUND_RANGE
        if not least <= self.update_bound <= most:
            raise ProtocolError(f"transport.update_bound must lie between {least} and {most}.")
        if not 1 <= self.weight_bound <= _MAX_WEIGHT_BOUND:
            raise ProtocolError("A round's bound on weights must lie between 1 and 2^40.")
        largest = (2 ** (self.bits - 1) - 1) // max(self.sites, 1)
        if self.sites < MIN_SITES or largest < 1:
            raise ProtocolError(
                f"Secure aggregation needs at least {MIN_SITES} sites, and with "
                f"{self.bits} bits at most {2 ** (self.bits - 1) - 1}; not {self.sites}."
            )
        object.__setattr__(self, "largest", largest)

    def encode(self, update: npt.NDArray[np.float32], weight: float) -> Encoded:
        """Clip, weigh and round an update.

        Works on chunks that stay in the cache; beside the result it takes less than 1 MiB.

        Args:
            update: float32 [p].
            weight: number of examples, at least 0; capped at the weight bound.

        Raises:
            ProtocolError: if update or weight holds NaN or infinity, or the weight is below 0.
            ValueError: if the update is not a float32 vector.
        """
        if update.dtype != np.float32 or update.ndim != 1:
            raise ValueError("an update is a vector of float32")
        if not (math.isfinite(weight) and weight >= 0):
            raise ProtocolError("The weight of an update must be a number, at least 0.")
        used = min(float(weight), float(self.weight_bound))
        scale = used / self.weight_bound / self.update_bound * self.largest
        signed = np.empty(update.size, np.int32 if self.bits == 32 else np.int16)
        rounding = _Rounding() if self.bits == 16 else None
        scaled = np.empty(min(_CHUNK, update.size), np.float64)
        clipped = 0
        for start in range(0, update.size, _CHUNK):
            chunk = update[start : start + _CHUNK]
            steps = scaled[: chunk.size]
            clipped += _scale(chunk, self.update_bound, scale, steps)
            if rounding is None:
                np.rint(steps, out=steps)
            else:
                rounding.round(steps)
            # The steps are whole numbers within [-S, S]; the cast is exact.
            np.copyto(signed[start : start + _CHUNK], steps, casting="unsafe")
        if self.bits == 32:
            return Encoded(signed.view(np.uint32), clipped, used)
        return Encoded(signed.view(np.uint16), clipped, used)

    def mean(self, total: Unsigned, weight_sum: float) -> npt.NDArray[np.float64]:
        """Return the weighted mean of the clipped updates, float64 [p].

        Args:
            total: sum of the encodings modulo 2^bits [p], in the ring's dtype.
            weight_sum: sum of the weights that were used.

        Raises:
            ProtocolError: if the weights do not add up to a positive number.
            ValueError: if the sum is of another dtype.
        """
        step = self._step(weight_sum)
        if total.dtype != np.dtype(f"u{self.bits // 8}"):
            raise ValueError(f"the sum of a ring of {self.bits} bits has as many bits")
        result: npt.NDArray[np.float64] = total.view(
            np.int32 if self.bits == 32 else np.int16
        ).astype(np.float64)
        result *= step
        return result

    def error_bound(self, weight_sum: float, sites: int) -> float:
        """Return the largest error of one coordinate of :meth:`mean`, in units of the update.

        The error is measured to the exact weighted mean of the clipped updates with the weights
        that were used. One step of the mean is h = C * W / (S * sum of w).

        Proof. Let x be the real number that a site rounds. Rounding moves it by at most r = 1/2
        (32 bits, to nearest) or less than r = 1 (16 bits, up or down), and the m sites' integers
        are summed without error, since |sum q| <= m * S <= n * S <= 2^(bits-1) - 1: the residue
        determines the sum. So the mean is off by at most m * r steps. Float64 adds at most
        m * 2^-20 steps: x comes from four roundings of relative error 2^-53 and is at most
        S < 2^29.42 (n >= 3), so it is off by less than 2^-21.5; the step h and its product with
        the sum have five such roundings, of at most m * S steps: less than m * 2^-21.2. The two
        add up to less than m * 2^-20.3.

        With 16 bits the error is random as well: it has mean zero (to 2^-17 of a step for each
        site), its standard deviation is at most sqrt(m) / 2 steps, and by Hoeffding it passes
        h * sqrt(m * ln(2 / delta) / 2) with probability at most delta.

        Args:
            weight_sum: sum of the weights that were used.
            sites: m, how many updates were summed.

        Raises:
            ProtocolError: if the weights do not add up to a positive number, or more sites than
                the ring has room for were summed.
        """
        if not 1 <= sites <= self.sites:
            raise ProtocolError(f"This ring has room for 1 to {self.sites} sites, not {sites}.")
        rounding = 0.5 if self.bits == 32 else 1.0
        return sites * (rounding + _FLOAT_SLACK) * self._step(weight_sum)

    def _step(self, weight_sum: float) -> float:
        """Return what one unit of the sum is worth in the mean."""
        if not (math.isfinite(weight_sum) and weight_sum > 0):
            raise ProtocolError("The weights of a round must add up to a positive number.")
        return self.update_bound * self.weight_bound / self.largest / weight_sum


class _Rounding:
    """Up or down at random, in proportion to the fraction, from a fresh AES-256-CTR keystream.

    A number between 0 and 1 is added and the sum rounded down. It has 16 bits and lies in the
    middle of its step, so the mean is off by at most 2^-17; a whole number stays what it is.
    """

    def __init__(self) -> None:
        self._stream = keystream(secrets.token_bytes(KEY_BYTES))
        self._zeros = memoryview(bytes(2 * _CHUNK))
        self._bytes = np.empty(2 * _CHUNK + 16, np.uint8)
        self._fractions = np.empty(_CHUNK, np.float64)

    def round(self, steps: npt.NDArray[np.float64]) -> None:
        """Round in place [at most 2^14 values]."""
        self._stream.update_into(self._zeros[: 2 * steps.size], self._bytes.data)
        fractions = self._fractions[: steps.size]
        np.copyto(fractions, self._bytes[: 2 * steps.size].view(np.uint16))
        fractions += 0.5
        fractions *= 1 / _ROUNDING_VALUES
        steps += fractions
        np.floor(steps, out=steps)


def _scale(
    chunk: npt.NDArray[np.float32], bound: float, scale: float, out: npt.NDArray[np.float64]
) -> int:
    """Write clip(chunk) * scale, and return how many values were clipped."""
    # ``max`` and ``min`` hand NaN on; most chunks need no clipping, and no second look.
    high, low = float(chunk.max()), float(chunk.min())
    if not (math.isfinite(high) and math.isfinite(low)):
        raise ProtocolError("An update holds NaN or infinity; it was not sent.")
    clipped = 0
    if high > bound or low < -bound:
        np.copyto(out, chunk)
        clipped = int(np.count_nonzero(out > bound) + np.count_nonzero(out < -bound))
        np.clip(out, -bound, bound, out=out)
        np.multiply(out, scale, out=out)
    else:
        np.multiply(chunk, scale, out=out, dtype=np.float64)
    return clipped


def encode_counts(counts: npt.NDArray[np.float64], sites: int) -> npt.NDArray[np.uint64]:
    """Write counts, weights and losses in fixed point, 2^-16, modulo 2^64.

    Args:
        counts: float64 [k], each at most 2^40 in magnitude.
        sites: how many such vectors are summed, 1 to 127: n * 2^40 * 2^16 < 2^63.

    Returns:
        uint64 [k]; whole numbers are exact, others are off by at most 2^-17.

    Raises:
        ProtocolError: if a value is NaN, infinite or too large, or there are too many sites.
    """
    if not 1 <= sites <= MAX_SITES_OF_COUNTS:
        raise ProtocolError(
            f"Counts are summed over 1 to {MAX_SITES_OF_COUNTS} sites, not {sites}."
        )
    values = np.asarray(counts, dtype=np.float64)
    # The comparison is false for NaN.
    if not bool(np.all(np.abs(values) <= MAX_COUNT)):
        raise ProtocolError("A count or a loss is no number, or beyond 2^40; it was not sent.")
    return np.rint(values * _COUNT_STEPS).astype(np.int64).view(np.uint64)


def decode_counts(total: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Return the sums, float64 [k], of what :func:`encode_counts` wrote.

    Sums of whole numbers are exact; others are off by at most 2^-17 for each site, and by the
    round-off of float64 beyond 2^37.
    """
    return total.view(np.int64).astype(np.float64) / _COUNT_STEPS
