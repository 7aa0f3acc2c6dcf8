"""Flower's SuperLink inside the server process: its state in memory, its Fleet API as ASGI.

The Control and Runtime APIs, with which a stock SuperLink takes code to run from whoever reaches
its port, are not part of the application that is built here, so they have no socket at all.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import Depends, FastAPI, HTTPException, Request
from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    HEARTBEAT_MAX_INTERVAL,
    HEARTBEAT_MIN_INTERVAL,
    HEARTBEAT_PATIENCE,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SubStatus,
)
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PushMessagesRequest,
)
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import (
    FLWR_IN_MEMORY_DB_NAME,
    NOOP_FEDERATION_ID,
    NodeStatus,
    TaskType,
)
from flwr.supercore.error import http_error_translator
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.routing import ProtobufRoute
from flwr.supercore.protobuf.translation import (
    PROTOBUF_REQUEST_DEPENDENCY,
    ProtobufTranslationMiddleware,
)
from flwr.supercore.run import Run
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from fedmed.errors import ConfigurationError, FederationError
from fedmed.federation.flower_link.grid import SuperLinkGrid

_logger = logging.getLogger(__name__)

# How long the replies of a site that has said goodbye can still be collected.
_LEAVING_SECONDS = 5.0

Application = Callable[
    [
        MutableMapping[str, object],
        Callable[[], Awaitable[MutableMapping[str, object]]],
        Callable[[MutableMapping[str, object]], Awaitable[None]],
    ],
    Awaitable[None],
]
"""An ASGI 3 application."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of messages and arrays in a run; without TLS and HTTP headers.

    Attributes:
        down: bytes from the server to the sites.
        up: bytes from the sites to the server.
    """

    down: int
    up: int


class SuperLink:
    """State and Fleet API of one federation, in this process.

    Args:
        database: SQLite file in which node numbers survive a restart; ``None`` keeps everything
            in memory. Models and updates are never written to it.
    """

    def __init__(self, database: Path | None = None) -> None:
        if database is not None:
            _create_private_file(database)
        self._factory = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME if database is None else str(database),
            NoOpFederationManager(),
            ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME),
        )
        self._state = self._factory.state()
        self._sites: dict[str, int] = {}
        self._leaving: set[int] = set()
        self._run: Run | None = None
        self._grid: SuperLinkGrid | None = None
        self._keeper: _RunKeeper | None = None
        self._application = self._fleet_application()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def asgi_app(self) -> Application:
        """Flower's Fleet API with node authentication; put ``server.gateway`` in front of it."""
        return self._application

    def register_site(self, name: str, public_key: ec.EllipticCurvePublicKey) -> int:
        """Let a site in; every other key stays out, also one that the database still knows.

        A site that comes with another key (it has rotated its keys) gets another node number,
        and its old key stays out from then on.

        Args:
            name: name of the site in this federation.
            public_key: the key whose private half signs the site's requests.

        Returns:
            The site's node number, the same after a restart with the same database.

        Raises:
            ConfigurationError: two names share one key.
        """
        key = public_key_to_bytes(public_key)
        node_id = self._state.get_node_id_by_public_key(key)
        if node_id is None:
            node_id = self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0, name=name)
        if any(other == node_id and site != name for site, other in self._sites.items()):
            raise ConfigurationError(
                f"the site {name!r} has the public key of another site; "
                "every site makes a key of its own and sends only its request.json"
            )
        if self._sites.get(name) != node_id:
            # A node that the database still calls online belongs to a connection of the
            # process before this one.
            self._state.deactivate_node(node_id)
        self._sites = {**self._sites, name: node_id}
        return node_id

    def site_names(self) -> Mapping[int, str]:
        """Name of each registered site by its node number."""
        return {node: name for name, node in self._sites.items()}

    def connected_sites(self) -> Mapping[str, int]:
        """Name and node number of the sites whose heartbeat is live, in order of names."""
        online = {
            node.node_id
            for node in self._state.get_node_info(
                node_ids=list(self._sites.values()), statuses=[NodeStatus.ONLINE]
            )
        }
        online -= self._leaving
        return {name: node for name, node in sorted(self._sites.items()) if node in online}

    def start_run(self) -> int:
        """Begin a run that has no app bundle and bring it to the running state.

        Returns:
            The number of the run.

        Raises:
            FederationError: a run is under way, or Flower did not take the new one.
        """
        if self._run is not None:
            raise FederationError("a run is under way; finish it before the next one begins")
        run_id = self._state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        found = self._state.get_run_info(run_ids=[run_id])
        task_id = found[0].primary_task_id if found else None
        if task_id is None or self._state.claim_task(task_id) is None:
            raise FederationError("Flower did not take the new run; see its log for the reason")
        if not self._state.activate_task(task_id):
            raise FederationError("Flower did not start the new run; see its log for the reason")
        self._run = self._state.get_run_info(run_ids=[run_id])[0]
        self._keeper = _RunKeeper(lambda: self._state.acknowledge_task_heartbeat(task_id))
        self._keeper.start()
        return run_id

    def finish_run(self) -> None:
        """End the run and drop its messages and arrays; does nothing when no run is under way."""
        if self._keeper is not None:
            self._keeper.stop()
            self._keeper = None
        if self._run is not None and self._run.primary_task_id is not None:
            self._state.finish_task(self._run.primary_task_id, SubStatus.COMPLETED, "")
            self._state.cleanup_run(self._run.run_id)
        self._run = None
        self._grid = None

    def grid(self) -> SuperLinkGrid:
        """Return the grid of the run under way.

        Raises:
            FederationError: no run is under way.
        """
        if self._run is None:
            raise FederationError("no run is under way; call start_run() before grid()")
        self._grid = SuperLinkGrid(
            self._state, self._run, lambda: list(self.connected_sites().values())
        )
        return self._grid

    def bytes_transferred(self, run_id: int) -> Traffic:
        """Return what a run has moved so far, also after its end.

        Raises:
            FederationError: the run is not known.
        """
        found = self._state.get_run_info(run_ids=[run_id])
        if not found:
            raise FederationError(f"no run {run_id} on this server")
        return Traffic(down=found[0].bytes_sent, up=found[0].bytes_recv)

    def close(self) -> None:
        """End the run, and close the database."""
        self.finish_run()
        engine = getattr(self._state, "_engine", None)
        if engine is not None:
            engine.dispose()

    def _fleet_application(self) -> FastAPI:
        application = FastAPI(
            openapi_url=None,
            middleware=[
                Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
                Middleware(ProtobufTranslationMiddleware),
                Middleware(NodeAuthMiddleware),
            ],
        )
        application.state.linkstate_factory = self._factory
        application.state.enable_supernode_auth = True
        admitted = [Depends(self._admit)]
        # Ours come first and so take the place of Flower's.
        for path, handler in (
            ("/v1/fleet/activate-node", self._enter),
            ("/v1/fleet/deactivate-node", self._leave),
        ):
            application.router.add_api_route(
                path,
                handler,
                methods=["POST"],
                dependencies=admitted,
                route_class_override=ProtobufRoute,
            )
        application.include_router(fleet_router, dependencies=admitted)
        return application

    def _enter(
        self, request: Annotated[ActivateNodeRequest, PROTOBUF_REQUEST_DEPENDENCY]
    ) -> ActivateNodeResponse:
        """Take a site in, also one that is online: its process may have died a moment ago.

        Flower turns such a site away until its heartbeat has run out.
        """
        node_id = self._state.get_node_id_by_public_key(request.public_key)
        interval = request.heartbeat_interval
        if node_id is None or not HEARTBEAT_MIN_INTERVAL <= interval <= HEARTBEAT_MAX_INTERVAL:
            raise HTTPException(400, "the heartbeat interval is out of bounds")
        self._leaving.discard(node_id)
        self._state.acknowledge_node_heartbeat(node_id, interval)
        if self._grid is not None:
            self._grid.deliver_again(node_id)
        return ActivateNodeResponse(node_id=node_id)

    def _leave(
        self, request: Annotated[DeactivateNodeRequest, PROTOBUF_REQUEST_DEPENDENCY]
    ) -> DeactivateNodeResponse:
        """Let a site go, and its last reply be collected.

        Flower throws the replies of an offline site away.
        """
        self._leaving.add(request.node_id)
        self._state.acknowledge_node_heartbeat(
            request.node_id, _LEAVING_SECONDS / HEARTBEAT_PATIENCE
        )
        return DeactivateNodeResponse()

    def _admit(self, request: Request) -> None:
        """Refuse what Flower's own authentication lets pass; runs after it.

        Flower proves that the sender holds the key of the node that the request names. It knows
        no roster apart from its database, and it takes a reply in another node's name.
        """
        body = request.state.protobuf_request
        if isinstance(body, ActivateNodeRequest):
            node_id = self._state.get_node_id_by_public_key(body.public_key)
        elif isinstance(body, DeactivateNodeRequest):
            node_id = body.node_id
        else:
            node_id = body.node.node_id
        if node_id is None or node_id not in self._sites.values():
            raise HTTPException(401, "this key is not registered")
        if isinstance(body, PushMessagesRequest) and any(
            message.metadata.src_node_id != node_id for message in body.messages_list
        ):
            raise HTTPException(403, "a reply names another sender")


class _RunKeeper(threading.Thread):
    """Tells Flower that the run lives; it fails a run that is silent for a minute."""

    def __init__(self, acknowledge: Callable[[], bool]) -> None:
        super().__init__(name="fedmed-run-keeper", daemon=True)
        self._acknowledge = acknowledge
        self._ended = threading.Event()

    def run(self) -> None:
        """Acknowledge until the run ends."""
        while not self._ended.wait(HEARTBEAT_DEFAULT_INTERVAL / 3):
            if not self._acknowledge():
                _logger.error("Flower has ended the run; start a new one from the checkpoint")
                return

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self.join()


def _create_private_file(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError as error:
        raise ConfigurationError(
            f"cannot write the database {path.name}: {error.strerror}; "
            "choose a folder that exists and that the server may write to"
        ) from error
