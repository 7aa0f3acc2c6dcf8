"""``docs/deploy.md`` as a new user would follow it: every marked block is run as it stands.

Each machine of the document is a home folder here. What people do is done here as well: they edit
the lines marked so, carry files between machines, and answer ``yes`` when asked to compare.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedmed.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs" / "deploy.md"
SITES = ("alder", "birch", "cedar")
BLOCK = re.compile(r"<!-- on: (?P<on>[^>]+) -->\n```sh\n(?P<commands>.*?)```", re.DOTALL)
EDITED = re.compile(r"^(?P<name>[A-Z]+)=.*# edit", re.MULTILINE)
PATIENCE = 240.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Block:
    """Commands of the document.

    Attributes:
        machine: ``root``, ``server``, ``site`` (each of them) or one site.
        kind: when or how it is run; empty for at once.
        commands: as in the document.
    """

    machine: str
    kind: str
    commands: str


def blocks() -> list[Block]:
    found = []
    for match in BLOCK.finditer(DOCUMENT.read_text(encoding="utf-8")):
        machine, _, kind = match["on"].partition(", ")
        found.append(Block(machine, kind, match["commands"]))
    return found


@dataclass
class Machine:
    """An account on a machine of its own, which has no more of us than its home folder.

    Attributes:
        home: of the account.
        edits: what its user writes in the lines to be edited.
    """

    home: Path
    edits: dict[str, str]
    settings: list[str] = field(default_factory=list)
    background: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        program = self.home / "fedmed"
        (program / ".venv").mkdir(parents=True)
        (program / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
        (program / "docs").symlink_to(REPOSITORY / "docs")

    @property
    def work(self) -> Path:
        return self.home / "federation"

    @property
    def console(self) -> str:
        return (self.home / "console.txt").read_text(encoding="utf-8", errors="replace")

    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        return kept | {"HOME": str(self.home), "EDITOR": "true", "OMP_NUM_THREADS": "1"}

    def edit(self, commands: str) -> str:
        def edited(match: re.Match[str]) -> str:
            return f'{match["name"]}="{self.edits[match["name"]]}"  # edit'

        return EDITED.sub(edited, commands)

    def start(self, commands: str) -> subprocess.Popen[bytes]:
        script = "\n".join(["set -euo pipefail", "cd", *self.settings, commands])
        terminal, ours = pty.openpty()  # somebody sits there, and says yes
        os.write(terminal, b"yes\n" * 8)
        with (self.home / "console.txt").open("ab") as output:
            process = subprocess.Popen(
                ["bash", "-c", script],
                stdin=ours,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                start_new_session=True,
            )
        os.close(ours)
        self.background.append(process)
        return process

    def run(self, commands: str) -> None:
        if self.start(commands).wait(PATIENCE) != 0:
            pytest.fail(f"{commands}\n{self.console[-4000:]}")


@dataclass
class Consortium:
    """The five machines of the trial.

    Attributes:
        machines: by name.
    """

    machines: dict[str, Machine]

    def named(self, name: str) -> list[Machine]:
        return [self.machines[site] for site in SITES] if name == "site" else [self.machines[name]]

    def carry_requests(self) -> None:
        incoming = self.machines["root"].home / "incoming"
        for name in ("server", *SITES):
            folder = self.machines[name].work / "certificates" / name
            new = folder / "next" / "request.json"
            member = "hub" if name == "server" else name
            shutil.copy(
                new if new.exists() else folder / "request.json", incoming / f"{member}.json"
            )

    def carry_bundles(self) -> None:
        for bundle in (self.machines["root"].home / "consortium").glob("*.bundle.json"):
            for name in ("server", *SITES):
                if bundle.name.split(".")[0] in (name, "update", "hub" if name == "server" else ""):
                    shutil.copy(bundle, self.machines[name].work)

    def carry_audit(self) -> None:
        for site in SITES:
            shutil.copy(self.machines["server"].work / "audit.zip", self.machines[site].work)

    def close(self) -> None:
        for machine in self.machines.values():
            for process in machine.background:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait(30)


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    archives = tmp_path / "archives"
    assert main(["data", "phantom", str(archives), "--sites", "3", "--patients", "16"]) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    plan = "federation.rounds=2 privacy=medium preprocessing.size=32 federation.join_seconds=120"
    edits = {
        "root": {"CONSORTIUM": "Trial"},
        "server": {
            "SERVER": "hub",
            "HOSTS": "localhost 127.0.0.1",
            "LISTEN": address,
            "PLAN": plan,
        },
    }
    for site in SITES:
        data = str(archives / site)
        edits[site] = {"SITE": site, "ADDRESS": address, "DATA": data, "PROXY": ""}
    machines = {name: Machine(tmp_path / name, edits[name]) for name in edits}
    passphrase = tmp_path / "root" / "passphrase"
    passphrase.write_text("four random words here\n", encoding="utf-8")
    passphrase.chmod(0o600)
    # The root's holder types the passphrase, which nobody here does.
    machines["root"].settings.append(f"export FEDMED_PASSPHRASE_FILE={passphrase}")
    made = Consortium(machines)
    yield made
    made.close()


def wait_until(condition: Callable[[], bool], machine: Machine) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, machine.console[-4000:]
        assert all(process.poll() in (None, 0) for process in machine.background), machine.console
        time.sleep(0.1)


def test_every_block_of_the_document_works(consortium: Consortium) -> None:
    server = consortium.machines["server"]
    run: subprocess.Popen[bytes] | None = None
    for block in blocks():
        if "pki sign" in block.commands:
            consortium.carry_requests()
        if "bundle.json" in block.commands:
            consortium.carry_bundles()
        if "audit.zip" in block.commands and block.machine == "site":
            consortium.carry_audit()
        for machine in consortium.named(block.machine):
            if block.kind == "after the run" and run is not None:
                assert run.wait(PATIENCE) == 0, server.console[-4000:]
                run = None
            if block.kind == "settings":
                machine.settings.append(machine.edit(block.commands))
            elif block.kind == "in the background":
                started = machine.start(block.commands)
                if block.machine == "server":
                    run = started
                    wait_until(lambda: "Listening on" in server.console, server)
            else:
                machine.run(block.commands)
    for site in SITES:
        said = consortium.machines[site].console
        assert " warning" not in said.split("Site ")[1].split(": connected")[0]
        assert "3 rounds" in said.split("Proven:")[1]
    assert "older keys, replaced" in consortium.machines["alder"].console
    assert "Round 2/2" in server.console
    assert "3/3 sites" in server.console


def test_every_shell_block_of_the_document_is_run() -> None:
    """A block of ``sh`` without a mark would not be run by anybody."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.count("```sh\n") == len(blocks())
