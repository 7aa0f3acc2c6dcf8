"""``fedmed audit privacy``: what it prints and writes, and with which code it ends."""

import io
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from rich.console import Console

import fedmed.commands.audit_privacy as command
from fedmed.assurance.privacy_audit.audit import Finding, PrivacyAudit
from fedmed.assurance.privacy_audit.inversion import Reconstruction
from fedmed.assurance.privacy_audit.verdict import Verdict
from fedmed.cli import main
from fedmed.commands.audit import audit_command
from fedmed.configuration.groups import Unit
from fedmed.errors import ConfigurationError, PrivacyError
from fedmed.training.noise import SeededNoise

FINDING = Finding("canaries", "lower bound on epsilon", "0.30", "6.10", Verdict.holds)
IMAGE = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))


def audit_of(*verdicts, deciding=True):
    return PrivacyAudit(
        epsilon=1.0,
        delta=1e-5,
        noise_multiplier=5.4,
        sample_rate=0.1,
        steps=200,
        unit=Unit.image,
        noise="secure",
        findings=tuple(replace(FINDING, verdict=v, deciding=deciding) for v in verdicts),
        reconstructions=(Reconstruction("closed form", IMAGE, IMAGE, 1 - IMAGE, 0.5),),
    )


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command on a ready-made audit; return exit code, what it printed, and its call."""

    def run_with(audit, *arguments):
        calls = []

        def ready(plan, patients, noise, *, quick, started):
            calls.append((plan, patients, noise, quick))
            started("canaries")
            return audit

        monkeypatch.setattr(command, "audit_privacy", ready)
        console = Console(file=io.StringIO(), width=80)
        given = ["privacy", "--output", str(tmp_path / "out"), *arguments]
        code = audit_command(given, console)
        return code, console.file.getvalue(), calls

    return run_with


def test_a_claim_that_holds_ends_with_0_and_leaves_a_record(run, tmp_path):
    code, printed, _ = run(audit_of(Verdict.holds))
    assert code == 0
    assert "epsilon 1.00" in printed
    assert "holds" in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    record = json.loads((tmp_path / "out" / "privacy_audit.json").read_text())
    assert record["verdict"] == "holds"
    assert record["claim"]["epsilon"] == 1.0
    assert record["findings"][0]["control"] == "6.10"
    with Image.open(tmp_path / "out" / "inversion_closed_form.png") as picture:
        assert picture.size[0] > 2 * picture.size[1]


def test_more_leakage_than_claimed_is_a_privacy_error_after_the_record(run, tmp_path):
    with pytest.raises(PrivacyError, match=r"More leaks than epsilon 1\.00"):
        run(audit_of(Verdict.holds, Verdict.broken))
    record = json.loads((tmp_path / "out" / "privacy_audit.json").read_text())
    assert record["verdict"] == "broken"


def test_inconclusive_is_not_passed(run):
    code, printed, _ = run(audit_of(Verdict.holds, Verdict.inconclusive))
    assert code == 1
    assert "Inconclusive" in printed
    code, printed, _ = run(audit_of(Verdict.inconclusive, deciding=False))
    assert code == 0
    assert "Inconclusive" in printed


def test_settings_may_stand_around_options_and_noise_is_the_production_one(run):
    _, _, calls = run(
        audit_of(Verdict.holds),
        "privacy.target_epsilon=2",
        "--quick",
        "privacy.unit=patient",
        "data.patients=80",
    )
    plan, patients, noise, quick = calls[0]
    assert plan.privacy.target_epsilon == 2.0
    assert plan.privacy.unit == Unit.patient
    assert patients == 80
    assert quick
    assert noise().description == "secure"


def test_wrong_settings_and_options_are_refused(run, capsys):
    with pytest.raises(ConfigurationError, match="target_epsilon"):
        run(audit_of(), "privacy.target_epsilom=1")
    with pytest.raises(SystemExit):
        run(audit_of(), "--quik")
    assert "--quik" in capsys.readouterr().err


def test_privacy_off_claims_nothing(tmp_path):
    given = ["privacy", "privacy=off", "--output", str(tmp_path)]
    with pytest.raises(ConfigurationError, match="privacy=high"):
        audit_command(given, Console(file=io.StringIO()))


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["audit", "privacy", "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "privacy.unit=image" in printed
    assert "exit code" in printed


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["image", "patient"])
def test_the_installed_code_passes_its_audit_with_production_noise(unit, tmp_path, capsys):
    """By the binomial law of the guesses, chance fails this 3 times in a million."""
    code = main(
        [
            *("audit", "privacy", "--quick", f"--output={tmp_path}"),
            *("privacy.target_epsilon=1", f"privacy.unit={unit}"),
        ]
    )
    assert code == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "privacy_audit.json").read_text())
    assert record["verdict"] == "holds"
    assert record["noise"] == "secure"
    assert record["claim"]["epsilon"] == pytest.approx(1.0, abs=0.01)
    canaries = record["findings"][0]["figures"]
    assert (
        canaries["lower_bound"] < canaries["claimed_epsilon"] < canaries["lower_bound_of_control"]
    )
    assert len(list(tmp_path.glob("inversion_*.png"))) == 2


@pytest.mark.slow
def test_a_fault_in_the_noise_ends_with_code_5(tmp_path, monkeypatch, capsys):
    class Faint(SeededNoise):
        def __init__(self):
            super().__init__(3)

        def normal(self, shape):
            return super().normal(shape) / 8

    monkeypatch.setattr(command, "SecureNoise", Faint)
    code = main(["audit", "privacy", "--quick", f"--output={tmp_path}", "privacy.target_epsilon=1"])
    assert code == PrivacyError.exit_code == 5
    assert "canaries" in capsys.readouterr().err
