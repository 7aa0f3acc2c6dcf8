"""The only door to the server: lets the paths through that a site needs, and nothing else.

Pure ASGI; knows nothing of Flower. The SuperLink behind it never sees a request that is not on
the list below, whichever routes a version of Flower may add.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import cast

Scope = MutableMapping[str, object]
Event = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_LIMIT = 64 * 2**20
"""Largest body of a request in bytes; large arrays travel in pieces of 5 MiB."""

PREFIX = "/v1/fleet/"
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
        body_limit: largest body in bytes.
        body_seconds: time in which a body has to arrive.
    """

    def __init__(
        self,
        application: Application,
        *,
        body_limit: int = BODY_LIMIT,
        body_seconds: float = 300.0,
    ) -> None:
        self._application = application
        self._body_limit = body_limit
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 404, 403, 413, 400 or 408, or hand the request on."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = _status(scope) or self._declared_status(scope)
        if status:
            await _refuse(send, status)
            return
        try:
            async with asyncio.timeout(self._body_seconds):
                body = await self._body(receive)
        except TimeoutError:
            await _refuse(send, 408)
            return
        if body is None:
            return  # the site hung up
        if len(body) > self._body_limit:
            await _refuse(send, 413)
            return
        await self._application(scope, _replay(body, receive), send)

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

    async def _body(self, receive: Receive) -> bytes | None:
        """Read the body; stops one piece past the limit. ``None`` when the site hung up."""
        pieces: list[bytes] = []
        size = 0
        while size <= self._body_limit:
            event = await receive()
            if event["type"] == "http.disconnect":
                return None
            piece = cast("bytes", event.get("body", b""))
            pieces.append(piece)
            size += len(piece)
            if not event.get("more_body", False):
                break
        return b"".join(pieces)


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


async def _refuse(send: Send, status: int) -> None:
    # Closed, since what is left of the body is not read.
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting = [body]

    async def replayed() -> Event:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replayed
