"""What the tests of real processes share."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fedmed.cli import main


@pytest.fixture
def port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """Members' folders of a server and three sites, where the processes look for them."""
    folder = tmp_path / "certificates"
    assert main(["pki", "demo", str(folder), "--sites", "alder", "birch", "cedar"]) == 0
    return folder


@pytest.fixture(scope="session")
def four_archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small phantom hospitals, read-only to tests."""
    from fedmed.data.phantom import write_archives

    root = tmp_path_factory.mktemp("four-archives")
    write_archives(root, sites=4, patients=12, seed=2, workers=1)
    return root
