"""``fedmed audit privacy``: attack the privacy of the installed training code, and see it hold."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedmed.assurance.privacy_audit.audit import PrivacyAudit, audit_privacy
from fedmed.assurance.privacy_audit.record import write_audit
from fedmed.assurance.privacy_audit.verdict import Verdict
from fedmed.configuration.commands import SimulateSettings
from fedmed.configuration.loading import load_settings
from fedmed.errors import PrivacyError
from fedmed.training.noise import SecureNoise

_EXAMPLES = """\
examples:
  fedmed audit privacy
      all attacks at the default settings (about half a minute)
  fedmed audit privacy privacy=high privacy.unit=image
      images instead of patients, epsilon 3
  fedmed audit privacy privacy.target_epsilon=1 --quick --output audit-1
      fewer canaries and models; files in the folder audit-1

settings are those of fedmed simulate; data.patients is the size of the imagined hospital.
exit code: 0 the claim holds, 1 inconclusive, 5 an attack shows more than is claimed."""
_DESCRIPTION = """\
Attack this installation's training code with the noise that the privacy settings lead to, and the
same training without privacy as control. Canaries bound epsilon from below; membership inference
and gradient inversion show what an attacker gets. No data of yours are read."""
_STYLES = {Verdict.holds: "green", Verdict.broken: "bold red", Verdict.inconclusive: "yellow"}


def privacy_command(arguments: Sequence[str], console: Console) -> int:
    """Run ``fedmed audit privacy``; ``arguments`` are the words after that.

    Returns:
        0 if every verdict holds, 1 if a deciding attack could not have shown a fault.

    Raises:
        PrivacyError: if an attack shows more leakage than is claimed.
        FedmedError: with what is wrong in the settings and the way out.
    """
    parsed, overrides = _parse(arguments)
    settings = load_settings(SimulateSettings, "simulate", overrides)
    with console.status("starting") as status:
        audit = audit_privacy(
            settings.plan(),
            settings.data.patients,
            SecureNoise,
            quick=parsed.quick,
            started=lambda attack: status.update(f"attacking: {attack}"),
        )
    folder = parsed.output or Path(settings.tracking.folder) / "privacy_audit"
    paths = write_audit(audit, folder)
    console.print(claim_text(audit), markup=False, highlight=False)
    console.print(findings_table(audit))
    names = ", ".join(path.name for path in paths)
    console.print(f"Written to {folder}: {names}", markup=False, highlight=False, soft_wrap=True)
    return _conclude(audit, console)


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="fedmed audit privacy",
        usage="fedmed audit privacy [key=value ...] [--quick] [--output DIR]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer canaries and models")
    parser.add_argument("--output", type=Path, help="folder of the files written")
    # Settings may stand before, between and after the options.
    parsed, rest = parser.parse_known_args(list(arguments))
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        parser.error(f"there is no option {unknown[0]}")
    return parsed, rest


def claim_text(audit: PrivacyAudit) -> str:
    """Say in one sentence what is claimed."""
    return (
        f"Claimed: epsilon {audit.epsilon:.2f} at delta {audit.delta:g} for each {audit.unit}, "
        f"over {audit.steps} steps with noise multiplier {audit.noise_multiplier:.3g} and sample "
        f"rate {audit.sample_rate:.3g}. Noise: {audit.noise}."
    )


def findings_table(audit: PrivacyAudit) -> Table:
    """Return the attacks as a table for 80 columns."""
    table = Table(box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("attack", max_width=18)
    table.add_column("what it measures", max_width=24)
    table.add_column("with privacy", justify="right", no_wrap=True)
    table.add_column("without", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for finding in audit.findings:
        table.add_row(
            Text(finding.attack),
            Text(finding.measure),
            Text(finding.protected),
            Text(finding.control),
            Text(finding.verdict, style=_STYLES[finding.verdict]),
        )
    return table


def _conclude(audit: PrivacyAudit, console: Console) -> int:
    def named(verdict: Verdict) -> str:
        return "; ".join(f.attack for f in audit.findings if f.verdict == verdict)

    if audit.verdict == Verdict.broken:
        raise PrivacyError(
            f"More leaks than epsilon {audit.epsilon:.2f} allows ({named(Verdict.broken)}). Do not "
            "train on patients with this installation. A claim that holds fails this audit in at "
            "most 1 of 20 runs: run it once more, then look for the fault in fedmed/training."
        )
    if named(Verdict.inconclusive):
        console.print(
            f"Inconclusive, which is not passed: {named(Verdict.inconclusive)}. At an epsilon "
            "this large the attack could not have told a fault from what is allowed.",
            markup=False,
        )
    return 0 if audit.verdict == Verdict.holds else 1
