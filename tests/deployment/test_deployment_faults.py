"""Processes that die, come back or lose their membership in the middle of a run."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from deployed import (
    PLAN,
    clients,
    hang_in_training,
    newest,
    start_client,
    start_server,
    verify,
    wait_until,
)
from forged_certificates import revoke_and_install
from safetensors.numpy import load_file

from fedmed.cli import main
from fedmed.trust.authority import Authority

pytestmark = pytest.mark.slow

SITES = ("alder", "birch", "cedar")
FOUR = (*SITES, "dogwood")
# Long enough for sites on one loaded core, short enough to wait for a dead one.
PATIENT = ["federation.deadline_seconds=25", "transport.step_seconds=12"]


def rounds(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def leaves(run: Path, kind: str) -> list[dict]:
    lines = (run / "audit" / "log.jsonl").read_text().splitlines()
    return [leaf for leaf in map(json.loads, lines) if leaf["type"] == kind]


def four_certificates(tmp_path: Path) -> Path:
    folder = tmp_path / "certificates"
    assert main(["pki", "demo", str(folder), "--sites", *FOUR]) == 0
    return folder


def test_a_site_killed_in_training_is_left_out_and_the_sum_is_that_of_the_others(
    tmp_path, four_archives, port
):
    certificates = four_certificates(tmp_path)
    hanging, hangs = hang_in_training(tmp_path / "hanging", 1)
    server = start_server(tmp_path, port, *PLAN, *PATIENT)
    with clients(tmp_path, four_archives, port, *SITES) as started:
        started["dogwood"] = start_client(tmp_path, four_archives, port, "dogwood", **hanging)
        wait_until(hangs.exists)
        assert started["dogwood"].stop(signal.SIGKILL) == -signal.SIGKILL
        assert server.finish() == 0, server.output
    run = newest(tmp_path / "out")
    first, second = rounds(run)
    assert first["participants"] == second["participants"] == list(SITES)
    assert first["sites"]["dogwood"]["status"] == "late"
    trained = [leaf for leaf in leaves(run, "round") if leaf["context"]["purpose"] == "train"]
    # It had made masks with the others: they were taken off without it.
    assert trained[0]["sharers"] == list(FOUR)
    assert trained[0]["survivors"] == list(SITES)
    assert verify(run, certificates) == 0
    for site in SITES:
        shutil.copytree(four_archives / site, tmp_path / "three" / site)
    assert main([
        "simulate", "data=manifest", f"data.root={tmp_path / 'three'}", "site.threads=1",
        f"tracking.folder={tmp_path / 'simulated'}", *PLAN,
    ]) == 0  # fmt: skip
    weights = load_file(run / "model.safetensors")
    for name, array in load_file(newest(tmp_path / "simulated") / "model.safetensors").items():
        np.testing.assert_allclose(weights[name], array, atol=1e-5)


def test_a_server_killed_in_mid_run_goes_on_and_its_log_still_holds(
    tmp_path, certificates, archives, port, capsys
):
    server = start_server(tmp_path, port, *PLAN, "federation.rounds=4")
    with clients(tmp_path, archives, port, *SITES):
        server.wait_for("Round 2/4")
        server.stop(signal.SIGKILL)
        run = newest(tmp_path / "out")
        shutil.copytree(run / "audit", tmp_path / "before")
        again = start_server(tmp_path, port, f"resume={run}")
        assert again.finish() == 0, again.output
    assert [one["round"] for one in rounds(run)] == [1, 2, 3, 4]
    assert len(leaves(run, "resumed")) == 1
    assert verify(run, certificates) == 0
    for site in SITES:
        witness = tmp_path / "state" / site / "witness.json"
        assert verify(run, certificates, "--site", site, "--from", str(witness)) == 0
    assert verify(run, certificates, "--from", str(tmp_path / "before")) == 0
    # Control: a history without the last leaves is one that the sites have not seen.
    shutil.rmtree(run / "audit")
    shutil.copytree(tmp_path / "before", run / "audit")
    assert verify(run, certificates) == 0
    capsys.readouterr()
    witness = tmp_path / "state" / "alder" / "witness.json"
    assert verify(run, certificates, "--site", "alder", "--from", str(witness)) == 6
    assert "Traceback" not in capsys.readouterr().err


def test_a_site_that_is_killed_and_started_again_joins_again(
    tmp_path, certificates, archives, port
):
    """Its key for the run is gone, so that the others cannot go on with the round either."""
    hanging, hangs = hang_in_training(tmp_path / "hanging", 2)
    server = start_server(tmp_path, port, *PLAN, *PATIENT)
    with clients(tmp_path, archives, port, "alder", "cedar") as started:
        killed = started["killed"] = start_client(tmp_path, archives, port, "birch", **hanging)
        wait_until(hangs.exists)
        assert killed.stop(signal.SIGKILL) == -signal.SIGKILL
        started["birch"] = start_client(tmp_path, archives, port, "birch")
        assert server.finish() == 0, server.output
        started["birch"].wait_for("query.join: done")
    run = newest(tmp_path / "out")
    log = (tmp_path / "state" / "birch" / "fedmed.log").read_text()
    assert "has not joined a run since it was started" in log
    assert [one["participants"] for one in rounds(run)] == [list(SITES)] * 2
    abandoned = leaves(run, "abandoned")
    assert {leaf["context"]["round"] for leaf in abandoned} == {2}
    done = [leaf["context"] for leaf in leaves(run, "round")]
    assert [c["attempt"] > 1 for c in done if c["purpose"] == "train"] == [False, True]
    witness = tmp_path / "state" / "birch" / "witness.json"
    assert verify(run, certificates, "--site", "birch", "--from", str(witness)) == 0


def test_a_site_revoked_in_mid_run_is_shut_out_and_the_run_goes_on(tmp_path, four_archives, port):
    certificates = four_certificates(tmp_path)
    authority = Authority.open(certificates / "consortium", None)
    plan = [*PLAN, "federation.rounds=6", "federation.deadline_seconds=25"]
    server = start_server(tmp_path, port, *plan, "transport.step_seconds=6")
    with clients(tmp_path, four_archives, port, *FOUR) as started:
        server.wait_for("Round 1/6")
        told = [certificates / name for name in ("server", *SITES)]
        revoke_and_install(authority, "dogwood", *told)
        # Refused on the connection that is open, or by the next handshake: then it is hung up on.
        revoked = started["dogwood"]
        wait_until(lambda: revoked.process.poll() is not None or "hung up" in revoked.output)
        assert revoked.process.poll() in (None, 7)
        again = started["again"] = start_client(tmp_path, four_archives, port, "dogwood")
        again.wait_for("hung up")
        assert "Traceback" not in revoked.output
        assert "connected" not in again.output
        assert server.finish() == 0, server.output
    run = newest(tmp_path / "out")
    participants = [one["participants"] for one in rounds(run)]
    assert participants[0] == list(FOUR)
    assert participants[-1] == list(SITES)
    assert verify(run, certificates) == 0
