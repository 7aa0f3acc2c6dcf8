"""The link through a hospital's proxy, and an upload that is cut in the middle."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from connect_proxy import ConnectProxy
from flower_federation import Federation, Site, answer, echo_app, everything, request, wait_for
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from forged_certificates import consortium

from fedmed.federation.flower_link import (
    FleetConnection,
    MessageClosedError,
    ServerUnreachableError,
    set_task_identity,
)

PARAMETERS = 10_000_000
PAYLOAD = 4 * PARAMETERS


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return consortium(tmp_path_factory.mktemp("members")).folder.parent


@pytest.fixture
def federation(members: Path) -> Iterator[Federation]:
    set_task_identity()
    before = set(threading.enumerate())
    running = Federation(members)
    yield running
    running.close()
    wait_for(lambda: set(threading.enumerate()) <= before)


def test_all_traffic_passes_through_the_proxy(federation: Federation) -> None:
    with ConnectProxy() as proxy:
        site = Site(echo_app(), lambda: federation.connect("north", proxy=proxy.url))
        try:
            wait_for(federation.link.connected_sites)
            (node,) = federation.link.connected_sites().values()
            content = everything()
            (reply,) = answer(federation.start(), [request(node, content)]).values()
            assert reply.content["arrays"]["large"].data == content["arrays"]["large"].data
        finally:
            site.stop()
        assert set(proxy.tunnels) == {federation.server.address}
        tunnels, sent = len(proxy.tunnels), proxy.bytes_up
        assert sent > 0
        # Control: the proxy counts what passes, and only that.
        with federation.connect("north"):
            pass
        assert (len(proxy.tunnels), proxy.bytes_up) == (tunnels, sent)


def test_proxy_with_a_password(federation: Federation) -> None:
    with ConnectProxy("hospital", "p:a@ss") as proxy:
        at = f"127.0.0.1:{proxy.port}"
        with federation.connect("north", proxy=f"http://hospital:p%3Aa%40ss@{at}") as north:
            assert north.node_id
        assert proxy.refused == 0
        for wrong in (f"http://hospital:guess@{at}", proxy.url):
            with (
                pytest.raises(ServerUnreachableError, match="407") as refused,
                federation.connect("north", proxy=wrong),
            ):
                pass
            assert "guess" not in str(refused.value)
        assert proxy.refused == 2


def trainer() -> ClientApp:
    """Replies with 40 MB that the server does not have, and says how often it worked."""
    app = ClientApp()
    worked: list[int] = []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        worked.append(1)
        values = np.random.default_rng(3).normal(size=PARAMETERS).astype(np.float32)
        arrays = ArrayRecord({"update": Array(values), "worked": Array(np.array(len(worked)))})
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    return app


def upload(
    federation: Federation, proxy: ConnectProxy, cut_after: int | None, outage: bool = False
) -> Site:
    """One round with one site behind the proxy; checks that the reply is whole."""
    site = Site(trainer(), lambda: federation.connect("north", proxy=proxy.url))
    try:
        wait_for(federation.link.connected_sites)
        (node,) = federation.link.connected_sites().values()
        proxy.stays_down = outage
        proxy.cut_after = cut_after
        if outage:
            restorer = threading.Thread(target=_restore, args=(proxy, site))
            restorer.start()
        (reply,) = answer(federation.start(), [request(node)]).values()
        arrays = reply.content["arrays"]
        expected = np.random.default_rng(3).normal(size=PARAMETERS).astype(np.float32)
        assert np.array_equal(arrays["update"].numpy(), expected)
        assert int(arrays["worked"].numpy()) == 1
        if outage:
            restorer.join()
    finally:
        proxy.down = False
        site.stop()
    assert site.error is None
    return site


def _restore(proxy: ConnectProxy, site: Site) -> None:
    """Let connections through again once the site has given its own up."""
    wait_for(lambda: any("the next try is in" in event for event in site.events))
    proxy.down = False


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("outage", [False, True], ids=["blip", "outage"])
def test_cut_upload_goes_on_where_it_was(
    federation: Federation, share: float, outage: bool
) -> None:
    with ConnectProxy() as proxy:
        site = upload(federation, proxy, int(share * PAYLOAD), outage)
        assert proxy.cuts == 1
        assert PAYLOAD < proxy.bytes_up < 1.3 * PAYLOAD
    # After an outage there was a new connection, which sent the rest of the same reply.
    connected = [event for event in site.events if event == "connected to the server"]
    assert len(connected) == (2 if outage else 1)


@pytest.mark.slow
def test_message_that_was_cut_while_it_was_read_is_read_again(federation: Federation) -> None:
    with ConnectProxy() as proxy:
        site = Site(echo_app(), lambda: federation.connect("north", proxy=proxy.url))
        restorer = threading.Thread(target=_restore, args=(proxy, site))
        try:
            wait_for(federation.link.connected_sites)
            (node,) = federation.link.connected_sites().values()
            proxy.stays_down = True
            proxy.cut_after_down = proxy.bytes_down + 6_000_000
            restorer.start()
            content = everything()
            (reply,) = answer(federation.start(), [request(node, content)]).values()
            assert reply.content["arrays"]["large"].data == content["arrays"]["large"].data
            assert reply.content["seen"]["count"] == 1
            assert proxy.cuts == 1
        finally:
            restorer.join()
            site.stop()


def test_message_is_not_handed_out_again_once_it_is_confirmed(federation: Federation) -> None:
    grid = federation.start()
    with federation.connect("north") as first:
        identifiers = grid.push_messages([request(first.node_id, everything())])
        message = first.receive()
        assert message is not None
        with federation.connect("north") as second:
            assert second.receive(lambda _: None) is None
            second.reply(Message(RecordDict(), reply_to=message))
        (reply,) = grid.pull_messages(identifiers)
        assert reply.has_content()


@pytest.mark.slow
def test_uploads_are_counted(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Controls: without a cut once the payload; with one that the server forgets, far more."""
    with ConnectProxy() as proxy:
        upload(federation, proxy, None)
        assert PAYLOAD < proxy.bytes_up < 1.01 * PAYLOAD
    federation.link.finish_run()
    state = federation.link._state
    real = state.preregister_object_tree

    def forgetful(tree, session):
        state.object_store.delete(tree.object_id)
        return real(tree, session)

    monkeypatch.setattr(state, "preregister_object_tree", forgetful)
    with ConnectProxy() as proxy:
        upload(federation, proxy, int(0.95 * PAYLOAD), outage=True)
        assert proxy.bytes_up > 1.6 * PAYLOAD


def test_reply_whose_last_piece_is_missing_is_completed(federation: Federation) -> None:
    """The message itself has arrived, a piece of an array has not: another connection brings it."""
    grid = federation.start()
    with federation.connect("north") as first:
        identifiers = grid.push_messages([request(first.node_id)])
        message = first.receive()
        assert message is not None
        reply = Message(everything(), reply_to=message)
        lost = _lose_a_large_piece(first, reply)
        with pytest.raises(ServerUnreachableError):
            first.reply(reply)
        assert len(set(lost)) == 1
        assert list(grid.pull_messages(identifiers)) == []
    with federation.connect("north") as second:
        sent = _count_pieces(second)
        second.reply(reply)
        assert sent == [lost[0]]
        (received,) = grid.pull_messages(identifiers)
        assert received.content["arrays"]["large"].data == reply.content["arrays"]["large"].data
        with pytest.raises(MessageClosedError):
            second.reply(reply)


def _lose_a_large_piece(connection: FleetConnection, reply: Message) -> list[str]:
    """Let one piece fail on the way up, for ever, once all else has arrived."""
    lost: list[str] = []
    arrived = threading.Event()
    real = connection._client.PushObject

    def push(piece: PushObjectRequest) -> PushObjectResponse:
        if len(piece.object_content) > 1_000_000 and (not lost or piece.object_id in lost):
            lost.append(piece.object_id)
            assert arrived.wait(10)
            raise httpx.ReadError("cut")
        response = real(piece)
        if piece.object_id == reply.metadata.message_id:
            arrived.set()
        return response

    connection._client.PushObject = push
    connection._closed.wait = lambda _seconds: False
    return lost


def _count_pieces(connection: FleetConnection) -> list[str]:
    sent: list[str] = []
    real = connection._client.PushObject

    def push(piece: PushObjectRequest) -> PushObjectResponse:
        sent.append(piece.object_id)
        return real(piece)

    connection._client.PushObject = push
    return sent
