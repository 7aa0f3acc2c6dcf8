"""A site's connection to the server: Flower's Fleet API, outbound, over mutual TLS.

It carries messages and nothing else: it never asks for an app bundle, so no code of the server
ever runs at a site. It uses Flower's protobuf client directly, because Flower's own connection
ends the process when something goes wrong.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from google.protobuf.message import DecodeError

from fedmed.errors import FederationError, ProtocolError, TrustError
from fedmed.federation.flower_link.fleet_transport import (
    FleetClient,
    MessageClosedError,
    ServerUnreachableError,
    checked_address,
    checked_proxy,
    pause_asked,
    refusal,
    translated,
)
from fedmed.federation.flower_link.identity import SERVER_NODE_ID, assign_message_id
from fedmed.federation.flower_link.inflation import inflate_message
from fedmed.federation.membership import Membership
from fedmed.federation.mutual_tls import client_context

if TYPE_CHECKING:
    from fedmed.trust.credentials import Credentials

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_CLOSE_SECONDS = 0.5
# Objects (arrays, pieces of 5 MiB of large ones) under way at once: hides the network's latency.
_PARALLEL_OBJECTS = 4
# Fewer on the way up: what is under way when the link is cut has to be sent again.
_PARALLEL_PUSHES = 2
_RETRY_PAUSES = (0.2, 0.5, 1.0)
_MOST_PAUSES = 20


class FleetConnection:
    """One site's connection; a context manager that opens it, and closes it at the end.

    Args:
        address: ``HOST:PORT`` of the server.
        credentials: the site's; its TLS key is its node key as well.
        heartbeat_interval: seconds (10 to 1800); the server takes a site for gone after twice
            this time without a sign of life.
        poll_interval: shortest and longest pause in seconds between two empty polls.
        timeout: seconds without a byte after which a request counts as failed.
        proxy: ``http://[USER:PASSWORD@]HOST:PORT`` of a proxy that connects (RFC 9110, section
            9.3.6); those in environment variables are ignored.

    Raises:
        ConfigurationError: the address, the proxy or a file cannot be used.
        TrustError: the site's own credentials, or what the root has published, do not hold.
    """

    def __init__(
        self,
        address: str,
        credentials: Credentials,
        *,
        heartbeat_interval: float = HEARTBEAT_DEFAULT_INTERVAL,
        poll_interval: tuple[float, float] = (0.05, 1.0),
        timeout: float = 30.0,
        proxy: str | None = None,
    ) -> None:
        self._address = checked_address(address)
        proxy = checked_proxy(proxy)
        self._membership = Membership(credentials.folder, credentials.publication)
        self._publication = self._membership.publication()
        context = client_context(credentials, self._membership)
        self._public_key = public_key_to_bytes(credentials.tls_key.public_key())
        self._heartbeat_interval = heartbeat_interval
        self._shortest_pause, self._longest_pause = poll_interval
        self._pause = self._shortest_pause
        self._client = FleetClient(self._address, credentials.tls_key, context, timeout, proxy)
        self._node: Node | None = None
        self._closed = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="fedmed-heartbeat", daemon=True)

    @property
    def node_id(self) -> int:
        """The site's node number at the server; 0 before the connection is open."""
        return 0 if self._node is None else int(self._node.node_id)

    def __enter__(self) -> Self:
        """Announce the site at the server.

        Raises:
            ServerUnreachableError: nothing answers; worth another try later.
            ServerCertificateError: the server failed the check of its certificate.
            SiteRefusedError: the server does not know this site's key, or is no fedmed server.
        """
        request = ActivateNodeRequest(
            public_key=self._public_key, heartbeat_interval=self._heartbeat_interval
        )
        try:
            response = self._paced(self._client.ActivateNode, request)
        except httpx.HTTPStatusError as error:
            self._client.close()
            raise refusal(self._address, error.response) from error
        except (httpx.HTTPError, ValueError, DecodeError) as error:
            self._client.close()
            raise translated(self._address, error) from error
        self._node = Node(node_id=response.node_id)
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the server that the site goes, unless it is out of reach, and end the heartbeat."""
        self._closed.set()
        if not isinstance(error, ServerUnreachableError):
            self._client.hurry(_CLOSE_SECONDS)
            # Should it fail, the server finds out when the heartbeat stays away.
            with contextlib.suppress(httpx.HTTPError, ValueError):
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))
        self._client.close()
        self._heart.join(_CLOSE_SECONDS)  # a beat may hang on a server that hangs

    def receive(self, wait: Callable[[float], object] = time.sleep) -> Message | None:
        """Ask the server once for a message.

        Args:
            wait: called with the seconds to pause when there was none; each empty poll in a row
                doubles them. Pass ``threading.Event.wait`` to be able to cut the pause short.

        Returns:
            A message with all of its arrays, or ``None`` after the pause.

        Raises:
            ServerUnreachableError: connect anew.
            MessageClosedError: the server took the message back while it was read.
            ProtocolError: the message is malformed or was not meant for this site.
        """
        self._require_present_membership()
        response = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not response.messages_list or not response.message_object_trees:
            wait(self._pause)
            self._pause = min(2 * self._pause, self._longest_pause)
            return None
        self._pause = self._shortest_pause
        try:
            envelope = message_from_proto(response.messages_list[0])
        except Exception as error:  # the server chooses these bytes, whatever they break
            raise ProtocolError("a message from the server is malformed") from error
        tree = response.message_object_trees[0]
        run_id = envelope.metadata.run_id
        contents = self._pull_objects(run_id, tree)
        confirmation = ConfirmMessageReceivedRequest(
            node=self._node, run_id=run_id, message_object_id=tree.object_id
        )
        self._patiently(self._client.ConfirmMessageReceived, confirmation)
        return self._inflate(tree.object_id, contents, run_id)

    def reply(self, message: Message, seconds: float = 0.0) -> None:
        """Send the reply to a message.

        Args:
            message: built with ``reply_to``; may be sent again after a failure.
            seconds: how long the app worked on it; Flower adds it up.

        Raises:
            ServerUnreachableError: connect anew and send it again.
            MessageClosedError: the server does not want it any more.
            ProtocolError: the server refuses it; sending it again will not help.
        """
        run_id = message.metadata.run_id
        with no_object_id_recompute():
            assign_message_id(message)
            objects = get_all_nested_objects(message)
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(message))],
                message_object_trees=[get_object_tree(message)],
                clientapp_runtime_list=[seconds],
            )
            response = self._call(self._client.PushMessages, request)
            wanted = set(response.objects_to_push)
            # After a cut, these are the objects that did not arrive.
            if not wanted:
                raise MessageClosedError("the server has this reply already, or it comes too late")
            # Flattened here, since the identifiers that are known by now are known to this
            # thread only.
            contents = ((name, objects[name].deflate()) for name in objects if name in wanted)
            self._push_objects(run_id, response.session_id, contents)

    def _require_present_membership(self) -> None:
        """End the connection when the published files have changed: the next one is checked anew.

        Otherwise a revoked server would be spoken to for as long as its connection lives.
        """
        try:
            current = self._membership.publication() is self._publication
        except TrustError:
            current = False
        if not current:
            raise ServerUnreachableError(
                "the roster or the list of revoked certificates of this site has changed, or has "
                "run out; it will connect anew"
            )

    def _pull_objects(self, run_id: int, tree: ObjectTree) -> dict[str, bytes]:
        def pull(object_id: str) -> bytes:
            request = PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id)
            response, _ = self._patiently(self._client.PullObject, request)
            if not response.object_found or not response.object_available:
                raise MessageClosedError("the server took a message back while it was read")
            content: bytes = response.object_content
            if get_object_id(content) != object_id:
                raise ProtocolError("an array from the server does not have the promised hash")
            return content

        names = list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))
        with ThreadPoolExecutor(_PARALLEL_OBJECTS, "fedmed-pull") as pool:
            return dict(zip(names, pool.map(pull, names), strict=True))

    def _push_objects(
        self, run_id: int, session_id: str, contents: Iterable[tuple[str, bytes]]
    ) -> None:
        def push(item: tuple[str, bytes]) -> None:
            request = PushObjectRequest(
                node=self._node,
                run_id=run_id,
                session_id=session_id,
                object_id=item[0],
                object_content=item[1],
            )
            response, repeated = self._patiently(self._client.PushObject, request)
            # The server does not store twice what arrived although its answer got lost.
            if not response.stored and not repeated:
                raise MessageClosedError("the server does not want this reply any more")

        with ThreadPoolExecutor(_PARALLEL_PUSHES, "fedmed-push") as pool:
            for _ in pool.map(push, contents):
                pass

    def _inflate(self, identifier: str, contents: dict[str, bytes], run_id: int) -> Message:
        try:
            message = inflate_message(identifier, contents)
        except ProtocolError as error:
            raise ProtocolError("a message from the server is malformed") from error
        metadata = message.metadata
        if (metadata.run_id, metadata.src_node_id, metadata.dst_node_id) != (
            run_id,
            SERVER_NODE_ID,
            self.node_id,
        ):
            raise ProtocolError("a message names another run, sender or receiver than its envelope")
        assign_message_id(message, identifier)
        return message

    def _call(self, method: Callable[[_Request], _Response], request: _Request) -> _Response:
        if self._node is None:
            raise FederationError("the connection is not open; use it in a `with` block")
        try:
            return self._paced(method, request)
        except (httpx.HTTPError, ValueError, DecodeError) as error:
            raise translated(self._address, error) from error

    def _paced(self, method: Callable[[_Request], _Response], request: _Request) -> _Response:
        """Make a request, again after a pause for as often as the server asks for one."""
        for _ in range(_MOST_PAUSES):
            try:
                return method(request)
            except httpx.HTTPStatusError as error:
                seconds = pause_asked(error)
                if seconds is None or self._closed.wait(seconds):
                    raise
        return method(request)

    def _patiently(
        self, method: Callable[[_Request], _Response], request: _Request
    ) -> tuple[_Response, bool]:
        """Repeat a request that may be repeated; says whether it was.

        The message of which it is a part is handed out only once, so that a lost packet would
        cost the site its round.
        """
        for number, pause in enumerate(_RETRY_PAUSES):
            try:
                return self._call(method, request), number > 0
            except ServerUnreachableError:
                self._closed.wait(pause)
        return self._call(method, request), True

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(
            node=self._node, heartbeat_interval=self._heartbeat_interval
        )
        while not self._closed.wait(self._heartbeat_interval / 2):
            try:
                self._call(self._client.SendNodeHeartbeat, request)
            except (FederationError, ProtocolError, RuntimeError):
                continue  # the main thread meets the same failure at its next request
