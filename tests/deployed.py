"""A server and sites as real processes, whose lines can be waited for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fedmed.cli import main

PLAN = [
    "model.width=4", "model.stages=2", "preprocessing.size=32", "federation.rounds=2",
    "federation.local_epochs=1", "privacy=off", "seed=3",
]  # fmt: skip
PATIENCE = 120  # seconds; reached only when something is broken


class Process:
    """A process whose lines can be waited for."""

    def __init__(self, module: str, folder: Path, *settings: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *settings],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "COLUMNS": "400", **environment},
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

    def wait_for(self, text: str, count: int = 1) -> str:
        """Return the ``count``-th line with a text, or fail with all that was printed."""

        def found() -> str | None:
            lines = [line for line in self.lines if text in line]
            return lines[count - 1] if len(lines) >= count else None

        with self._changed:
            self._changed.wait_for(lambda: found() or not self._reader.is_alive(), timeout=PATIENCE)
            line = found()
        assert line, f"no {text!r} in:\n" + "\n".join(self.lines)
        return line

    def finish(self) -> int:
        """Wait for the end and return the exit code, or fail with all that was printed."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self._reader.join(5)
            raise AssertionError("it did not end:\n" + self.output) from None
        self._reader.join(5)
        return code

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.finish()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)


def start_client(
    folder: Path, archives: Path, port: int, name: str, *settings: str, **environment: str
) -> Process:
    return Process(
        "clients", folder, f"site={name}", f"data.root={archives}", "site.threads=1",
        f"link.address=127.0.0.1:{port}", *settings, **environment,
    )  # fmt: skip


_HANGING = """\
import pathlib, threading
import clients.site

_train, _calls = clients.site.train, []

def hanging(*arguments):
    _calls.append(1)
    if len(_calls) == {call}:
        pathlib.Path({marker!r}).touch()
        threading.Event().wait()
    return _train(*arguments)

clients.site.train = hanging
"""


def hang_in_training(folder: Path, call: int) -> tuple[dict[str, str], Path]:
    """Return an environment in which a site never comes back from its ``call``-th training.

    The file beside it is there once the site hangs: then is the time to kill it.
    """
    folder.mkdir()
    marker = folder / "hangs"
    (folder / "sitecustomize.py").write_text(_HANGING.format(call=call, marker=str(marker)))
    return {"PYTHONPATH": str(folder)}, marker


def verify(run: Path, certificates: Path, *more: str) -> int:
    """Check a run's transparency log as a site's engineer does."""
    root = certificates / "consortium" / "root.crt"
    return main(["audit", "verify", str(run / "audit"), "--root", str(root), *more])


@contextlib.contextmanager
def clients(
    folder: Path, archives: Path, port: int, *names: str, settings: tuple[str, ...] = ()
) -> Iterator[dict[str, Process]]:
    """Start sites; what is put into the dictionary later is stopped as well."""
    started = {name: start_client(folder, archives, port, name, *settings) for name in names}
    try:
        yield started
    finally:
        for one in started.values():
            one.stop()


def start_server(folder: Path, port: int, *settings: str) -> Process:
    return Process(
        "server", folder, f"link.address=127.0.0.1:{port}", "tracking.folder=out",
        *(settings or PLAN),
    )  # fmt: skip


def newest(folder: Path) -> Path:
    return sorted(path.parent for path in folder.glob("*/*/config.yaml"))[-1]


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that no line tells."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)
