"""A site's own reading of the privacy part of a plan."""

from __future__ import annotations

from dataclasses import dataclass

from fedmed.configuration.plan import Plan
from fedmed.data.image_set import ImageSet
from fedmed.training.accounting import GaussianSteps, choose_delta, solve_noise_multiplier
from fedmed.training.batches import private_steps_per_round
from fedmed.training.private import Mechanism


@dataclass(frozen=True)
class SitePrivacy:
    """What differential privacy means for one site in one plan.

    Attributes:
        mechanism: of each round.
        delta: at which epsilon is stated.
    """

    mechanism: Mechanism
    delta: float


def site_privacy(plan: Plan, images: ImageSet) -> SitePrivacy | None:
    """Solve for the noise that keeps the whole planned run within its target epsilon.

    The site computes this itself, from its own number of patients: the server is not asked.

    Returns:
        None when the plan has no differential privacy.

    Raises:
        PrivacyError: if delta is too large or the target needs too much noise.
    """
    privacy = plan.privacy
    if not privacy.enabled:
        return None
    delta = choose_delta(privacy.delta, images.patient_count)
    steps = private_steps_per_round(plan.federation.local_epochs, privacy.sample_rate)
    noise = privacy.noise_multiplier
    if noise is None:
        if privacy.target_epsilon is None:  # pragma: no cover - refused by validate_plan
            raise ValueError("neither noise multiplier nor target epsilon")
        noise = solve_noise_multiplier(
            privacy.target_epsilon, delta, privacy.sample_rate, steps * plan.federation.rounds
        )
    return SitePrivacy(
        Mechanism(
            GaussianSteps(noise, privacy.sample_rate, steps),
            privacy.clipping_norm,
            privacy.max_physical_batch,
        ),
        delta,
    )
