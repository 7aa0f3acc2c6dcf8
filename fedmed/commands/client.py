"""``fedmed client`` (``python -m clients``): one hospital's client."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from flwr.app import Context, RecordDict
from rich.console import Console

from clients.app import make_client_app
from clients.connection import serve
from clients.signed_site import SignedSite
from clients.site import Site
from fedmed.commands.logs import log_to
from fedmed.configuration.commands import ClientSettings
from fedmed.configuration.groups import DataSource
from fedmed.configuration.loading import load_settings
from fedmed.data.sources import CohortLoader, site_sources
from fedmed.durable_files import locked_alone
from fedmed.errors import ConfigurationError
from fedmed.federation.flower_link import FleetConnection
from fedmed.training.device import default_threads, keep_freed_memory
from fedmed.trust.credentials import Credentials, load_credentials
from fedmed.trust.passphrase import find_passphrase
from fedmed.trust.policy_file import read_policy

EXAMPLES = """\
  python -m clients site=cs data.root=/data link.address=fl.example.org:8443
      the client of hospital cs, whose archive is /data/cs
  python -m clients site=cs data.root=/data/cs site.max_epsilon=8 site.require_privacy=true
      refuse plans that cost more than epsilon 8, or that have no privacy at all
  python -m clients site=cs data.root=/data site.device=cuda:1
      train on the second GPU"""


def join_federation(arguments: Sequence[str], console: Console) -> int:
    """Run one site's client until it is stopped.

    Raises:
        FedmedError: with what is wrong and the way out.
    """
    settings = load_settings(ClientSettings, "client", arguments)
    name = settings.site.name
    keep_freed_memory()
    link = settings.link
    passphrase = find_passphrase(Path(link.passphrase_file) if link.passphrase_file else None)

    def credentials() -> Credentials:
        # Read anew each time, so that rotated keys count without a restart.
        return load_credentials(Path(link.credentials), passphrase)

    if credentials().name != name:
        raise ConfigurationError(
            f"link.credentials={link.credentials} holds the keys of {credentials().name!r}, and "
            f"this is site={name}. Point it to the folder of this site's keys."
        )
    policy = read_policy(Path(settings.site.policy) if settings.site.policy else None)
    state = Path(settings.site.state or f"state/{name}")
    threads = settings.site.threads or default_threads()
    site = Site(replace(settings.site, threads=threads), _loader(settings), state, policy=policy)
    signed = SignedSite(site, credentials)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())

    def connect() -> FleetConnection:
        return FleetConnection(link.address, credentials(), proxy=link.proxy or None)

    def context(run_id: int, node_id: int) -> Context:
        return Context(
            run_id=run_id, node_id=node_id, node_config={}, state=RecordDict(), run_config={}
        )

    def tell(event: str) -> None:
        console.print(f"{datetime.now():%H:%M:%S} {name}: {event}", soft_wrap=True, markup=False)

    app = make_client_app(lambda _context: signed, tell)
    with _only_client(state), log_to(state / "fedmed.log"):
        serve(app, connect, context, stop=stop, on_event=tell)
    tell("stopped")
    return 0


@contextmanager
def _only_client(state: Path) -> Iterator[None]:
    """Keep a second client of the same site from taking this one's messages."""
    try:
        with locked_alone(state / ".client.lock"):
            yield
    except BlockingIOError as error:
        raise ConfigurationError(
            f"{state}: another client of this site is running. Stop it first, or give this one its "
            "own keys and site.state."
        ) from error


def _loader(settings: ClientSettings) -> CohortLoader:
    """Find the site's own archive: ``data.root/NAME``, or ``data.root`` itself."""
    data, name = settings.data, settings.site.name
    loaders = site_sources(data)
    if name.lower() in loaders:
        return loaders[name.lower()]
    if data.source != DataSource.npz and len(loaders) == 1:
        return next(iter(loaders.values()))
    raise ConfigurationError(
        f"data.root={data.root}: no folder for site={name}; there are {', '.join(loaders)}."
    )
