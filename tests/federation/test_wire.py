"""Signed messages as they travel, and the vector of tallies and counts in them."""

import json

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numbers

from fedmed.errors import ConfigurationError, ProtocolError
from fedmed.federation.counts import CountsLayout, Tallies
from fedmed.federation.records import FLOAT32, RAW, SALT_BYTES, beside, unpack_arrays
from fedmed.federation.run_folder import RunFolder
from fedmed.federation.survivors import NamedSurvivors
from fedmed.federation.wire import is_signed, pack_message, unpack_message
from fedmed.secagg.quantise import decode_counts, encode_counts
from fedmed.trust.envelope import Part, seal
from fedmed.trust.signatures import Signer

SIGNER = Signer("cs", Ed25519PrivateKey.from_private_bytes(bytes(32)))
PARTS = {"update": b"\x00\x01\x02", "box/du": b"", "counts": bytes(range(256))}


def envelope(parts=PARTS, body=None):
    described = {name: Part.of(data) for name, data in parts.items()}
    return seal(SIGNER, "masked", 64 * "a", 2, body or {"report": {}}, described)


@given(
    st.dictionaries(st.from_regex(r"[a-z/]{1,20}", fullmatch=True), st.binary(max_size=300)),
    st.dictionaries(st.text(max_size=8), st.integers(-(2**53) + 1, 2**53 - 1) | st.text()),
)
def test_a_message_comes_back_as_it_was(parts, body):
    sent = envelope(parts, body)
    content = pack_message(
        sent.to_bytes(), {name: memoryview(data) for name, data in parts.items()}
    )
    assert is_signed(content)
    received, found = unpack_message(content)
    assert received == sent
    assert found == parts
    for name, data in found.items():
        received.check_part(name, data)


def test_the_model_travels_beside_it_bit_for_bit():
    weights = np.random.default_rng(0).standard_normal(5).astype(np.float32)
    content = pack_message(envelope().to_bytes(), PARTS, beside({"weights": weights}))
    found = unpack_arrays(content, {"weights": (5,)}, FLOAT32)["weights"]
    np.testing.assert_array_equal(found, weights)
    assert unpack_message(content)[1] == PARTS


def test_the_same_message_to_two_sites_is_different_bytes():
    # Flower keeps one of equal values; the other site would wait for ever.
    first, second = (pack_message(envelope().to_bytes(), PARTS) for _ in "ab")
    assert first["envelope"]["bytes"] != second["envelope"]["bytes"]
    for name in PARTS:
        assert first["parts"][name].data != second["parts"][name].data


def without(name):
    def change(content):
        del content[name]

    return change


def put(name, record):
    def change(content):
        content[name] = record

    return change


def part(**changes):
    fields = {"dtype": "|u1", "shape": (1,), "stype": RAW, "data": bytes(SALT_BYTES + 1)} | changes
    return put("parts", ArrayRecord({"update": Array(**fields)}))


@pytest.mark.parametrize(
    "change",
    [
        without("envelope"),
        without("parts"),
        put("envelope", ConfigRecord({})),
        put("envelope", ConfigRecord({"bytes": "text"})),
        put("envelope", ConfigRecord({"bytes": b""})),
        put("envelope", ConfigRecord({"bytes": bytes(200)})),
        put("envelope", ArrayRecord({})),
        put("parts", ConfigRecord({})),
        part(dtype="|O"),
        part(dtype="<f4"),
        part(stype="numpy.ndarray"),
        part(data=bytes(SALT_BYTES - 1)),
    ],
)
def test_messages_of_another_form_are_refused(change):
    content = pack_message(envelope().to_bytes(), PARTS)
    unpack_message(content)  # control
    change(content)
    with pytest.raises(ProtocolError):
        unpack_message(content)


SHAPES = {"scores": (2, 3), "loss": (2,), "confusion": (1, 2, 2)}
FINITE = st.floats(-(2.0**30), 2.0**30)


@st.composite
def tallied(draw):
    splits = tuple(draw(st.sets(st.sampled_from(["val", "test"]))))
    layout = CountsLayout(SHAPES, splits)
    aggregates = {
        split: {
            name: draw(numbers.arrays(np.float64, shape, elements=FINITE))
            for name, shape in SHAPES.items()
        }
        for split in splits
    }
    return layout, Tallies(*draw(st.tuples(*[FINITE] * 5))), aggregates


@given(tallied())
def test_tallies_and_counts_come_back_as_they_were(example):
    layout, tallies, aggregates = example
    vector = layout.join(tallies, aggregates)
    assert vector.shape == (layout.size,) == (5 + len(layout.splits) * 12,)
    found, counts = layout.split(vector)
    assert found == tallies
    assert set(counts) == set(layout.splits)
    for split in layout.splits:
        for name in SHAPES:
            np.testing.assert_array_equal(counts[split][name], aggregates[split][name])


@given(tallied(), st.integers(3, 60))
def test_sums_of_vectors_are_sums_of_what_is_in_them(example, sites):
    layout, tallies, aggregates = example
    vector = layout.join(tallies, aggregates)
    ring = encode_counts(vector, sites)
    total = np.sum([ring] * sites, axis=0, dtype=np.uint64)
    found, counts = layout.split(decode_counts(total))
    allowed = sites * 2.0**-17 + 1e-9
    assert found.weight == pytest.approx(sites * tallies.weight, abs=allowed, rel=1e-12)
    for split in layout.splits:
        expected = sites * aggregates[split]["scores"]
        np.testing.assert_allclose(counts[split]["scores"], expected, atol=allowed, rtol=1e-12)


@pytest.mark.parametrize("size", [0, 16, 18])
def test_a_vector_of_another_size_is_refused(size):
    layout = CountsLayout(SHAPES, ("val",))
    layout.split(np.zeros(17))  # control
    with pytest.raises(ValueError, match="17"):
        layout.split(np.zeros(size))


@pytest.mark.parametrize(
    ("tallies", "mean"),
    [
        (Tallies(weight=30.0, weighted_loss=15.0), 0.5),
        # Of 40 examples, 10 are of a site with differential privacy, which tells no loss.
        (Tallies(weight=40.0, weighted_loss=15.0, lossless=10.0), 0.5),
        (Tallies(weight=10.0, lossless=10.0), None),
        (Tallies(), None),
    ],
)
def test_the_mean_loss_is_that_of_the_sites_that_tell_theirs(tallies, mean):
    assert tallies.mean_loss() == mean


def test_the_line_of_a_round_is_completed_and_no_other(tmp_path):
    folder = RunFolder(tmp_path)
    for number in (1, 2, 3):
        folder.append_round({"round": number, "metrics": {}})
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 2, "torn')
    before = (tmp_path / "rounds.jsonl").read_text().splitlines()
    changed = folder.amend_round(2, lambda line: {**line, "metrics": {"auroc": float("nan")}})
    assert changed["round"] == 2
    after = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert after[:1] + after[2:] == before[:1] + before[2:]
    assert json.loads(after[1]) == {"round": 2, "metrics": {"auroc": None}}


def test_a_round_that_is_not_there_is_not_completed(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.amend_round(1, lambda line: line) is None
    assert not (tmp_path / "rounds.jsonl").exists()
    folder.append_round({"round": 1})
    before = (tmp_path / "rounds.jsonl").read_bytes()
    assert folder.amend_round(2, lambda _line: {}) is None
    assert (tmp_path / "rounds.jsonl").read_bytes() == before


def test_named_survivors_are_known_after_a_stop_for_their_round_alone(tmp_path):
    path = tmp_path / "survivors.json"
    assert NamedSurvivors(path).of("train", 1) == ()
    NamedSurvivors(path).keep("train", 2, ("c", "a", "b"))
    NamedSurvivors(path).keep("evaluate", 5, ("a", "b", "d"))
    again = NamedSurvivors(path)
    assert again.of("train", 2) == ("a", "b", "c")
    assert again.of("evaluate", 5) == ("a", "b", "d")
    assert again.of("train", 3) == again.of("evaluate", 2) == ()
    path.write_text("[1")
    with pytest.raises(ConfigurationError, match=r"survivors\.json is damaged"):
        again.of("train", 2)
