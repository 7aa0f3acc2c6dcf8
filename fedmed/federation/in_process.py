"""Flower's Grid in one process: the default engine of a simulation.

Messages are handed over, not serialised; a pool of threads runs the sites' ClientApp. The apps
are the same as in deployment.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedmed.federation.flower_link import Run, assign_message_id, set_task_identity

RUN_ID = 1
_APP_FAILED = 2


class InProcessGrid(Grid):
    """A Grid whose nodes are threads.

    Args:
        client_app: the app of every site.
        node_configs: one configuration a node; node ids count from 1.
        workers: nodes that work at the same time.
    """

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: Sequence[dict[str, str | int | float | bool]],
        workers: int,
    ) -> None:
        set_task_identity()
        self._app = client_app
        self._contexts = {
            node: Context(
                run_id=RUN_ID,
                node_id=node,
                node_config=dict(config),
                state=RecordDict(),
                run_config={},
            )
            for node, config in enumerate(node_configs, start=1)
        }
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="site")
        self._pending: dict[str, Future[Message]] = {}
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._run = Run.create_empty(RUN_ID)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the nodes' threads; return their ids."""
        identifiers = []
        for message in messages:
            identifier = f"message-{next(self._numbers)}"
            assign_message_id(message, identifier, run_id=RUN_ID)
            with self._lock:
                self._pending[identifier] = self._pool.submit(self._handle, message)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are ready, each once."""
        ready = []
        with self._lock:
            for identifier in message_ids:
                future = self._pending.get(identifier)
                if future is not None and future.done():
                    ready.append(self._pending.pop(identifier).result())
        return ready

    def forget(self, message_ids: Iterable[str]) -> None:
        """Drop messages whose answers nobody waits for; one not begun is not run."""
        with self._lock:
            for identifier in message_ids:
                future = self._pending.pop(identifier, None)
                if future is not None:
                    future.cancel()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and wait for all replies, or until the time-out."""
        replies = []
        for identifier in self.push_messages(messages):
            try:
                replies.append(self._pending[identifier].result(timeout))
            except TimeoutError:
                continue
            self._pending.pop(identifier)
        return replies

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes: in one process none is ever away."""
        return list(self._contexts)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Build a message (Flower's older way)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: Run) -> None:
        """Take Flower's description of the run; nothing here depends on it."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def close(self) -> None:
        """Stop the threads once they are done; messages not begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _handle(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            # The type alone: the text of an unforeseen error may hold anything.
            return Message(Error(code=_APP_FAILED, reason=type(error).__name__), reply_to=message)
