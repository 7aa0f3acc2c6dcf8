"""A site's loop: take a message, run the ClientApp that is installed here, send the reply.

The loop outlives the server: it connects anew with growing pauses. It ends when it is told to
stop, when the server turns the site away, or when the server is not the one that was pinned.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedmed.errors import FedmedError, ProtocolError
from fedmed.federation.flower_link import (
    ErrorCode,
    FleetConnection,
    MessageClosedError,
    ServerUnreachableError,
)

_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0

ContextFactory = Callable[[int, int], Context]
"""Makes the context of a run from the run's number and the site's node number."""


def serve(
    client_app: ClientApp,
    connect: Callable[[], FleetConnection],
    context_factory: ContextFactory,
    *,
    stop: threading.Event,
    on_event: Callable[[str], None],
) -> None:
    """Serve a federation until told to stop.

    Args:
        client_app: installed at the site; nothing that the server sends is ever executed.
        connect: makes a new connection, not yet open.
        context_factory: called once in a run; the context lives as long as the run goes on.
        stop: ends the loop within a second, unless the app or a request is at work then.
        on_event: told in one line what happens, for the site's log.

    Raises:
        ServerCertificateError: the server is not the pinned one.
        SiteRefusedError: the server does not know this site's key, or is no fedmed server.
    """
    site = _Site(client_app, context_factory, on_event)
    attempt = 0
    while not stop.is_set():
        try:
            with connect() as connection:
                on_event("connected to the server")
                while not stop.is_set():
                    site.step(connection, stop)
                    attempt = 0
        except ServerUnreachableError as error:
            seconds = _delay(attempt)
            attempt += 1
            on_event(f"{error}; the next try is in {seconds:.1f} s")
            stop.wait(seconds)


def _delay(attempt: int) -> float:
    """Return seconds to wait: doubled at each attempt, drawn so that sites do not come at once."""
    longest = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(attempt, 16))
    return max(_FIRST_DELAY, random.uniform(0.5, 1.0) * longest)  # noqa: S311 - no secret


@dataclass
class _Unsent:
    """A reply that waits for a server to send it to."""

    reply: Message
    seconds: float


class _Site:
    """What survives a lost connection: the context of the run, and a reply not yet sent."""

    def __init__(
        self,
        client_app: ClientApp,
        context_factory: ContextFactory,
        on_event: Callable[[str], None],
    ) -> None:
        self._app = client_app
        self._context_factory = context_factory
        self._on_event = on_event
        self._context: Context | None = None
        self._unsent: _Unsent | None = None

    def step(self, connection: FleetConnection, stop: threading.Event) -> None:
        """Send the reply that waits, or else handle the next message."""
        try:
            if self._unsent is None:
                message = connection.receive(stop.wait)
                if message is None:
                    return
                self._unsent = self._work(message, connection.node_id)
            self._send(connection, self._unsent)
        except MessageClosedError as error:
            self._on_event(str(error))
        except ProtocolError as error:
            self._on_event(f"a message was dropped: {error}")
        self._unsent = None

    def _send(self, connection: FleetConnection, unsent: _Unsent) -> None:
        metadata = unsent.reply.metadata
        if metadata.src_node_id != connection.node_id:
            raise MessageClosedError("the server has restarted and no longer wants the reply")
        if metadata.created_at + metadata.ttl < time.time():
            raise MessageClosedError("the reply comes too late, or the clocks differ")
        connection.reply(unsent.reply, unsent.seconds)

    def _work(self, message: Message, node_id: int) -> _Unsent:
        run_id = message.metadata.run_id
        kind = message.metadata.message_type
        started = time.monotonic()
        try:
            if self._context is None or self._context.run_id != run_id:
                self._context = self._context_factory(run_id, node_id)
            reply = self._app(message, self._context)
            if reply.metadata.reply_to_message_id != message.metadata.message_id:
                raise ProtocolError("the app's reply is to another message")
            outcome = "done"
        except Exception as error:  # whatever the app raises is its reply, not the site's end
            # The type alone: the text may hold what must not leave the site.
            reply = Message(
                Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=type(error).__name__),
                reply_to=message,
            )
            outcome = _described(error)
        seconds = time.monotonic() - started
        self._on_event(f"{kind}: {outcome} after {seconds:.1f} s")
        return _Unsent(reply, seconds)


def _described(error: Exception) -> str:
    """Return what the site's own log may say: no text that a library may have put data into."""
    if isinstance(error, FedmedError):
        return f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
