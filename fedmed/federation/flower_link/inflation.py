"""Puts a message together from its objects, without letting them grow.

Flower keeps equal bytes once: an array names its pieces by number, and a record its arrays. So a
few bytes can name one piece a million times, and who inflates them runs out of memory. Here sizes
are added up, each piece as often as it is named, before anything is put together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from flwr.app import Message
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedmed.errors import ProtocolError

LARGEST_DESCRIPTION = 2**20 + 2**16
"""Bytes of an object that is no piece of an array: a header of 1 MiB, and some room."""
LARGEST_GROWTH = 64 * 2**20
"""Bytes by which a message may be larger than its objects: an array of zeros has equal pieces."""
MOST_OBJECTS = 100_000

_PIECE = "ArrayChunk"
_RECORDS = ("ArrayRecord", "RecordDict")


def inflate_message(identifier: str, contents: dict[str, bytes]) -> Message:
    """Put a message together.

    Args:
        identifier: of the message's own object.
        contents: all objects by identifier; those that are used are taken out.

    Raises:
        ProtocolError: if the objects do not make a message, or would grow beyond their bytes.
    """
    try:
        _check_sizes(identifier, contents)
        message = inflate_object_from_contents(identifier, contents)
    except ProtocolError:
        raise
    # The other side chooses these bytes: whatever they break is its fault.
    except Exception as error:
        raise ProtocolError("A message's objects do not fit together.") from error
    if not isinstance(message, Message):
        raise ProtocolError("What was sent as a message is none.")
    return message


def _check_sizes(identifier: str, contents: Mapping[str, bytes]) -> None:
    if len(contents) > MOST_OBJECTS:
        raise ProtocolError("A message consists of more objects than any that is needed.")
    received = sum(len(content) for content in contents.values())
    if _expanded(identifier, contents, {}) > received + LARGEST_GROWTH:
        raise ProtocolError("A message names its pieces so often that it would grow many times.")


def _expanded(
    identifier: str, contents: Mapping[str, bytes], known: dict[str, int], depth: int = 0
) -> int:
    """Return an object's size in bytes with all that is below it, as often as it is named."""
    if identifier in known:
        return known[identifier]
    content = contents[identifier]
    kind, children, _ = get_object_head_values_from_object_content(content)
    if kind == _PIECE:
        known[identifier] = len(content)
        return known[identifier]
    # Message, RecordDict, ArrayRecord, Array: nothing is deeper.
    if len(content) > LARGEST_DESCRIPTION or depth > 3:
        raise ProtocolError("A message's description is longer or deeper than any that is needed.")
    named = list(children)
    if kind == "Array" or kind in _RECORDS:
        body = json.loads(content.partition(HEAD_BODY_DIVIDER)[2])
        named = [children[i] for i in body["arraychunk_ids"]] if kind == "Array" else body.values()
    size = len(content) + sum(_expanded(child, contents, known, depth + 1) for child in named)
    known[identifier] = size
    return size
