"""Secure aggregation from end to end: exact sums with drop-outs, and clean ends without a sum."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_round import MODEL, STEPS, Consortium, Exchange

from fedmed.errors import ProtocolError
from fedmed.secagg.errors import AggregationError
from fedmed.secagg.quorum import colluders, honest_survivors, threshold
from fedmed.secagg.site import Stage
from fedmed.trust.context import EVALUATION
from fedmed.trust.envelope import Envelope

PAST = {"prepare": "prepared", "train": "masked", "confirm": "confirmed", "reveal": "revealed"}


@pytest.fixture(scope="module")
def members():
    with tempfile.TemporaryDirectory() as folder:
        yield {n: Consortium(Path(folder) / str(n), n) for n in range(3, 9)}


@pytest.fixture
def consortium(tmp_path):
    return Consortium(tmp_path)


_rounds = itertools.count(1)


@pytest.mark.parametrize(
    ("n", "t", "c"), [(3, 3, 0), (4, 3, 1), (5, 4, 1), (7, 5, 2), (10, 7, 3), (50, 34, 16)]
)
def test_threshold_and_colluders(n, t, c):
    assert (threshold(n), colluders(n)) == (t, c)


def test_two_quorums_always_share_an_honest_site():
    for n in range(3, 500):
        assert 2 * threshold(n) - n > colluders(n)
        assert threshold(n) <= n


def test_honest_survivors_is_the_minimum_over_all_larger_cohorts():
    for minimum in range(3, 60):
        assert honest_survivors(minimum) == min(
            threshold(n) - colluders(n) for n in range(minimum, 2000)
        )
    assert honest_survivors(3) == 2
    assert honest_survivors(5) == 3


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_sum_is_exact(consortium, bits, size):
    exchange = Exchange(consortium, size=size, bits=bits)
    sums = exchange.run()
    update, counts = exchange.expected(consortium.names)
    np.testing.assert_array_equal(sums.update, update)
    np.testing.assert_array_equal(sums.counts, counts)
    assert sums.update.dtype == (np.uint16 if bits == 16 else np.uint32)
    assert sums.survivors == sums.sharers == consortium.names
    assert set(sums.masked) == set(consortium.names)
    assert set(sums.confirmed) == set(consortium.names)
    assert sums.suspects == ()
    assert all(site.stage is Stage.closed for site in exchange.sites.values())


def test_evaluation_sums_counts_alone(consortium):
    context = consortium.context(purpose=EVALUATION)
    exchange = Exchange(consortium, context, size=0, absent={"train": {"site-02"}})
    sums = exchange.run()
    assert sums.update.size == 0
    np.testing.assert_array_equal(sums.counts, exchange.expected(sums.survivors)[1])


def test_reports_of_the_caller_ride_along_signed(consortium):
    exchange = Exchange(consortium)
    name = consortium.names[0]
    requests = exchange.server.prepare_requests({name: {"checkpoint": [1, "ab"]}})
    envelope, parts = requests[name]
    assert envelope.body["report"] == {"checkpoint": [1, "ab"]}
    assert requests["site-01"][0].body["report"] == {}
    reply, boxes = exchange.sites[name].prepare(envelope, parts, {"cosignature": "cd"})
    assert exchange.server.take_prepared(name, reply, boxes) == {"cosignature": "cd"}


def test_fifty_sites_sixteen_lost(tmp_path):
    consortium = Consortium(tmp_path, 50)
    lost = set(consortium.names[1:49:3])
    assert len(lost) == 50 - threshold(50)
    exchange = Exchange(consortium, absent={"train": lost})
    sums = exchange.run()
    np.testing.assert_array_equal(sums.update, exchange.expected(sums.survivors)[0])
    assert set(sums.survivors) == set(consortium.names) - lost


@st.composite
def dropouts(draw):
    """A cohort's size, and at each step some sites that are silent from there on."""
    n = draw(st.integers(3, 8))
    steps = draw(st.lists(st.sampled_from([*STEPS, None]), min_size=n, max_size=n))
    absent = {
        step: {f"site-{index:02d}" for index, lost in enumerate(steps) if lost == step}
        for step in STEPS
    }
    return n, absent


@given(dropouts())
@settings(max_examples=120, deadline=None)
def test_exact_sum_with_enough_sites_and_a_clean_end_without(members, case):
    n, absent = case
    consortium = members[n]
    exchange = Exchange(consortium, consortium.context(round=next(_rounds)), absent=absent)
    lost: set[str] = set()
    for step in STEPS:
        lost |= absent[step]
        if n - len(lost) < threshold(n):
            break
    else:
        sums = exchange.run()
        survivors = sorted(set(consortium.names) - absent["prepare"] - absent["train"])
        assert list(sums.survivors) == survivors
        update, counts = exchange.expected(survivors)
        np.testing.assert_array_equal(sums.update, update)
        np.testing.assert_array_equal(sums.counts, counts)
        return
    with pytest.raises(AggregationError) as caught:
        exchange.run()
    assert caught.value.step == step
    assert set(caught.value.missing) == absent[step]
    assert_nothing_is_open(exchange)


def assert_nothing_is_open(exchange):
    """Fewer than t sites have revealed; if the abort came before the last step, none at all."""
    server, t = exchange.server, threshold(len(exchange.context.cohort))
    revealed = exchange.replies["reveal"]
    assert len(revealed) < t
    if "reveal" not in exchange.requests:
        assert not revealed
    for name in exchange.replies["train"]:
        # What the server added up, it cannot read: each sum is still masked.
        assert not np.array_equal(server._update, exchange.updates[name])
    if exchange.replies["train"]:
        assert not np.array_equal(
            server._update, exchange.expected(list(exchange.replies["train"]))[0]
        )
    for call in (server.finish, *(getattr(server, f"{step}_requests") for step in STEPS)):
        with pytest.raises(ProtocolError):
            call()


def test_below_the_threshold_any_update_fits_what_the_server_sees(consortium):
    """With t - 1 shares every seed is as likely as the true one, so every update is.

    The server holds the masked update and t - 1 shares of each secret. For any update that one
    likes there is a share t that makes a seed; the commitment alone tells it from the true one.
    """
    from fedmed.secagg.shamir import PRIME, combine

    exchange = Exchange(consortium).until("reveal")
    t = threshold(5)
    victim = "site-00"
    shares = {
        index: bytes.fromhex(exchange.replies["reveal"][name][0].body["seeds"][victim])
        for index, name in enumerate(consortium.names, start=1)
    }
    known = {index: shares[index] for index in range(1, t)}
    true = combine({**known, t: shares[t]}, t)
    seen = set()
    for wish in range(20):
        last = ((int.from_bytes(shares[t]) + wish) % PRIME).to_bytes(33)
        seen.add(combine({**known, t: last}, t))
    assert len(seen) == 20
    assert true in seen


@pytest.mark.parametrize("step", STEPS)
def test_abort_names_step_missing_sites_and_survivors(consortium, step):
    lost = {"site-01", "site-03"}
    exchange = Exchange(consortium, absent={step: lost})
    with pytest.raises(AggregationError, match="site-01, site-03") as caught:
        exchange.run()
    assert caught.value.step == step
    assert caught.value.missing == ("site-01", "site-03")
    late = step in ("confirm", "reveal")
    assert caught.value.survivors == (consortium.names if late else ())


def test_retry_with_the_same_survivors_succeeds_after_an_abort_at_the_last_step(consortium):
    exchange = Exchange(consortium, absent={"reveal": {"site-01", "site-03"}})
    with pytest.raises(AggregationError) as caught:
        exchange.run()
    again = consortium.context(caught.value.survivors, attempt=2)
    second = Exchange(consortium, again, seed=1)
    sums = second.run()
    np.testing.assert_array_equal(sums.update, second.expected(consortium.names)[0])


def test_steps_come_in_order_and_once(consortium):
    exchange = Exchange(consortium).until("confirm")
    fresh = consortium.site("site-00", exchange.context)
    for step in ("train", "confirm"):
        envelope, parts = exchange.requests[step]["site-00"]
        with pytest.raises(ProtocolError, match="takes this step when"):
            fresh.open_training(envelope, parts, MODEL) if step == "train" else fresh.confirm(
                envelope, parts
            )
    with pytest.raises(ProtocolError):
        fresh.mask(np.zeros(7, np.uint32), np.zeros(3, np.uint64))
    assert fresh.stage is Stage.new
    used = exchange.sites["site-00"]
    for step in ("prepare", "confirm"):
        with pytest.raises(ProtocolError, match="and once"):
            getattr(used, step)(*exchange.requests[step]["site-00"])
    with pytest.raises(ProtocolError, match="and once"):
        used.open_training(*exchange.requests["train"]["site-00"], MODEL)
    # None of it did harm: the session takes its last step, and then no other one.
    exchange.step("reveal")
    with pytest.raises(ProtocolError, match="and once"):
        used.reveal(*exchange.requests["reveal"]["site-00"])
    np.testing.assert_array_equal(
        exchange.server.finish().update, exchange.expected(consortium.names)[0]
    )


def test_an_update_is_masked_once_and_its_values_are_gone(consortium):
    exchange = Exchange(consortium).until("prepare")
    exchange.ask("train")
    site = exchange.sites["site-00"]
    site.open_training(*exchange.requests["train"]["site-00"], MODEL)
    update, counts = np.arange(7, dtype=np.uint32), np.arange(3, dtype=np.uint64)
    envelope = site.mask(update, counts)
    assert not np.array_equal(update, np.arange(7))
    envelope.check_part("update", update.tobytes())
    envelope.check_part("counts", counts.tobytes())
    with pytest.raises(ProtocolError, match="and once"):
        site.mask(np.arange(7, dtype=np.uint32), counts)


@pytest.mark.parametrize(
    "update",
    [
        np.zeros(7, np.float32),
        np.zeros(7, np.int32),
        np.zeros(7, ">u4"),
        np.zeros((7, 1), np.uint32),
        np.zeros(14, np.uint32)[::2],
        np.zeros(7, np.uint64),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}{array.flags.c_contiguous}",
)
def test_a_vector_that_cannot_be_masked_ends_the_session(consortium, update):
    exchange = Exchange(consortium).until("prepare")
    exchange.ask("train")
    site = exchange.sites["site-00"]
    site.open_training(*exchange.requests["train"]["site-00"], MODEL)
    with pytest.raises(ValueError, match="mask"):
        site.mask(update, np.zeros(3, np.uint64))
    assert not update.any()
    assert site.stage is Stage.closed
    with pytest.raises(ProtocolError):
        site.mask(np.zeros(7, np.uint32), np.zeros(3, np.uint64))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_is_sent_when_an_update_cannot_be_encoded(consortium, value):
    """The site's caller encodes between the two halves of step 2; there is no message to send."""
    from fedmed.secagg.quantise import Ring

    exchange = Exchange(consortium).until("prepare")
    exchange.ask("train")
    site = exchange.sites["site-00"]
    site.open_training(*exchange.requests["train"]["site-00"], MODEL)
    ring = Ring(bits=32, update_bound=1.0, weight_bound=100, sites=5)
    with pytest.raises(ProtocolError):
        ring.encode(np.array([0, value, 0], np.float32), 10)
    site.close()
    with pytest.raises(ProtocolError):
        site.mask(np.zeros(7, np.uint32), np.zeros(3, np.uint64))
    with pytest.raises(ProtocolError):
        site.confirm(*exchange.requests["train"]["site-00"])
    assert exchange.replies["train"] == {}


def test_secrets_are_dropped_as_soon_as_they_are_not_needed(consortium):
    exchange = Exchange(consortium).until("train")
    site = exchange.sites["site-00"]
    assert site._secrets is None
    assert site._self_key == b""
    assert site._pair_keys == {}
    exchange.step("confirm")
    exchange.step("reveal")
    assert site._shares == {}


def test_memory_of_the_server_does_not_grow_with_the_sites(tmp_path):
    import tracemalloc

    consortium = Consortium(tmp_path, 8)
    size = 2_000_000
    exchange = Exchange(consortium, size=size).until("prepare")
    exchange.ask("train")
    for name in consortium.names:
        exchange.reply("train", name)
    tracemalloc.start()
    for name in consortium.names:
        exchange.take("train", name)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size * 4


def test_answers_are_taken_once_and_from_those_asked(consortium):
    exchange = Exchange(consortium, absent={"prepare": {"site-04"}}).until("train")
    with pytest.raises(ProtocolError, match="is not open"):
        exchange.take("prepare", "site-00")
    with pytest.raises(ProtocolError, match="answered this step before"):
        exchange.take("train", "site-00")
    with pytest.raises(ProtocolError, match="was not asked"):
        exchange.take("train", "site-04", exchange.replies["train"]["site-00"])
    sums_before = exchange.server._update.copy()
    assert np.array_equal(sums_before, exchange.server._update)
    exchange.step("confirm")
    exchange.step("reveal")
    survivors = consortium.names[:4]
    np.testing.assert_array_equal(exchange.server.finish().update, exchange.expected(survivors)[0])


def test_messages_survive_their_bytes(consortium):
    exchange = Exchange(consortium)
    exchange.run()
    for step in STEPS:
        for message, _parts in (
            *exchange.requests[step].values(),
            *exchange.replies[step].values(),
        ):
            assert Envelope.from_bytes(message.to_bytes()) == message
        assert {reply.type for reply, _ in exchange.replies[step].values()} == {PAST[step]}
