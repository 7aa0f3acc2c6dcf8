"""The only door to the server: lets members in, to the paths that a site needs, at a bounded rate.

Pure ASGI; knows nothing of Flower. The SuperLink behind it never sees a request that is not on
the list below, whichever routes a version of Flower may add.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import cast

from server.admission import REFUSAL_HEADER, Admission, NotAdmittedError
from server.rates import MemberRates, Rates

Scope = MutableMapping[str, object]
Event = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_LIMIT = 64 * 2**20
"""Largest body of a request in bytes; large arrays travel in pieces of 5 MiB."""

PREFIX = "/v1/fleet/"
ANNOUNCEMENT = PREFIX + "activate-node"
ADMITTED = frozenset(
    PREFIX + name
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "pull-object",
        "push-object",
        "confirm-message-received",
    )
)
"""Paths that a site needs."""

REFUSED = frozenset(
    PREFIX + name for name in ("register-node", "unregister-node", "get-run", "get-fab")
)
"""Paths that exist and are refused: sites are registered by the operator, code never travels."""


class Gateway:
    """An ASGI application in front of another.

    Args:
        application: gets the admitted requests, each with its whole body in one piece.
        admission: tells which site a request comes from; ``None`` leaves that to the application.
        rates: limits for each site; they need ``admission``.
        body_limit: largest body in bytes.
        body_seconds: time in which a body has to arrive.
        idle_seconds: time in which the next piece of a body has to arrive.
    """

    def __init__(
        self,
        application: Application,
        *,
        admission: Admission | None = None,
        rates: MemberRates | None = None,
        body_limit: int = BODY_LIMIT,
        body_seconds: float = 300.0,
        idle_seconds: float = 60.0,
    ) -> None:
        self._application = application
        self._admission = admission
        self._rates = rates or MemberRates(Rates())
        self._body_limit = body_limit
        self._body_seconds = body_seconds
        self._idle_seconds = idle_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, 404, 413, 400, 408, 429 or 503, or hand the request on."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await self._identify(scope, receive, send)

    async def _identify(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._admission is None:
            await self._answer(scope, receive, send, None)
            return
        try:
            # Before all else: who is no member learns nothing, not even which paths there are.
            name = self._admission.site(scope)
            if scope.get("path") == ANNOUNCEMENT:
                self._admission.announced(scope, name)
        except NotAdmittedError as error:
            await _refuse(send, error.status, (REFUSAL_HEADER, error.reason.encode()))
            return
        seconds = self._rates.wait(name)
        with self._rates.under_way(name):
            if seconds:
                await self._postpone(scope, receive, send, seconds)
            else:
                await self._answer(scope, receive, send, name)

    async def _postpone(self, scope: Scope, receive: Receive, send: Send, seconds: int) -> None:
        """Ask the site to come back later; on the same connection, so its body is read first."""
        status = _status(scope) or self._declared_status(scope)
        body = None if status else await self._timely_body(receive, send, keep=False)
        if status:
            await _refuse(send, status)
        elif body is not None:
            retry = (b"retry-after", str(seconds).encode())
            headers = [(b"content-length", b"0"), retry]
            await send({"type": "http.response.start", "status": 429, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

    async def _answer(self, scope: Scope, receive: Receive, send: Send, name: str | None) -> None:
        status = _status(scope) or self._declared_status(scope)
        if status:
            await _refuse(send, status)
            return
        body = await self._timely_body(receive, send)
        if body is None:
            return
        if name is not None:
            self._rates.received(name, len(body))
        await self._application(scope, _replay(body, receive), send)

    async def _timely_body(
        self, receive: Receive, send: Send, *, keep: bool = True
    ) -> bytes | None:
        """Return the body, empty unless it is kept.

        ``None`` when the request has come to its end in another way.
        """
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(self._body_seconds):
                size = await self._read_body(receive, pieces.append if keep else _drop)
        except TimeoutError:
            await _refuse(send, 408)
            return None
        if size is None:
            return None  # the site hung up
        if size > self._body_limit:
            await _refuse(send, 413)
            return None
        return b"".join(pieces)

    def _declared_status(self, scope: Scope) -> int:
        """Return the refusal that the declared length earns, before a byte of the body is read."""
        headers = cast("Iterable[tuple[bytes, bytes]]", scope.get("headers", ()))
        for name, value in headers:
            if name.lower() == b"content-length":
                if not value.isdigit():
                    return 400
                if int(value) > self._body_limit:
                    return 413
        return 0

    async def _read_body(self, receive: Receive, take: Callable[[bytes], None]) -> int | None:
        """Read the body, one piece past the limit at most; return its size.

        ``None`` when the site hung up.
        """
        size = 0
        while size <= self._body_limit:
            async with asyncio.timeout(self._idle_seconds):
                event = await receive()
            if event["type"] == "http.disconnect":
                return None
            piece = cast("bytes", event.get("body", b""))
            take(piece)
            size += len(piece)
            if not event.get("more_body", False):
                break
        return size


def _drop(_piece: bytes) -> None:
    """Keep nothing."""


def _status(scope: Scope) -> int:
    """Return the refusal that method and path earn; 0 when the request is admitted.

    The path has to be on the list as it was sent, so that no spelling of it (encoded, doubled
    slashes, dots) is read one way here and another way behind.
    """
    path = scope.get("path")
    if (
        scope.get("method") != "POST"
        or not isinstance(path, str)
        or scope.get("raw_path") != path.encode("utf-8", "surrogateescape")
        or scope.get("query_string")
        or scope.get("root_path")
    ):
        return 404
    if path in REFUSED:
        return 403
    return 0 if path in ADMITTED else 404


async def _refuse(send: Send, status: int, *headers_of_refusal: tuple[bytes, bytes]) -> None:
    # Closed, since what is left of the body is not read.
    headers = [(b"content-length", b"0"), (b"connection", b"close"), *headers_of_refusal]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting = [body]

    async def replayed() -> Event:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replayed
