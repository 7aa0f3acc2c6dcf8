"""The link to Flower in deployment: real sockets, real TLS, both ends in this process."""

from __future__ import annotations

import ast
import asyncio
import base64
import hashlib
import inspect
import io
import shutil
import socket
import ssl
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib import import_module, metadata
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flower_federation import (
    DEADLINE,
    Federation,
    Site,
    answer,
    echo_app,
    everything,
    request,
    sites,
    wait_for,
)
from flwr.app import (
    Array,
    ArrayRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from forged_certificates import (
    consortium,
    expire_crl,
    forge_tls,
    other_authority,
    revoke_and_install,
)

from fedmed.errors import ConfigurationError, FederationError, ProtocolError, TrustError
from fedmed.federation.flower_link import (
    ErrorCode,
    FleetConnection,
    MessageClosedError,
    ServerCertificateError,
    ServerUnreachableError,
    SiteRefusedError,
    SuperLink,
    assign_message_id,
    set_task_identity,
)
from fedmed.trust.authority import Authority
from fedmed.trust.credentials import load_credentials
from fedmed.trust.issuance import Purpose
from fedmed.trust.roster import Role
from server.admission import Admission
from server.gateway import Application, Receive, Scope, Send
from server.rates import Rates
from server.superlink import SuperLinkServer

SITES = ("north", "south")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the member folders of ``server``, north, south and west."""
    return consortium(tmp_path_factory.mktemp("members")).folder.parent


@pytest.fixture(autouse=True)
def _identity() -> None:
    set_task_identity()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_for(lambda: set(threading.enumerate()) <= before)


@pytest.fixture
def federation(members: Path) -> Iterator[Federation]:
    running = Federation(members)
    yield running
    running.close()


# --- messages ----------------------------------------------------------------------------------


def test_messages_go_to_two_sites_and_come_back_unchanged(federation: Federation) -> None:
    content = everything()
    with sites(federation, echo_app(), *SITES):
        nodes = federation.link.connected_sites()
        grid = federation.start()
        assert isinstance(grid, Grid)
        assert sorted(grid.get_node_ids()) == sorted(nodes.values())
        assert {node.name for node in grid.get_nodes()} == set(SITES)
        replies = answer(grid, [request(node, content) for node in nodes.values()])
        assert {reply.metadata.src_node_id for reply in replies.values()} == set(nodes.values())
        for reply in replies.values():
            arrays = reply.content["arrays"]
            assert list(arrays) == list(content["arrays"])
            for name, sent in content["arrays"].items():
                assert arrays[name].dtype == sent.dtype
                assert arrays[name].stype == sent.stype
                assert tuple(arrays[name].shape) == tuple(sent.shape)
                assert arrays[name].data == sent.data
            assert np.array_equal(
                arrays["float16"].numpy(), content["arrays"]["float16"].numpy(), equal_nan=False
            )
            for name in ("config", "metrics"):
                assert dict(reply.content[name]) == dict(content[name])
            assert reply.metadata.group_id == "1"
        size = sum(len(array.data) for array in content["arrays"].values())
        traffic = federation.link.bytes_transferred(grid.run.run_id)
        # Shared arrays are stored once, but each site fetches them; a reply that holds what the
        # server has already is not sent again.
        assert 2 * size < traffic.down < 2.2 * size
        assert 0 < traffic.up < 2.2 * size


def test_context_lives_as_long_as_the_run(federation: Federation) -> None:
    with sites(federation, echo_app(), "north") as running:
        (node,) = federation.link.connected_sites().values()
        for run in range(2):
            grid = federation.start()
            for expected in (1, 2):
                (reply,) = answer(grid, [request(node)]).values()
                assert reply.content["seen"]["count"] == expected
            assert len(running["north"].contexts) == run + 1
            federation.link.finish_run()
        first, second = running["north"].contexts
        assert first.run_id != second.run_id
        assert first.node_id == second.node_id == node


def test_send_and_receive_returns_what_came_in_time(federation: Federation) -> None:
    with sites(federation, echo_app(), "north"):
        nodes = {**federation.link.connected_sites()}
        grid = federation.start()
        (reply,) = grid.send_and_receive([request(nodes["north"], everything())], timeout=DEADLINE)
        assert reply.has_content()
        with federation.connect("south") as idle:
            assert list(grid.send_and_receive([request(idle.node_id)], timeout=0.01)) == []


def test_what_goes_wrong_is_a_typed_reply(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("fedmed.federation.flower_link.superlink")
    monkeypatch.setattr(module, "_LEAVING_SECONDS", 0.05)
    grid = federation.start()
    with federation.connect("north") as silent:
        expired, unknown = grid.push_messages([request(silent.node_id, ttl=0.05), request(12345)])
        found: dict[str, int] = {}

        def both() -> bool:
            for reply in grid.pull_messages([expired, unknown]):
                found[reply.metadata.reply_to_message_id] = reply.error.code
            return len(found) == 2

        wait_for(both)
        assert found == {
            expired: ErrorCode.MESSAGE_UNAVAILABLE,
            unknown: ErrorCode.NODE_UNAVAILABLE,
        }
        assert list(grid.pull_messages([expired, unknown])) == []
        abandoned = grid.push_messages([request(silent.node_id)])
        assert list(grid.pull_messages(abandoned)) == []
    replies: list[Message] = []
    wait_for(lambda: replies.extend(grid.pull_messages(abandoned)) or replies)
    assert [reply.error.code for reply in replies] == [ErrorCode.NODE_UNAVAILABLE]


def test_last_reply_of_a_site_that_leaves_is_collected(federation: Federation) -> None:
    grid = federation.start()
    with federation.connect("north") as north:
        identifiers = grid.push_messages([request(north.node_id)])
        message = north.receive()
        assert message is not None
        north.reply(Message(everything(), reply_to=message))
    assert federation.link.connected_sites() == {}
    assert list(grid.get_node_ids()) == []
    (reply,) = grid.pull_messages(identifiers)
    assert reply.has_content()


def test_exception_in_the_app_tells_its_type_and_nothing_else(federation: Federation) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise LookupError("Erika Mustermann, born 1964")

    with sites(federation, app, "north") as running:
        grid = federation.start()
        (node,) = federation.link.connected_sites().values()
        for _ in range(2):  # the site goes on after the first
            (reply,) = answer(grid, [request(node)]).values()
            assert reply.error == Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "LookupError")
        assert any("LookupError at test_flower_link.py" in text for text in running["north"].events)
        assert not any("Mustermann" in text for text in running["north"].events)


def test_forgotten_messages_leave_nothing_behind(federation: Federation) -> None:
    grid = federation.start()
    store = federation.link._state.object_store
    with federation.connect("north") as north, federation.connect("south") as silent:
        identifiers = grid.push_messages([request(north.node_id, everything())])
        identifiers += grid.push_messages([request(silent.node_id, everything())])
        assert len(store.store) > 10
        message = north.receive()
        assert message is not None
        north.reply(Message(everything(), reply_to=message))
        grid.forget(identifiers)
        assert store.store == {}
        assert list(grid.pull_messages(identifiers)) == []
        late = grid.push_messages([request(north.node_id)])
        message = north.receive()
        assert message is not None
        grid.forget(late)
        with pytest.raises(MessageClosedError, match="too late"):
            north.reply(Message(everything(), reply_to=message))
        assert store.store == {}


def test_expired_messages_are_forgotten_at_the_next_push(federation: Federation) -> None:
    grid = federation.start()
    with federation.connect("north") as silent:
        grid.push_messages([request(silent.node_id, everything(), ttl=0.01)])
        held = set(federation.link._state.object_store.store)
        wait_for(
            lambda: (
                not grid.push_messages([request(silent.node_id, ttl=0.001)])
                or time.sleep(0.02)
                or True
            )
        )
        grid.push_messages([request(silent.node_id)])
        assert not held & set(federation.link._state.object_store.store)


def test_reply_after_the_end_of_the_run_is_turned_down(federation: Federation) -> None:
    grid = federation.start()
    with federation.connect("north") as north:
        grid.push_messages([request(north.node_id)])
        message = north.receive()
        assert message is not None
        federation.link.finish_run()
        with pytest.raises(MessageClosedError):
            north.reply(Message(RecordDict(), reply_to=message))
        assert north.receive(lambda _: None) is None


def test_runs_do_not_overlap(federation: Federation) -> None:
    with pytest.raises(FederationError, match="no run"):
        federation.link.grid()
    first = federation.link.start_run()
    with pytest.raises(FederationError, match="under way"):
        federation.link.start_run()
    federation.link.finish_run()
    federation.link.finish_run()
    assert federation.link.start_run() != first


def test_polls_back_off_and_begin_anew_after_a_message(federation: Federation) -> None:
    grid = federation.start()
    pauses: list[float] = []
    with federation.connect("north") as north:
        for _ in range(7):
            assert north.receive(pauses.append) is None
        grid.push_messages([request(north.node_id)])
        assert north.receive(pauses.append) is not None
        assert north.receive(pauses.append) is None
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 0.05]


# --- who may come in ---------------------------------------------------------------------------


def test_site_cannot_fetch_the_messages_of_another(federation: Federation) -> None:
    grid = federation.start()
    with federation.connect("north") as north, federation.connect("south") as thief:
        grid.push_messages([request(north.node_id)])
        # It has learnt north's number; certificate and key are its own.
        own, thief._node = thief._node, north._node
        with pytest.raises(ServerUnreachableError, match="401"):
            thief.receive()
        thief._node = own
        assert north.receive() is not None


def test_key_that_only_the_database_knows_is_turned_away(members: Path, tmp_path: Path) -> None:
    database = tmp_path / "state.db"
    key = load_credentials(members / "west", None).tls_key.public_key()
    with SuperLink(database) as before:
        node = before.register_site("west", key)
        assert before.register_site("west", key) == node
        assert before.site_names() == {node: "west"}
    assert database.stat().st_mode & 0o077 == 0
    federation = Federation(members, database, register=False)
    try:
        assert federation.link._state.get_node_info(node_ids=[node])
        with pytest.raises(SiteRefusedError, match="key"), federation.connect("west"):
            pass
        federation.link.register_site("west", key)
        with federation.connect("west") as back:
            assert back.node_id == node
    finally:
        federation.close()


def test_site_with_new_keys_replaces_its_old_ones(federation: Federation) -> None:
    old, new = (ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(2))
    first = federation.link.register_site("west", old)
    second = federation.link.register_site("west", new)
    assert first != second
    assert federation.link.site_names() == {second: "west"}


def test_two_sites_cannot_share_a_key(federation: Federation) -> None:
    with federation.connect("north"):
        key = federation.credentials("north").tls_key.public_key()
        with pytest.raises(ConfigurationError, match="west"):
            federation.link.register_site("west", key)


@pytest.fixture
def own_members(members: Path, tmp_path: Path) -> Authority:
    """The same members in folders that a test may change."""
    shutil.copytree(members, tmp_path / "members")
    return Authority.open(tmp_path / "members" / "consortium", None)


def test_revoked_site_is_told_so_and_ends(own_members: Authority) -> None:
    folder = own_members.folder.parent
    federation = Federation(folder)
    try:
        with sites(federation, echo_app(), *SITES) as running:
            revoke_and_install(own_members, "north", folder / "server")
            wait_for(lambda: running["north"].ended)
            assert isinstance(running["north"].error, SiteRefusedError)
            assert "fedmed pki status" in str(running["north"].error)
            # Control: the other one is served.
            node = federation.link.connected_sites()["south"]
            (reply,) = answer(federation.start(), [request(node)]).values()
            assert reply.has_content()
        # Before the start: the server hangs up in the handshake.
        with pytest.raises(ServerUnreachableError, match="pki status"), federation.connect("north"):
            pass
    finally:
        federation.close()


def test_rate_limit_is_a_pause_and_no_failure(
    members: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(members, rates=Rates(requests_per_second=0.4))
    pauses: list[float] = []
    try:
        with federation.connect("north") as north:

            def wait(seconds: float | None = None) -> bool:
                pauses.append(seconds)
                # The time that the site was asked to wait passes.
                buckets = federation.server.rates._members["north"]
                buckets.requests._at -= seconds
                return False

            monkeypatch.setattr(north._closed, "wait", wait)
            for _ in range(6):
                assert north.receive(lambda _: None) is None
            monkeypatch.undo()
        assert pauses
        assert pauses[0] == 3.0  # 2.5 s to the next request, in whole seconds
        assert federation.paths.count("/v1/fleet/pull-messages") == 6
    finally:
        federation.close()


def test_site_cannot_reply_in_the_name_of_another(federation: Federation) -> None:
    grid = federation.start()
    with federation.connect("north") as north, federation.connect("south") as south:
        (to_north,) = grid.push_messages([request(north.node_id)])
        (to_south,) = grid.push_messages([request(south.node_id)])
        message = south.receive()
        assert message is not None
        forged = Message(RecordDict({"m": MetricRecord({"x": 1})}), reply_to=message)
        forged.metadata.__dict__["_src_node_id"] = north.node_id
        forged.metadata.__dict__["_reply_to_message_id"] = to_north
        with pytest.raises(ProtocolError):
            south.reply(forged)
        # Control: with the true sender the same message is taken.
        south.reply(Message(RecordDict(), reply_to=message))
        (reply,) = grid.pull_messages([to_north, to_south])
        assert reply.metadata.reply_to_message_id == to_south
        assert reply.has_content()


def test_reply_whose_inside_differs_from_its_envelope_is_malformed(federation: Federation) -> None:
    """Flower authenticates the envelope and would return the inside."""
    grid = federation.start()
    with federation.connect("north") as north, federation.connect("south") as south:
        (to_north,) = grid.push_messages([request(north.node_id)])
        (to_south,) = grid.push_messages([request(south.node_id)])
        message = south.receive()
        assert message is not None
        forged = Message(RecordDict({"m": MetricRecord({"x": 1})}), reply_to=message)
        forged.metadata.__dict__["_src_node_id"] = north.node_id
        forged.metadata.__dict__["_reply_to_message_id"] = to_north
        real_push = south._client.PushMessages

        def honest_envelope(push):
            push.messages_list[0].metadata.src_node_id = south.node_id
            push.messages_list[0].metadata.reply_to_message_id = to_south
            return real_push(push)

        south._client.PushMessages = honest_envelope  # type: ignore[method-assign]
        south.reply(forged)
        (reply,) = grid.pull_messages([to_north, to_south])
        assert reply.metadata.reply_to_message_id == to_south
        assert reply.error.code == ErrorCode.UNKNOWN


def test_site_whose_process_died_comes_back_at_once(federation: Federation) -> None:
    with federation.connect("north") as dead, federation.connect("north") as alive:
        assert alive.node_id == dead.node_id
        assert federation.link.connected_sites() == {"north": alive.node_id}
    assert federation.link.connected_sites() == {}


# --- who the server is -------------------------------------------------------------------------


def impostor(folder: Path) -> SuperLinkServer:
    """A server with the certificate in a folder, which checks nothing of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return SuperLinkServer(_never, context, admission=_AdmitsAnybody())


class _AdmitsAnybody(Admission):
    def __init__(self) -> None:
        pass

    def site(self, scope: Mapping[str, object]) -> str:
        return "anybody"


async def _never(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise AssertionError("a request came through")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("another authority", "certificate"),
        ("expired", "expired"),
        ("not yet valid", "not yet valid"),
        ("revoked", "revoked"),
        ("another host", "127"),
        ("a site's certificate", "purpose"),
        ("a site's name for a server's purpose", "server"),
        ("a server that is not in the roster", "roster"),
        ("another key than in the roster", "keys"),
    ],
)
def test_only_a_server_of_the_roster_is_spoken_to(
    own_members: Authority, tmp_path: Path, fault: str, reason: str
) -> None:
    now = datetime.now(UTC)
    folder = own_members.folder.parent
    server = folder / "server"
    credentials = load_credentials(folder / "north", None)
    hosts = ("localhost", "127.0.0.1")
    if fault == "another authority":
        other_authority(tmp_path / "other", server)
    elif fault == "expired":
        forge_tls(own_members, server, hosts=hosts, not_after=now - timedelta(minutes=1))
    elif fault == "not yet valid":
        forge_tls(own_members, server, hosts=hosts, not_before=now + timedelta(minutes=30))
    elif fault == "revoked":
        revoke_and_install(own_members, "server", folder / "north")
    elif fault == "another host":
        forge_tls(own_members, server, hosts=("elsewhere.example.org",))
    elif fault == "a site's certificate":
        server = folder / "south"
        forge_tls(own_members, server, hosts=hosts)
    elif fault == "a site's name for a server's purpose":
        server = folder / "south"
        forge_tls(own_members, server, hosts=hosts, purpose=Purpose.server_tls)
    elif fault == "a server that is not in the roster":
        forge_tls(own_members, server, hosts=hosts, name="other")
    else:
        server = folder / "south"
        forge_tls(own_members, server, hosts=hosts, name="server", role=Role.server)
    with impostor(server) as running:
        connection = FleetConnection(running.address, credentials)
        with pytest.raises(ServerCertificateError, match=reason), connection:
            pass


def test_server_of_another_authority_is_refused_for_good(
    own_members: Authority, tmp_path: Path
) -> None:
    folder = own_members.folder.parent
    credentials = load_credentials(folder / "north", None)
    federation = Federation(folder)
    try:
        site = Site(echo_app(), lambda: FleetConnection(federation.server.address, credentials))
        wait_for(federation.link.connected_sites)
        assert site.stop() < 1.0
        assert site.error is None
    finally:
        federation.close()
    other_authority(tmp_path / "other", folder / "server")
    with impostor(folder / "server") as running:
        site = Site(echo_app(), lambda: FleetConnection(running.address, credentials))
        wait_for(lambda: site.ended)
        assert isinstance(site.error, ServerCertificateError)


def test_expired_revocation_list_of_the_site_ends_the_link(own_members: Authority) -> None:
    folder = own_members.folder.parent
    federation = Federation(folder)
    try:
        with federation.connect("north") as north:
            assert north.receive(lambda _: None) is None
            expire_crl(own_members, folder / "north")
            with pytest.raises(ServerUnreachableError, match="connect anew"):
                north.receive(lambda _: None)
        with pytest.raises(TrustError):
            federation.connect("north")
    finally:
        federation.close()


def test_server_without_tls_is_refused(members: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_plainly() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer_plainly)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        connection = FleetConnection(address, load_credentials(members / "north", None))
        with pytest.raises(ServerCertificateError), connection:
            pass
        thread.join(DEADLINE)


def test_plain_http_to_the_server_fails(federation: Federation) -> None:
    path = "/v1/fleet/pull-messages"
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://{federation.server.address}{path}", trust_env=False)
    assert federation.paths == []


def test_proxy_variables_are_ignored(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    with federation.connect("north") as north:
        assert north.node_id
    told = federation.connect("north", proxy="http://127.0.0.1:9")
    with pytest.raises(ServerUnreachableError), told:
        pass


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "https://host:1", "host:x", "a@host:1", "host:1/x"]
)
def test_address_is_checked(members: Path, address: str) -> None:
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        FleetConnection(address, load_credentials(members / "north", None))


@pytest.mark.parametrize(
    "proxy",
    ["host:1", "https://host:1", "socks5://host:1", "http://host", "http://u:secret@host:x"],
)
def test_proxy_is_checked_and_its_password_is_in_no_message(members: Path, proxy: str) -> None:
    credentials = load_credentials(members / "north", None)
    with pytest.raises(ConfigurationError, match=r"link\.proxy") as refused:
        FleetConnection("127.0.0.1:1", credentials, proxy=proxy)
    assert "secret" not in str(refused.value)
    FleetConnection("127.0.0.1:1", credentials, proxy="http://u:p@host:1/")._client.close()


# --- no code travels ---------------------------------------------------------------------------


def _bundle(marker: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(
            "pyproject.toml",
            '[project]\nname = "bad"\nversion = "1.0.0"\n'
            '[tool.flwr.app]\npublisher = "x"\n'
            '[tool.flwr.app.components]\nserverapp = "bad:app"\nclientapp = "bad:app"\n',
        )
        archive.writestr("bad.py", f"open({str(marker)!r}, 'w').write('executed')\n")
    return buffer.getvalue()


def test_bundle_of_a_run_is_never_fetched_nor_executed(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fab_class = import_module("flwr.supercore.fab").Fab
    handlers = import_module("flwr.superlink.servicer.fleet.fleet_handlers")
    protos = import_module("flwr.proto.fab_pb2")
    marker = tmp_path / "marker"
    bundle = _bundle(marker)
    state = federation.link._state
    digest = state.store_fab(fab_class(hashlib.sha256(bundle).hexdigest(), bundle, {}))
    real_create = state.create_run
    monkeypatch.setattr(
        state, "create_run", lambda *rest: real_create("x/bad", "1.0.0", digest, *rest[3:])
    )
    with sites(federation, echo_app(), "north"):
        (node,) = federation.link.connected_sites().values()
        grid = federation.start()
        assert grid.run.fab_hash == digest
        (reply,) = answer(grid, [request(node, everything())]).values()
        assert reply.has_content()
        asked = protos.GetFabRequest(hash_str=digest, run_id=grid.run.run_id)
        asked.node.node_id = node
        # Control: a client that asked the state would get the bundle, and it would do harm.
        fetched = handlers.get_fab(asked, state).fab.content
        with federation.connect("south") as south:
            asked.node.node_id = south.node_id
            with pytest.raises(httpx.HTTPStatusError) as refused:
                south._client.GetFab(asked)
        assert refused.value.response.status_code == 403
    assert set(federation.paths) <= {
        f"/v1/fleet/{name}"
        for name in (
            "activate-node",
            "pull-messages",
            "pull-object",
            "push-object",
            "push-messages",
            "confirm-message-received",
            "send-node-heartbeat",
            "deactivate-node",
        )
    }
    assert not marker.exists()
    with zipfile.ZipFile(io.BytesIO(fetched)) as archive:
        exec(archive.read("bad.py"))
    assert marker.exists()


def test_stock_superlink_would_answer_where_ours_does_not(federation: Federation) -> None:
    """The same request, to Flower's own application and to what is served here."""
    protos = import_module("flwr.proto.control_pb2")
    path = "/v1/control/list-runs"
    headers = {
        "content-type": import_module("flwr.supercore.protobuf.constants").PROTOBUF_MEDIA_TYPE
    }
    body = protos.ListRunsRequest().SerializeToString()
    stock = import_module("flwr.superlink.main").create_app()

    async def ask(application: Application) -> int:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.post(path, content=body, headers=headers)).status_code

    assert asyncio.run(ask(stock)) == 200
    assert asyncio.run(ask(federation.link.asgi_app)) == 404
    north = federation.folder / "north"
    context = ssl.create_default_context(cafile=north / "root.crt")
    context.load_cert_chain(north / "tls.crt", north / "tls.key")
    public = federation.credentials("north").tls_key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    headers["flwr-public-key"] = base64.b64encode(pem).decode()
    with httpx.Client(verify=context, trust_env=False) as client:
        answered = client.post(
            f"https://{federation.server.address}{path}", content=body, headers=headers
        )
    assert answered.status_code == 404
    assert federation.paths == []


# --- coming and going --------------------------------------------------------------------------


@pytest.mark.parametrize("with_database", [True, False])
def test_site_returns_after_the_server_restarted(
    members: Path, tmp_path: Path, with_database: bool
) -> None:
    database = tmp_path / "state.db" if with_database else None
    first = Federation(members, database)
    address, port = first.server.address, first.port
    credentials = load_credentials(members / "north", None)
    site = Site(echo_app(), lambda: FleetConnection(address, credentials))
    second: Federation | None = None
    try:
        wait_for(first.link.connected_sites)
        node = first.link.connected_sites()["north"]
        grid = first.start()
        assert len(answer(grid, [request(node)])) == 1
        grid.push_messages([request(node)])
        first.close()
        wait_for(lambda: any("cannot be reached" in text for text in site.events))
        second = Federation(members, database, port)
        assert second.link.connected_sites() == {}
        wait_for(second.link.connected_sites)
        back = second.link.connected_sites()["north"]
        assert (back == node) is with_database
        (reply,) = answer(second.start(), [request(back, everything())]).values()
        assert reply.has_content()
        assert site.error is None
    finally:
        site.stop()
        first.close()
        if second is not None:
            second.close()


def test_reply_that_met_a_broken_connection_is_sent_again(federation: Federation) -> None:
    broken = threading.Event()

    class Unreliable(FleetConnection):
        def reply(self, message: Message, seconds: float = 0.0) -> None:
            if not broken.is_set():
                broken.set()
                raise ServerUnreachableError("cut off")
            super().reply(message, seconds)

    def connect() -> FleetConnection:
        return Unreliable(federation.server.address, federation.credentials("north"))

    site = Site(echo_app(), connect)
    try:
        wait_for(federation.link.connected_sites)
        (node,) = federation.link.connected_sites().values()
        (reply,) = answer(federation.start(), [request(node)]).values()
        assert broken.is_set()
        assert reply.content["seen"]["count"] == 1  # the app worked once
    finally:
        site.stop()


def test_lost_answers_cost_no_round(federation: Federation) -> None:
    """A proxy between the two drops answers to requests that the server has carried out."""
    with sites(federation, echo_app(), "north") as running:
        (node,) = federation.link.connected_sites().values()
        grid = federation.start()
        federation.lost_answers = {
            "/v1/fleet/pull-object": 3,
            "/v1/fleet/push-object": 2,
            "/v1/fleet/confirm-message-received": 1,
            "/v1/fleet/push-messages": 1,
        }
        (reply,) = answer(grid, [request(node, everything())]).values()
        assert reply.content["seen"]["count"] == 1
        assert set(federation.lost_answers.values()) == {0}
        assert running["north"].error is None


def test_loop_ends_within_a_second(federation: Federation) -> None:
    with sites(federation, echo_app(), "north") as running:
        assert running["north"].stop() < 1.0
        assert running["north"].error is None
    assert federation.link.connected_sites() == {}
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    credentials = federation.credentials("north")
    lost = Site(echo_app(), lambda: FleetConnection(address, credentials))
    wait_for(lambda: len(lost.events) >= 2)
    assert lost.stop() < 1.0
    assert "the next try is in 0.5 s" in lost.events[0]


class Hurried(threading.Event):
    """Does not wait as long as it is asked to."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(0.01)


def test_heartbeat_keeps_a_busy_site_connected(federation: Federation) -> None:
    busy = federation.connect("north")
    busy._closed = Hurried()
    with busy:
        (node,) = federation.link._state.get_node_info(node_ids=[busy.node_id])
        until = node.online_until
        wait_for(lambda: federation.paths.count("/v1/fleet/send-node-heartbeat") > 2)
        (node,) = federation.link._state.get_node_info(node_ids=[busy.node_id])
        assert node.online_until > until
    assert not busy._heart.is_alive()


def test_run_stays_alive_while_the_server_is_busy(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged: list[bool] = []
    real = federation.link._state.acknowledge_task_heartbeat
    monkeypatch.setattr(
        federation.link._state,
        "acknowledge_task_heartbeat",
        lambda task: acknowledged.append(real(task)) or acknowledged[-1],
    )
    module = import_module("fedmed.federation.flower_link.superlink")
    monkeypatch.setattr(module, "HEARTBEAT_DEFAULT_INTERVAL", 0.01)
    federation.start()
    wait_for(lambda: len(acknowledged) > 2)
    assert all(acknowledged)


@pytest.mark.slow
def test_round_with_forty_megabytes(federation: Federation) -> None:
    """Ten million parameters to two sites and back, with other values."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        values = message.content["arrays"]["weights"].numpy() + np.float32(context.node_id % 97)
        content = RecordDict({"arrays": ArrayRecord({"weights": Array(values)})})
        return Message(content, reply_to=message)

    weights = np.random.default_rng(1).normal(size=10_000_000).astype(np.float32)
    with sites(federation, app, *SITES):
        nodes = federation.link.connected_sites().values()
        grid = federation.start()
        content = RecordDict({"arrays": ArrayRecord({"weights": Array(weights)})})
        began = time.monotonic()
        replies = answer(grid, [request(node, content) for node in nodes])
        seconds = time.monotonic() - began
        for reply in replies.values():
            expected = weights + np.float32(reply.metadata.src_node_id % 97)
            assert np.array_equal(reply.content["arrays"]["weights"].numpy(), expected)
        traffic = federation.link.bytes_transferred(grid.run.run_id)
        assert 80e6 < traffic.down < 80.1e6
        assert 80e6 < traffic.up < 80.1e6
    assert seconds < 30
    sys.stdout.write(f"40 MB to and from two sites: {seconds:.2f} s\n")  # see it with pytest -rP


# --- the private names of Flower ---------------------------------------------------------------

PRIVATE_NAMES = {
    "flwr.app.message": ["make_message", "remove_content_from_message"],
    "flwr.common.constant": [
        "ErrorCode",
        "HEARTBEAT_DEFAULT_INTERVAL",
        "HEARTBEAT_MAX_INTERVAL",
        "HEARTBEAT_MIN_INTERVAL",
        "HEARTBEAT_PATIENCE",
        "NOOP_ACCOUNT_NAME",
        "NOOP_FLWR_AID",
        "SUPERLINK_NODE_ID",
        "SubStatus",
    ],
    "flwr.common.serde": ["message_from_proto", "message_to_proto"],
    "flwr.server.superlink.linkstate": ["LinkState", "LinkStateFactory"],
    "flwr.supercore.constant": [
        "FLWR_IN_MEMORY_DB_NAME",
        "HEAD_BODY_DIVIDER",
        "NOOP_FEDERATION_ID",
        "NodeStatus",
        "SYSTEM_MESSAGE_TYPE",
        "TaskType",
    ],
    "flwr.supercore.error": ["ApiErrorCode", "FlowerError", "http_error_translator"],
    "flwr.supercore.inflatable.inflatable_object": [
        "get_all_nested_objects",
        "get_object_head_values_from_object_content",
        "get_object_id",
        "get_object_tree",
        "iterate_object_tree",
        "no_object_id_recompute",
    ],
    "flwr.supercore.inflatable.inflatable_utils": ["inflate_object_from_contents"],
    "flwr.supercore.object_store": ["NoObjectInStoreError", "ObjectStoreFactory"],
    "flwr.supercore.primitives.asymmetric": ["public_key_to_bytes"],
    "flwr.supercore.protobuf.routing": ["ProtobufRoute"],
    "flwr.supercore.protobuf.translation": [
        "PROTOBUF_REQUEST_DEPENDENCY",
        "ProtobufTranslationMiddleware",
    ],
    "flwr.supercore.run": ["Run"],
    "flwr.supercore.task_identity": ["TaskIdentity"],
    "flwr.superlink.federation": ["NoOpFederationManager"],
    "flwr.superlink.routers.fleet.node_auth": ["NodeAuthMiddleware"],
    "flwr.superlink.routers.fleet.router": ["router"],
    "flwr.supernode.fleet_http_client": ["FleetHttpClient"],
    "flwr.supernode.node_auth_http_interceptor": ["NodeAuthHttpInterceptor"],
}

STATE_METHODS = {
    "acknowledge_node_heartbeat": ["node_id", "heartbeat_interval"],
    "acknowledge_task_heartbeat": ["task_id"],
    "activate_task": ["task_id"],
    "claim_task": ["task_id"],
    "cleanup_run": ["run_id"],
    "create_node": [
        "owner_aid",
        "owner_name",
        "public_key",
        "heartbeat_interval",
        "location",
        "name",
    ],
    "deactivate_node": ["node_id"],
    "delete_messages": ["message_ins_ids"],
    "finish_task": ["task_id", "sub_status", "details"],
    "get_message_res": ["message_ids", "run_id"],
    "get_node_id_by_public_key": ["public_key"],
    "get_object": ["run_id", "object_id"],
    "preregister_object_tree": ["object_tree", "session_id"],
    "start_session": ["run_id"],
    "store_message_ins": ["message"],
    "store_object": ["run_id", "session_id", "object_id", "object_content"],
}


def test_contract_with_flower() -> None:
    """Read what fails here before changing the pin of flwr."""
    assert metadata.version("flwr") == "1.41.0"
    for module, names in PRIVATE_NAMES.items():
        for name in names:
            assert hasattr(import_module(module), name), f"{module}.{name}"
    state = import_module("flwr.server.superlink.linkstate").LinkState
    for method, parameters in STATE_METHODS.items():
        found = list(inspect.signature(getattr(state, method)).parameters)[1:]
        assert found == parameters, method
    first = list(inspect.signature(state.create_run).parameters)[1:9]
    assert first == [
        "fab_id",
        "fab_version",
        "fab_hash",
        "override_config",
        "federation_id",
        "federation_config",
        "flwr_aid",
        "primary_task_type",
    ]
    client = import_module("flwr.supercore.protobuf.client").ProtobufClient
    made = client("https://x", verify=False)
    assert set(vars(made)) == {"_base_url", "_interceptors", "_retry_invoker", "_client"}
    made.close()


PUBLIC = {
    "flwr.app",
    "flwr.clientapp",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
    "flwr.simulation",
}


def _flower_imports(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((a.name, "") for a in node.names if a.name.split(".")[0] == "flwr")


def test_private_names_are_used_in_one_place_and_all_are_pinned() -> None:
    link = Path(inspect.getfile(SuperLink)).parent
    root = link.parents[2]
    seen = set()
    for package in ("fedmed", "clients", "server"):
        for path in (root / package).rglob("*.py"):
            for module, name in _flower_imports(path):
                if module in PUBLIC:
                    continue
                assert path.parent == link, f"{path.name} imports {module}"
                if not module.startswith("flwr.proto."):
                    assert name in PRIVATE_NAMES.get(module, []), f"{module}.{name} is not pinned"
                    seen.add((module, name))
    pinned = {(module, name) for module, names in PRIVATE_NAMES.items() for name in names}
    assert pinned == seen


def test_identity_and_identifiers() -> None:
    set_task_identity(run_id=7, node_id=9)
    message = request(3)
    assert (message.metadata.run_id, message.metadata.src_node_id) == (7, 9)
    assert assign_message_id(message) == message.object_id == message.metadata.message_id
    assert assign_message_id(message, "m1", run_id=11) == "m1"
    assert (message.metadata.message_id, message.metadata.run_id) == ("m1", 11)
    set_task_identity()
    assert request(3).metadata.src_node_id == 1


def test_messages_can_be_built_in_many_threads() -> None:
    failures: list[BaseException] = []

    def build() -> None:
        try:
            for _ in range(50):
                set_task_identity()
                request(2)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
