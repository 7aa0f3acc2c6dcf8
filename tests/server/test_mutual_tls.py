"""Who gets through the server's door, over real sockets; each refusal beside one who gets in."""

from __future__ import annotations

import base64
import contextlib
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from forged_certificates import (
    consortium,
    expire_crl,
    forge_tls,
    other_authority,
    revoke_and_install,
)

from fedmed.errors import ConfigurationError, TrustError
from fedmed.federation.membership import Membership
from fedmed.federation.mutual_tls import client_context, server_context
from fedmed.trust.authority import Authority
from fedmed.trust.credentials import load_credentials
from fedmed.trust.issuance import Purpose
from fedmed.trust.roster import Role
from server.admission import Admission
from server.gateway import ADMITTED, REFUSED, Receive, Scope, Send
from server.rates import Rates
from server.superlink import SuperLinkServer

PATH = "/v1/fleet/pull-messages"
HUNG_UP = 0
NOW = datetime.now(UTC)
ACCEPTED = 200


class Obliging:
    """Answers 200 to whatever reaches it, and remembers it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        self.seen.append(str(scope["path"]))
        await send(
            {
                "type": "http.response.start",
                "status": ACCEPTED,
                "headers": [(b"content-length", b"0")],
            }
        )
        await send({"type": "http.response.body", "body": b""})


class Door:
    """A server with an obliging application behind the gateway, and clients that obey nobody."""

    def __init__(self, authority: Authority, rates: Rates | None = None) -> None:
        self.authority = authority
        self.folder = authority.folder.parent
        self.registered: list[str] = []
        self.behind = Obliging()
        self.now = 0.0
        credentials = load_credentials(self.folder / "server", None)
        self.later = timedelta()
        membership = Membership(
            credentials.folder, credentials.publication, lambda: datetime.now(UTC) + self.later
        )
        self.tls = server_context(credentials, membership)
        self.server = SuperLinkServer(
            self.behind,
            self.tls,
            admission=Admission(
                membership, lambda name, _key: self.registered.append(name), lambda: self.now
            ),
            rates=rates,
            body_limit=1000,
        )
        self.server.start()

    def context(self, certificate: Path | None, key: Path | None = None) -> ssl.SSLContext:
        """A client that checks the server's chain and shows what it is given."""
        context = ssl.create_default_context(cafile=self.folder / "server" / "root.crt")
        if certificate is not None:
            context.load_cert_chain(certificate, key or certificate.with_suffix(".key"))
        return context

    def connect(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        host, port = self.server.address.split(":")
        raw = socket.create_connection((host, int(port)), timeout=10)
        return context.wrap_socket(raw, server_hostname="localhost")

    def request(
        self, site: str, path: str = PATH, node: str | None = None, body: bytes = b"", **headers
    ) -> bytes:
        """Bytes of a request in the name of a site's node."""
        key = load_public_key_header(self.folder / (node or site))
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
        lines += [f"flwr-public-key: {key}"] if node != "nobody" else []
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def ask(self, site: str, certificate: Path | None = None, **settings) -> int:
        """One request on a connection of its own; its status, or 0 where the server hung up."""
        context = self.context(certificate or self.folder / site / "tls.crt")
        return self.ask_with(context, self.request(site, **settings))

    def ask_with(self, context: ssl.SSLContext, request: bytes) -> int:
        try:
            with self.connect(context) as connection:
                connection.sendall(request)
                return status(connection)
        except (ssl.SSLError, ConnectionError):
            return HUNG_UP


def load_public_key_header(folder: Path) -> str:
    if folder.name == "nobody":
        return ""
    key = load_pem_private_key((folder / "tls.key").read_bytes(), None).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(pem).decode()


def head(connection: ssl.SSLSocket) -> bytes:
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = connection.recv(4096)
        if not piece:
            break
        answer += piece
    return answer


def status(connection: ssl.SSLSocket) -> int:
    answer = head(connection)
    return int(answer.split()[1]) if answer else HUNG_UP


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return consortium(tmp_path_factory.mktemp("consortium") / "all").folder.parent


@pytest.fixture
def authority(made: Path, tmp_path: Path) -> Authority:
    shutil.copytree(made, tmp_path / "all")
    return Authority.open(tmp_path / "all" / "consortium", None)


@pytest.fixture
def door(authority: Authority) -> Iterator[Door]:
    opened = Door(authority)
    yield opened
    opened.server.stop()


# --- the handshake -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(ADMITTED))
def test_member_reaches_the_admitted_paths(door: Door, path: str) -> None:
    assert door.ask("north", path=path) == ACCEPTED
    assert door.behind.seen == [path]
    assert door.registered == (["north"] if path == "/v1/fleet/activate-node" else [])


@pytest.mark.parametrize(
    ("path", "expected"),
    [*((path, 403) for path in sorted(REFUSED)), ("/v1/control/start-run", 404), ("/", 404)],
)
def test_member_reaches_no_other_path(door: Door, path: str, expected: int) -> None:
    assert door.ask("north", path=path) == expected
    assert door.behind.seen == []


def refused_in_the_handshake(door: Door, certificate: Path | None) -> None:
    """North's certificate or none: nothing comes back; with south's, the server answers."""
    context = door.context(certificate)
    assert door.ask_with(context, door.request("north")) == HUNG_UP
    assert door.behind.seen == []
    assert door.ask("south") == ACCEPTED


def test_no_certificate(door: Door) -> None:
    refused_in_the_handshake(door, None)


def test_certificate_of_another_authority(door: Door, tmp_path: Path) -> None:
    certificate = door.folder / "north" / "tls.crt"
    assert door.ask("north") == ACCEPTED
    door.behind.seen.clear()
    other_authority(tmp_path / "other", door.folder / "north")
    refused_in_the_handshake(door, certificate)


@pytest.mark.parametrize(
    ("not_before", "not_after", "accepted"),
    [
        (NOW - timedelta(days=2), NOW + timedelta(days=2), True),
        (NOW - timedelta(days=2), NOW - timedelta(minutes=1), False),
        (NOW + timedelta(minutes=30), NOW + timedelta(days=2), False),
    ],
    ids=["valid", "expired", "not yet valid"],
)
def test_dates(door: Door, not_before: datetime, not_after: datetime, accepted: bool) -> None:
    north = door.folder / "north"
    forge_tls(door.authority, north, not_before=not_before, not_after=not_after)
    if accepted:
        assert door.ask("north") == ACCEPTED
    else:
        refused_in_the_handshake(door, north / "tls.crt")


def test_servers_certificate_is_no_clients(door: Door) -> None:
    """Purpose: the key is the server's own, signed by the root, in the roster."""
    refused_in_the_handshake(door, door.folder / "server" / "tls.crt")


def test_sites_name_in_a_certificate_for_servers(door: Door) -> None:
    north = door.folder / "north"
    forge_tls(door.authority, north, purpose=Purpose.server_tls)
    refused_in_the_handshake(door, north / "tls.crt")


def test_revoked_before_the_start(authority: Authority) -> None:
    revoke_and_install(authority, "north", authority.folder.parent / "server")
    door = Door(authority)
    try:
        refused_in_the_handshake(door, door.folder / "north" / "tls.crt")
    finally:
        door.server.stop()


def test_revoked_while_the_server_runs(door: Door) -> None:
    assert door.ask("north") == ACCEPTED
    door.behind.seen.clear()
    revoke_and_install(door.authority, "north", door.folder / "server")
    refused_in_the_handshake(door, door.folder / "north" / "tls.crt")


def test_revoked_while_the_connection_is_open(door: Door) -> None:
    with (
        door.connect(door.context(door.folder / "north" / "tls.crt")) as north,
        door.connect(door.context(door.folder / "south" / "tls.crt")) as south,
    ):
        for _ in range(2):
            north.sendall(door.request("north"))
            assert status(north) == ACCEPTED
        revoke_and_install(door.authority, "north", door.folder / "server")
        north.sendall(door.request("north"))
        answer = head(north)
        assert b" 403 " in answer.splitlines()[0]
        assert b"fedmed-refusal: certificate" in answer
        assert north.recv(1) == b""  # and the connection is over
        south.sendall(door.request("south"))
        assert status(south) == ACCEPTED


def test_certificate_that_expires_while_the_connection_is_open(door: Door) -> None:
    certificate = door.folder / "north" / "tls.crt"
    forge_tls(door.authority, door.folder / "north", not_after=NOW + timedelta(hours=1))
    with (
        door.connect(door.context(certificate)) as north,
        door.connect(door.context(door.folder / "south" / "tls.crt")) as south,
    ):
        north.sendall(door.request("north"))
        assert status(north) == ACCEPTED
        door.later += timedelta(hours=2)
        door.now += 2.0
        north.sendall(door.request("north"))
        assert status(north) == 403
        south.sendall(door.request("south"))
        assert status(south) == ACCEPTED


def test_revocation_list_that_runs_out_while_the_connection_is_open(door: Door) -> None:
    with door.connect(door.context(door.folder / "north" / "tls.crt")) as north:
        for days, expected in ((29, ACCEPTED), (31, 503)):
            door.later = timedelta(days=days)
            north.sendall(door.request("north"))
            answer = head(north)
            assert int(answer.split()[1]) == expected
    assert b"fedmed-refusal: published" in answer


@pytest.mark.parametrize("running", [False, True])
def test_expired_revocation_list_lets_nobody_in(authority: Authority, running: bool) -> None:
    folder = authority.folder.parent / "server"
    if not running:
        expire_crl(authority, folder)
        with pytest.raises(TrustError):
            Door(authority)
        return
    door = Door(authority)
    try:
        with door.connect(door.context(door.folder / "north" / "tls.crt")) as north:
            north.sendall(door.request("north"))
            assert status(north) == ACCEPTED
            fresh = (folder / "crl.pem").read_bytes()
            expire_crl(authority, folder)
            north.sendall(door.request("north"))
            assert status(north) == 503
        assert door.ask("south") == HUNG_UP
        (folder / "crl.pem").write_bytes(fresh)
        assert door.ask("south") == ACCEPTED
    finally:
        door.server.stop()


def test_tls_1_2_is_refused(door: Door) -> None:
    context = door.context(door.folder / "north" / "tls.crt")
    assert door.ask_with(context, door.request("north")) == ACCEPTED
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        door.connect(context)


@pytest.mark.parametrize("protected", [True, False])
def test_no_session_is_resumed_without_its_certificate(door: Door, protected: bool) -> None:
    """A ticket would let its holder in without a look at the revocation list."""
    if not protected:
        door.tls.num_tickets = 2
    context = door.context(door.folder / "north" / "tls.crt")
    with door.connect(context) as connection:
        connection.sendall(door.request("north"))
        assert status(connection) == ACCEPTED
        ticket = connection.session is not None and connection.session.has_ticket
    assert ticket is not protected


# --- the request -------------------------------------------------------------------------------


def test_site_cannot_act_as_the_node_of_another(door: Door) -> None:
    """South's certificate with north's node key, which is what Flower would look at."""
    certificate = door.folder / "south" / "tls.crt"
    for node in ("north", "nobody"):
        assert door.ask_with(door.context(certificate), door.request("north", node=node)) == 403
    twice = door.request(
        "south", **{"Flwr-Public-Key": load_public_key_header(door.folder / "north")}
    )
    assert door.ask_with(door.context(certificate), twice) == 403
    assert door.behind.seen == []
    assert door.ask_with(door.context(certificate), door.request("south")) == ACCEPTED


def test_certificate_for_another_name_than_the_roster_has_for_its_key(door: Door) -> None:
    """The root signed it, but the roster binds that key to north."""
    forge_tls(door.authority, door.folder / "north", name="south")
    assert door.ask("north") == 403
    assert door.behind.seen == []
    forge_tls(door.authority, door.folder / "north", name="north")
    assert door.ask("north") == ACCEPTED


def test_certificate_of_nobody_in_the_roster(door: Door) -> None:
    forge_tls(door.authority, door.folder / "north", name="east")
    assert door.ask("north") == 403
    assert door.ask("south") == ACCEPTED


def test_site_that_names_itself_a_server(door: Door) -> None:
    """A client's certificate for the role of the server passes the handshake, not the door."""
    forge_tls(door.authority, door.folder / "north", role=Role.server, purpose=Purpose.site_tls)
    assert door.ask("north") == 403
    assert door.behind.seen == []


def test_body_over_the_limit(door: Door) -> None:
    assert door.ask("north", body=b"x" * 1000) == ACCEPTED
    assert door.ask("north", body=b"x" * 1001) == 413
    assert door.behind.seen == [PATH]


def test_rate_of_one_member_is_bounded_and_the_others_are_free(authority: Authority) -> None:
    door = Door(authority, Rates(requests_per_second=0.01, under_way=4))
    try:
        with door.connect(door.context(door.folder / "north" / "tls.crt")) as north:
            answers = []
            for _ in range(3):
                north.sendall(door.request("north", body=b"x" * 900))
                answers.append(head(north))
            assert [int(answer.split()[1]) for answer in answers] == [ACCEPTED, 429, 429]
            assert b"retry-after: 100" in answers[1]
        assert door.ask("north") == 429  # not a matter of the connection
        assert door.ask("south") == ACCEPTED
        assert len(door.behind.seen) == 2
    finally:
        door.server.stop()


def test_connections_of_one_key_are_bounded(door: Door) -> None:
    context = door.context(door.folder / "north" / "tls.crt")
    with contextlib.ExitStack() as opened:
        statuses = []
        for _ in range(40):
            connection = opened.enter_context(door.connect(context))
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                connection.sendall(door.request("north"))
                statuses.append(status(connection))
        assert statuses.count(ACCEPTED) == 32
        assert door.ask("south") == ACCEPTED


# --- the credentials ---------------------------------------------------------------------------


def test_contexts_are_for_their_roles(authority: Authority) -> None:
    folder = authority.folder.parent
    for name, wrong, right in (
        ("server", client_context, server_context),
        ("north", server_context, client_context),
    ):
        credentials = load_credentials(folder / name, None)
        membership = Membership(credentials.folder, credentials.publication)
        right(credentials, membership)
        with pytest.raises(TrustError, match=r"link\.credentials"):
            wrong(credentials, membership)


def test_encrypted_key_needs_its_passphrase_and_asks_nobody(authority: Authority) -> None:
    folder = authority.folder.parent / "server"
    plain = load_credentials(folder, None)
    (folder / "tls.key").write_bytes(
        plain.tls_key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"correct horse")
        )
    )
    membership = Membership(folder, plain.publication)
    good = replace(plain, passphrase=b"correct horse")
    server_context(good, membership)
    for wrong in (b"battery staple", None):
        with pytest.raises(ConfigurationError, match="passphrase") as refused:
            server_context(replace(plain, passphrase=wrong), membership)
        assert "correct" not in str(refused.value)
