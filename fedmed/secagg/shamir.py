"""Shamir's secret sharing (Communications of the ACM 22, 1979) of 256-bit secrets.

The field is the integers modulo the smallest prime above 2^256, so that each 256-bit value is an
element as it stands: no secret is reduced, and none is more likely than another. A share is a
field element, 33 bytes, big-endian.

Python's integers do not run in constant time; a secret is shared on the machine that made it and
put together on the server after it was revealed, so only those two could take the time.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from fedmed.errors import ProtocolError

PRIME: Final = 2**256 + 297
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33
MAX_INDEX: Final = 2**16 - 1


def split(secret: bytes, indices: Iterable[int], threshold: int) -> dict[int, bytes]:
    """Share a secret: any ``threshold`` shares give it back, fewer say nothing of it.

    Args:
        secret: 32 bytes, any value.
        indices: where the polynomial is evaluated, one for each holder: distinct, 1 to 65535.
        threshold: how many shares are needed, at least 2 and at most the number of indices.

    Returns:
        Shares of 33 bytes by index.

    Raises:
        ProtocolError: if secret, indices or threshold are out of range.
    """
    points = list(indices)
    if len(secret) != SECRET_BYTES:
        raise ProtocolError(f"A shared secret has {SECRET_BYTES} bytes.")
    _check_indices(points)
    if not 2 <= threshold <= len(points):
        raise ProtocolError(
            f"A secret shared among {len(points)} needs a threshold from 2 to that number, "
            f"not {threshold}."
        )
    # The highest coefficient may be zero: were it not, the shares would say something.
    coefficients = [int.from_bytes(secret, "big")]
    coefficients += [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return {
        point: _evaluate(coefficients, point, PRIME).to_bytes(SHARE_BYTES, "big")
        for point in points
    }


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Put a secret together.

    The shares with the lowest indices are used, and each further one must lie on the same
    polynomial. With exactly ``threshold`` shares a false one is not noticed here: compare the
    secret with what is known of it (a commitment, a public key).

    Args:
        shares: shares by index.
        threshold: the one that the secret was shared with.

    Returns:
        32 bytes.

    Raises:
        ProtocolError: if there are too few shares, one is malformed or not in the field, or they
            do not belong together.
    """
    _check_indices(list(shares))
    points = sorted(shares)
    if threshold < 2 or len(points) < threshold:
        raise ProtocolError(f"{len(points)} shares are too few for a threshold of {threshold}.")
    values = {point: _element(shares[point]) for point in points}
    base = tuple(points[:threshold])
    secret = _interpolate(values, base, 0, PRIME)
    for point in points[threshold:]:
        if _interpolate(values, base, point, PRIME) != values[point]:
            raise ProtocolError("The shares of a secret do not belong together.")
    if secret.bit_length() > 8 * SECRET_BYTES:
        raise ProtocolError("The shares of a secret do not belong together.")
    return secret.to_bytes(SECRET_BYTES, "big")


def _check_indices(points: Sequence[int]) -> None:
    if any(type(point) is not int or not 1 <= point <= MAX_INDEX for point in points):
        raise ProtocolError(f"The index of a share is a whole number from 1 to {MAX_INDEX}.")
    if len(set(points)) != len(points):
        raise ProtocolError("Two shares have the same index.")


def _element(share: bytes) -> int:
    """Read a share, in its one spelling."""
    if type(share) is not bytes or len(share) != SHARE_BYTES:
        raise ProtocolError(f"A share has {SHARE_BYTES} bytes.")
    value = int.from_bytes(share, "big")
    if value >= PRIME:
        raise ProtocolError("A share is not in the field.")
    return value


def _evaluate(coefficients: Sequence[int], point: int, prime: int) -> int:
    """Return the polynomial's value, by Horner's rule; the constant comes first."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % prime
    return value


def _interpolate(values: Mapping[int, int], base: tuple[int, ...], at: int, prime: int) -> int:
    """Return the value at ``at`` of the polynomial through the points of ``base``."""
    factors = _lagrange(base, at, prime)
    return sum(values[point] * factor for point, factor in zip(base, factors, strict=True)) % prime


@lru_cache(maxsize=1024)
def _lagrange(base: tuple[int, ...], at: int, prime: int) -> tuple[int, ...]:
    """Return Lagrange's factors; a server needs the same ones for all secrets of a round."""
    factors = []
    for one in base:
        above = below = 1
        for other in base:
            if other != one:
                above = above * (at - other) % prime
                below = below * (one - other) % prime
        factors.append(above * pow(below, -1, prime) % prime)
    return tuple(factors)
