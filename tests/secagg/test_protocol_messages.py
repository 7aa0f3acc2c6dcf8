"""Messages that were changed, cut, repeated, put out of order or come from elsewhere."""

from __future__ import annotations

import copy
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_round import MODEL, SERVER, STEPS, Consortium, Exchange, described

from fedmed.errors import ProtocolError
from fedmed.secagg.messages import Joined, Masked, Prepare, Prepared, Revealed, Survivors
from fedmed.secagg.site import Stage
from fedmed.secagg.verification import read_joined, read_prepare
from fedmed.trust.envelope import Envelope, Part, seal
from fedmed.trust.signatures import Signer

NAME = "site-01"


class Receivers:
    """A round in which, before each step, a copy of each receiver waits for its message."""

    def __init__(self, consortium, **changes):
        self.exchange = exchange = Exchange(consortium, consortium.context(**changes))
        self._sites, self._servers = {}, {}
        for step in STEPS:
            exchange.ask(step)
            self._sites[step] = {name: snapshot(site) for name, site in exchange.sites.items()}
            self._servers[step] = snapshot(exchange.server)
            for name in consortium.names:
                exchange.reply(step, name)
            for name in consortium.names:
                exchange.take(step, name)

    def site(self, step, name=NAME):
        return snapshot(self._sites[step][name])

    def to_site(self, step, header, parts, name=NAME):
        """Hand a message to a site that waits for the one of ``step``."""
        session = self.site(step, name)
        try:
            envelope = Envelope.from_bytes(header)
            if step == "train":
                session.open_training(envelope, parts, MODEL)
            else:
                getattr(session, step)(envelope, parts)
        finally:
            self.last = session

    def to_server(self, step, header, parts, name=NAME):
        """Hand an answer to a server that waits for those of ``step``."""
        server = snapshot(self._servers[step])
        self.last = server
        envelope = Envelope.from_bytes(header)
        if step == "train":
            server.take_masked(name, envelope, parts["update"], parts["counts"])
        else:
            past = {"prepare": "prepared", "confirm": "confirmed", "reveal": "revealed"}[step]
            getattr(server, f"take_{past}")(name, envelope, parts)

    def message(self, step, direction, name=NAME):
        source = self.exchange.requests if direction == "to_site" else self.exchange.replies
        envelope, parts = source[step][name]
        return envelope.to_bytes(), dict(parts)


def snapshot(session):
    again = copy.copy(session)
    for key, value in vars(session).items():
        if isinstance(value, (dict, set, np.ndarray)):
            setattr(again, key, value.copy())
    if hasattr(again, "_journal"):
        again._journal = Willing()
    return again


class Willing:
    """A journal that lets all pass: here the messages are what is to be refused."""

    def begin(self, context):
        pass

    def confirm(self, context, survivors):
        pass

    def reveal(self, context, survivors):
        pass


@pytest.fixture(scope="module")
def receivers():
    with tempfile.TemporaryDirectory() as folder:
        yield Receivers(Consortium(Path(folder), 4))


@pytest.fixture(scope="module")
def next_round(receivers):
    return Receivers(receivers.exchange.consortium, round=2)


MESSAGES = [(step, direction) for step in STEPS for direction in ("to_site", "to_server")]
every_message = pytest.mark.parametrize(("step", "direction"), MESSAGES)


@every_message
def test_control_each_message_is_taken_as_it_is(receivers, step, direction):
    getattr(receivers, direction)(step, *receivers.message(step, direction))


@every_message
@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_a_flipped_bit_is_refused_wherever_it_is(receivers, step, direction, data):
    header, parts = receivers.message(step, direction)
    pieces = {"": header, **parts}
    length = sum(map(len, pieces.values()))
    position = data.draw(st.integers(0, length - 1))
    bit = data.draw(st.integers(0, 7))
    for name, piece in pieces.items():
        if position < len(piece):
            changed = bytearray(piece)
            changed[position] ^= 1 << bit
            pieces[name] = bytes(changed)
            break
        position -= len(piece)
    refused(receivers, direction, step, pieces.pop(""), pieces)


def refused(receivers, direction, step, header, parts, name=NAME):
    with pytest.raises(ProtocolError):
        getattr(receivers, direction)(step, header, parts, name)
    if direction == "to_server":
        # Nothing was used: the genuine answer is taken afterwards, and gives the same state.
        server = receivers.last
        assert np.array_equal(server._update, receivers._servers[step]._update)
        assert server._suspects == set()
    elif receivers.last.stage is not receivers.site(step).stage:
        assert receivers.last.stage is Stage.closed


@pytest.mark.parametrize(("step", "direction"), [("confirm", "to_site"), ("confirm", "to_server")])
def test_each_single_byte_of_a_header_counts(receivers, step, direction):
    header, parts = receivers.message(step, direction)
    for position in range(len(header)):
        changed = bytearray(header)
        changed[position] ^= 1 << (position % 8)
        refused(receivers, direction, step, bytes(changed), parts)


@every_message
def test_a_message_that_was_cut_or_grew_is_refused(receivers, step, direction):
    header, parts = receivers.message(step, direction)
    for cut in (0, 1, 63, 64, 65, len(header) // 2, len(header) - 1):
        refused(receivers, direction, step, header[:cut], parts)
    refused(receivers, direction, step, header + b" ", parts)
    for name, data in parts.items():
        for other in (b"", data[:-1], data + b"\0"):
            refused(receivers, direction, step, header, {**parts, name: other})
        missing = {key: value for key, value in parts.items() if key != name}
        if not (step == "train" and direction == "to_server"):
            refused(receivers, direction, step, header, missing)
            refused(receivers, direction, step, header, {**parts, "box/other": data})


@every_message
def test_two_parts_are_not_exchanged(receivers, step, direction):
    header, parts = receivers.message(step, direction)
    names = sorted(parts)[:2]
    if len(names) == 2:
        swapped = {**parts, names[0]: parts[names[1]], names[1]: parts[names[0]]}
        refused(receivers, direction, step, header, swapped)


@every_message
def test_a_message_of_another_step_is_refused(receivers, step, direction):
    """Reordered or repeated: each genuine message is taken at its own step only."""
    for other, way in MESSAGES:
        if (other, way) == (step, direction):
            continue
        header, parts = receivers.message(other, way)
        if direction == "to_server" and step == "train":
            parts = {"update": bytes(28), "counts": bytes(24)}
        refused(receivers, direction, step, header, parts)


@pytest.mark.parametrize("step", STEPS)
def test_another_sites_message_is_refused(receivers, step):
    header, parts = receivers.message(step, "to_server", "site-02")
    refused(receivers, "to_server", step, header, parts, NAME)


def test_another_sites_request_does_not_open(receivers):
    """Two requests that are not the same for all: boxes are the other site's."""
    for step in ("prepare", "train"):
        header, parts = receivers.message(step, "to_site", "site-02")
        refused(receivers, "to_site", step, header, parts, NAME)


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 3},
        {"attempt": 2},
        {"run": "other"},
        {"purpose": "evaluate"},
        {"plan": "cd" * 32},
        {"log_size": 1, "log_root": "ef" * 32},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_rounds_message_is_refused(receivers, changes):
    consortium = receivers.exchange.consortium
    other = Receivers(consortium, **changes)
    for step, direction in MESSAGES:
        header, parts = other.message(step, direction)
        refused(receivers, direction, step, header, parts)


def test_a_site_does_not_speak_for_the_server_nor_for_another_site(receivers):
    exchange = receivers.exchange
    for step, direction in MESSAGES:
        envelope, parts = (exchange.requests if direction == "to_site" else exchange.replies)[step][
            NAME
        ]
        for signer in ("site-02", SERVER if direction == "to_server" else NAME):
            key = exchange.consortium.signers[signer]
            forged = seal(
                key,
                envelope.type,
                envelope.context,
                envelope.sequence,
                envelope.body,
                envelope.parts,
            )
            named = Envelope(
                envelope.type,
                envelope.context,
                envelope.site,
                envelope.sequence,
                envelope.body,
                envelope.parts,
                forged.signature,
            )
            for message in (forged, named):
                refused(receivers, direction, step, message.to_bytes(), parts)


REQUESTS = pytest.mark.parametrize("step", ["prepare", "train", "reveal"])


def resigned(receivers, step, parts):
    """A malicious server's request: other parts, and its own true signature over them."""
    envelope, _ = receivers.exchange.requests[step][NAME]
    signer = receivers.exchange.consortium.signers[SERVER]
    again = seal(
        signer, envelope.type, envelope.context, envelope.sequence, envelope.body, described(parts)
    )
    return again.to_bytes(), parts


@REQUESTS
@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_a_bit_that_the_server_flips_in_a_sites_message_is_found(receivers, step, data):
    _, parts = receivers.message(step, "to_site")
    receivers.to_site(step, *resigned(receivers, step, parts))
    name = data.draw(st.sampled_from(sorted(parts)))
    changed = bytearray(parts[name])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    refused(receivers, "to_site", step, *resigned(receivers, step, {**parts, name: bytes(changed)}))


@REQUESTS
def test_the_server_cannot_sign_for_a_site_nor_exchange_sites_nor_rounds(
    receivers, next_round, step
):
    consortium = receivers.exchange.consortium
    _, parts = receivers.message(step, "to_site")
    _, elsewhere = next_round.message(step, "to_site")
    names = [name for name in parts if not name.startswith("box/")]
    for name, data in ((name, parts[name]) for name in names):
        genuine = Envelope.from_bytes(data)
        forged = seal(
            Signer(genuine.site, consortium.signers[SERVER].key),
            genuine.type,
            genuine.context,
            genuine.sequence,
            genuine.body,
            genuine.parts,
        )
        wrong = [forged.to_bytes(), data[:-1], b"", parts[names[0 if name != names[0] else 1]]]
        if step != "prepare":  # A site joins once for all rounds of a run.
            wrong.append(elsewhere[name])
        for replaced in wrong:
            changed = {**parts, name: replaced}
            refused(receivers, "to_site", step, *resigned(receivers, step, changed))
    for name in (name for name in parts if name.startswith("box/")):
        changed = {**parts, name: elsewhere[name]}
        refused(receivers, "to_site", step, *resigned(receivers, step, changed))


def test_the_server_refuses_a_site_that_names_other_sites_than_it_was_asked_to(receivers):
    exchange = receivers.exchange
    signer, names = exchange.consortium.signers[NAME], exchange.context.cohort
    for step, message in (("train", "other sites"), ("confirm", "other survivors")):
        envelope, parts = exchange.replies[step][NAME]
        field = "sharers" if step == "train" else "survivors"
        for wrong in (names[:3], names[1:]):
            body = {**envelope.body, field: list(wrong)}
            lie = seal(
                signer, envelope.type, envelope.context, envelope.sequence, body, envelope.parts
            )
            with pytest.raises(ProtocolError, match=message):
                receivers.to_server(step, lie.to_bytes(), parts)


def test_boxes_are_bound_to_sender_receiver_and_attempt(receivers):
    from fedmed.secagg.dealing import open_box

    exchange = receivers.exchange
    keys, context = exchange.consortium.keys, exchange.context.sha256()
    box = exchange.replies["prepare"]["site-00"][1][f"box/{NAME}"]
    open_box(keys[NAME], context, "site-00", NAME, box)
    for owner, told, dealer, holder in (
        ("site-02", context, "site-00", NAME),
        (NAME, "00" * 32, "site-00", NAME),
        (NAME, context, "site-02", NAME),
        (NAME, context, "site-00", "site-02"),
    ):
        with pytest.raises(ProtocolError, match="does not open"):
            open_box(keys[owner], told, dealer, holder, box)


# --- bodies ---


def bodies():
    names = ["site-00", "site-01", "site-02"]
    each = {name: bytes(32) for name in names}
    return {
        "joined": (Joined(bytes(1216)).to_body(), Joined.from_body),
        "prepared": (
            Prepared(bytes(32), bytes(32), each, each).to_body(),
            lambda body: Prepared.from_body(body, names),
        ),
        "masked": (Masked(tuple(names)).to_body(), Masked.from_body),
        "survivors": (Survivors(tuple(names)).to_body(), Survivors.from_body),
        "revealed": (
            Revealed({name: bytes(33) for name in names[:2]}, {names[2]: bytes(33)}).to_body(),
            lambda body: Revealed.from_body(body, names[:2], names[2:]),
        ),
    }


HOSTILE = [
    None, True, 0, -1, 1e9, "", "zz", "00", "AB" * 32, "0" * 65, "ab" * 33, "\u0660" * 64, [], {},
    ["site-01", "site-00"], ["site-00", "site-00"], [0], {"site-00": 1}, {"site-00": "00"},
    {"other": "ab" * 32}, [["site-00"]],
]  # fmt: skip


@pytest.mark.parametrize("kind", ["joined", "prepared", "masked", "survivors", "revealed"])
def test_bodies_are_strict(kind):
    body, read = bodies()[kind]
    assert read(body).to_body() == body
    with pytest.raises(ProtocolError):
        read({**body, "extra": 1})
    for field in body:
        with pytest.raises(ProtocolError):
            read({name: value for name, value in body.items() if name != field})
        for value in HOSTILE:
            if (field, value) == ("report", {}) or (
                kind in ("masked", "survivors") and value == []
            ):
                continue
            if field == "report" and isinstance(value, dict):
                continue
            with pytest.raises(ProtocolError):
                read({**body, field: value})


def test_shares_for_other_sites_than_agreed_are_refused():
    """Neither both kinds of share of one site, nor one for a site that is not in the round."""
    share = "00" * 33
    body = {"seeds": {"a": share}, "mask_keys": {"b": share}, "report": {}}
    Revealed.from_body(body, ["a"], ["b"])
    for seeds, keys in (("ab", "b"), ("a", "ab"), ("a", ""), ("b", "a"), ("", "ab")):
        wrong = {
            "seeds": dict.fromkeys(seeds, share),
            "mask_keys": dict.fromkeys(keys, share),
            "report": {},
        }
        with pytest.raises(ProtocolError):
            Revealed.from_body(wrong, ["a"], ["b"])


def test_the_servers_first_message_is_read_and_verified(receivers):
    exchange = receivers.exchange
    header, _ = receivers.message("prepare", "to_site")
    envelope = Envelope.from_bytes(header)
    read = read_prepare(envelope, SERVER, exchange.consortium.roster)
    assert read.context == exchange.context
    with pytest.raises(ProtocolError, match="no server"):
        read_prepare(envelope, "site-00", exchange.consortium.roster)
    signer = exchange.consortium.signers[SERVER]
    lie = Prepare(exchange.consortium.context(weight_bound=1)).to_body()
    with pytest.raises(ProtocolError, match="signed for"):
        read_prepare(
            seal(signer, "prepare", envelope.context, 1, lie), SERVER, exchange.consortium.roster
        )


def test_a_joined_message_of_another_run_is_refused(receivers):
    consortium = receivers.exchange.consortium
    data = consortium.joined[NAME]
    read_joined(data, consortium.joining, NAME, consortium.roster)
    for context, name in (("00" * 32, NAME), (consortium.joining, "site-02")):
        with pytest.raises(ProtocolError):
            read_joined(data, context, name, consortium.roster)


# --- sizes ---


def test_hostile_sizes_cost_no_memory(receivers):
    """Lengths that a header claims are compared with what came, and with what was agreed."""
    exchange = receivers.exchange
    signer = exchange.consortium.signers[NAME]
    context = exchange.context.sha256()
    huge = Part(2**62, "00" * 32)
    body = Masked(exchange.context.cohort).to_body()
    claimed = seal(signer, "masked", context, 2, body, {"update": huge, "counts": huge})
    masked = {"update": bytes(28), "counts": bytes(24)}
    boxes = {f"box/{name}": huge for name in exchange.context.cohort if name != NAME}
    prepared = exchange.replies["prepare"][NAME][0]
    dealt = seal(signer, "prepared", context, 1, prepared.body, boxes)
    long = {name: bytes(100_000) for name in boxes}
    signed = seal(signer, "prepared", context, 1, prepared.body, described(long))
    tracemalloc.start()
    refused(receivers, "to_server", "train", claimed.to_bytes(), masked)
    for size in (0, 24, 32, 28_000_000):
        update = {"update": bytes(size), "counts": bytes(24)}
        honest = seal(signer, "masked", context, 2, body, described(update))
        refused(receivers, "to_server", "train", honest.to_bytes(), update)
        update = {"update": bytes(28), "counts": bytes(size or 8)}
        if size != 24:
            honest = seal(signer, "masked", context, 2, body, described(update))
            refused(receivers, "to_server", "train", honest.to_bytes(), update)
    refused(receivers, "to_server", "prepare", dealt.to_bytes(), dict.fromkeys(boxes, bytes(1202)))
    refused(receivers, "to_server", "prepare", signed.to_bytes(), long)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60_000_000


def test_a_header_of_a_hundred_thousand_levels_is_refused(receivers):
    deep = bytes(64) + b"[" * 100_000 + b"]" * 100_000
    for step, direction in MESSAGES:
        _, parts = receivers.message(step, direction)
        refused(receivers, direction, step, deep, parts)
