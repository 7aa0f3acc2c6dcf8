"""Privacy as a user of ``fedmed simulate`` sets it: units, who adds the noise, where one starts."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from fedmed.cli import main

SMALL = [
    "model.width=4", "model.stages=2", "preprocessing.size=32", "federation.rounds=2",
    "federation.local_epochs=1", "simulation.workers=3", "site.threads=1", "data=manifest",
]  # fmt: skip
ONE_STEP = ["privacy.sample_rate=0.5", "federation.local_epochs=0.5", "privacy.delta=1e-5"]


@pytest.fixture
def simulate(archives, tmp_path):
    def run(*settings):
        words = [f"tracking.folder={tmp_path}", f"data.root={archives}", *SMALL, *settings]
        code = main(["simulate", *words])
        folders = sorted(path.parent for path in Path(tmp_path).glob("*/*/config.yaml"))
        return code, folders[-1] if folders else None

    return run


def summary(run):
    return json.loads((run / "summary.json").read_text())


def rounds(run):
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_unit_patient_is_solved_for_accounted_and_reported(simulate):
    # Sealed, so that the number of patients, the weight of an update, can be seen.
    code, run = simulate("privacy=medium", "privacy.sample_rate=0.5", "transport=sealed")
    assert code == 0
    facts = summary(run)
    assert facts["privacy"]["unit"] == "patient"
    assert "per patient" in (run / "report.html").read_text()
    for name, site in facts["sites"].items():
        assert 7 < site["epsilon"] <= 8.0
        patients = rounds(run)[0]["sites"][name]["examples"]
        assert 0 < patients < site["train"]  # several images a patient
        (first, *_) = (run / "sites" / name / "ledger.jsonl").read_text().splitlines()
        entry = json.loads(first)
        assert entry["unit"] == "patient"
        assert entry["images_per_patient"] >= 2
        assert entry["steps"]["sample_rate"] == 0.5


@pytest.mark.slow
def test_options_for_utility_work_together(simulate):
    code, run = simulate(
        "privacy=medium", "privacy.augmentation_multiplicity=2", "privacy.ema_decay=0.8",
        "privacy.sample_rate=null", "privacy.batch_size=4", "model.weight_standardisation=true",
        "privacy.max_physical_batch=16",
    )  # fmt: skip
    assert code == 0
    for site in summary(run)["sites"].values():
        assert 7 < site["epsilon"] <= 8.0


@pytest.mark.slow
def test_a_start_from_earlier_weights_with_frozen_layers(simulate, tmp_path):
    code, first = simulate("privacy=off")
    assert code == 0
    start = first / "model.safetensors"
    code, second = simulate(
        "privacy=medium", "model=residual_cnn", f"model.init={start}", "model.freeze=[encoder.*]"
    )
    assert code == 0
    before, after = load_file(start), load_file(second / "model.safetensors")
    assert after.keys() == before.keys()
    for name in before:
        assert (before[name] == after[name]).all() == name.startswith("encoder")
    assert str(start) not in (second / "report.html").read_text()
    assert simulate("privacy=off", "model.init=absent.safetensors")[0] == 2


@pytest.mark.slow
def test_distributed_noise_needs_secure_aggregation_and_holds_against_the_server(simulate, capsys):
    settings = ["privacy=medium", "privacy.model=distributed", *ONE_STEP]
    for mode in ("sealed", "plain"):
        assert simulate(*settings, f"transport={mode}")[0] == 2
        assert "transport=secagg" in capsys.readouterr().err
    assert main(["server", *settings, "transport=sealed"]) == 2
    code, run = simulate(*settings)
    assert code == 0
    held = {one["adversary"]: one["epsilon"] for one in summary(run)["privacy"]["guarantees"]}
    assert 0 < held["server"] == held["reader of the model"] <= 8.0
    page = (run / "report.html").read_text()
    assert "does not hold against" not in page
    assert "the server saw sums only" in page


@pytest.mark.slow
def test_central_noise_needs_the_sites_to_trust_the_server(simulate, capsys):
    settings = ["privacy=medium", "privacy.model=central", *ONE_STEP]
    assert simulate(*settings)[0] == 7  # every site refuses
    assert "site.allow_central_privacy" in capsys.readouterr().err
    code, run = simulate(*settings, "site.allow_central_privacy=true")
    assert code == 0
    held = {one["adversary"]: one["epsilon"] for one in summary(run)["privacy"]["guarantees"]}
    assert held["server"] is None
    assert 0 < held["other sites"] <= 8.0


@pytest.mark.parametrize(
    ("settings", "code", "word"),
    [
        (["privacy.delta=0.099"], 7, "1 / patients"),  # sites refuse: only they know their number
        (["privacy.target_epsilon=1e-4"], 7, "privacy.target_epsilon"),
        (["model.normalisation=batch"], 2, "model.normalisation=group"),
        (["privacy.sampling=shuffle"], 2, "poisson"),
        (["privacy.sample_rate=null", "privacy.batch_size=100000"], 7, "cohort"),
        (["privacy.delta=0.0001"], 7, "site.max_delta"),
    ],
)
def test_bad_settings_end_with_the_way_out(simulate, capsys, settings, code, word):
    site = ["site.max_delta=0.2"] if "max_delta" not in word else []
    everyone = "federation.minimum_sites=3"
    assert simulate("privacy=medium", everyone, *settings, *site)[0] == code
    assert word in capsys.readouterr().err
