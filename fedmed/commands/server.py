"""``fedmed server`` (``python -m server``): the consortium's server."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from flwr.app import Context, RecordDict
from rich.console import Console

from fedmed.commands.console import ConsoleObserver
from fedmed.commands.logs import log_to
from fedmed.commands.run_report import say_how_to_resume, write_run_report
from fedmed.configuration.commands import ServerSettings
from fedmed.configuration.loading import load_settings, read_settings, write_settings
from fedmed.errors import ConfigurationError
from fedmed.federation.flower_link import SuperLink, set_task_identity
from fedmed.federation.membership import Membership
from fedmed.federation.mutual_tls import server_context
from fedmed.federation.run_folder import RunFolder
from fedmed.trust.credentials import load_credentials
from fedmed.trust.passphrase import find_passphrase
from fedmed.trust.roster import Role
from server.admission import Admission
from server.app import ServerRun, make_server_app
from server.rates import Rates
from server.superlink import SuperLinkServer

EXAMPLES = """\
  python -m server link.credentials=certificates/server
      train with the sites of the roster in that folder
  python -m server federation.rounds=20 privacy=high link.address=0.0.0.0:8443
      more rounds, stronger privacy, reachable from other machines
  python -m server resume=outputs/2026-11-23/14-05-09
      go on with a run after the server was stopped"""


def serve_federation(arguments: Sequence[str], console: Console) -> int:
    """Run the server from Hydra overrides until the last round.

    Raises:
        FedmedError: with what is wrong and the way out.
    """
    settings, folder = _settings_and_folder(arguments)
    link = settings.link
    host, port = split_address(link.address)
    passphrase = find_passphrase(Path(link.passphrase_file) if link.passphrase_file else None)
    credentials = load_credentials(Path(link.credentials), passphrase)
    membership = Membership(credentials.folder, credentials.publication)
    context = server_context(credentials, membership)
    sites = credentials.roster.names(Role.site)
    if len(sites) < settings.federation.minimum_sites:
        raise ConfigurationError(
            f"The roster in {link.credentials} has {len(sites)} sites, but "
            f"federation.minimum_sites={settings.federation.minimum_sites}. Install the newest "
            "roster (fedmed pki install), or lower it."
        )
    with (
        _stop_on_sigterm(),
        log_to(folder.path / "fedmed.log"),
        say_how_to_resume("python -m server", folder.path, console),
        SuperLink() as superlink,
    ):
        with SuperLinkServer(
            superlink.asgi_app,
            context,
            admission=Admission(membership, superlink.register_site),
            rates=Rates(requests_per_second=link.requests_per_second),
            host=host,
            port=port,
            body_limit=link.max_body_megabytes * 2**20,
        ) as server:
            console.print(f"Listening on {server.address} for {', '.join(sites)}", soft_wrap=True)
            with ConsoleObserver(console) as observer:
                run = ServerRun(
                    settings.plan(),
                    folder,
                    observer,
                    credentials,
                    superlink.site_names,
                    expected=len(sites),
                    initial=Path(settings.model.init) if settings.model.init else None,
                )
                _execute(run, superlink)
                observer.run_finished(run.summary)
        if settings.tracking.report:
            write_run_report(folder.path)
    console.print(f"Run folder: {folder.path}", soft_wrap=True)
    return 0


def split_address(address: str) -> tuple[str, int]:
    """Split ``host:port``.

    Raises:
        ConfigurationError: if it is not of that form.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"link.address={address}: write host:port, as in 127.0.0.1:8443")
    return host.strip("[]"), int(port)


def _execute(run: ServerRun, superlink: SuperLink) -> None:
    set_task_identity()
    run_id = superlink.start_run()
    context = Context(run_id=run_id, node_id=0, node_config={}, state=RecordDict(), run_config={})
    try:
        make_server_app(run)(superlink.grid(), context)
    finally:
        superlink.finish_run()


def _settings_and_folder(arguments: Sequence[str]) -> tuple[ServerSettings, RunFolder]:
    settings = load_settings(ServerSettings, "server", arguments)
    if settings.resume is not None:
        path = Path(settings.resume)
        stored = read_settings(ServerSettings, path / "config.yaml")
        return stored, RunFolder(path, stored.tracking.keep_checkpoints)
    folder = RunFolder.create(Path(settings.tracking.folder), settings.tracking.keep_checkpoints)
    write_settings(settings, folder.path / "config.yaml")
    return settings, folder


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that every ``with`` ends as it should."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
