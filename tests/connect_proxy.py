"""A hospital's HTTP proxy: knows CONNECT only, counts what passes, and can be cut."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

_PIECE = 16384


class ConnectProxy:
    """Proxy on loopback; one thread for each direction of each connection.

    Attributes:
        tunnels: targets that it was asked for and has connected to.
        refused: connections that it answered 407 or dropped.
        bytes_up: bytes from clients to servers through the tunnels.
        bytes_down: bytes from servers to clients.
        cut_after: at this many bytes upwards all tunnels break, once.
        cut_after_down: the same for bytes downwards.
        cuts: how often they broke.
        down: connections are dropped at once.
        stays_down: a cut is followed by ``down``.
    """

    def __init__(self, user: str | None = None, password: str = "") -> None:
        self._expected = (
            None if user is None else b"Basic " + base64.b64encode(f"{user}:{password}".encode())
        )
        self.tunnels: list[str] = []
        self.refused = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.cut_after: int | None = None
        self.cut_after_down: int | None = None
        self.cuts = 0
        self.down = False
        self.stays_down = False
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_all()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def break_all(self) -> None:
        """Reset every tunnel."""
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _spawn(self, target, *arguments) -> None:
        thread = threading.Thread(target=target, args=arguments, name="test-proxy")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.down:
                self.refused += 1
                client.close()
            else:
                self._spawn(self._tunnel, client)

    def _tunnel(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = client.recv(_PIECE)
            if not piece:
                client.close()
                return
            head += piece
        lines = head.split(b"\r\n")
        method, target, _ = lines[0].decode().split()
        if not self._authorised(lines[1:]):
            self.refused += 1
            client.sendall(
                b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                b"Proxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
            )
            client.close()
            return
        assert method == "CONNECT"
        host, port = target.rsplit(":", 1)
        server = socket.create_connection((host, int(port)))
        self.tunnels.append(target)
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with self._lock:
            self._open |= {client, server}
        self._spawn(self._pump, server, client, False)
        self._pump(client, server, True)

    def _authorised(self, lines: list[bytes]) -> bool:
        if self._expected is None:
            return True
        return any(
            name.strip().lower() == b"proxy-authorization" and value.strip() == self._expected
            for name, _, value in (line.partition(b":") for line in lines)
        )

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                self._count(len(piece), up)
                sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._open.discard(end)
        source.close()

    def _count(self, count: int, up: bool) -> None:
        with self._lock:
            if up:
                self.bytes_up += count
            else:
                self.bytes_down += count
            cut = (self.cut_after is not None and self.bytes_up >= self.cut_after) or (
                self.cut_after_down is not None and self.bytes_down >= self.cut_after_down
            )
            if cut:
                self.cut_after = self.cut_after_down = None
                self.cuts += 1
                self.down = self.stays_down
        if cut:
            self.break_all()
            raise ConnectionAbortedError("cut")
