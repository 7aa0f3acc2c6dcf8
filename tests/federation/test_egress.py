"""Only what the allow-list names leaves a site, and what left is written down."""

import hashlib
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedmed.errors import PolicyError, PrivacyError, ProtocolError
from fedmed.federation.egress import Egress
from fedmed.federation.records import Joined, Refused, Trained
from fedmed.trust.context import RoundContext
from fedmed.trust.envelope import Envelope, Part, seal
from fedmed.trust.policy import SitePolicy
from fedmed.trust.signatures import Signer

REPORT = Trained("cs", 3, 0.5, None, 0.1)
UPDATE = {"update": np.zeros(4, np.float32)}
SHAPES = {"update": (4,)}


@dataclass(frozen=True)
class Gossip(Trained):
    patients: str = "DOE^JANE"


def test_what_left_is_written_down_with_size_and_hash(tmp_path):
    egress = Egress(tmp_path / "egress.jsonl")
    egress.release(REPORT, UPDATE, SHAPES)
    egress.release(Joined("cs", 1, 1, 1, {}, None))
    first, second = map(json.loads, (tmp_path / "egress.jsonl").read_text().splitlines())
    assert (first["kind"], second["kind"]) == ("trained", "joined")
    assert first["bytes"] > 16  # the update alone
    assert second["bytes"] > 0
    assert len(first["sha256"]) == 64
    assert first["sha256"] != second["sha256"]


def test_a_field_that_is_not_on_the_list_stays(tmp_path):
    with pytest.raises(ProtocolError):
        Egress(tmp_path / "e").release(Gossip("cs", 3, 0.5, None, 0.1), UPDATE, SHAPES)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("reply", "arrays", "shapes"),
    [
        (REPORT, {"images": np.zeros((4, 64, 64), np.float32)}, SHAPES),
        (REPORT, {**UPDATE, "images": np.zeros(4, np.float32)}, SHAPES),
        (REPORT, {"update": np.zeros(5, np.float32)}, SHAPES),
        (REPORT, UPDATE, None),
        (Refused("cs", "DataError", "x"), UPDATE, SHAPES),
        (Joined("cs", 1, 1, 1, {}, None), UPDATE, SHAPES),
    ],
    ids=["other array", "one more array", "longer", "no plan", "refusal", "joining"],
)
def test_arrays_that_are_not_in_the_plan_stay(tmp_path, reply, arrays, shapes):
    egress = Egress(tmp_path / "egress.jsonl")
    with pytest.raises(ProtocolError):
        egress.release(reply, arrays, shapes)
    assert not (tmp_path / "egress.jsonl").exists()
    egress.release(REPORT, UPDATE, SHAPES)  # control


SIGNER = Signer("cs", Ed25519PrivateKey.from_private_bytes(bytes(32)))
COHORT = ("cs", "du", "fg")
CONTEXT = RoundContext("run1", "train", 3, 1, COHORT, 64 * "a", 64 * "b", 64 * "c", 500, 0, "")
MASKED = {"update": np.arange(4, dtype=np.uint32), "counts": np.arange(3, dtype=np.uint64)}
SIZES = {"update": 16, "counts": 24}
RESULT = {"epsilon": 1.5, "delta": 1e-5, "seconds": 3.0}
OPEN = SitePolicy()
CLOSED = SitePolicy(per_site_counts=False, per_site_metrics=False)
HASH = 64 * "0"


def message(kind, body=None, parts=None, context=CONTEXT):
    """A signed envelope with its parts as bytes, as the site makes them."""
    data = {name: np.asarray(part).tobytes() for name, part in (parts or {}).items()}
    signed = {name: Part.of(part) for name, part in data.items()}
    return seal(SIGNER, kind, context.sha256() if context else "", 2, body or {}, signed), data


def leave(egress, kind, body=None, parts=None, *, sizes=SIZES, context=CONTEXT, images=0):
    envelope, data = message(kind, body, parts, context)
    return egress.release_envelope(envelope, data, context, sizes=sizes, metric_images=images)


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "egress.jsonl").read_text().splitlines()]


@pytest.fixture
def egress(tmp_path):
    return Egress(tmp_path / "egress.jsonl", OPEN)


EVERY_MESSAGE = [
    (
        "joined",
        {
            "encryption_key": 1624 * "A",
            "report": {
                "train": 3, "val": 1, "test": 1, "excluded": {"no pixel data": 2},
                "delta": None, "witnessed_size": 0,
            },
        },
        None,
    ),
    (
        "prepared",
        {
            "mask_key": HASH, "seed_commitment": HASH, "seed_shares": {"du": HASH},
            "key_shares": {"fg": HASH}, "report": {"cosignature": 128 * "f"},
        },
        {"box/du": np.zeros(1250, np.uint8), "box/fg": np.zeros(4096, np.uint8)},
    ),
    ("masked", {"sharers": list(COHORT), "report": {**RESULT, "metrics": {"auroc": 0.5}}}, MASKED),
    ("trained", {"report": {**RESULT, "cosignature": 128 * "c"}}, MASKED),
    ("confirmed", {"survivors": list(COHORT), "report": {}}, None),
    ("revealed", {"seeds": {"du": 66 * "a"}, "mask_keys": {"fg": 66 * "b"}}, None),
    ("refused", {"kind": "PolicyError", "reason": "it is 12:00 at this site"}, None),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body", "parts"), EVERY_MESSAGE, ids=lambda value: str(value)[:9])
def test_the_messages_of_a_round_leave_and_are_written_down(tmp_path, egress, kind, body, parts):
    released = leave(egress, kind, body, parts, images=20)
    content = released.header + b"".join(released.parts[name] for name in sorted(released.parts))
    (line,) = lines(tmp_path)
    line.pop("time")
    assert line == {
        "kind": kind, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
        "run": "run1", "purpose": "train", "round": 3, "attempt": 1,
    }  # fmt: skip
    assert Envelope.from_bytes(released.header).type == kind
    assert (tmp_path / "egress.jsonl").stat().st_mode & 0o777 == 0o600


def test_arrays_leave_as_their_little_endian_bytes(egress):
    arrays = {
        "update": np.arange(8, dtype=">u2")[::2],  # neither native order nor contiguous
        "counts": np.arange(3, dtype=np.uint64),
    }
    wire = {
        "update": np.array([0, 2, 4, 6], "<u2").tobytes(),
        "counts": np.array([0, 1, 2], "<u8").tobytes(),
    }
    envelope = seal(
        SIGNER, "masked", CONTEXT.sha256(), 2, {},
        {name: Part.of(data) for name, data in wire.items()},
    )  # fmt: skip
    released = egress.release_envelope(envelope, arrays, CONTEXT, sizes={"update": 8, "counts": 24})
    assert {name: bytes(data) for name, data in released.parts.items()} == wire


@pytest.mark.parametrize(
    ("kind", "body", "parts"),
    [
        ("sealed", {}, MASKED),
        ("trained", {"sharers": ["cs"]}, MASKED),
        ("trained", {"report": {**RESULT, "cosignature": 127 * "c"}}, MASKED),
        ("masked", {"report": {**RESULT, "cosignature": 128 * "c"}}, MASKED),
        ("masked", {"sharers": ["cs"], "patients": 3}, MASKED),
        ("masked", {"sharers": ["DOE^JANE"]}, MASKED),
        ("masked", {"sharers": "cs"}, MASKED),
        ("masked", {"report": {**RESULT, "examples": 3}}, MASKED),
        ("masked", {"report": {**RESULT, "seconds": "3 s for DOE^JANE"}}, MASKED),
        ("masked", {"report": {**RESULT, "epsilon": 10**400}}, MASKED),
        ("masked", {"report": {**RESULT, "epsilon": True}}, MASKED),
        ("masked", {"report": {"metrics": {"DOE^JANE": 0.5}}}, MASKED),
        ("masked", {"report": {"metrics": {"auroc": "DOE"}}}, MASKED),
        ("masked", {"report": {"metrics": {f"m{n}": 0.5 for n in range(65)}}}, MASKED),
        ("masked", {"report": [1.5]}, MASKED),
        ("masked", {}, {**MASKED, "images": np.zeros((4, 64, 64), np.float32)}),
        ("masked", {}, {**MASKED, "update": np.zeros(5, np.uint32)}),
        ("masked", {}, {**MASKED, "counts": np.zeros(2, np.uint64)}),
        ("masked", {}, {**MASKED, "box/du": np.zeros(8, np.uint8)}),
        ("confirmed", {"survivors": ["cs"], "report": {"seconds": 1.0}}, None),
        ("confirmed", {"survivors": ["cs"], "report": None}, None),
        ("confirmed", {"survivors": ["cs"]}, {"update": MASKED["update"]}),
        ("prepared", {"mask_key": HASH + "00"}, None),
        ("prepared", {"mask_key": HASH, "self_seed": HASH}, None),
        ("prepared", {"seed_shares": {"du": 66 * "a"}}, None),
        ("prepared", {"key_shares": {"DOE^JANE": HASH}}, None),
        ("prepared", {"report": {"cosignature": "DOE^JANE"}}, None),
        ("prepared", {}, {"box/du": np.zeros(4097, np.uint8)}),
        ("prepared", {}, {"box/du": np.zeros(0, np.uint8)}),
        ("prepared", {}, {"box/xx": np.zeros(100, np.uint8)}),
        ("prepared", {}, {"update": MASKED["update"]}),
        ("revealed", {"seeds": {"du": "not hex"}}, None),
        ("revealed", {"seeds": {"du": 64 * "a"}}, None),
        ("joined", {"encryption_key": "DOE^JANE"}, None),
        ("joined", {"report": {"train": -1}}, None),
        ("joined", {"report": {"train": 1.5}}, None),
        ("joined", {"report": {"excluded": {"DOE^JANE": 1}}}, None),
        ("refused", {"kind": "DataError", "reason": 2001 * "x"}, None),
        ("refused", {"kind": "Data Error", "reason": "x"}, None),
        ("refused", {"kind": "DataError", "reason": "x"}, {"update": MASKED["update"]}),
    ],
)
def test_anything_else_stays(tmp_path, egress, kind, body, parts):
    with pytest.raises(ProtocolError) as caught:
        leave(egress, kind, body, parts, images=20)
    assert "JANE" not in str(caught.value)
    assert not (tmp_path / "egress.jsonl").exists()


def test_a_part_whose_size_the_plan_does_not_tell_stays(tmp_path, egress):
    with pytest.raises(ProtocolError, match="size"):
        leave(egress, "masked", {}, MASKED, sizes={"update": 16})
    assert not (tmp_path / "egress.jsonl").exists()


def test_only_what_was_signed_leaves(tmp_path, egress):
    envelope, data = message("masked", {}, MASKED)
    for changed in (
        {**data, "update": bytes(16)},
        {name: part for name, part in data.items() if name != "counts"},
    ):
        with pytest.raises(ProtocolError):
            egress.release_envelope(envelope, changed, CONTEXT, sizes=SIZES)
    assert not (tmp_path / "egress.jsonl").exists()
    egress.release_envelope(envelope, data, CONTEXT, sizes=SIZES)  # control


def test_a_message_leaves_for_the_round_that_it_is_bound_to(tmp_path, egress):
    envelope, data = message("masked", {}, MASKED)
    for context in (replace(CONTEXT, attempt=2), replace(CONTEXT, run="run2"), None):
        with pytest.raises(ProtocolError, match="round"):
            egress.release_envelope(envelope, data, context, sizes=SIZES)
    assert not (tmp_path / "egress.jsonl").exists()


def test_a_refusal_may_leave_for_no_round_but_with_nothing_in_place_of_it(tmp_path, egress):
    body = {"kind": "ProtocolError", "reason": "the request cannot be read"}
    leave(egress, "refused", body, context=None)
    assert lines(tmp_path)[0]["round"] is None
    hidden = seal(SIGNER, "refused", "DOE^JANE", 2, body)
    with pytest.raises(ProtocolError):
        egress.release_envelope(hidden, {}, None)


@pytest.mark.parametrize("name", ["train", "val", "test", "excluded"])
def test_counts_of_the_site_stay_if_the_policy_keeps_them(tmp_path, name):
    report = {name: {"corrupt": 1} if name == "excluded" else 3}
    closed = Egress(tmp_path / "egress.jsonl", CLOSED)
    with pytest.raises(PolicyError, match="per_site_counts"):
        leave(closed, "joined", {"report": report})
    leave(closed, "joined", {"report": {"delta": 1e-5, "witnessed_size": 7}})
    leave(Egress(tmp_path / "egress.jsonl", OPEN), "joined", {"report": report})  # control
    assert len(lines(tmp_path)) == 2


def test_metrics_of_the_site_stay_if_the_policy_keeps_them_or_images_are_few(tmp_path):
    body = {"report": {"metrics": {"auroc": 0.5}}}
    for policy, images in ((CLOSED, 10_000), (OPEN, 19), (OPEN, 0)):
        with pytest.raises(PolicyError, match="metrics_floor") as caught:
            leave(Egress(tmp_path / "egress.jsonl", policy), "masked", body, MASKED, images=images)
        # The reason travels to the server: it must not tell the number that stays.
        assert str(images) not in str(caught.value) or images == 0
    assert not (tmp_path / "egress.jsonl").exists()
    leave(Egress(tmp_path / "egress.jsonl", OPEN), "masked", body, MASKED, images=20)  # control


def size_of_masked():
    envelope, data = message("masked", {"report": RESULT}, MASKED)
    return len(envelope.to_bytes()) + sum(map(len, data.values()))


def test_bytes_beyond_the_cap_of_a_round_stay(tmp_path):
    size = size_of_masked()
    capped = Egress(tmp_path / "egress.jsonl", SitePolicy(egress_bytes_per_round=2 * size))
    for attempt in (1, 2):
        leave(capped, "masked", {"report": RESULT}, MASKED,
              context=replace(CONTEXT, attempt=attempt))  # fmt: skip
    with pytest.raises(PolicyError, match="egress_bytes_per_round"):
        leave(capped, "masked", {"report": RESULT}, MASKED, context=replace(CONTEXT, attempt=3))
    assert [line["attempt"] for line in lines(tmp_path)] == [1, 2]
    # Another round, another purpose, another run: each has bytes of its own.
    for other in ({"round": 4}, {"purpose": "evaluate"}, {"run": "run2"}):
        leave(capped, "masked", {"report": RESULT}, MASKED, context=replace(CONTEXT, **other))


def test_one_byte_too_many_stays(tmp_path):
    size = size_of_masked()
    for cap, leaves in ((size, True), (size - 1, False)):
        path = tmp_path / f"{cap}.jsonl"
        capped = Egress(path, SitePolicy(egress_bytes_per_round=cap))
        if leaves:
            leave(capped, "masked", {"report": RESULT}, MASKED)
        else:
            with pytest.raises(PolicyError):
                leave(capped, "masked", {"report": RESULT}, MASKED)
        assert path.exists() is leaves


def test_a_restart_does_not_start_the_bytes_anew(tmp_path):
    path, policy = tmp_path / "egress.jsonl", SitePolicy(egress_bytes_per_round=size_of_masked())
    leave(Egress(path, policy), "masked", {"report": RESULT}, MASKED)
    with path.open("a", encoding="utf-8") as file:  # as a crash, or an earlier version, leaves it
        file.write('{"kind": "trained", "bytes": 7}\nnot JSON\n{"kind": "mas')
    again = Egress(path, policy)
    with pytest.raises(PolicyError):
        leave(again, "masked", {"report": RESULT}, MASKED)
    leave(again, "masked", {"report": RESULT}, MASKED, context=replace(CONTEXT, round=4))
    # The torn line has not swallowed the one after it.
    assert json.loads(path.read_text().splitlines()[-1])["round"] == 4
    with pytest.raises(PolicyError):
        leave(Egress(path, policy), "masked", {"report": RESULT}, MASKED,
              context=replace(CONTEXT, round=4))  # fmt: skip


def test_a_refusal_comes_through_when_the_bytes_are_used_up(tmp_path):
    capped = Egress(tmp_path / "egress.jsonl", SitePolicy(egress_bytes_per_round=1))
    leave(capped, "refused", {"kind": "PolicyError", "reason": "egress_bytes_per_round"})
    assert lines(tmp_path)[0]["kind"] == "refused"


def test_the_cap_holds_for_plain_replies_too(tmp_path):
    capped = Egress(tmp_path / "egress.jsonl", SitePolicy(egress_bytes_per_round=300))
    with pytest.raises(PolicyError):
        capped.release(REPORT, {"update": np.zeros(100, np.float32)}, {"update": (100,)})
    assert not (tmp_path / "egress.jsonl").exists()
    capped.release(REPORT, UPDATE, SHAPES, context=CONTEXT)
    with pytest.raises(PolicyError):
        capped.release(REPORT, UPDATE, SHAPES, context=CONTEXT)
    capped.release(REPORT, UPDATE, SHAPES)  # of no known round: measured by itself


def test_nothing_leaves_that_cannot_be_written_down(tmp_path, egress):
    (tmp_path / "egress.jsonl").mkdir()  # in the way, for root as well
    with pytest.raises(PrivacyError, match="nothing leaves"):
        leave(egress, "masked", {}, MASKED)
    with pytest.raises(PrivacyError, match="cannot be read"):
        Egress(tmp_path / "egress.jsonl")
