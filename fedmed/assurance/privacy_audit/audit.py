"""The whole audit: every attack on the installed training code at the settings of a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from fedmed.assurance.privacy_audit.bounds import largest_advantage
from fedmed.assurance.privacy_audit.canaries import CanaryDesign
from fedmed.assurance.privacy_audit.inversion import (
    ATTACKS,
    Reconstruction,
    audit_inversion,
    correlation,
    peak_signal_to_noise,
)
from fedmed.assurance.privacy_audit.membership import (
    DELTA,
    MembershipDesign,
    MembershipResult,
    audit_membership,
)
from fedmed.assurance.privacy_audit.one_run import (
    PROBE_ROUNDS,
    CanaryResult,
    audit_canaries,
    probe_of,
    unprotected_bound,
)
from fedmed.assurance.privacy_audit.verdict import Verdict
from fedmed.configuration.groups import Unit
from fedmed.configuration.plan import Plan
from fedmed.data.image_set import ImageSet
from fedmed.errors import ConfigurationError
from fedmed.training.accounting import epsilon_spent
from fedmed.training.noise import NoiseSource
from fedmed.training.private import Mechanism
from fedmed.training.seeds import derive_seed
from fedmed.training.site_plan import SitePrivacy, site_privacy

IMAGES_PER_PATIENT = 3
MOST_ROWS = 1_000_000
"""Images in all batches together, above which the whole planned run is not audited."""
Started = Callable[[str], None]


@dataclass(frozen=True)
class Finding:
    """One row of the audit.

    Attributes:
        attack: its name.
        measure: what the figures are.
        protected: result on training with the plan's privacy.
        control: the same on training without privacy.
        verdict: of the comparison with the claim.
        deciding: whether an inconclusive verdict leaves the audit inconclusive.
        figures: all figures by name.
    """

    attack: str
    measure: str
    protected: str
    control: str
    verdict: Verdict
    deciding: bool = True
    figures: dict[str, float | int | list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class PrivacyAudit:
    """All that the audit found.

    Attributes:
        epsilon: claimed for the whole planned run.
        delta: at which epsilon is claimed.
        noise_multiplier: that the plan's settings lead to.
        sample_rate: likewise.
        steps: of the whole planned run.
        unit: whom the claim is about.
        noise: description of the noise source.
        findings: one for each attack.
        reconstructions: the images of the inversion attacks.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    unit: Unit
    noise: str
    findings: tuple[Finding, ...]
    reconstructions: tuple[Reconstruction, ...]

    @property
    def verdict(self) -> Verdict:
        """Broken if one attack breaks the claim; inconclusive if a deciding one is."""
        if any(finding.verdict == Verdict.broken for finding in self.findings):
            return Verdict.broken
        deciding = [finding.verdict for finding in self.findings if finding.deciding]
        return Verdict.inconclusive if Verdict.inconclusive in deciding else Verdict.holds


def audit_privacy(
    plan: Plan,
    patients: int,
    noise: Callable[[], NoiseSource],
    *,
    quick: bool = False,
    started: Started = lambda _attack: None,
) -> PrivacyAudit:
    """Attack the installed training code with the noise that a plan leads to at a site.

    Args:
        plan: with privacy on. Whatever ``privacy.model`` says, the target noise is audited, as if
            one site added all of it.
        patients: of the imagined site, each with ``IMAGES_PER_PATIENT`` images; sampling rate and
            delta can depend on it.
        noise: makes a noise source for one round, cryptographic in production.
        quick: fewer canaries and models, and no audit of the whole planned run.
        started: told the name of each attack before it starts.

    Raises:
        ConfigurationError: if the plan has no privacy.
        PrivacyError: if the plan's privacy cannot be had.
    """
    site = _site(plan, patients)
    mechanism = replace(site.mechanism, noise_share=1.0)
    planned = replace(mechanism.steps, steps=mechanism.steps.steps * plan.federation.rounds)
    epsilon = epsilon_spent([planned], site.delta)
    findings = _canaries(plan, site.delta, mechanism, noise, quick, started)
    started("membership inference")
    membership = audit_membership(
        MembershipDesign(models=12 if quick else 20, seed=derive_seed(plan.seed, "audit")),
        epsilon,
        mechanism.clipping_norm,
        lambda _model: noise(),
    )
    findings += [_membership_finding(membership, attack) for attack in membership.protected]
    reconstructions = []
    for attack in ATTACKS:
        started(f"gradient inversion, {attack}")
        seed = derive_seed(plan.seed, "audit")
        reconstructions.append(audit_inversion(attack, mechanism, noise(), seed))
    findings += [_inversion_finding(one) for one in reconstructions]
    return PrivacyAudit(
        epsilon=epsilon,
        delta=site.delta,
        noise_multiplier=planned.noise_multiplier,
        sample_rate=planned.sample_rate,
        steps=planned.steps,
        unit=mechanism.unit,
        noise=noise().description,
        findings=tuple(findings),
        reconstructions=tuple(reconstructions),
    )


def _site(plan: Plan, patients: int) -> SitePrivacy:
    """Let the installed code solve for the noise, from an imagined site's counts alone."""
    owners = torch.arange(patients).repeat_interleave(IMAGES_PER_PATIENT)
    blank = ImageSet(torch.zeros(len(owners), 1, 1, 1), torch.zeros(len(owners)), owners)
    site = site_privacy(plan, blank)
    if site is None:
        raise ConfigurationError(
            "privacy=off claims nothing that could be audited. Choose privacy=high, medium or low."
        )
    return site


def _canaries(
    plan: Plan,
    delta: float,
    mechanism: Mechanism,
    noise: Callable[[], NoiseSource],
    quick: bool,
    started: Started,
) -> list[Finding]:
    patient = mechanism.unit == Unit.patient
    design = CanaryDesign(
        outputs=50 if quick else 200,
        images=IMAGES_PER_PATIENT if patient else 1,
        seed=derive_seed(plan.seed, "audit"),
    )
    started("canaries, two steps")
    two_steps = probe_of(mechanism, delta, design.canaries)
    probe = audit_canaries(design, two_steps, PROBE_ROUNDS, delta, lambda _round: noise())
    control = unprotected_bound(design, probe)
    findings = [_canary_finding("canaries, two steps", probe, control, deciding=True)]
    rounds, steps = plan.federation.rounds, mechanism.steps
    rows = rounds * steps.steps * steps.sample_rate * design.canaries * design.images / 2
    if not quick and rows <= MOST_ROWS:
        started("canaries, whole run")
        run = audit_canaries(design, mechanism, rounds, delta, lambda _round: noise())
        control = unprotected_bound(design, run)
        findings.append(_canary_finding("canaries, whole run", run, control, deciding=False))
    return findings


def _canary_finding(
    attack: str, result: CanaryResult, control: float, *, deciding: bool
) -> Finding:
    return Finding(
        attack=attack,
        measure=f"lower bound on epsilon (claimed {result.claimed:.2f})",
        protected=f"{result.lower_bound:.2f}",
        control=f"{control:.2f}",
        verdict=result.verdict,
        deciding=deciding,
        figures={
            "claimed_epsilon": result.claimed,
            "lower_bound": result.lower_bound,
            "lower_bound_of_control": control,
            "largest_provable_epsilon": result.provable,
            "delta": result.delta,
            "confidence": result.confidence,
            "canaries": result.count.canaries,
            "guesses": result.count.guesses,
            "correct_guesses": result.count.correct,
            "noise_multiplier": result.steps.noise_multiplier,
            "sample_rate": result.steps.sample_rate,
            "steps": result.steps.steps,
            "rounds": result.rounds,
        },
    )


def _membership_finding(result: MembershipResult, attack: str) -> Finding:
    protected, control = result.protected[attack], result.control[attack]
    limit = largest_advantage(result.epsilon, DELTA)
    figures: dict[str, float | int | list[float]] = {"largest_advantage": limit}
    for name, one in (("protected", protected), ("control", control)):
        for figure in ("advantage", "auroc", "tpr"):
            estimate = getattr(one, figure)
            label = "tpr_at_1_percent_fpr" if figure == "tpr" else figure
            figures[f"{label}_{name}"] = estimate.value
            figures[f"{label}_{name}_interval"] = [estimate.low, estimate.high]
    return Finding(
        attack=f"membership, {attack}",
        measure=f"TPR - FPR (claim allows {limit:.2f})",
        protected=f"{protected.advantage.value:.2f}",
        control=f"{control.advantage.value:.2f}",
        verdict=result.verdict(attack),
        figures=figures,
    )


def _inversion_finding(result: Reconstruction) -> Finding:
    pairs = (("protected", result.protected), ("control", result.unprotected))
    figures: dict[str, float | int | list[float]] = {"correlation_unrelated": result.unrelated}
    for name, image in pairs:
        figures[f"correlation_{name}"] = correlation(image, result.original)
        figures[f"psnr_{name}"] = peak_signal_to_noise(image, result.original)
    return Finding(
        attack=f"inversion, {result.attack}",
        measure=f"correlation with the image (another patient's: {result.unrelated:.2f})",
        protected=f"{figures['correlation_protected']:.2f}",
        control=f"{figures['correlation_control']:.2f}",
        verdict=result.verdict,
        figures=figures,
    )
