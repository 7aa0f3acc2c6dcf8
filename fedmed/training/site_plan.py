"""A site's own reading of the privacy part of a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedmed.configuration.groups import PrivacyModel, SiteConfig, Unit
from fedmed.configuration.plan import Plan
from fedmed.data.image_set import ImageSet
from fedmed.errors import PrivacyError
from fedmed.training.accounting import GaussianSteps, choose_delta, solve_noise_multiplier
from fedmed.training.private import Mechanism
from fedmed.training.units import Units


@dataclass(frozen=True)
class SitePrivacy:
    """What differential privacy means for one site in one plan.

    Attributes:
        mechanism: of each round.
        delta: at which epsilon is stated.
        units: number of units that the site trains on: its weight in the average.
        images_per_patient: largest number of training images of one patient.
    """

    mechanism: Mechanism
    delta: float
    units: int
    images_per_patient: int


def check_site_policy(plan: Plan, site: SiteConfig) -> None:
    """Compare a plan with what the site allows; the server cannot change the latter.

    Raises:
        PrivacyError: naming the site's setting that forbids it.
    """
    privacy = plan.privacy
    if not privacy.enabled:
        if site.require_privacy:
            raise PrivacyError(
                "This site takes part with differential privacy only (site.require_privacy)."
            )
        return
    if privacy.model == PrivacyModel.central and not site.allow_central_privacy:
        raise PrivacyError(
            "The plan leaves the noise to the server (privacy.model=central), which this site "
            "would have to trust. It takes part with privacy.model=local "
            "(site.allow_central_privacy)."
        )
    if privacy.delta is not None and privacy.delta > site.max_delta:
        raise PrivacyError(
            f"The plan states epsilon at delta {privacy.delta:g}; this site allows at most "
            f"{site.max_delta:g} (site.max_delta). Set privacy.delta=null or a smaller value."
        )


def site_privacy(plan: Plan, images: ImageSet) -> SitePrivacy | None:
    """Solve for the noise that keeps the whole planned run within its target epsilon.

    The site computes this itself, from its own number of patients: the server is not asked. Where
    the noise is shared with others, everything that shapes it stands in the plan, so that all
    come to the same.

    Returns:
        None when the plan has no differential privacy.

    Raises:
        PrivacyError: if delta is too large, a batch is larger than the cohort, or the target
            needs too much noise.
    """
    privacy = plan.privacy
    if not privacy.enabled:
        return None
    units = Units(images, privacy.unit, privacy.images_per_patient)
    delta = choose_delta(privacy.delta, images.patient_count)
    rate = _sample_rate(plan, len(units))
    steps = steps_per_private_round(plan.federation.local_epochs, rate)
    noise = privacy.noise_multiplier
    if noise is None:
        if privacy.target_epsilon is None:  # pragma: no cover - refused by validate_plan
            raise ValueError("neither noise multiplier nor target epsilon")
        noise = solve_noise_multiplier(
            privacy.target_epsilon, delta, rate, steps * plan.federation.rounds
        )
    return SitePrivacy(
        Mechanism(
            GaussianSteps(noise, rate, steps),
            privacy.clipping_norm,
            privacy.max_physical_batch,
            privacy.unit,
            privacy.images_per_patient,
            noise_share(plan),
        ),
        delta,
        len(units),
        Units(images, Unit.patient).largest,
    )


def steps_per_private_round(local_epochs: float, sample_rate: float) -> int:
    """Number of steps with Poisson sampling: a unit is seen ``local_epochs`` times on average."""
    return max(1, round(local_epochs / sample_rate))


def noise_share(plan: Plan) -> float:
    """Return the part of the noise's standard deviation that each site adds.

    Distributed noise is divided by the *smallest* honest cohort whose sum may be opened: variances
    add up, so that cohort's sum already carries the target, and a larger one more.
    """
    if plan.privacy.model == PrivacyModel.central:
        return 0.0
    if plan.privacy.model == PrivacyModel.distributed:
        return 1 / math.sqrt(honest_sites(plan))
    return 1.0


def honest_sites(plan: Plan) -> int:
    """Return how many honest sites' noise is in any sum that can be opened (at least).

    Secure aggregation opens a sum of floor(2n/3) + 1 of n sites or more, of whom floor((n-1)/3)
    may be the server's accomplices: their shares of the noise do not count.
    """
    smallest = plan.federation.minimum_sites
    # The difference is n/3 + 1, give or take one, so the smallest is among the next three.
    safe = min(2 * n // 3 + 1 - (n - 1) // 3 for n in range(smallest, smallest + 3))
    return min(safe, plan.privacy.honest_sites or safe)


def _sample_rate(plan: Plan, units: int) -> float:
    privacy = plan.privacy
    if privacy.batch_size is None:
        if privacy.sample_rate is None:  # pragma: no cover - refused by validate_plan
            raise ValueError("neither sample rate nor batch size")
        return privacy.sample_rate
    if privacy.batch_size > units:
        raise PrivacyError(
            f"privacy.batch_size={privacy.batch_size} is larger than this site's cohort: it has "
            f"fewer {privacy.unit}s to train on. Lower it, or set privacy.sample_rate instead."
        )
    return privacy.batch_size / units
