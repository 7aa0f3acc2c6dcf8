"""Who sends a Flower message: the identity of this process, and the identifier of a message."""

from __future__ import annotations

import threading

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "SERVER_NODE_ID",
    "ErrorCode",
    "Run",
    "assign_message_id",
    "empty_run",
    "set_task_identity",
]

SERVER_NODE_ID: int = SUPERLINK_NODE_ID
"""Node number of the server in every message."""

_TASK_ID = 1
_identity_lock = threading.Lock()


def set_task_identity(run_id: int = 1, node_id: int = SERVER_NODE_ID) -> None:
    """Let ``flwr.app.Message(content, dst_node_id, ...)`` be built outside a Flower run.

    Flower reads the sender of a new message from process-wide variables that its own launcher
    sets. Our grids overwrite run and sender of each message that they push, so one call with the
    default values serves a server and a simulation alike. Replies do not use the identity.

    Args:
        run_id: run that new messages name until a grid assigns its own.
        node_id: sender that new messages name; the server by default.
    """
    with _identity_lock:
        TaskIdentity.task_id = _TASK_ID
        TaskIdentity.run_id = run_id
        TaskIdentity.node_id = node_id


def assign_message_id(
    message: Message, identifier: str | None = None, run_id: int | None = None
) -> str:
    """Give a message its identifier, as a grid has to before it hands the message on.

    Args:
        message: changed in place; Flower offers no setter for these fields.
        identifier: used as it is; by default the SHA-256 of the message (its object id), which
            is what a SuperLink demands.
        run_id: run to which the message belongs; left alone when ``None``.

    Returns:
        The identifier, by which the reply will refer to the message.
    """
    fields = message.metadata.__dict__
    if run_id is not None:
        fields["_run_id"] = run_id
    assigned = message.object_id if identifier is None else identifier
    fields["_message_id"] = assigned
    return assigned


def empty_run(run_id: int) -> Run:
    """Return Flower's description of a run that no SuperLink knows, for a simulation."""
    return Run.create_empty(run_id)
