"""Checks of the site's own files: manifest, ledger, policy. Counts alone are told, never a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedmed.assurance.doctor.check_result import (
    CheckResult,
    failed,
    failed_by,
    passed,
    warned,
)
from fedmed.configuration.groups import SiteConfig, Unit
from fedmed.configuration.plan import Plan
from fedmed.data.cohort import NO_CONSENT, NO_LABEL
from fedmed.data.manifest import FILE_NAME, read_manifest
from fedmed.errors import DataError, PolicyError, PrivacyError
from fedmed.training.ledger import Ledger, study_epsilon
from fedmed.training.present_plan import PresentPlan
from fedmed.training.reservation import Reservation
from fedmed.trust.policy import SitePolicy, check_plan

MANIFEST = "manifest"
LEDGER = "privacy ledger"
POLICY = "site policy"
PLAN = "plan"

MISSING = "image file missing"
_SCARCE = 0.1


@dataclass(frozen=True)
class ArchiveCount:
    """What a manifest offers, as far as it tells without opening an image.

    Attributes:
        images: rows that can be used.
        patients: different patients among them.
        left_out: number of other rows, by reason.
    """

    images: int
    patients: int
    left_out: Mapping[str, int]


def archive_folder(root: Path, site: str) -> Path:
    """Return the site's own folder of ``data.root``, or ``data.root`` itself.

    Raises:
        DataError: neither holds a manifest.
    """
    try:
        folders = [path for path in root.iterdir() if path.name.lower() == site.lower()]
    except OSError as error:
        raise DataError(f"data.root cannot be read ({error.strerror}).") from error
    for folder in (*folders, root):
        if (folder / FILE_NAME).is_file():
            return folder
    raise DataError(f"data.root holds no folder {site!r} with a {FILE_NAME}.")


def count_archive(folder: Path) -> ArchiveCount:
    """Count a manifest's rows; whether images can be read is for ``fedmed data check``.

    Raises:
        DataError: the manifest cannot be used.
    """
    manifest = read_manifest(folder)
    left_out = Counter(str(row.reason) for row in manifest.quarantined)
    patients: set[str] = set()
    images = 0
    for record in manifest.records:
        if record.consent in ("no", "withdrawn"):
            left_out[NO_CONSENT] += 1
        elif not record.labels and "label" in manifest.columns:
            left_out[NO_LABEL] += 1
        elif not record.image.is_file():
            left_out[MISSING] += 1
        else:
            images += 1
            # Without the column each image counts as a patient of its own.
            patients.add(record.patient_id or f"\0{record.row}")
    return ArchiveCount(images, len(patients), dict(sorted(left_out.items())))


def check_manifest(count: ArchiveCount) -> CheckResult:
    """Judge what the manifest offers."""
    reasons = "".join(f"; {number} left out: {reason}" for reason, number in count.left_out.items())
    detail = f"{count.images} images of {count.patients} patients{reasons}"
    remedy = "see each row with fedmed data check DIR"
    if count.images == 0:
        return failed(MANIFEST, detail, remedy)
    faults = sum(number for reason, number in count.left_out.items() if reason != NO_CONSENT)
    return warned(MANIFEST, detail, remedy) if faults else passed(MANIFEST, detail)


def check_ledger(state: Path, site: SiteConfig, policy: SitePolicy | None) -> CheckResult:
    """Check that the ledger can be read, and tell what is left of the site's limit.

    Args:
        state: folder of the ledger.
        site: its study, its limit, its largest delta.
        policy: the other limit; None if it cannot be read.
    """
    limits = [site.max_epsilon, policy.max_epsilon if policy else None]
    limit = min((value for value in limits if value is not None), default=None)
    try:
        entries = Ledger.read_only(state / "ledger.jsonl")
    except FileNotFoundError:
        what = "no limit" if limit is None else f"epsilon {limit:g} remains"
        return passed(LEDGER, f"nothing spent yet; {what}")
    except PrivacyError as error:
        return failed_by(LEDGER, error, "restore it from a copy; until then nothing is trained")
    except OSError as error:
        return failed(
            LEDGER, f"it cannot be read ({error.strerror})", "see to the rights of site.state"
        )
    return _judge_spending(entries, PresentPlan.read(state), site, limit)


def _judge_spending(
    entries: Sequence[Reservation],
    present: PresentPlan | None,
    site: SiteConfig,
    limit: float | None,
) -> CheckResult:
    unit, delta = Unit.patient, site.max_delta
    if present is not None and present.study == site.study:
        unit, delta = present.unit, present.delta
    spent = study_epsilon(entries, site.study, unit, delta)
    detail = (
        f"study {site.study!r}: epsilon {spent:.3f} spent for each {unit} (delta {delta:g}), "
        f"{len(entries)} rounds in all"
    )
    if limit is None:
        return passed(LEDGER, f"{detail}; no limit")
    remaining = limit - spent
    detail = f"{detail}; {max(0.0, remaining):.3f} of {limit:g} remains"
    remedy = "speak to the data protection officer about site.max_epsilon; see fedmed ledger show"
    if not remaining > 0:
        return failed(LEDGER, detail, remedy)
    if remaining < _SCARCE * limit:
        return warned(LEDGER, detail, remedy)
    return passed(LEDGER, detail)


def check_policy(policy: SitePolicy, from_file: bool) -> CheckResult:
    """Say what the policy allows in short."""
    source = "read" if from_file else "no file, so the safe values hold"
    detail = (
        f"{source}: transports {', '.join(policy.transports)}; at least "
        f"{policy.smallest_cohort} sites"
    )
    if "plain" in policy.transports:
        return warned(
            POLICY,
            f"{detail}; updates may leave unsigned and readable",
            "take plain out of transports; it is for tests",
        )
    return passed(POLICY, detail)


def check_plan_allowed(
    plan: Plan, policy: SitePolicy, server: str, sites: int, now: datetime
) -> CheckResult:
    """Check whether the site's policy would take a plan as it stands.

    Args:
        plan: made from the settings given.
        policy: of the site.
        server: name of the server in the roster.
        sites: in the roster.
        now: local time.
    """
    try:
        check_plan(
            plan, policy, transport=plan.transport.mode, cohort=sites, server=server, now=now
        )
    except PolicyError as error:
        return warned(PLAN, str(error), "change the policy, or ask for another plan")
    return passed(PLAN, "the site's policy allows a plan of these settings")
