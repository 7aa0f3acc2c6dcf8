"""The server's Grid on the SuperLink's state in the same process: no HTTP, no token."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate import LinkState
from flwr.serverapp import Grid
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.run import Run

from fedmed.errors import FederationError, ProtocolError
from fedmed.federation.flower_link.identity import SERVER_NODE_ID, assign_message_id
from fedmed.federation.flower_link.inflation import inflate_message

_SHORTEST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0


class SuperLinkGrid(Grid):
    """Sends messages to sites and collects their replies; for one thread of the server.

    Args:
        state: the SuperLink's state.
        run: the run under way.
        connected: node numbers of the sites with a live heartbeat.
    """

    def __init__(self, state: LinkState, run: Run, connected: Callable[[], Sequence[int]]) -> None:
        self._state = state
        self._run = run
        self._connected = connected
        self._open: dict[str, Message] = {}
        self._arriving: dict[str, Message] = {}
        self._refused: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the run in which messages are sent."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run in which messages are sent."""
        return Run(**vars(self._run))

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Build a message; the same as ``flwr.app.Message``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Node numbers of the sites with a live heartbeat."""
        return list(self._connected())

    def get_nodes(self) -> list[NodeInfo]:
        """Flower's records of the sites with a live heartbeat."""
        nodes = []
        for node in self._state.get_node_info(node_ids=self.get_node_ids()):
            copy = NodeInfo()
            copy.CopyFrom(node)
            nodes.append(copy)
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand messages to the SuperLink; each waits there until its site asks for it.

        Args:
            messages: run, sender and identifier are overwritten. Arrays that several messages
                share are hashed and kept once.

        Returns:
            One identifier for each message, in order. A message that cannot be delivered has
            one too: its reply is an error.

        Raises:
            FederationError: the arrays of a message could not be stored.
        """
        now = time.time()
        self.forget(
            [
                identifier
                for identifier, message in self._open.items()
                if message.metadata.created_at + message.metadata.ttl < now
            ]
        )
        with no_object_id_recompute():
            return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Collect the replies that are complete; never waits.

        Args:
            message_ids: identifiers from :meth:`push_messages`; those that are answered already
                are passed over.

        Returns:
            Replies, each once. A reply has an error where the site sent one, where it went
            offline, where the message's time to live passed, or where the reply is malformed.
        """
        asked = [identifier for identifier in message_ids if identifier in self._open]
        replies = [self._refused[identifier] for identifier in asked if identifier in self._refused]
        waiting = [identifier for identifier in asked if identifier not in self._refused]
        replies += self._complete(waiting)
        late = set(waiting) - {reply.metadata.reply_to_message_id for reply in replies}
        if late:
            for row in self._state.get_message_res(message_ids=late, run_id=self._run.run_id):
                self._arriving[row.metadata.reply_to_message_id] = row
            replies += self._complete(
                [identifier for identifier in waiting if identifier in self._arriving]
            )
        for reply in replies:
            self._close(reply.metadata.reply_to_message_id)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push messages and wait for their replies.

        Args:
            messages: see :meth:`push_messages`.
            timeout: seconds; ``None`` waits until each message is answered or its time to live
                has passed.

        Returns:
            The replies that came in time.
        """
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _SHORTEST_PAUSE
        replies: list[Message] = []
        while waiting:
            arrived = self.pull_messages(waiting)
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            left = math.inf if deadline is None else deadline - time.monotonic()
            if not waiting or left <= 0:
                break
            pause = _SHORTEST_PAUSE if arrived else min(2 * pause, _LONGEST_PAUSE)
            time.sleep(min(pause, left))
        return replies

    def forget(self, message_ids: Iterable[str]) -> None:
        """Give up on replies, for instance when a round closes: late ones are not taken.

        Without it the model that a silent site never fetched, and a late update, stay in memory
        until their time to live has passed.
        """
        dropped = {identifier for identifier in message_ids if identifier in self._open}
        pending = {identifier for identifier in dropped if identifier not in self._refused}
        if pending:
            for row in self._state.get_message_res(
                message_ids=set(pending), run_id=self._run.run_id
            ):
                self._state.object_store.delete(row.metadata.message_id)
        for identifier in dropped:
            self._close(identifier)

    def deliver_again(self, node_id: int) -> None:
        """Hand out anew what a site was given and never confirmed, as it connects again.

        Flower hands a message out once: a link that was cut while the site read it would cost
        the site its round. No app has seen a message that is not confirmed.

        Args:
            node_id: number of the site's node.
        """
        for identifier, message in list(self._open.items()):
            # A confirmation deletes the message's own object.
            unread = self._state.object_store.get(identifier) is not None
            if message.metadata.dst_node_id == node_id and unread:
                # The state in memory keeps this very object. (One in a database keeps its own:
                # there the site sits the round out, as with Flower.)
                message.metadata.delivered_at = ""

    def _push(self, message: Message) -> str:
        run_id = self._run.run_id
        message.metadata.__dict__["_src_node_id"] = SERVER_NODE_ID
        identifier = assign_message_id(message, run_id=run_id)
        objects = get_all_nested_objects(message)
        session = self._state.start_session(run_id)
        tree = get_object_tree(message)
        # The arrays first, so that a site never sees a message whose arrays are not there yet.
        for object_id in dict.fromkeys(self._state.preregister_object_tree(tree, session)):
            content = objects[object_id].deflate()
            if not self._state.store_object(run_id, session, object_id, content):
                raise FederationError(
                    "a message could not be stored; its records were changed while it was sent"
                )
        # The state keeps what it is given and writes to it: give it a copy.
        envelope = message_from_proto(message_to_proto(remove_content_from_message(message)))
        self._open[identifier] = envelope
        if self._state.store_message_ins(envelope) is None:
            self._refused[identifier] = _error_reply(
                envelope.metadata,
                ErrorCode.NODE_UNAVAILABLE,
                "the SuperLink did not take the message: no such site, or the run is over",
            )
        return identifier

    def _complete(self, identifiers: Iterable[str]) -> list[Message]:
        """Build the replies among these whose objects have all arrived."""
        complete = []
        for identifier in identifiers:
            row = self._arriving.get(identifier)
            reply = None if row is None else self._inflate(row)
            if reply is not None:
                complete.append(reply)
        return complete

    def _inflate(self, row: Message) -> Message | None:
        """Build a reply from the objects that the site pushed; ``None`` while some are missing."""
        root = row.metadata.message_id
        unavailable = ErrorCode.REPLY_MESSAGE_UNAVAILABLE
        contents: dict[str, bytes] = {}
        try:
            tree = self._state.object_store.get_object_tree(root)
        except NoObjectInStoreError:
            return _error_reply(row.metadata, unavailable, "the reply was not uploaded in time")
        for node in iterate_object_tree(tree):
            content = self._state.get_object(self._run.run_id, node.object_id)
            if content is None:
                return _error_reply(row.metadata, unavailable, "the reply was not uploaded in time")
            if not content:
                return None
            contents[node.object_id] = content
        try:
            reply = inflate_message(root, contents)
        except ProtocolError:
            reply = None
        if reply is None or not _same_envelope(reply.metadata, row.metadata):
            return _error_reply(row.metadata, ErrorCode.UNKNOWN, "the reply is malformed")
        assign_message_id(reply, root)
        return reply

    def _close(self, identifier: str) -> None:
        """Drop a message, its reply and their arrays."""
        row = self._arriving.pop(identifier, None)
        self._refused.pop(identifier, None)
        self._open.pop(identifier, None)
        self._state.delete_messages({identifier})
        self._state.object_store.delete(identifier)
        if row is not None:
            self._state.object_store.delete(row.metadata.message_id)


def _same_envelope(inner: Metadata, outer: Metadata) -> bool:
    """Whether the reply itself names the run, sender and message of its authenticated envelope.

    Flower checks the envelope only and then believes what the reply says inside.
    """
    return (
        inner.run_id == outer.run_id
        and inner.src_node_id == outer.src_node_id
        and inner.dst_node_id == outer.dst_node_id
        and inner.reply_to_message_id == outer.reply_to_message_id
        and inner.message_type == outer.message_type
        and inner.group_id == outer.group_id
    )


def _error_reply(about: Metadata, code: int, reason: str) -> Message:
    """Build a reply of the server itself about a message that it sent, or about its reply."""
    is_reply = bool(about.reply_to_message_id)
    return make_message(
        metadata=Metadata(
            run_id=about.run_id,
            message_id="",
            src_node_id=about.src_node_id if is_reply else about.dst_node_id,
            dst_node_id=SERVER_NODE_ID,
            reply_to_message_id=about.reply_to_message_id if is_reply else about.message_id,
            group_id=about.group_id,
            created_at=about.created_at,
            ttl=about.ttl,
            message_type=about.message_type or SYSTEM_MESSAGE_TYPE,
        ),
        error=Error(code=code, reason=reason),
    )
