"""Hostile messages at one border, each in a process of its own whose memory is measured.

    python hostile_border.py server|site FOLDER

prints a line of JSON for each: what came of it, and by how many bytes the memory's peak has grown.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from clients.app import make_client_app
from clients.signed_site import SignedSite
from clients.site import Site
from fedmed.configuration import FederationConfig, ModelConfig, Plan, SiteConfig, TransportConfig
from fedmed.configuration.groups import TransportMode
from fedmed.errors import FedmedError
from fedmed.federation.channels.base import Attempt
from fedmed.federation.channels.secagg import SecureChannel
from fedmed.federation.channels.signed import Answer, ServerParty
from fedmed.federation.cohort import Participants
from fedmed.federation.exchange import Outcome, Status, Traffic, _judge
from fedmed.federation.flower_link import set_task_identity
from fedmed.federation.flower_link.inflation import inflate_message
from fedmed.federation.records import SALT_BYTES, Joined
from fedmed.federation.survivors import NamedSurvivors
from fedmed.federation.wire import pack_message, unpack_message
from fedmed.models.parameters import ParameterLayout, flatten
from fedmed.models.registry import build_model
from fedmed.secagg.messages import PREPARED, verify_message
from fedmed.tasks.classification.task import Classification
from fedmed.trust.audit.log import TransparencyLog
from fedmed.trust.context import TRAINING
from fedmed.trust.credentials import load_credentials
from fedmed.trust.envelope import Part, seal
from fedmed.trust.simulated import simulated_consortium

SITES = ("a", "b", "c")
RUN = "run"
PLAN = Plan(
    model=ModelConfig(width=2, stages=1),
    federation=FederationConfig(rounds=2, minimum_sites=3, deadline_seconds=5.0),
    transport=TransportConfig(mode=TransportMode.secagg),
)
TASK = Classification(PLAN.task)
MODEL = build_model(PLAN.model, channels=1, outputs=1, seed=0)
LAYOUT = ParameterLayout.of(MODEL)
SIGNATURE = bytes(64)
MIB = 2**20

Objects = tuple[str, dict[str, bytes]]


# --- hostile headers: bytes alone, so that making them costs little memory ----------------------


def _header(body: bytes, parts: bytes = b"{}", sequence: bytes = b"1") -> bytes:
    """Return the spelling of a header, without its signature."""
    return (
        b'{"body":' + body + b',"context":"' + b"0" * 64 + b'","parts":' + parts
        + b',"sequence":' + sequence + b',"site":"a","type":"joined"}'
    )  # fmt: skip


def _wide(size: int) -> bytes:
    return b'{"report":[' + b"[]," * (size // 3) + b"[]]}"


def _many_parts(count: int) -> bytes:
    entries = (b'"p%07d":[1,"%s"]' % (n, b"0" * 64) for n in range(count))
    return b"{" + b",".join(entries) + b"}"


_ONE_AND_TWO = b'{"one":[1,"%s"],"two":[1000,"%s"]}' % (b"0" * 64, b"0" * 64)

HEADERS: dict[str, Callable[[], bytes]] = {
    "wide": lambda: _header(_wide(8 * MIB)),
    "wide one MiB": lambda: _header(_wide(MIB - 1024), _ONE_AND_TWO),
    "deep": lambda: _header(b"[" * (MIB // 2) + b"]" * (MIB // 2)),
    "deep objects": lambda: _header(b'{"a":' * 100_000 + b"{}" + b"}" * 100_000),
    "too long": lambda: _header(b'"' + b"x" * (64 * MIB) + b'"'),
    "long text": lambda: _header(b'{"report":"' + b"x" * (8 * MIB) + b'"}'),
    "many parts": lambda: _header(b"{}", _many_parts(10_000)),
    "huge number": lambda: _header(b"{}", sequence=b"9" * 100_000),
    "infinite number": lambda: _header(b'{"report":1e999}'),
    "not a number": lambda: _header(b'{"report":NaN}'),
    "doubled key": lambda: _header(b'{"report":{},"report":{}}'),
    "no text": lambda: b"\xff" * 1000,
    "a list": lambda: b"[]" + b" " * 100,
    "surrogate": lambda: _header(b'{"report":"\\ud800"}'),
    "empty": lambda: b"",
}


# --- hostile objects: what Flower makes a message of -------------------------------------------


def _object(kind: str, children: list[str], body: bytes) -> tuple[str, bytes]:
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return sha256(content).hexdigest(), content


def _flattened(message: Message) -> Objects:
    objects = get_all_nested_objects(message)
    return message.object_id, {name: item.deflate() for name, item in objects.items()}


def _replaced(message: Message, kind: str, content: bytes, extra: dict[str, bytes]) -> Objects:
    """Flatten a message, put another object in the place of the first of a kind, bottom up."""
    root, contents = _flattened(message)
    old = next(i for i, data in contents.items() if data.startswith(kind.encode() + b" "))
    contents |= extra
    renamed, pending = {old: content}, [old]
    while pending:
        gone = pending.pop()
        contents.pop(gone, None)
        new = sha256(renamed[gone]).hexdigest()
        contents[new] = renamed[gone]
        for identifier, data in list(contents.items()):
            head, _, body = data.partition(b"\0")
            if identifier != new and gone.encode() in head and not data.startswith(b"ArrayChunk"):
                head, body = (x.replace(gone.encode(), new.encode()) for x in (head, body))
                renamed[identifier] = head + b"\0" + body
                pending.append(identifier)
        if gone == root:
            root = new
    return root, contents


def _named_often(message: Message, times: int = 100_000) -> Objects:
    """An array of one piece of 1 MiB, many times."""
    chunk, data = _object("ArrayChunk", [], b"\0" * MIB)
    body = json.dumps({
        "dtype": "|u1", "shape": [1], "stype": "fedmed.raw-le", "arraychunk_ids": [0] * times,
    }).encode()  # fmt: skip
    _, array = _object("Array", [chunk], body)
    return _replaced(message, "Array", array, {chunk: data})


def _parts_named_often(message: Message) -> Objects:
    """A record of ten thousand parts which are one array of 8 MiB."""
    chunk, data = _object("ArrayChunk", [], b"\0" * (8 * MIB))
    body = json.dumps({
        "dtype": "|u1", "shape": [1], "stype": "fedmed.raw-le", "arraychunk_ids": [0],
    }).encode()  # fmt: skip
    array, described = _object("Array", [chunk], body)
    names = json.dumps({f"p{n}": array for n in range(10_000)}).encode()
    _, record = _object("ArrayRecord", [array], names)
    return _replaced(message, "ArrayRecord", record, {chunk: data, array: described})


def _wide_description(message: Message) -> Objects:
    _, record = _object("ArrayRecord", [], b'{"a":[' + b"[]," * (5 * MIB) + b"[]]}")
    return _replaced(message, "ArrayRecord", record, {})


def _many_settings(message: Message) -> Objects:
    """Two million entries of seven bytes in a record of settings."""
    body = b"".join(b"\x0a\x05\x0a\x03%03x" % (n % 4096) for n in range(2_000_000))
    _, record = _object("ConfigRecord", [], body)
    return _replaced(message, "ConfigRecord", record, {})


def _missing_piece(message: Message) -> Objects:
    root, contents = _flattened(message)
    return root, {name: data for name, data in contents.items() if name == root}


def _truncated_piece(message: Message) -> Objects:
    chunk, data = _object("ArrayChunk", [], b"\0" * (SALT_BYTES - 1))
    body = json.dumps({
        "dtype": "|u1", "shape": [2**50], "stype": "fedmed.raw-le", "arraychunk_ids": [0],
    }).encode()  # fmt: skip
    _, array = _object("Array", [chunk], body)
    return _replaced(message, "Array", array, {chunk: data})


def _huge_shape(message: Message) -> Objects:
    chunk, data = _object("ArrayChunk", [], b"\0" * 64)
    body = json.dumps({
        "dtype": "<f8", "shape": [2**40, 2**20], "stype": "numpy.ndarray", "arraychunk_ids": [0],
    }).encode()  # fmt: skip
    _, array = _object("Array", [chunk], body)
    return _replaced(message, "Array", array, {chunk: data})


OBJECTS: dict[str, Callable[[Message], Objects]] = {
    "piece named often": _named_often,
    "part named often": _parts_named_often,
    "wide description": _wide_description,
    "many settings": _many_settings,
    "missing piece": _missing_piece,
    "truncated piece": _truncated_piece,
    "huge shape": _huge_shape,
}
CONTROL = "control"
"""What Flower does by itself with a piece of 1 MiB that is named 200 times."""
SIGNED = ("joined of a peer",)
"""Cases of a hostile server that signs what it sends; at the site's border alone."""


# --- the borders ------------------------------------------------------------------------------


class QuietSite(Site):
    """A site whose archive is never read."""

    def join(self, _request):
        return Joined(self.name, 50, 10, 10, {}, None)


def _never_loaded(_reading):
    raise AssertionError("the archive was read")


class Borders:
    """A server and a site that have joined a run, in this process."""

    def __init__(self, folder: Path) -> None:
        simulated_consortium(folder / "trust", SITES)
        set_task_identity()
        server = load_credentials(folder / "trust" / "server", None)
        log = TransparencyLog(folder / "audit", server.signer, RUN)
        self.asked: dict[str, dict[int, RecordDict]] = {}
        survivors = NamedSurvivors(folder / "survivors.json")
        party = ServerParty(server.signer, server.publication.signed_roster, log, survivors)
        self.channel = SecureChannel(self._ask, PLAN, TASK, LAYOUT.size, RUN, party)
        self.channel.begin(flatten(MODEL), 0)
        self.participants = Participants()
        self.apps = {}
        for node, name in enumerate(SITES, 1):
            credentials = load_credentials(folder / "trust" / name, None)
            site = QuietSite(SiteConfig(name=name), _never_loaded, folder / name)
            signed = SignedSite(site, lambda c=credentials: c)
            self.apps[node] = make_client_app(lambda _context, s=signed: s)
            reply = self.site(node, "query.join", self.channel.join_request())
            outcome = self.channel.take_joined(node, reply)
            assert outcome.status is Status.OK, outcome
            self.participants.joined[node] = outcome.reply

    def _ask(self, contents, message_type, _take, _deadline):
        self.asked[message_type] = contents
        return {node: Outcome(Status.LATE) for node in contents}

    def site(self, node: int, kind: str, content: RecordDict) -> RecordDict:
        message = Message(content, node, kind)
        context = Context(1, node, {}, RecordDict(), {})
        return self.apps[node](message, context).content

    def prepare_request(self) -> RecordDict:
        """Return the request of step 1 to the first site."""
        with contextlib.suppress(FedmedError):  # nobody answers
            self.channel.collect(Attempt(1, 1, (1, 2, 3), flatten(MODEL)), self.participants)
        return self.asked["query.prepare"][1]

    def with_hostile_peer(self) -> RecordDict:
        """Return the request of step 1 with one more hostile part, signed by the server."""
        envelope, parts = unpack_message(self.prepare_request())
        parts["joined/b"] = SIGNATURE + HEADERS["wide"]()
        described = {name: Part.of(data) for name, data in parts.items()}
        signer = self.channel.party.signer
        again = seal(signer, envelope.type, envelope.context, 1, envelope.body, described)
        return pack_message(again.to_bytes(), parts)


def _content(case: str, borders: Borders) -> RecordDict:
    if case in SIGNED:
        return borders.with_hostile_peer()
    header = HEADERS[case]() if case in HEADERS else _header(b"{}", _ONE_AND_TWO)
    return pack_message(SIGNATURE + header, {"one": b"1", "two": b"2" * 1000})


def _memory(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", status)[1])


def _at_server(borders: Borders, message: Message) -> str:
    """Read it as the answer to joining, then as that to the first step of a round."""
    channel, participants = borders.channel, borders.participants
    attempt = Attempt(1, 1, (1, 2, 3), flatten(MODEL))
    context = channel.context(TRAINING, attempt, participants)

    def take(site: str, answer: Answer) -> None:
        verify_message(answer.envelope, PREPARED, context.sha256(), site, channel.party.roster)

    outcomes = [
        _judge(1, message, Traffic(), one)
        for one in (channel.take_joined, channel.taking(context, participants, take))
    ]
    worst = min(outcomes, key=lambda outcome: outcome.status is not Status.OK)
    return f"{worst.status.value}: {worst.reason}"


def _handle(border: str, case: str, borders: Borders, root: str, contents) -> str:
    if case == CONTROL:
        inflate_object_from_contents(root, contents)
        return "taken"
    try:
        message = inflate_message(root, contents)
    except FedmedError as error:
        return f"{type(error).__name__}: {error}"
    if border == "server":
        return _at_server(borders, message)
    kinds = ["query.prepare"] if case in SIGNED else [
        "query.join", "query.prepare", "train", "evaluate", "query.confirm", "query.reveal",
    ]  # fmt: skip
    for kind in kinds:
        reply, _ = unpack_message(borders.site(1, kind, message.content))
        if reply.type != "refused":
            return f"answered: {reply.type}"
    return f"refused: {reply.body['kind']}: {reply.body['reason']}"


def _measure(border: str, case: str, borders: Borders) -> dict[str, object]:
    message = Message(_content(case, borders), 1, "train")
    make = OBJECTS.get(case, _flattened)
    if case == CONTROL:
        make = partial(_named_often, times=200)
    root, contents = make(message)
    del message
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    result = _handle(border, case, borders, root, contents)
    return {"result": result, "grown": _memory("VmHWM") - before}


def main(border: str, folder: str) -> None:
    borders = Borders(Path(folder))
    for case in (CONTROL, *HEADERS, *OBJECTS, *SIGNED):
        # A process for each, so that none meets memory that another one has left.
        child = os.fork()
        if child == 0:
            try:
                result = _measure(border, case, borders)
            except BaseException as error:
                result = {"result": f"crash: {error!r}", "grown": 0}
            sys.stdout.write(json.dumps({"case": case, **result}) + "\n")
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
