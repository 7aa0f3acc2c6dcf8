"""A malicious server that asks for smaller cohorts, second sums, other models, or has helpers."""

from __future__ import annotations

import numpy as np
import pytest
from secagg_attacks import (
    VICTIM,
    Forgetful,
    confirm_request,
    from_server,
    is_recovered,
    lower_threshold,
    mask_keys,
    seed_of,
    snapshot,
    train_request,
    unmasked,
)
from secagg_round import MODEL, SERVER, Consortium, Exchange

from fedmed.errors import ProtocolError
from fedmed.secagg import dealing, server, site
from fedmed.secagg.dealing import open_box
from fedmed.secagg.keys import MaskKey
from fedmed.secagg.messages import (
    PREPARE,
    TRAIN,
    Bare,
    Prepare,
)
from fedmed.secagg.quorum import colluders, threshold
from fedmed.trust.envelope import seal


@pytest.fixture
def consortium(tmp_path):
    return Consortium(tmp_path, 4)


# --- cohort and threshold ---


def test_cohorts_that_are_too_small_are_refused(consortium):
    for cohort in ((), (VICTIM,), ("site-00", VICTIM)):
        context = consortium.context(cohort)
        context = context if cohort else consortium.context(cohort=None, purpose="join")
        with pytest.raises(ProtocolError):
            consortium.site(VICTIM, context)
    with pytest.raises(ProtocolError, match="at least 4"):
        consortium.site(VICTIM, consortium.context(consortium.names[1:]), minimum_sites=4)
    with pytest.raises(ProtocolError, match="at least 3"):
        consortium.site(VICTIM, consortium.context(("site-00", VICTIM)), minimum_sites=1)
    doubled = ("site-00", "site-00", VICTIM, VICTIM)
    for cohort in (doubled, consortium.names[::-1]):
        with pytest.raises(ProtocolError, match="not sorted"):
            consortium.site(VICTIM, consortium.context(cohort))
    consortium.site(VICTIM, consortium.context(consortium.names[1:]), minimum_sites=3)


def test_control_with_a_colluder_a_cohort_of_two_gives_the_update(consortium, monkeypatch):
    for module in (site, server):
        monkeypatch.setattr(module, "check_cohort", lambda context, _roster, _least: context.cohort)
    exchange = Exchange(consortium, consortium.context(("site-00", VICTIM)))
    assert is_recovered(exchange, exchange.run().update - exchange.updates["site-00"])


def too_few_survivors(exchange):
    """Say that all but the victim and one colluding site have dropped out."""
    exchange.absent = {"train": {"site-01", "site-02"}}
    exchange.until("train")
    survivors = ("site-00", VICTIM)
    request = confirm_request(exchange, survivors)
    # The colluding site confirms what it is asked to, so only the victim is asked here.
    confirmed = {VICTIM: exchange.sites[VICTIM].confirm(*request)[0]}
    confirmed["site-00"] = exchange.sites["site-00"].confirm(*request)[0]
    exchange.server._survivors = survivors
    exchange.server._confirmed = {name: sealed.to_bytes() for name, sealed in confirmed.items()}
    exchange.server._step = server._Step.confirm
    exchange.step("reveal")
    return exchange.server.finish().update - exchange.updates["site-00"]


def test_too_few_survivors_are_refused(consortium):
    with pytest.raises(ProtocolError, match="2 survivors are too few"):
        too_few_survivors(Exchange(consortium))


def test_control_a_lower_threshold_gives_the_update(consortium, monkeypatch):
    lower_threshold(monkeypatch, 2)
    exchange = Exchange(consortium)
    assert is_recovered(exchange, too_few_survivors(exchange))


def test_too_few_sharers_are_refused_before_training(consortium):
    exchange = Exchange(consortium).until("prepare")
    for sharers in (("site-00", VICTIM), consortium.names[:3]):
        session = snapshot(exchange.sites[VICTIM])
        request = train_request(exchange, VICTIM, sharers)
        with pytest.raises(ProtocolError):
            session.open_training(*request, MODEL)
        assert session.stage is site.Stage.closed


def test_a_site_does_not_confirm_a_sum_that_it_is_not_in(consortium):
    exchange = Exchange(consortium).until("train")
    request = confirm_request(exchange, consortium.names[:3])
    with pytest.raises(ProtocolError, match="not in the sum that it shall confirm"):
        exchange.sites[VICTIM].confirm(*request)
    for name in consortium.names[:3]:
        exchange.sites[name].confirm(*request)


def test_another_roster_is_refused(consortium, tmp_path):
    """The server puts a site of its own into the roster; the site has pinned the old one."""
    other = Consortium(tmp_path / "other", 4)
    with pytest.raises(ProtocolError, match="another roster"):
        consortium.site(VICTIM, consortium.context(roster=other.roster.sha256()))
    with pytest.raises(ProtocolError, match="not in the roster"):
        consortium.site(VICTIM, consortium.context(("site-00", VICTIM, "zombie")))
    with pytest.raises(ProtocolError, match="no site"):
        consortium.site(VICTIM, consortium.context((SERVER, "site-00", VICTIM)))
    with pytest.raises(ProtocolError, match="not in the cohort"):
        consortium.site(VICTIM, consortium.context(consortium.names[:3]))


# --- differencing ---


def difference(consortium, second, prepare=lambda _exchange: None):
    """Sum all sites' updates, then, at the same round, the same updates without the victim's."""
    first = Exchange(consortium)
    whole = first.run()
    again = Exchange(consortium, second)
    again.updates = {name: first.updates[name] for name in second.cohort}
    prepare(again)
    return first, whole.update - again.run().update


@pytest.mark.parametrize("model", [MODEL, "ef" * 32], ids=["same model", "rolled back"])
def test_one_round_is_not_summed_over_two_cohorts(consortium, model):
    second = consortium.context(consortium.names[:3], attempt=2, model=model)
    if model != MODEL:
        with pytest.raises(ProtocolError, match="model"):
            difference(consortium, second)
        return
    with pytest.raises(ProtocolError, match="confirmed round 1 with other survivors"):
        difference(consortium, second)


def test_one_round_is_not_summed_with_and_without_a_site(consortium):
    """The same cohort, and the victim is said to have dropped out the second time."""
    second = consortium.context(attempt=2)

    def prepare(exchange):
        exchange.absent = {"train": {VICTIM}}

    with pytest.raises(ProtocolError, match="confirmed round 1 with other survivors"):
        difference(consortium, second, prepare)


def test_an_attempt_is_not_done_twice(consortium):
    with pytest.raises(ProtocolError, match="A further attempt needs a number of its own"):
        difference(consortium, consortium.context())


@pytest.mark.parametrize("how", ["other cohort", "dropped out"])
def test_control_without_a_journal_the_difference_is_the_update(consortium, monkeypatch, how):
    monkeypatch.setattr(Consortium, "journal", lambda _self, _name: Forgetful())
    cohort = consortium.names[:3] if how == "other cohort" else consortium.names

    def prepare(exchange):
        exchange.absent = {"train": {VICTIM}}

    first, update = difference(consortium, consortium.context(cohort, attempt=2), prepare)
    assert is_recovered(first, update)


# --- models ---


def test_another_model_for_one_site_is_refused_before_training(consortium):
    exchange = Exchange(consortium).until("prepare")
    request = exchange.ask("train")[VICTIM]
    control = snapshot(exchange.sites[VICTIM])
    with pytest.raises(ProtocolError, match="model is another one"):
        exchange.sites[VICTIM].open_training(*request, "cd" * 32)
    with pytest.raises(ProtocolError):
        exchange.sites[VICTIM].mask(np.zeros(7, np.uint32), np.zeros(3, np.uint64))
    control.open_training(*request, MODEL)


def test_the_context_in_a_message_is_the_one_that_it_is_signed_for(consortium):
    exchange = Exchange(consortium)
    exchange.ask("prepare")
    parts = exchange.requests["prepare"][VICTIM][1]
    lie = Prepare(consortium.context(weight_bound=1))
    with pytest.raises(ProtocolError, match="about another round"):
        exchange.sites[VICTIM].prepare(*from_server(exchange, PREPARE, lie, parts))


def test_step_1_messages_and_boxes_are_handed_on_unchanged(consortium):
    """Neither an own message of another content, nor a box that its sender did not sign."""
    exchange = Exchange(consortium).until("prepare")
    envelope, parts = exchange.ask("train")[VICTIM]
    mine, _boxes = exchange.replies["prepare"][VICTIM]
    again = seal(
        consortium.signers[VICTIM], "prepared", mine.context, 1, {**mine.body, "mask_key": "00"}
    )
    peer = "site-00"
    pair = open_box(consortium.keys[VICTIM], mine.context, peer, VICTIM, parts[f"box/{peer}"])
    key = consortium.keys[VICTIM].encryption_key
    resealed = dealing.close_box(key, mine.context, peer, VICTIM, pair)
    for changed, message in (
        ({f"prepared/{VICTIM}": again.to_bytes()}, "another message than this site sent"),
        ({f"box/{peer}": resealed}, "not what its sender signed"),
    ):
        request = from_server(exchange, TRAIN, Bare(), {**parts, **changed})
        with pytest.raises(ProtocolError, match=message):
            snapshot(exchange.sites[VICTIM]).open_training(*request, MODEL)
    snapshot(exchange.sites[VICTIM]).open_training(envelope, parts, MODEL)


def test_a_context_of_its_own_for_one_site_is_refused(consortium):
    """The victim is told of another model; its peers' messages are about another context then."""
    exchange = Exchange(consortium).until("prepare")
    lie = Exchange(consortium, consortium.context(model="cd" * 32))
    lie.ask("prepare")
    lie.reply("prepare", VICTIM)
    lie.server._prepared = {
        **exchange.server._prepared,
        VICTIM: (lie.replies["prepare"][VICTIM][0].to_bytes(), None),
    }
    lie.replies["prepare"] = {
        **exchange.replies["prepare"],
        VICTIM: lie.replies["prepare"][VICTIM],
    }
    request = train_request(lie, VICTIM, consortium.names)
    with pytest.raises(ProtocolError, match="another context"):
        lie.sites[VICTIM].open_training(*request, "cd" * 32)


# --- colluding sites ---


@pytest.mark.parametrize("sites", [4, 5, 7, 10])
def test_server_and_colluders_lack_the_mask_key_of_each_honest_site(tmp_path, sites):
    """What they hold after a whole round: its seed, and c shares of its mask key; t are needed."""
    consortium = Consortium(tmp_path, sites)
    names, t, c = consortium.names, threshold(sites), colluders(sites)
    exchange = Exchange(consortium).until("train")
    held = {name: dict(exchange.sites[name]._shares) for name in names}
    exchange.step("confirm")
    exchange.step("reveal")
    victim, peers = names[-1], names[:-1]
    revealed = {name: exchange.replies["reveal"][name][0].body for name in names}
    assert all(body["mask_keys"] == {} for body in revealed.values())
    seed = seed_of(
        exchange, victim, {n: bytes.fromhex(revealed[n]["seeds"][victim]) for n in names}
    )
    key_shares = {name: held[name][victim].mask_key for name in names}
    public = mask_keys(exchange)[victim]
    for known in range(c, t):
        some = {name: key_shares[name] for name in peers[:known]}
        with pytest.raises(ProtocolError, match="too few"):
            seed_of(exchange, victim, some)
        # Nor does a guess help: what lacks is a whole random share.
        guess = {name: key_shares[name] for name in peers[:known]}
        guess |= {name: bytes(33) for name in names[known:t]}
        wrong = seed_of(exchange, victim, guess)
        assert MaskKey(wrong).public != public
        assert not is_recovered(exchange, unmasked(exchange, victim, seed, wrong, peers), victim)
    # Without the mask key the self mask alone comes off, and what is left is no update.
    only_seed = unmasked(exchange, victim, seed, bytes(32), ())
    assert not is_recovered(exchange, only_seed, victim)
    # Control: with one share more than t - 1 it is recovered.
    enough = {name: key_shares[name] for name in peers[:t]}
    private = seed_of(exchange, victim, enough)
    assert MaskKey(private).public == public
    assert is_recovered(exchange, unmasked(exchange, victim, seed, private, peers), victim)


def test_a_late_update_of_a_site_that_was_given_up_stays_masked(consortium):
    """The server has its masked vector and its mask key; the seed of the self mask is missing."""
    exchange = Exchange(consortium).until("prepare")
    exchange.ask("train")
    for name in consortium.names:
        exchange.reply("train", name)
        if name != VICTIM:
            exchange.take("train", name)
    exchange.step("confirm")
    exchange.step("reveal")
    survivors = consortium.names[:3]
    bodies = {name: exchange.replies["reveal"][name][0].body for name in survivors}
    assert all(VICTIM not in body["seeds"] for body in bodies.values())
    private = seed_of(
        exchange, VICTIM, {n: bytes.fromhex(bodies[n]["mask_keys"][VICTIM]) for n in survivors}
    )
    assert MaskKey(private).public == mask_keys(exchange)[VICTIM]
    guess = unmasked(exchange, VICTIM, bytes(32), private, survivors)
    assert not is_recovered(exchange, guess)
    np.testing.assert_array_equal(exchange.server.finish().update, exchange.expected(survivors)[0])
