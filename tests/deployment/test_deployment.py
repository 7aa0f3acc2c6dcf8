"""One server and three clients as real processes over TLS on loopback."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmed.cli import main

pytestmark = pytest.mark.slow

PLAN = [
    "model.width=4", "model.stages=2", "preprocessing.size=32", "federation.rounds=2",
    "federation.local_epochs=1", "privacy=off", "seed=3",
]  # fmt: skip
PATIENCE = 120  # seconds; reached only when something is broken


class Process:
    """A process whose lines can be waited for."""

    def __init__(self, module: str, folder: Path, *settings: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *settings],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "COLUMNS": "400"},
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, text: str) -> str:
        """Return the first line with a text, or fail with all that was printed."""

        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or not self._reader.is_alive(), timeout=PATIENCE)
            line = found()
        assert line, f"no {text!r} in:\n" + "\n".join(self.lines)
        return line

    def finish(self) -> int:
        """Wait for the end and return the exit code."""
        try:
            return self.process.wait(PATIENCE)
        finally:
            self._reader.join(5)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.finish()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    folder = tmp_path / "certificates"
    assert main(["pki", "demo", str(folder), "--sites", "alder", "birch", "cedar"]) == 0
    return folder


@contextlib.contextmanager
def clients(
    folder: Path, archives: Path, port: int, *names: str, settings: tuple[str, ...] = ()
) -> Iterator[dict[str, Process]]:
    started = {
        name: Process(
            "clients", folder, f"site={name}", f"data.root={archives}", "site.threads=1",
            f"transport.address=127.0.0.1:{port}", *settings,
        )
        for name in names
    }  # fmt: skip
    try:
        yield started
    finally:
        for one in started.values():
            one.stop()


def start_server(folder: Path, port: int, *settings: str) -> Process:
    return Process(
        "server", folder, f"transport.address=127.0.0.1:{port}", "tracking.folder=out",
        *(settings or PLAN),
    )  # fmt: skip


def newest(folder: Path) -> Path:
    return sorted(path.parent for path in folder.glob("*/*/config.yaml"))[-1]


def deployed_and_simulated(tmp_path: Path, archives: Path, port: int, plan: list[str]) -> None:
    """Train the same plan in deployment and in simulation and compare the models."""
    server = start_server(tmp_path, port, *plan)
    names = sorted(path.name.lower() for path in archives.iterdir() if path.is_dir())
    with clients(tmp_path, archives, port, *names) as started:
        assert server.finish() == 0, server.output
        for client in started.values():
            client.wait_for("evaluate: done")
    assert all(client.process.returncode == 0 for client in started.values())
    assert main([
        "simulate", "data=manifest", f"data.root={archives}", "site.threads=1",
        f"tracking.folder={tmp_path / 'simulated'}", *plan,
    ]) == 0  # fmt: skip
    deployed, simulated = newest(tmp_path / "out"), newest(tmp_path / "simulated")
    weights = load_file(deployed / "model.safetensors")
    for name, array in load_file(simulated / "model.safetensors").items():
        np.testing.assert_allclose(weights[name], array, atol=1e-5)
    facts = [json.loads((run / "summary.json").read_text()) for run in (deployed, simulated)]
    assert facts[0]["sites"] == facts[1]["sites"]
    assert facts[0]["metrics"] == pytest.approx(facts[1]["metrics"], abs=1e-4)


def test_the_deployed_federation_gives_the_model_of_the_simulation(
    tmp_path, certificates, archives, port
):
    deployed_and_simulated(tmp_path, archives, port, PLAN)
    for site in ("alder", "birch", "cedar"):
        kinds = [
            json.loads(line)["kind"]
            for line in (tmp_path / "state" / site / "egress.jsonl").read_text().splitlines()
        ]
        assert kinds == [
            "joined", "trained", "evaluated", "trained", "evaluated", "evaluated",
        ]  # fmt: skip


def test_the_same_on_real_data(tmp_path, lgg_mri, port):
    folder = tmp_path / "certificates"
    assert main(["pki", "demo", str(folder), "--sites", "cs", "du", "fg"]) == 0
    deployed_and_simulated(tmp_path, lgg_mri, port, PLAN)


def test_the_server_ends_cleanly_on_sigterm_and_clients_find_it_again(
    tmp_path, certificates, archives, port
):
    waiting = [*PLAN, "federation.minimum_sites=3"]
    first = start_server(tmp_path, port, *waiting)
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
            client.wait_for("evaluate: done")


def test_a_server_killed_in_mid_run_goes_on_from_its_checkpoint(
    tmp_path, certificates, archives, port
):
    server = start_server(tmp_path, port, *PLAN, "federation.rounds=5")
    with clients(tmp_path, archives, port, "alder", "birch", "cedar"):
        server.wait_for("Round 2/5")
        server.stop(signal.SIGKILL)
        run = newest(tmp_path / "out")
        again = start_server(tmp_path, port, f"resume={run}")
        assert again.finish() == 0, again.output
    lines = (run / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3, 4, 5]


def test_a_server_that_the_pinned_authority_did_not_sign_is_refused(
    tmp_path, certificates, archives, port
):
    foreign = tmp_path / "foreign"
    assert main(["pki", "demo", str(foreign), "--sites", "alder", "birch"]) == 0
    server = start_server(
        tmp_path, port, *PLAN,
        f"transport.certificate={foreign / 'server.crt'}",
        f"transport.private_key={foreign / 'server.key'}",
    )  # fmt: skip
    server.wait_for("Listening")
    with clients(tmp_path, archives, port, "alder") as started:
        client = started["alder"]
        assert client.finish() == 7
        assert "Traceback" not in client.output
        assert "certificate" in client.output
    server.stop()


def test_wrong_settings_of_a_client_are_one_line(tmp_path, certificates, archives, port):
    shutil.rmtree(certificates / "sites")
    client = Process("clients", tmp_path, "site=alder", f"data.root={archives}")
    assert client.finish() == 2
    assert len(client.output.splitlines()) <= 2, client.output
