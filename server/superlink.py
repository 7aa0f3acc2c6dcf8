"""Serves the SuperLink behind the gateway over TLS, in a thread of the server process."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn

from fedmed.errors import ConfigurationError, FederationError
from fedmed.trust.certificates import require_private_mode
from server.gateway import BODY_LIMIT, Application, Gateway

_logger = logging.getLogger(__name__)

_START_SECONDS = 30.0
# Time for requests under way to end. Connections that sites keep open do not end by themselves.
_GRACE_SECONDS = 2.0
_STOP_SECONDS = 10.0
# Longer than the sites' (fedmed/federation/flower_link/fleet.py).
_IDLE_SECONDS = 75
_CONNECTIONS = 256


def server_tls_context(
    certificate: Path, private_key: Path, *, client_authority: Path | None = None
) -> ssl.SSLContext:
    """TLS settings of the server: version 1.3 and nothing older.

    Args:
        certificate: PEM file of the server's certificate.
        private_key: PEM file of its key, readable by its owner only.
        client_authority: when given, only clients with a certificate of this authority are let
            in; the default leaves it to the site's signature.

    Raises:
        ConfigurationError: a file is missing, does not fit the other, or is readable by others.
    """
    require_private_mode(private_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, private_key)
        if client_authority is not None:
            context.load_verify_locations(cafile=client_authority)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"cannot use the certificate {certificate.name} with the key {private_key.name} "
            f"({error.strerror or type(error).__name__}); issue the server's certificate again"
        ) from error
    return context


class SuperLinkServer:
    """The server's socket; a context manager that starts it, and stops it at the end.

    Args:
        application: the SuperLink's ASGI application; the gateway is put in front of it here.
        context: see :func:`server_tls_context`.
        host: address to listen on; the default cannot be reached from another machine.
        port: 0 takes a free one.
        body_limit: largest body of a request in bytes.
    """

    def __init__(
        self,
        application: Application,
        context: ssl.SSLContext,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        body_limit: int = BODY_LIMIT,
    ) -> None:
        self._host = host
        self._port = port
        config = uvicorn.Config(
            Gateway(application, body_limit=body_limit),
            # h11 bounds the size of the headers; httptools reads them without end.
            http="h11",
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
