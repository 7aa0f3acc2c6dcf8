"""``fedmed simulate`` as a user runs it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmed.cli import main
from fedmed.training.accounting import GaussianSteps, epsilon_spent

QUICK = [
    "model.width=4", "model.stages=2", "preprocessing.size=32", "federation.rounds=3",
    "federation.local_epochs=1", "simulation.workers=3", "site.threads=1",
]  # fmt: skip
TWO_SITES = ["transport=sealed", "federation.minimum_sites=2"]
"""For runs in which one of three sites takes no part: a sum of two would hide nobody."""


def simulate(folder, *settings):
    code = main(["simulate", f"tracking.folder={folder}", *QUICK, *settings])
    return code, newest(folder)


def newest(folder):
    runs = sorted(path.parent for path in Path(folder).glob("*/*/config.yaml"))
    return runs[-1] if runs else None


def summary(run):
    return json.loads((run / "summary.json").read_text())


def rounds(run):
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def plain_run(archives, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    code, run = simulate(
        folder, "data=manifest", f"data.root={archives}", "privacy=off", "simulation.compare=true"
    )
    assert code == 0
    return run


def test_the_run_folder_keeps_its_contract(plain_run):
    names = {path.name for path in plain_run.iterdir()}
    assert names >= {
        "config.yaml", "rounds.jsonl", "summary.json", "model.safetensors", "model.json",
        "checkpoints", "report.html", "fedmed.log", "plots", "audit", "trust",
    }  # fmt: skip
    facts = summary(plain_run)
    assert facts["task"] == "classification"
    assert facts["rounds"] == 3 == len(rounds(plain_run))
    assert set(facts["metrics"]) >= {"auroc", "accuracy", "sensitivity", "specificity", "ece"}
    assert set(facts["sites"]) == {"alder", "birch", "cedar"}
    for site in facts["sites"].values():
        assert site["epsilon"] is None
        assert site["train"] > site["test"] > 0
    assert set(facts["baselines"]["local"]) == set(facts["sites"])
    assert 0 <= facts["baselines"]["pooled"]["auroc"] <= 1
    weights = load_file(plain_run / "model.safetensors")
    assert sum(array.size for array in weights.values()) == facts["parameters"]
    # Three sites got the weights three times, and once more for the final evaluation.
    assert facts["transport"]["bytes_down"] > 3 * 4 * 4 * facts["parameters"]
    assert (facts["transport"]["mode"], facts["transport"]["secure_aggregation"]) == (
        "secagg",
        True,
    )
    assert "the server saw sums only" in (plain_run / "report.html").read_text()


def test_the_log_of_the_run_can_be_verified(plain_run, capsys):
    words = ["audit", "verify", str(plain_run / "audit"), "--root"]
    assert main([*words, str(plain_run / "trust" / "root.crt")]) == 0
    assert "3 rounds of training and 1 evaluation" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["sealed", "plain"])
def test_other_ways_for_updates_to_travel_give_the_same_model(plain_run, archives, tmp_path, mode):
    code, run = simulate(
        tmp_path, "data=manifest", f"data.root={archives}", "privacy=off", f"transport={mode}"
    )
    assert code == 0
    for name, array in weights_of(run).items():
        np.testing.assert_allclose(array, weights_of(plain_run)[name], atol=1e-4)
    page = (run / "report.html").read_text()
    assert "the server saw each site" in page
    assert f"transport={mode}" in page
    assert (run / "audit").exists() is (mode == "sealed")


def test_images_without_consent_are_counted_and_not_used(plain_run, archives):
    import csv

    for site, facts in summary(plain_run)["sites"].items():
        rows = list(csv.DictReader((archives / site / "manifest.csv").open()))
        withheld = sum(row["consent"] != "yes" for row in rows)
        assert facts["excluded"].get("no consent", 0) == withheld
        assert facts["train"] + facts["val"] + facts["test"] == len(rows) - withheld


def test_no_patient_is_named_anywhere_in_the_run_folder(plain_run, archives):
    import csv

    markers = set()
    for manifest in archives.glob("*/manifest.csv"):
        markers |= {row["patient_id"].encode() for row in csv.DictReader(manifest.open())}
    assert len(markers) > 30
    files = [path for path in plain_run.rglob("*") if path.is_file()]
    assert len(files) > 10
    written = b"".join(path.read_bytes() for path in files)
    assert not [marker for marker in markers if marker in written]
    planted = written + next(iter(markers))  # control: the search finds what is there
    assert [marker for marker in markers if marker in planted]


def test_the_same_seed_gives_the_same_model_whatever_the_number_of_workers(
    plain_run, archives, tmp_path
):
    code, run = simulate(
        tmp_path, "data=manifest", f"data.root={archives}", "privacy=off", "simulation.workers=1"
    )
    assert code == 0
    assert weights_of(run).keys() == weights_of(plain_run).keys()
    for name, array in weights_of(run).items():
        np.testing.assert_array_equal(array, weights_of(plain_run)[name])


def weights_of(run):
    return load_file(run / "model.safetensors")


def test_a_broken_image_is_quarantined_and_an_empty_cohort_ends_with_the_reason(
    archives, tmp_path, capsys
):
    data = tmp_path / "data"
    shutil.copytree(archives, data)
    (next((data / "alder" / "images").glob("*.dcm"))).write_bytes(b"not DICOM")
    (next((data / "birch" / "images").glob("*.dcm"))).unlink()
    for path in (data / "cedar" / "images").glob("*.dcm"):
        path.write_bytes(path.read_bytes()[:300])
    code, run = simulate(
        tmp_path / "out", "data=manifest", f"data.root={data}", "privacy=off",
        "federation.rounds=1", "federation.join_seconds=1", *TWO_SITES,
    )  # fmt: skip
    assert code == 0
    facts = summary(run)
    assert facts["sites"]["alder"]["excluded"]["not-an-image"] == 1
    assert facts["sites"]["birch"]["excluded"]["missing"] == 1
    assert "no training image is left" in facts["refused"]["cedar"]
    assert "cedar" not in facts["sites"]
    listed = (run / "sites" / "alder" / "excluded.jsonl").read_text()
    assert "not-an-image" in listed
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture
def seeded(monkeypatch):
    monkeypatch.setenv("FEDMED_ALLOW_SEEDED_NOISE", "1")


@pytest.mark.slow
def test_epsilon_of_the_run_is_that_of_the_composition(archives, tmp_path):
    code, run = simulate(tmp_path, "data=manifest", f"data.root={archives}", "privacy=medium")
    assert code == 0
    facts = summary(run)
    guarantees = facts["privacy"].pop("guarantees")
    assert facts["privacy"] == {
        "preset": "medium", "unit": "patient", "model": "local", "target_epsilon": 8.0,
        "noise": "secure",
    }  # fmt: skip
    assert {one["adversary"] for one in guarantees} == {
        "server", "other sites", "reader of the model",
    }  # fmt: skip
    for name, site in facts["sites"].items():
        entries = [
            json.loads(line)
            for line in (run / "sites" / name / "ledger.jsonl").read_text().splitlines()
        ]
        steps = [GaussianSteps(**entry["steps"]) for entry in entries]
        assert sum(entry.steps for entry in steps) == 30
        assert site["epsilon"] == pytest.approx(epsilon_spent(steps, site["delta"]))
        assert 7.5 < site["epsilon"] <= 8.0
        assert all(line["sites"][name]["loss"] is None for line in rounds(run))


@pytest.mark.slow
def test_a_site_whose_budget_would_be_passed_sits_out(archives, tmp_path, capsys):
    code, run = simulate(
        tmp_path, "data=manifest", f"data.root={archives}", "privacy=medium",
        "site.max_epsilon=5", "federation.rounds=4",
    )  # fmt: skip
    assert code == 7
    assert "site.max_epsilon" in capsys.readouterr().err
    for name in ("alder", "birch", "cedar"):
        lines = (run / "sites" / name / "ledger.jsonl").read_text().splitlines()
        assert 0 < len(lines) < 4  # nothing was reserved for the refused round


@pytest.mark.slow
def test_seeded_noise_is_marked_void_and_needs_a_second_consent(
    archives, tmp_path, seeded, monkeypatch, capsys
):
    settings = ["data=manifest", f"data.root={archives}", "simulation.seeded_noise=true"]
    code, run = simulate(tmp_path, *settings)
    assert code == 0
    assert summary(run)["privacy"]["noise"] == "void (seeded noise)"
    assert "void" in (run / "report.html").read_text()
    monkeypatch.delenv("FEDMED_ALLOW_SEEDED_NOISE")
    assert simulate(tmp_path, *settings)[0] == 2
    assert "FEDMED_ALLOW_SEEDED_NOISE" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("privacy", ["off", "medium"])
def test_resume_after_sigkill_gives_the_model_of_an_unbroken_run(
    archives, tmp_path, seeded, privacy
):
    settings = [
        "data=manifest", f"data.root={archives}", f"privacy={privacy}", "federation.rounds=6",
        "simulation.seeded_noise=true",
    ]  # fmt: skip
    code, unbroken = simulate(tmp_path / "whole", *settings)
    assert code == 0
    words = [
        sys.executable, "-m", "fedmed.cli", "simulate", f"tracking.folder={tmp_path / 'cut'}",
        *QUICK, *settings,
    ]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ)
    for line in process.stdout:  # lines come as rounds finish: no clock is needed
        if re.search(r"Round\s+2/6", line):
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    run = newest(tmp_path / "cut")
    assert not (run / "summary.json").exists()
    with (run / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "torn')
    assert main(["simulate", f"resume={run}"]) == 0
    for name, array in weights_of(unbroken).items():
        np.testing.assert_array_equal(weights_of(run)[name], array)
    assert [line["round"] for line in rounds(run)] == [1, 2, 3, 4, 5, 6]
    for site, facts in summary(unbroken)["sites"].items():
        assert summary(run)["sites"][site]["epsilon"] == facts["epsilon"]
        assert summary(run)["sites"][site]["metrics"] == facts["metrics"]


def test_resume_takes_no_other_setting(tmp_path, capsys):
    assert main(["simulate", f"resume={tmp_path}", "privacy=off"]) == 2
    assert "leave out privacy=off" in capsys.readouterr().err


def test_resume_of_a_folder_that_is_no_run_says_so(tmp_path, capsys):
    assert main(["simulate", f"resume={tmp_path}"]) == 2
    assert "is this a run folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_ray_engine_gives_the_same_model(archives, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    settings = ["data=manifest", f"data.root={archives}", "privacy=off", "federation.rounds=2"]
    runs = []
    for engine in ("in_process", "ray"):
        code, run = simulate(tmp_path / engine, f"simulation={engine}", *settings)
        assert code == 0
        runs.append(run)
    for name, array in weights_of(runs[0]).items():
        np.testing.assert_allclose(weights_of(runs[1])[name], array, atol=1e-6)


def test_what_a_manifest_says_does_not_leave_the_site_in_a_refusal(archives, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(archives, data)
    manifest = data / "cedar" / "manifest.csv"
    header, *rows = manifest.read_text().splitlines()
    label = header.split(",").index("label")
    mixed_up = []
    for row in rows:
        cells = row.split(",")
        cells[label] = "DOE^JANE"
        mixed_up.append(",".join(cells))
    manifest.write_text("\n".join([header, *mixed_up]) + "\n")
    code, run = simulate(
        tmp_path / "out", "data=manifest", f"data.root={data}", "privacy=off",
        "federation.rounds=1", *TWO_SITES,
    )  # fmt: skip
    assert code == 0
    assert "log at the site" in summary(run)["refused"]["cedar"]
    for name in ("summary.json", "rounds.jsonl", "report.html"):
        assert "DOE" not in (run / name).read_text()
    assert "DOE^JANE" in (run / "fedmed.log").read_text()  # control: the engineer is told
