"""fedmed's own engines: one process, and the deployment over TLS."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flwr.app import Context, RecordDict

from clients.connection import serve
from fedmed.federation.flower_link import FleetConnection, SuperLink, set_task_identity
from fedmed.federation.in_process import InProcessGrid
from fedmed.trust.certificates import (
    create_authority,
    create_site_key,
    issue_server_certificate,
    load_public_keys,
    load_site_key,
)
from round_engines.echo import SITES, RoundTime, echo_client_app
from round_engines.rounds import time_rounds
from server.superlink import SuperLinkServer, server_tls_context

_CONNECT_SECONDS = 30.0


def in_process(folder: Path, rounds: int) -> list[RoundTime]:
    """Time rounds on fedmed's default engine of a simulation."""
    nodes: list[dict[str, str | int | float | bool]] = [
        {"partition-id": number} for number in range(len(SITES))
    ]
    grid = InProcessGrid(echo_client_app(), nodes, workers=len(SITES))
    try:
        return time_rounds(grid, folder, rounds)
    finally:
        grid.close()


def deployed(folder: Path, rounds: int) -> list[RoundTime]:
    """Time rounds over TLS on loopback: SuperLink, gateway, and three sites in threads."""
    keys = folder / "keys"
    create_authority(keys, "benchmark")
    issue_server_certificate(keys)
    for site in SITES:
        create_site_key(keys, site)
    set_task_identity()
    context = server_tls_context(keys / "server.crt", keys / "server.key")
    with SuperLink() as link:
        names = {
            link.register_site(name, key): name for name, key in load_public_keys(keys).items()
        }
        with (
            SuperLinkServer(link.asgi_app, context) as server,
            _sites(link, keys, server.address),
        ):
            link.start_run()
            try:
                return time_rounds(link.grid(), folder, rounds, lambda: names)
            finally:
                link.finish_run()


@contextlib.contextmanager
def _sites(link: SuperLink, keys: Path, address: str) -> Iterator[None]:
    """Run a site's loop, as at a hospital, in one thread a site."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=_serve_site, args=(site, keys, address, stop)) for site in SITES
    ]
    for thread in threads:
        thread.start()
    try:
        _wait_for(lambda: len(link.connected_sites()) == len(SITES))
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _serve_site(site: str, keys: Path, address: str, stop: threading.Event) -> None:
    serve(
        echo_client_app(lambda _context: site),
        lambda: FleetConnection(address, keys / "ca.crt", load_site_key(keys / f"{site}.key")),
        lambda run_id, node_id: Context(run_id, node_id, {}, RecordDict(), {}),
        stop=stop,
        on_event=lambda _event: None,
    )


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _CONNECT_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("the sites did not connect")
        time.sleep(0.01)
