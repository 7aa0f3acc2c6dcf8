"""Serves the SuperLink behind the gateway over TLS, in a thread of the server process."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from types import TracebackType
from typing import Self

import uvicorn

from fedmed.errors import FederationError
from server.admission import Admission
from server.gateway import BODY_LIMIT, Application, Gateway
from server.peer import PeerProtocol
from server.rates import MemberRates, Rates

_logger = logging.getLogger(__name__)

_START_SECONDS = 30.0
# Time for requests under way to end. Connections that sites keep open do not end by themselves.
_GRACE_SECONDS = 2.0
_STOP_SECONDS = 10.0
# Longer than the sites' (fedmed/federation/flower_link/fleet.py).
_IDLE_SECONDS = 75
_CONNECTIONS = 256


class SuperLinkServer:
    """The server's socket; a context manager that starts it, and stops it at the end.

    Args:
        application: the SuperLink's ASGI application; the gateway is put in front of it here.
        context: see :func:`fedmed.federation.mutual_tls.server_context`.
        host: address to listen on; the default cannot be reached from another machine.
        port: 0 takes a free one.
        admission: tells which site a request comes from.
        rates: what one site may ask of the server.
        body_limit: largest body of a request in bytes.
    """

    def __init__(
        self,
        application: Application,
        context: ssl.SSLContext,
        *,
        admission: Admission,
        rates: Rates | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        body_limit: int = BODY_LIMIT,
    ) -> None:
        self._host = host
        self._port = port
        self.rates = MemberRates(rates or Rates())
        config = uvicorn.Config(
            Gateway(application, admission=admission, rates=self.rates, body_limit=body_limit),
            # On h11, which bounds the size of the headers; httptools reads them without end.
            http=PeerProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=int(_STOP_SECONDS),
            ssl_context_factory=lambda _config, _default: context,
        )
        self._server = _Server(config)
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """``HOST:PORT`` that the server listens on; the port is known once it has started."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._port}"

    def start(self) -> None:
        """Listen; returns when the server answers.

        Raises:
            FederationError: the port is taken, or the server did not come up.
        """
        if self._thread is not None:
            raise FederationError("this server has been started before; make a new one")
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            listener = socket.create_server((self._host, self._port), family=family)
        except OSError as error:
            raise FederationError(
                f"cannot listen on {self.address} ({error.strerror}); "
                "stop what uses the port, or choose another one"
            ) from error
        self._port = int(listener.getsockname()[1])
        self._thread = threading.Thread(
            target=self._server.serve_on, args=(listener,), name="fedmed-server", daemon=True
        )
        self._thread.start()
        if not self._server.settled.wait(_START_SECONDS) or not self._server.started:
            listener.close()
            raise FederationError("the server did not come up; see its log for the reason")

    def stop(self) -> None:
        """End requests under way, close the port and end the thread; harmless when repeated.

        Raises:
            FederationError: the thread did not end in time.
        """
        if self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(_GRACE_SECONDS)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            raise FederationError("the server did not stop in time; end its process")


class _Server(uvicorn.Server):
    """Uvicorn that says when it is up, or has failed."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()

    def serve_on(self, listener: socket.socket) -> None:
        """Serve until told to stop; the body of the thread."""
        try:
            self.run(sockets=[listener])
        except Exception:
            _logger.exception("the server failed")
        finally:
            listener.close()
            self.settled.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the listener, then say so."""
        await super().startup(sockets)
        self.settled.set()
