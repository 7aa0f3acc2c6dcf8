"""fedmed's own engines: one process, and the deployment over mutual TLS.

Each with plain updates, as the engines of Flower that it is compared with, and with secure
aggregation, which fedmed does unless told otherwise.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from clients.connection import serve
from fedmed.federation.cohort import Roster
from fedmed.federation.flower_link import FleetConnection, SuperLink, set_task_identity
from fedmed.federation.in_process import InProcessGrid
from fedmed.federation.membership import Membership
from fedmed.federation.mutual_tls import server_context
from fedmed.trust.credentials import load_credentials
from fedmed.trust.simulated import demo_consortium
from round_engines.echo import SITES, RoundTime, echo_client_app
from round_engines.rounds import time_rounds
from round_engines.signed_echo import new_context, signed_echo_app, signed_echo_apps
from round_engines.signed_rounds import time_signed_rounds
from server.admission import Admission
from server.rates import Rates
from server.superlink import SuperLinkServer

_CONNECT_SECONDS = 30.0

_TimeRounds = Callable[[Grid, Roster | None], list[RoundTime]]


def in_process(folder: Path, rounds: int) -> list[RoundTime]:
    """Time rounds on fedmed's default engine of a simulation."""
    return _in_process(echo_client_app(), lambda grid, _: time_rounds(grid, folder, rounds))


def in_process_secagg(folder: Path, rounds: int) -> list[RoundTime]:
    """Time rounds of secure aggregation on the same engine."""
    keys = _keys(folder)
    return _in_process(
        signed_echo_apps(keys, folder / "states"),
        lambda grid, _: time_signed_rounds(grid, folder, rounds, keys / "server"),
    )


def deployed(folder: Path, rounds: int) -> list[RoundTime]:
    """Time rounds over mutual TLS on loopback: SuperLink, gateway, and three sites in threads."""
    return _deployed(
        _keys(folder),
        lambda site: echo_client_app(lambda _context: site),
        lambda grid, roster: time_rounds(grid, folder, rounds, roster),
    )


def deployed_secagg(folder: Path, rounds: int) -> list[RoundTime]:
    """Time rounds of secure aggregation over the same link."""
    keys = _keys(folder)
    return _deployed(
        keys,
        lambda site: signed_echo_app(keys, folder / "states", site),
        lambda grid, roster: time_signed_rounds(grid, folder, rounds, keys / "server", roster),
    )


def _keys(folder: Path) -> Path:
    keys = folder / "keys"
    demo_consortium(keys, SITES, ("localhost", "127.0.0.1"))
    return keys


def _in_process(app: ClientApp, timed: _TimeRounds) -> list[RoundTime]:
    nodes: list[dict[str, str | int | float | bool]] = [
        {"partition-id": number} for number in range(len(SITES))
    ]
    grid = InProcessGrid(app, nodes, workers=len(SITES))
    try:
        return timed(grid, None)
    finally:
        grid.close()


def _deployed(
    keys: Path, app_of: Callable[[str], ClientApp], timed: _TimeRounds
) -> list[RoundTime]:
    set_task_identity()
    credentials = load_credentials(keys / "server", None)
    membership = Membership(credentials.folder, credentials.publication)
    # As many as they can: what is measured is the link, not the limit.
    rates = Rates(requests_per_second=1e6, bytes_per_second=1e12, burst_bytes=1e12)
    with SuperLink() as link:
        admission = Admission(membership, link.register_site)
        context = server_context(credentials, membership)
        with (
            SuperLinkServer(link.asgi_app, context, admission=admission, rates=rates) as server,
            _sites(link, keys, server.address, app_of),
        ):
            link.start_run()
            try:
                return timed(link.grid(), link.site_names)
            finally:
                link.finish_run()


@contextlib.contextmanager
def _sites(
    link: SuperLink, keys: Path, address: str, app_of: Callable[[str], ClientApp]
) -> Iterator[None]:
    """Run a site's loop, as at a hospital, in one thread a site."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=_serve_site, args=(app_of(site), keys / site, address, stop))
        for site in SITES
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


def _serve_site(app: ClientApp, keys: Path, address: str, stop: threading.Event) -> None:
    serve(
        app,
        lambda: FleetConnection(address, load_credentials(keys, None)),
        new_context,
        stop=stop,
        on_event=lambda _event: None,
    )


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _CONNECT_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("the sites did not connect")
        time.sleep(0.01)
