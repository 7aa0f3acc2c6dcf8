"""The gateway in front of an application that would answer everything."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from forged_certificates import consortium
from hypothesis import given
from hypothesis import strategies as st

from fedmed.errors import FederationError
from fedmed.federation.membership import Membership
from fedmed.federation.mutual_tls import server_context
from fedmed.trust.credentials import load_credentials
from server.admission import Admission
from server.gateway import ADMITTED, REFUSED, Event, Gateway, Receive, Scope, Send
from server.rates import Rates
from server.superlink import SuperLinkServer

LIMIT = 1000
ADMITTED_PATH = "/v1/fleet/pull-messages"


class Obliging:
    """Answers 200 to whatever reaches it, and remembers it."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            event = await receive()
            body += event.get("body", b"")  # type: ignore[operator]
            if not event.get("more_body"):
                break
        self.seen.append((scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"obliged"})


class Door:
    """A running server and a member's TLS client that sends bytes as they are."""

    def __init__(self, server: SuperLinkServer, site: Path, behind: Obliging) -> None:
        self.server = server
        self.behind = behind
        self.context = ssl.create_default_context(cafile=site / "root.crt")
        self.context.load_cert_chain(site / "tls.crt", site / "tls.key")
        key = load_credentials(site, None).tls_key.public_key()
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.node_key = b"flwr-public-key: " + base64.b64encode(pem) + b"\r\n"

    def connect(self) -> ssl.SSLSocket:
        host, port = self.server.address.split(":")
        raw = socket.create_connection((host, int(port)), timeout=10)
        return self.context.wrap_socket(raw, server_hostname=host)

    def send(self, target: str, method: str = "POST", extra: bytes = b"", body: bytes = b"") -> int:
        """Send one request with the target spelled as given; return the status."""
        length = b"" if b"Transfer-Encoding" in extra else b"Content-Length: %d\r\n" % len(body)
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\n".encode() + self.node_key
        with self.connect() as connection:
            connection.sendall(head + length + extra + b"\r\n" + body)
            return _status(connection)


def _status(connection: ssl.SSLSocket) -> int:
    answer = b""
    while b"\r\n" not in answer:
        piece = connection.recv(4096)
        if not piece:
            return 0
        answer += piece
    return int(answer.split()[1])


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return consortium(tmp_path_factory.mktemp("members")).folder.parent


def _server(members: Path, behind: Obliging, **settings: int) -> SuperLinkServer:
    credentials = load_credentials(members / "server", None)
    membership = Membership(credentials.folder, credentials.publication)
    return SuperLinkServer(
        behind,
        server_context(credentials, membership),
        admission=Admission(membership),
        rates=Rates(requests_per_second=1000.0),
        **settings,
    )


@pytest.fixture(scope="module")
def door(members: Path) -> Iterator[Door]:
    behind = Obliging()
    with _server(members, behind, body_limit=LIMIT) as server:
        yield Door(server, members / "north", behind)


@pytest.mark.parametrize("path", sorted(ADMITTED))
def test_admitted_paths_reach_the_application_with_their_body(door: Door, path: str) -> None:
    assert door.send(path, body=b"payload") == 200
    assert door.behind.seen[-1] == (path, b"payload")


@pytest.mark.parametrize("path", sorted(REFUSED))
def test_registering_and_code_are_refused(door: Door, path: str) -> None:
    before = len(door.behind.seen)
    assert door.send(path) == 403
    assert len(door.behind.seen) == before


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/health",
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/runtime/push-messages",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/pull-messages/",
        "//v1/fleet/pull-messages",
        "//v1/fleet/../control/start-run",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1%2ffleet%2fpull-messages",
        "/v1/fleet%2Fpull-messages",
        "/v1/fleet/pull%2dmessages",
        "/v1/fleet/./pull-messages",
        "/v1/fleet/get%2dfab",
        "/v1/fleet/pull-messages;x",
        "/v1/fleet/pull-messages%00",
        "/v1/fleet/pull-messages?x=1",
        "/V1/FLEET/PULL-MESSAGES",
        "http://x/v1/control/start-run",
        "*",
    ],
)
def test_other_paths_do_not_exist(door: Door, target: str) -> None:
    before = len(door.behind.seen)
    assert door.send(target) in {404, 400}
    assert len(door.behind.seen) == before


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_other_methods_do_not_exist(door: Door, method: str) -> None:
    before = len(door.behind.seen)
    assert door.send(ADMITTED_PATH, method) == 404
    assert len(door.behind.seen) == before


def test_body_at_the_limit_passes_and_one_byte_more_does_not(door: Door) -> None:
    assert door.send(ADMITTED_PATH, body=b"x" * LIMIT) == 200
    before = len(door.behind.seen)
    assert door.send(ADMITTED_PATH, body=b"x" * (LIMIT + 1)) == 413
    assert len(door.behind.seen) == before


def test_declared_length_is_refused_before_the_body_is_sent(door: Door) -> None:
    with door.connect() as connection:
        connection.sendall(
            f"POST {ADMITTED_PATH} HTTP/1.1\r\nHost: x\r\n".encode()
            + door.node_key
            + b"Content-Length: 99999999999999\r\n\r\n"
        )
        assert _status(connection) == 413


def test_body_without_a_declared_length_is_bounded(door: Door) -> None:
    chunked = b"Transfer-Encoding: chunked\r\n"
    small = b"5\r\nhello\r\n0\r\n\r\n"
    assert door.send(ADMITTED_PATH, extra=chunked, body=small) == 200
    assert door.behind.seen[-1] == (ADMITTED_PATH, b"hello")
    before = len(door.behind.seen)
    # The last chunk never comes: the refusal must not wait for it.
    endless = b"258\r\n" + b"x" * 600 + b"\r\n" + b"258\r\n" + b"x" * 600 + b"\r\n"
    assert door.send(ADMITTED_PATH, extra=chunked, body=endless) == 413
    assert len(door.behind.seen) == before


def test_endless_headers_are_cut_off(door: Door) -> None:
    with door.connect() as connection:
        try:
            connection.sendall(f"POST {ADMITTED_PATH} HTTP/1.1\r\n".encode())
            for _ in range(64):
                connection.sendall(b"X-Filler: " + b"x" * 65536 + b"\r\n")
            status = _status(connection)
        except OSError:
            status = 0  # cut off while sending
    assert status in {0, 400, 431}


def test_plain_http_gets_no_answer(door: Door) -> None:
    host, port = door.server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"POST {ADMITTED_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        try:
            answer = connection.recv(4096)
        except ConnectionResetError:
            answer = b""
    assert b"HTTP/1" not in answer


def _scope(path: str, raw_path: bytes | None) -> Scope:
    return {"type": "http", "method": "POST", "path": path, "raw_path": raw_path, "headers": []}


def _statuses(gateway: Gateway, scope: Scope, *events: Event) -> list[object]:
    sent: list[object] = []
    waiting = list(events)

    async def receive() -> Event:
        if waiting:
            return waiting.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(event: Event) -> None:
        if "status" in event:
            sent.append(event["status"])

    asyncio.run(gateway(scope, receive, send))
    return sent


_PARTS = st.sampled_from(
    ["/", "//", "v1", "fleet", "control", "pull-messages", "..", ".", "%2f", "%2e", "get-fab", ""]
)


@given(st.one_of(st.text(), st.lists(_PARTS).map("".join)), st.binary() | st.none())
def test_nothing_but_the_list_is_ever_handed_on(path: str, raw_path: bytes | None) -> None:
    behind = Obliging()
    for raw in (raw_path, path.encode("utf-8", "surrogatepass")):
        body: Event = {"type": "http.request", "body": b""}
        _statuses(Gateway(behind), _scope(path, raw), body)
    assert {seen for seen, _ in behind.seen} <= ADMITTED


def test_slow_body_times_out() -> None:
    behind = Obliging()
    gateway = Gateway(behind, body_seconds=0.01)
    started: Event = {"type": "http.request", "body": b"x", "more_body": True}
    scope = _scope(ADMITTED_PATH, ADMITTED_PATH.encode())
    assert _statuses(gateway, scope, started) == [408]
    assert behind.seen == []


def test_body_that_stands_still_times_out_long_before_its_time_is_over() -> None:
    behind = Obliging()
    gateway = Gateway(behind, idle_seconds=0.01)
    started: Event = {"type": "http.request", "body": b"x", "more_body": True}
    scope = _scope(ADMITTED_PATH, ADMITTED_PATH.encode())
    assert _statuses(gateway, scope, started) == [408]
    assert behind.seen == []
    ended: Event = {"type": "http.request", "body": b"y"}
    assert _statuses(gateway, scope, started, ended) == [200]
    assert behind.seen == [(ADMITTED_PATH, b"xy")]


def test_hanging_up_within_the_body_reaches_nobody() -> None:
    behind = Obliging()
    scope = _scope(ADMITTED_PATH, ADMITTED_PATH.encode())
    started: Event = {"type": "http.request", "body": b"x", "more_body": True}
    assert _statuses(Gateway(behind), scope, started, {"type": "http.disconnect"}) == []
    assert behind.seen == []


def test_websockets_are_closed() -> None:
    behind = Obliging()
    sent: list[Event] = []

    async def receive() -> Event:
        return {"type": "websocket.connect"}

    async def send(event: Event) -> None:
        sent.append(event)

    asyncio.run(Gateway(behind)({"type": "websocket", "path": ADMITTED_PATH}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert behind.seen == []


def test_taken_port_is_said_so_and_server_stops_without_leaving_threads(
    door: Door, members: Path
) -> None:
    before = set(threading.enumerate())
    port = int(door.server.address.split(":")[1])
    with pytest.raises(FederationError, match="cannot listen"):
        _server(members, Obliging(), port=port).start()
    server = _server(members, Obliging())
    server.start()
    address = server.address
    server.stop()
    server.stop()
    assert set(threading.enumerate()) <= before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address.split(":")[1])), timeout=5)
