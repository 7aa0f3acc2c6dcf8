"""Whatever comes from outside is checked before it is used."""

import json
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedmed.configuration import Plan
from fedmed.errors import ConfigurationError, ProtocolError
from fedmed.federation.records import (
    FLOAT32,
    RAW,
    SALT_BYTES,
    Evaluated,
    Joined,
    Refused,
    Request,
    Trained,
    pack,
    unpack_arrays,
    unpack_reply,
    unpack_request,
)

SHAPES = {"update": (4,)}
REPLIES = [
    Joined("cs", 3, 2, 1, {"no consent": 1}, 1e-5),
    Trained("cs", 3, None, 1.5, 0.1),
    Evaluated("cs", "test"),
    Refused("cs", "PrivacyError", "because"),
]


def arrays_of(**changes):
    fields = {
        "dtype": FLOAT32,
        "shape": (4,),
        "stype": RAW,
        "data": bytes(SALT_BYTES + 16),
    } | changes
    content = RecordDict()
    content["arrays"] = ArrayRecord({changes.pop("name", "update"): Array(**fields)})
    return content


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: type(reply).__name__)
def test_replies_come_back_as_they_were(reply):
    assert unpack_reply(pack(reply)) == reply


def test_a_request_comes_back_as_it_was():
    request = Request("run", 3, Plan().to_json(), "val")
    assert unpack_request(pack(request)) == request


def test_arrays_come_back_bit_for_bit():
    values = np.random.default_rng(0).standard_normal(4).astype(np.float32)
    content = pack(Trained("cs", 1, 0.0, None, 0.0), {"update": values})
    np.testing.assert_array_equal(unpack_arrays(content, SHAPES, FLOAT32)["update"], values)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "<f8"},
        {"dtype": "|O"},
        {"shape": (5,)},
        {"shape": (2, 2)},
        {"shape": (-4,)},
        {"stype": "numpy.ndarray"},
        {"data": bytes(SALT_BYTES + 15)},
        {"data": bytes(SALT_BYTES + 17)},
        {"data": bytes(SALT_BYTES) + np.array([1, np.nan, 0, 0], "<f4").tobytes()},
        {"data": bytes(SALT_BYTES) + np.array([1, np.inf, 0, 0], "<f4").tobytes()},
    ],
    ids=str,
)
def test_arrays_other_than_agreed_are_refused(changes):
    with pytest.raises(ProtocolError):
        unpack_arrays(arrays_of(**changes), SHAPES, FLOAT32)
    unpack_arrays(arrays_of(), SHAPES, FLOAT32)  # control


def test_the_same_counts_from_two_sites_are_different_bytes():
    zeros = {"update": np.zeros(4, np.float32)}
    first, second = (pack(Trained("a", 1, 0.0, None, 0.0), zeros)["arrays"] for _ in "ab")
    assert first["update"].data != second["update"].data


def test_a_header_that_claims_terabytes_allocates_nothing():
    hostile = arrays_of(shape=(10**13,), data=bytes(16))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            unpack_arrays(hostile, SHAPES, FLOAT32)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "[" * 100_000,
        json.dumps({"version": 2, "kind": "evaluated", "fields": {"site": "a", "split": "val"}}),
        json.dumps({"version": 1, "kind": "exec", "fields": {}}),
        json.dumps({"version": 1, "kind": "evaluated", "fields": {"site": "a"}}),
        json.dumps({"version": 1, "kind": "evaluated", "fields": {"site": 1, "split": "val"}}),
        json.dumps(
            {"version": 1, "kind": "evaluated", "fields": {"site": "a", "split": "v", "x": 1}}
        ),
        json.dumps(
            {
                "version": 1,
                "kind": "trained",
                "fields": {
                    "site": "a",
                    "examples": -5,
                    "loss": None,
                    "epsilon": None,
                    "seconds": 1.0,
                },
            }
        ),
        json.dumps(
            {
                "version": 1,
                "kind": "trained",
                "fields": {
                    "site": "a",
                    "examples": True,
                    "loss": None,
                    "epsilon": None,
                    "seconds": 1.0,
                },
            }
        ),
    ],
    ids=range(11),
)
def test_headers_other_than_agreed_are_refused(text):
    content = RecordDict()
    content["header"] = ConfigRecord({"json": text})
    with pytest.raises(ProtocolError):
        unpack_reply(content)


@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(json.dumps)
)
def test_any_text_is_a_reply_or_a_typed_error(text):
    content = RecordDict()
    content["header"] = ConfigRecord({"json": text})
    with pytest.raises(ProtocolError):
        unpack_reply(content)


@given(
    st.text()
    | st.dictionaries(
        st.sampled_from(["task", "seed", "privacy", "x"]),
        st.none() | st.integers() | st.text() | st.dictionaries(st.text(), st.integers()),
    ).map(json.dumps)
)
def test_any_text_is_a_plan_or_a_typed_error(text):
    try:
        plan = Plan.from_json(text)
    except ConfigurationError:
        return
    assert isinstance(plan, Plan)


def test_a_plan_survives_the_journey_and_a_hostile_one_does_not():
    plan = Plan(seed=7)
    assert Plan.from_json(plan.to_json()) == plan
    values = json.loads(plan.to_json())
    for path, value in [
        (("seed",), "${oc.env:HOME}"),
        (("federation", "rounds"), 0),
        (("federation", "rounds"), "many"),
        (("model", "width"), 10**9),
        (("model", "width"), 1024),  # with 4 stages: 8,192 channels
        (("task", "labels"), []),
        (("surprise",), 1),
    ]:
        changed = json.loads(json.dumps(values))
        node = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        with pytest.raises(ConfigurationError):
            Plan.from_json(json.dumps(changed))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_figures_that_are_not_finite_are_refused(value):
    with pytest.raises(ProtocolError, match="not finite"):
        unpack_reply(pack(Trained("cs", 3, None, value, 0.1)))
