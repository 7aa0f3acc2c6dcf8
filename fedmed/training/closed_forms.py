"""Epsilon in closed form: one Gaussian, and one step with Poisson sampling."""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, special  # type: ignore[import-untyped]

from fedmed.training.loss_steps import LossSteps


def gaussian_epsilon(distance: float, delta: float) -> float:
    """Return the exact epsilon of a Gaussian mechanism.

    Balle & Wang (2018), theorem 8: ``delta = Phi(m/2 - e/m) - exp(e) Phi(-m/2 - e/m)`` where ``m``
    is the distance; steps without sampling compose to ``m**2 = sum of squares``. Written with the
    scaled complementary error function, which neither overflows nor cancels for large ``m``.

    Args:
        distance: of the two means, in standard deviations of the noise.
        delta: in (0, 1).
    """
    if not math.isfinite(distance):
        return math.inf

    def log_delta(epsilon: float) -> float:
        upper = distance / 2 - epsilon / distance
        other = special.erfcx((distance / 2 + epsilon / distance) / math.sqrt(2))
        if upper > 0:
            value = special.ndtr(upper) - math.exp(-(upper**2) / 2) * other / 2
            return math.log(value) if value > 0 else -math.inf
        gap = special.erfcx(-upper / math.sqrt(2)) - other
        return math.log(gap / 2) - upper**2 / 2 if gap > 0 else -math.inf

    target = math.log(delta)
    if log_delta(0.0) <= target:
        return 0.0
    # The loss is normal with mean m^2/2 and deviation m: far above it, less than delta is left.
    high = distance**2 / 2 + distance * (math.sqrt(2 * math.log(1 / delta)) + 1)
    root = optimize.brentq(
        lambda e: max(log_delta(e), -1e6) - target, 0.0, high, xtol=1e-12, rtol=1e-12
    )
    return float(root) * (1 + 1e-9)


def single_step_epsilon(entry: LossSteps, delta: float) -> float:
    """Return the exact epsilon of one step with Poisson sampling; a lower bound of any more.

    With probability ``q`` the step is a Gaussian mechanism: ``(log(1 + q (exp(e) - 1)), q d)``
    when that is ``(e, d)`` (Balle et al., 2018, theorem 8; equality for the worst neighbours).
    """
    rate = entry.sample_rate
    if delta >= rate:
        return 0.0
    inner = gaussian_epsilon(1 / entry.noise_multiplier, delta / rate)
    if inner > 30:
        return float(np.logaddexp(math.log(rate) + inner, math.log1p(-rate) if rate < 1 else -1e9))
    return math.log1p(rate * math.expm1(inner))
