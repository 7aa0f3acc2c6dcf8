"""A server and its sites in one process, over real sockets and mutual TLS; for several tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.connection import serve
from fedmed.errors import FedmedError
from fedmed.federation.flower_link import FleetConnection, SuperLink, SuperLinkGrid
from fedmed.federation.membership import Membership
from fedmed.federation.mutual_tls import server_context
from fedmed.trust.credentials import Credentials, load_credentials
from server.admission import Admission
from server.gateway import Application, Event, Receive, Scope, Send
from server.rates import Rates
from server.superlink import SuperLinkServer

DEADLINE = 20.0


def wait_for(condition: Callable[[], object], seconds: float = DEADLINE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


async def _nowhere(event: Event) -> None:
    """Lose an answer."""


class Federation:
    """A SuperLink behind a running server, and what its sites need."""

    def __init__(
        self,
        folder: Path,
        database: Path | None = None,
        port: int = 0,
        rates: Rates | None = None,
        register: bool = True,
    ) -> None:
        self.folder = folder
        self.paths: list[str] = []
        self.lost_answers: dict[str, int] = {}
        self.link = SuperLink(database)
        credentials = load_credentials(folder / "server", None)
        membership = Membership(credentials.folder, credentials.publication)
        self.admission = (
            Admission(membership, self.link.register_site) if register else Admission(membership)
        )
        self.server = SuperLinkServer(
            self._recorded(self.link.asgi_app),
            server_context(credentials, membership),
            admission=self.admission,
            rates=rates,
            port=port,
        )
        self.server.start()
        self.port = int(self.server.address.split(":")[1])

    def _recorded(self, application: Application) -> Application:
        async def recorded(scope: Scope, receive: Receive, send: Send) -> None:
            self.paths.append(str(scope["path"]))
            lost = self.lost_answers.get(str(scope["path"]), 0)
            if lost:
                self.lost_answers[str(scope["path"])] = lost - 1
                await application(scope, receive, _nowhere)
                await send({"type": "http.response.start", "status": 502, "headers": []})
                await send({"type": "http.response.body", "body": b""})
            else:
                await application(scope, receive, send)

        return recorded

    def credentials(self, site: str) -> Credentials:
        return load_credentials(self.folder / site, None)

    def connect(self, site: str, proxy: str | None = None) -> FleetConnection:
        return FleetConnection(self.server.address, self.credentials(site), proxy=proxy)

    def start(self) -> SuperLinkGrid:
        self.link.start_run()
        return self.link.grid()

    def close(self) -> None:
        self.server.stop()
        self.link.close()


class Site:
    """A site's loop in a thread."""

    def __init__(self, app: ClientApp, connect: Callable[[], FleetConnection]) -> None:
        self.stop_asked = threading.Event()
        self.events: list[str] = []
        self.error: Exception | None = None
        self.contexts: list[Context] = []
        self._thread = threading.Thread(target=self._run, args=(app, connect))
        self._thread.start()

    def _context(self, run_id: int, node_id: int) -> Context:
        self.contexts.append(Context(run_id, node_id, {}, RecordDict(), {}))
        return self.contexts[-1]

    def _run(self, app: ClientApp, connect: Callable[[], FleetConnection]) -> None:
        try:
            serve(app, connect, self._context, stop=self.stop_asked, on_event=self.events.append)
        except FedmedError as error:
            self.error = error

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> float:
        """Stop the loop; return the seconds that it took."""
        began = time.monotonic()
        self.stop_asked.set()
        self._thread.join(DEADLINE)
        assert self.ended
        return time.monotonic() - began


@contextmanager
def sites(federation: Federation, app: ClientApp, *names: str) -> Iterator[dict[str, Site]]:
    running = {name: Site(app, lambda name=name: federation.connect(name)) for name in names}
    try:
        wait_for(lambda: set(federation.link.connected_sites()) == set(names))
        yield running
    finally:
        for site in running.values():
            site.stop()


def echo_app() -> ClientApp:
    """Returns the contents, and how many messages this context has seen."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen = context.state.get("seen", MetricRecord({"count": 0}))
        context.state["seen"] = MetricRecord({"count": int(seen["count"]) + 1})
        content = RecordDict(dict(message.content.items()))
        content["seen"] = context.state["seen"]
        return Message(content, reply_to=message)

    return app


def everything() -> RecordDict:
    generator = np.random.default_rng(5)
    arrays = {
        "float32": Array(generator.normal(size=(3, 5)).astype(np.float32)),
        "float16": Array(generator.normal(size=(2, 2, 2)).astype(np.float16)),
        "int64": Array(np.arange(7)),
        "bool": Array(np.array([True, False])),
        "scalar": Array(np.array(2.5)),
        "empty": Array(np.zeros((0, 4), np.float32)),
        "large": Array(generator.normal(size=1_500_000).astype(np.float64)),
        "raw": Array(dtype="<u4", shape=(2, 2), stype="fedmed.raw", data=bytes(range(16))),
    }
    return RecordDict(
        {
            "arrays": ArrayRecord(arrays),
            "config": ConfigRecord(
                {
                    "text": "März",
                    "bytes": b"\x00\xff",
                    "flag": True,
                    "number": -3,
                    "real": 0.1,
                    "list": ["a", "b"],
                }
            ),
            "metrics": MetricRecord({"loss": 0.1, "count": 3, "many": [1.5, 2.5]}),
        }
    )


def request(node: int, content: RecordDict | None = None, ttl: float = 60.0) -> Message:
    return Message(content or RecordDict(), node, "train", ttl=ttl, group_id="1")


def answer(grid: SuperLinkGrid, messages: list[Message]) -> dict[str, Message]:
    """Push, and wait for every reply; replies by the identifier of what they answer."""
    waiting = set(grid.push_messages(messages))
    replies: dict[str, Message] = {}

    def all_there() -> bool:
        for reply in grid.pull_messages(waiting):
            replies[reply.metadata.reply_to_message_id] = reply
        return set(replies) == waiting

    wait_for(all_there)
    return replies
