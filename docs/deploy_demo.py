"""One server and three clients on this machine, over TLS, with certificates made on the spot.

    make deploy-demo
    python docs/deploy_demo.py --data DIR privacy=off federation.rounds=2

Everything happens in one new folder, whose path is printed. Real deployments use the same
commands, one machine each, and keys that are made where they are used; see docs/deploy.md.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PATIENTS = 40


def run(*words: str | Path) -> None:
    """Run a fedmed command and stop if it fails."""
    subprocess.run([sys.executable, "-m", "fedmed.cli", *map(str, words)], check=True)  # noqa: S603


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(module: str, folder: Path, *settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``python -m MODULE settings`` beside us and stop it at the end."""
    words = [sys.executable, "-m", module, *settings]
    started = subprocess.Popen(words, cwd=folder)  # noqa: S603 - our own modules
    try:
        yield started
    finally:
        if started.poll() is None:
            started.terminate()
        started.wait(30)


def main() -> int:
    """Bring up the federation and wait for its last round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="archives, one folder a hospital")
    parser.add_argument("settings", nargs="*", help="settings of the server")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fedmed-deploy-"))
    sys.stdout.write(f"Working in {folder}\n")
    data = given.data.resolve() if given.data else folder / "data"
    if given.data is None:
        run("data", "phantom", data, "--sites", "3", "--patients", str(PATIENTS))
    sites = sorted(path.parent.name.lower() for path in data.glob("*/manifest.csv"))
    run("pki", "demo", folder / "certificates", "--sites", *sites)
    address = f"link.address=127.0.0.1:{free_port()}"
    rounds = given.settings or ["federation.rounds=3"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(process("server", folder, address, *rounds))
        for site in sites:
            settings = [f"site={site}", f"data.root={data}", address]
            stack.enter_context(process("clients", folder, *settings))
        return server.wait()


if __name__ == "__main__":
    sys.exit(main())
