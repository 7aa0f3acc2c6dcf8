"""Ask several sites at once and take what has come by the deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedmed.errors import ProtocolError
from fedmed.federation.records import Refused, Reply, unpack_reply, value_bytes

_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.2


class Status(StrEnum):
    """Outcome of a request at one site."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"
    LATE = "late"


@dataclass(frozen=True)
class Outcome:
    """What became of one request.

    Attributes:
        status: ok, refused, failed or late.
        reply: the typed answer where there is one.
        content: the whole answer, whose arrays are still to be checked.
        reason: why it is not ok.
    """

    status: Status
    reply: Reply | None = None
    content: RecordDict | None = None
    reason: str | None = None


@runtime_checkable
class Forgetful(Protocol):
    """A grid that can drop messages whose answers nobody waits for any more."""

    def forget(self, message_ids: Iterable[str]) -> None:
        """Drop the messages, and their answers when they come."""


@dataclass
class Traffic:
    """Payload bytes from the server's view."""

    down: int = 0
    up: int = 0


def payload_bytes(content: RecordDict) -> int:
    """Return the bytes of arrays and texts in a message's content."""
    total = 0
    for record in content.values():
        for value in record.values():
            total += len(value_bytes(value))
    return total


def ask(
    grid: Grid,
    requests: Mapping[int, RecordDict],
    message_type: str,
    *,
    group: str,
    deadline: float,
    traffic: Traffic,
    take: Callable[[int, RecordDict], Outcome],
    replied: Callable[[int, Outcome], None],
) -> dict[int, Outcome]:
    """Send one request to each node and collect the answers.

    Args:
        grid: Flower's link to the nodes.
        requests: content by node.
        message_type: such as ``train`` or ``query.join``.
        group: label of the round.
        deadline: seconds from now; who has not answered then is late.
        traffic: counters to add to.
        take: reads an answer as soon as it comes; one that cannot be read is a failure.
        replied: told of each outcome as it comes.

    Returns:
        An outcome for every node, in the order of ``requests``.
    """
    outcomes: dict[int, Outcome] = {}

    def settle(node: int, outcome: Outcome) -> None:
        outcomes[node] = outcome
        replied(node, outcome)

    waiting: dict[str, int] = {}
    for node, content in requests.items():
        message = Message(content, node, message_type, ttl=deadline + 60, group_id=group)
        for message_id in grid.push_messages([message]):
            waiting[message_id] = node
        traffic.down += payload_bytes(content)
    end, pause = time.monotonic() + deadline, _FIRST_PAUSE
    while waiting and time.monotonic() < end:
        arrived = list(grid.pull_messages(list(waiting)))
        for message in arrived:
            sender = waiting.pop(message.metadata.reply_to_message_id, None)
            if sender is not None:
                settle(sender, _judge(sender, message, traffic, take))
        if arrived:
            pause = _FIRST_PAUSE
        elif waiting:
            time.sleep(min(pause, max(0.0, end - time.monotonic())))
            pause = min(2 * pause, _LONGEST_PAUSE)
    if waiting and isinstance(grid, Forgetful):
        grid.forget(list(waiting))
    for node in requests:
        if node not in outcomes:
            settle(node, Outcome(Status.LATE, reason=f"no answer within {deadline:g} s"))
    return {node: outcomes[node] for node in requests}


def _judge(
    node: int, message: Message, traffic: Traffic, take: Callable[[int, RecordDict], Outcome]
) -> Outcome:
    if message.has_error():
        return Outcome(Status.FAILED, reason=str(message.error.reason)[:200])
    traffic.up += payload_bytes(message.content)
    try:
        return take(node, message.content)
    except ProtocolError as error:
        return Outcome(Status.FAILED, reason=str(error))


def take_plain(_node: int, content: RecordDict) -> Outcome:
    """Read an unsigned answer.

    Raises:
        ProtocolError: if it is not one.
    """
    return outcome_of(unpack_reply(content), content)


def outcome_of(reply: Reply, content: RecordDict | None = None) -> Outcome:
    """Return the outcome of a typed answer: refused, or ok."""
    if isinstance(reply, Refused):
        return Outcome(Status.REFUSED, reply=reply, reason=f"{reply.kind}: {reply.reason}")
    return Outcome(Status.OK, reply=reply, content=content)
