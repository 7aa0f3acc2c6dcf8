"""A site's connection to the server: Flower's Fleet API, outbound, over TLS 1.3.

It carries messages and nothing else: it never asks for an app bundle, so no code of the server
ever runs at a site. It uses Flower's protobuf client directly, because Flower's own connection
ends the process when something goes wrong.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
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
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedmed.errors import ConfigurationError, FederationError, ProtocolError
from fedmed.federation.flower_link.identity import SERVER_NODE_ID, assign_message_id

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_CONNECT_SECONDS = 5.0
_CLOSE_SECONDS = 0.5
# Shorter than the server's (server/superlink.py), so that no request meets a closing connection.
_IDLE_SECONDS = 30.0
# Objects (arrays, pieces of 5 MiB of large ones) under way at once: hides the network's latency.
_PARALLEL_OBJECTS = 4


class ServerUnreachableError(FederationError):
    """The server cannot be reached or has restarted; a new connection may cure it."""


class ServerCertificateError(FederationError):
    """The server is not the one that the pinned authority vouches for; nothing was sent to it."""


class SiteRefusedError(FederationError):
    """The server answers, but does not let this site in."""


class MessageClosedError(FederationError):
    """The server no longer wants this message or its reply: too late, or the run is over."""


class FleetConnection:
    """One site's connection; a context manager that opens it, and closes it at the end.

    Args:
        address: ``HOST:PORT`` of the server.
        root_certificates: PEM file of the one authority that may vouch for the server. The
            system's authorities are not asked.
        private_key: the site's key, the public half of which the server has registered.
        heartbeat_interval: seconds (10 to 1800); the server takes a site for gone after twice
            this time without a sign of life.
        poll_interval: shortest and longest pause in seconds between two empty polls.
        timeout: seconds without a byte after which a request counts as failed.
        proxy: URL of the HTTP proxy; those in environment variables are ignored.
        prepare_context: last changes to the TLS settings, for instance a client certificate.

    Raises:
        ConfigurationError: the address or the file of the authority cannot be used.
    """

    def __init__(
        self,
        address: str,
        root_certificates: Path,
        private_key: ec.EllipticCurvePrivateKey,
        *,
        heartbeat_interval: float = HEARTBEAT_DEFAULT_INTERVAL,
        poll_interval: tuple[float, float] = (0.05, 1.0),
        timeout: float = 30.0,
        proxy: str | None = None,
        prepare_context: Callable[[ssl.SSLContext], None] | None = None,
    ) -> None:
        self._address = _checked_address(address)
        self._public_key = public_key_to_bytes(private_key.public_key())
        self._heartbeat_interval = heartbeat_interval
        self._shortest_pause, self._longest_pause = poll_interval
        self._pause = self._shortest_pause
        context = _pinned_context(root_certificates)
        if prepare_context is not None:
            prepare_context(context)
        self._client = _Client(self._address, private_key, context, timeout, proxy)
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
            response = self._client.ActivateNode(request)
        except httpx.HTTPStatusError as error:
            self._client.close()
            raise self._refusal(error.response.status_code) from error
        except (httpx.HTTPError, ValueError) as error:
            self._client.close()
            raise self._translated(error) from error
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
        self._heart.join()

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
        response = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not response.messages_list or not response.message_object_trees:
            wait(self._pause)
            self._pause = min(2 * self._pause, self._longest_pause)
            return None
        self._pause = self._shortest_pause
        envelope = message_from_proto(response.messages_list[0])
        tree = response.message_object_trees[0]
        run_id = envelope.metadata.run_id
        contents = self._pull_objects(run_id, tree)
        confirmation = ConfirmMessageReceivedRequest(
            node=self._node, run_id=run_id, message_object_id=tree.object_id
        )
        self._call(self._client.ConfirmMessageReceived, confirmation)
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
            # Flattened here, since the identifiers that are known by now are known to this
            # thread only.
            contents = ((name, objects[name].deflate()) for name in objects if name in wanted)
            self._push_objects(run_id, response.session_id, contents)

    def _pull_objects(self, run_id: int, tree: ObjectTree) -> dict[str, bytes]:
        def pull(object_id: str) -> bytes:
            request = PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id)
            response = self._call(self._client.PullObject, request)
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
            if not self._call(self._client.PushObject, request).stored:
                raise MessageClosedError("the server does not want this reply any more")

        with ThreadPoolExecutor(_PARALLEL_OBJECTS, "fedmed-push") as pool:
            for _ in pool.map(push, contents):
                pass

    def _inflate(self, identifier: str, contents: dict[str, bytes], run_id: int) -> Message:
        try:
            message = inflate_object_from_contents(identifier, contents)
        except Exception as error:  # the server chooses these bytes, whatever they break
            raise ProtocolError("a message from the server is malformed") from error
        if not isinstance(message, Message):
            raise ProtocolError("a message from the server is no message")
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
            return method(request)
        except (httpx.HTTPError, ValueError) as error:
            raise self._translated(error) from error

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(
            node=self._node, heartbeat_interval=self._heartbeat_interval
        )
        while not self._closed.wait(self._heartbeat_interval / 2):
            try:
                self._call(self._client.SendNodeHeartbeat, request)
            except (FederationError, ProtocolError, RuntimeError):
                continue  # the main thread meets the same failure at its next request

    def _refusal(self, status: int) -> FederationError:
        if status >= 500:
            return ServerUnreachableError(f"the server {self._address} answers {status}")
        if status in {401, 412}:
            return SiteRefusedError(
                f"the server {self._address} does not know the key of this site, or the clocks "
                "of the two machines differ by more than five minutes; "
                "send the site's .pub file to the operator of the server and set the clock"
            )
        return SiteRefusedError(
            f"{self._address} is not a fedmed server (it answers {status}); "
            "check the server's address in the configuration of this site"
        )

    def _translated(self, error: httpx.HTTPError | ValueError) -> FederationError | ProtocolError:
        """Say what an error of the HTTP client means for the site."""
        if isinstance(error, httpx.HTTPStatusError):
            return self._translated_status(error.response)
        if isinstance(error, httpx.TransportError):
            failure = _tls_failure(error)
            if failure is not None:
                return ServerCertificateError(
                    f"the server {self._address} could not prove that it is the federation's "
                    f"server ({failure}); nothing was sent to it. Check its address, and that "
                    "this site has the certificate of the federation's authority"
                )
            return ServerUnreachableError(
                f"the server {self._address} cannot be reached ({type(error).__name__}); check "
                "that it runs and that the firewall lets this site connect to it"
            )
        return ProtocolError(f"the answer of the server {self._address} is malformed")

    def _translated_status(self, response: httpx.Response) -> FederationError | ProtocolError:
        known = FlowerError.from_json(response.text)
        if known is not None and known.code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
            return MessageClosedError("the run of this message is over")
        if response.status_code in {400, 403, 413, 415, 422}:
            return ProtocolError(
                f"the server refuses a message of this site ({response.status_code})"
            )
        return ServerUnreachableError(
            f"the server {self._address} has restarted or is overloaded ({response.status_code})"
        )


class _Client(FleetHttpClient):
    """Flower's protobuf client on an HTTP client of our own settings."""

    def __init__(
        self,
        address: str,
        private_key: ec.EllipticCurvePrivateKey,
        context: ssl.SSLContext,
        timeout: float,
        proxy: str | None,
    ) -> None:
        # Deliberately without Flower's: that one heeds proxy variables and follows redirects.
        self._base_url = f"https://{address}"
        self._interceptors = (NodeAuthHttpInterceptor(private_key, private_key.public_key()),)
        self._retry_invoker = None
        self._client = httpx.Client(
            verify=context,
            trust_env=False,
            proxy=proxy,
            follow_redirects=False,
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
            limits=httpx.Limits(keepalive_expiry=_IDLE_SECONDS),
        )

    def hurry(self, seconds: float) -> None:
        """Let requests from now on fail after this time."""
        self._client.timeout = httpx.Timeout(seconds)


def _checked_address(address: str) -> str:
    try:
        parts = urlsplit(f"//{address}")
        usable = bool(parts.hostname) and parts.port is not None and parts.netloc == address
    except ValueError:
        usable = False
    if not usable or "@" in address:
        raise ConfigurationError(
            f"{address!r} is no address of a server; write HOST:PORT, for instance "
            "federation.example.org:8443"
        )
    return address


def _pinned_context(root_certificates: Path) -> ssl.SSLContext:
    """TLS 1.3 only, host name checked, exactly this authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cafile=root_certificates)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"cannot read the authority's certificate {root_certificates.name}; "
            "get it from the operator of the federation and check the path"
        ) from error
    return context


def _tls_failure(error: BaseException) -> str | None:
    """Return the reason if TLS failed for good, not because the connection broke."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        if isinstance(cause, ssl.SSLError) and not isinstance(
            cause, ssl.SSLEOFError | ssl.SSLZeroReturnError
        ):
            return (cause.reason or "TLS failed").lower().replace("_", " ")
        cause = cause.__cause__ or cause.__context__
    return None
