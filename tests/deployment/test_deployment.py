"""One server and three clients as real processes over mutual TLS on loopback."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from deployed import PLAN, Process, clients, newest, start_client, start_server, verify
from forged_certificates import other_authority
from safetensors.numpy import load_file

from fedmed.cli import main
from fedmed.trust.authority import Authority
from fedmed.trust.enrolment import enroll, install
from fedmed.trust.fingerprints import root_fingerprint
from fedmed.trust.roster import Role

pytestmark = pytest.mark.slow

SITES = ("alder", "birch", "cedar")


def deployed_and_simulated(tmp_path: Path, archives: Path, port: int, plan: list[str]) -> None:
    """Train the same plan in deployment and in simulation and compare the models."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("per_site_counts: true\nper_site_metrics: true\nmetrics_floor: 1\n")
    policy.chmod(0o600)
    server = start_server(tmp_path, port, *plan)
    names = sorted(path.name.lower() for path in archives.iterdir() if path.is_dir())
    own = (f"site.policy={policy}",)
    with clients(tmp_path, archives, port, *names, settings=own) as started:
        assert server.finish() == 0, server.output
        for client in started.values():
            client.wait_for("query.reveal: done", 3)
    assert all(client.process.returncode == 0 for client in started.values())
    assert main([
        "simulate", "data=manifest", f"data.root={archives}", "site.threads=1", *own,
        f"tracking.folder={tmp_path / 'simulated'}", *plan,
    ]) == 0  # fmt: skip
    deployed, simulated = newest(tmp_path / "out"), newest(tmp_path / "simulated")
    weights = load_file(deployed / "model.safetensors")
    for name, array in load_file(simulated / "model.safetensors").items():
        np.testing.assert_allclose(weights[name], array, atol=1e-5)
    facts = [json.loads((run / "summary.json").read_text()) for run in (deployed, simulated)]
    assert facts[0]["sites"] == facts[1]["sites"]
    assert set(facts[0]["sites"]) == set(names)
    assert facts[0]["metrics"] == pytest.approx(facts[1]["metrics"], abs=1e-4)


def test_the_deployed_federation_gives_the_model_of_the_simulation(
    tmp_path, certificates, archives, port
):
    deployed_and_simulated(tmp_path, archives, port, PLAN)
    four = ["prepared", "masked", "confirmed", "revealed"]
    for site in SITES:
        lines = (tmp_path / "state" / site / "egress.jsonl").read_text().splitlines()
        # Two rounds and the last evaluation, four messages each.
        assert [json.loads(line)["kind"] for line in lines] == ["joined", *four * 3]


def test_the_same_on_real_data(tmp_path, lgg_mri, port):
    folder = tmp_path / "certificates"
    assert main(["pki", "demo", str(folder), "--sites", "cs", "du", "fg"]) == 0
    deployed_and_simulated(tmp_path, lgg_mri, port, PLAN)


def test_the_server_ends_cleanly_on_sigterm_and_clients_find_it_again(
    tmp_path, certificates, archives, port
):
    first = start_server(tmp_path, port, *PLAN)
    first.wait_for("Listening")
    with clients(tmp_path, archives, port, "alder", "birch") as started:
        for client in started.values():
            client.wait_for("query.join: done")
        assert first.stop() == 130
        assert "Traceback" not in first.output
        for client in started.values():
            client.wait_for("cannot be reached")
        second = start_server(tmp_path, port)
        with clients(tmp_path, archives, port, "cedar"):
            assert second.finish() == 0, second.output
        for client in started.values():
            client.wait_for("query.reveal: done", 3)


def test_sealed_updates_in_deployment(tmp_path, certificates, archives, port):
    """The site's policy has to allow it: by default nothing but secure aggregation leaves."""
    sealed = [*PLAN, "transport=sealed"]
    server = start_server(tmp_path, port, *sealed)
    with clients(tmp_path, archives, port, *SITES) as started:
        assert server.finish() == 7
        assert "PolicyError" in started["alder"].wait_for("query.join") or "transports" in (
            server.output
        )
    policy = tmp_path / "policy.yaml"
    policy.write_text("transports: [sealed]\n")
    policy.chmod(0o600)
    server = start_server(tmp_path, port, *sealed)
    with clients(tmp_path, archives, port, *SITES, settings=(f"site.policy={policy}",)):
        assert server.finish() == 0, server.output
    assert verify(newest(tmp_path / "out"), certificates) == 0


def test_a_server_that_the_pinned_root_did_not_sign_is_refused(
    tmp_path, certificates, archives, port
):
    foreign = tmp_path / "foreign"
    assert main(["pki", "demo", str(foreign), "--sites", *SITES]) == 0
    server = start_server(tmp_path, port, *PLAN, f"link.credentials={foreign / 'server'}")
    server.wait_for("Listening")
    client = start_client(tmp_path, archives, port, "alder")
    assert client.finish() == 7
    assert "Traceback" not in client.output
    assert "certificate" in client.output
    server.stop()


def test_a_site_that_is_not_in_the_servers_roster_is_refused(
    tmp_path, certificates, archives, port
):
    """Same root, enrolled after the server's roster was made: nobody told the server."""
    authority = Authority.open(certificates / "consortium", None)
    folder = certificates / "dogwood"
    authority.admit(enroll(folder, "dogwood", Role.site, (), None))
    authority.publish()
    pinned = root_fingerprint(authority.publication.root)
    install(folder, authority.bundle("dogwood").to_bytes(), None, pinned)
    server = start_server(tmp_path, port, *PLAN)
    server.wait_for("Listening")
    data = f"data.root={archives / 'alder'}"
    stranger = start_client(tmp_path, archives, port, "dogwood", data)
    assert stranger.finish() == 7, stranger.output
    assert "Traceback" not in stranger.output
    assert "connected" not in stranger.output
    with clients(tmp_path, archives, port, *SITES):
        assert server.finish() == 0, server.output
    assert set(json.loads((newest(tmp_path / "out") / "summary.json").read_text())["sites"]) == (
        set(SITES)
    )


def test_a_certificate_of_another_root_does_not_even_start(tmp_path, certificates, archives, port):
    other_authority(tmp_path / "other", certificates / "alder")
    client = start_client(tmp_path, archives, port, "alder")
    assert client.finish() == 8
    assert len(client.output.splitlines()) <= 2, client.output


def test_wrong_settings_of_a_client_are_one_line(tmp_path, certificates, archives, port):
    shutil.rmtree(certificates / "alder")
    client = Process("clients", tmp_path, "site=alder", f"data.root={archives}")
    assert client.finish() == 2
    assert len(client.output.splitlines()) <= 2, client.output


def test_the_keys_of_another_site_are_one_line(tmp_path, certificates, archives, port):
    client = start_client(
        tmp_path, archives, port, "alder", f"link.credentials={certificates / 'birch'}"
    )
    assert client.finish() == 2
    assert "birch" in client.output
    assert len(client.output.splitlines()) <= 2, client.output
