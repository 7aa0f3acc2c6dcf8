"""Flower's own deployment on this machine: flower-superlink, flower-supernode, ``flwr run``.

The bundle holds the same apps as the other engines. Stock Flower has no client certificates, and
is run without TLS and without authentication of nodes here, which is to its advantage.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from round_engines.echo import SITES, RoundTime

_START_SECONDS = 60.0
_ROUND_SECONDS = 60.0
_BIN = Path(sys.executable).parent

_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "roundoverhead"
version = "1.0.0"
description = "Echoes updates."
license = { text = "Apache-2.0" }
dependencies = ["flwr>=1.41.0"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "stock_app:server_app"
clientapp = "stock_app:client_app"

[tool.flwr.app.config]
folder = ""
rounds = 1
"""

_APP = '''\
"""The apps of the bundle."""

import json
from pathlib import Path

from flwr.serverapp import ServerApp

from round_engines.echo import echo_client_app
from round_engines.flower_loop import flower_client_app

FLOWER_LOOP = %s
client_app = flower_client_app() if FLOWER_LOOP else echo_client_app()
server_app = ServerApp()


@server_app.main()
def main(grid, context):
    """Time the rounds; torch is imported here so that the sites' processes start faster."""
    from round_engines.flower_loop import time_flower_rounds
    from round_engines.rounds import time_rounds

    time_rounds = time_flower_rounds if FLOWER_LOOP else time_rounds
    folder = Path(context.run_config["folder"])
    seconds = time_rounds(grid, folder / "run", int(context.run_config["rounds"]))
    unfinished = folder / "seconds.part"
    unfinished.write_text(json.dumps(seconds))
    unfinished.replace(folder / "seconds.json")
'''


class NotMeasuredError(RuntimeError):
    """Stock Flower did not come so far here."""


def stock_flower(folder: Path, rounds: int, *, flower_loop: bool = False) -> list[RoundTime]:
    """Time rounds on Flower's stock deployment, on loopback.

    Args:
        folder: for all files, logs included.
        rounds: to time.
        flower_loop: run Flower's FedAvg in place of the apps that the other engines run.

    Raises:
        NotMeasuredError: with the reason, when a part of it did not start or the run did not end.
    """
    bundle = _write_bundle(folder / "bundle", flower_loop)
    port = _free_port()
    home = _write_connection(folder / "home", port)
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    link = [
        "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.enter_context(_process(link, environment, folder / "superlink.log"))
        _wait_for_port(port, folder / "superlink.log")
        for number in range(len(SITES)):
            node = [
                "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}",
                "--host", "127.0.0.1", "--port", str(_free_port()),
                "--node-config", f"partition-id={number} num-partitions={len(SITES)}",
            ]  # fmt: skip
            home = folder / f"home{number}"
            stack.enter_context(
                _process(
                    node, {**environment, "FLWR_HOME": str(home)}, folder / f"node{number}.log"
                )
            )
        run = [
            str(_BIN / "flwr"), "run", str(bundle), "benchmark",
            "--run-config", f'folder="{folder}" rounds={rounds}',
        ]  # fmt: skip
        answer = subprocess.run(
            run,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            check=False,
        )
        if answer.returncode:
            raise NotMeasuredError(f"flwr run: {_last_line(answer.stdout + answer.stderr)}")
        return _wait_for_result(folder, rounds)


def _write_bundle(folder: Path, flower_loop: bool) -> Path:
    (folder / "round_engines").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_PROJECT, encoding="utf-8")
    (folder / "stock_app.py").write_text(_APP % flower_loop, encoding="utf-8")
    for name in ("__init__.py", "echo.py", "flower_loop.py", "rounds.py"):
        shutil.copy(Path(__file__).with_name(name), folder / "round_engines" / name)
    return folder


def _write_connection(home: Path, port: int) -> Path:
    home.mkdir(parents=True)
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "benchmark"\n\n'
        f'[superlink.benchmark]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    return home


@contextlib.contextmanager
def _process(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a process with the processes that it starts, and end them all."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(_BIN / command[0]), *command[1:]],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            _end_session(process)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_port(port: int, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise NotMeasuredError(f"flower-superlink did not start: {_last_line(log.read_text())}")


def _wait_for_result(folder: Path, rounds: int) -> list[RoundTime]:
    result = folder / "seconds.json"
    end = time.monotonic() + _START_SECONDS + rounds * _ROUND_SECONDS
    while time.monotonic() < end:
        if result.is_file():
            return [RoundTime(*map(float, pair)) for pair in json.loads(result.read_text())]
        time.sleep(0.1)
    raise NotMeasuredError(
        f"the run did not end in time: {_last_line((folder / 'superlink.log').read_text())}"
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"
