"""A malicious server, with and without colluding sites: no update of one site is recovered.

Each attack is a function that returns what the server takes for the victim's update. It fails at
the protocol as it is, and succeeds where the protection that it aims at is switched off.
"""

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
    reveal_request,
    seed_of,
    snapshot,
    train_request,
    unmasked,
)
from secagg_round import MODEL, SERVER, Consortium, Exchange, described

from fedmed.errors import ProtocolError
from fedmed.secagg import site
from fedmed.secagg.dealing import open_box
from fedmed.secagg.keys import EncryptionKeys, MaskKey
from fedmed.secagg.masking import derive, mask_all
from fedmed.secagg.messages import (
    CONFIRM,
    Joined,
    Prepared,
    Survivors,
)
from fedmed.secagg.site import SiteSession
from fedmed.secagg.verification import join
from fedmed.trust.envelope import Envelope, seal
from fedmed.trust.signatures import Signer


@pytest.fixture
def consortium(tmp_path):
    return Consortium(tmp_path, 4)


# --- keys ---


class TrustsAnyEncryptionKey(SiteSession):
    """A site that does not ask who signed its peers' encryption keys."""

    def _read_joined(self, request, parts):
        return {
            name.removeprefix("joined/"): Joined.from_body(
                Envelope.from_bytes(data).body
            ).encryption_key
            for name, data in parts.items()
        }


def swap_encryption_keys(exchange):
    """Give the victim the server's own key for each peer, open its boxes and unmask its vector."""
    consortium, context = exchange.consortium, exchange.context.sha256()
    mine = EncryptionKeys()
    forged = {
        name: join(
            Signer(name, consortium.signers[SERVER].key), consortium.joining, mine, {}
        ).to_bytes()
        for name in consortium.names
    }
    others = [name for name in consortium.names if name != VICTIM]
    exchange.ask("prepare")
    parts = {f"joined/{name}": forged[name] for name in others}
    exchange.requests["prepare"][VICTIM] = (
        seal(
            consortium.signers[SERVER],
            "prepare",
            context,
            1,
            exchange.requests["prepare"][VICTIM][0].body,
            described(parts),
        ),
        parts,
    )
    _reply, boxes = exchange.reply("prepare", VICTIM)
    opened = {name: open_box(mine, context, VICTIM, name, boxes[f"box/{name}"]) for name in others}
    for name in others:
        exchange.reply("prepare", name)
    for name in consortium.names:
        exchange.take("prepare", name)
    exchange.ask("train")
    exchange.reply("train", VICTIM)
    seed = seed_of(exchange, VICTIM, {name: pair.seed for name, pair in opened.items()})
    private = seed_of(exchange, VICTIM, {name: pair.mask_key for name, pair in opened.items()})
    return unmasked(exchange, VICTIM, seed, private, others)


def test_server_cannot_swap_encryption_keys(consortium):
    exchange = Exchange(consortium)
    with pytest.raises(ProtocolError, match="signature"):
        swap_encryption_keys(exchange)
    assert VICTIM not in exchange.replies["prepare"]


def test_control_swapped_encryption_keys_give_the_update(consortium):
    exchange = Exchange(consortium, kind=TrustsAnyEncryptionKey)
    assert is_recovered(exchange, swap_encryption_keys(exchange))


def swap_mask_keys(exchange):
    """Give the victim mask keys of the server's own; peers' boxes are kept."""
    consortium, context = exchange.consortium, exchange.context
    exchange.until("prepare")
    private = {name: MaskKey() for name in consortium.names if name != VICTIM}
    for name, key in private.items():
        envelope, _ = exchange.replies["prepare"][name]
        body = {**envelope.body, "mask_key": key.public.hex()}
        forger = Signer(name, consortium.signers[SERVER].key)
        forged = seal(forger, "prepared", context.sha256(), 1, body, envelope.parts)
        exchange.server._prepared[name] = (forged.to_bytes(), None)
    exchange.requests["train"] = {VICTIM: train_request(exchange, VICTIM, context.cohort)}
    exchange.reply("train", VICTIM)
    parts = exchange.replies["train"][VICTIM][1]
    update = np.frombuffer(parts["update"], np.uint32).copy()
    counts = np.frombuffer(parts["counts"], np.uint64).copy()
    victims = mask_keys(exchange)[VICTIM]
    for name, key in private.items():
        low, high = sorted((VICTIM, name))
        pair = derive(key.agree(victims), "pair", context.sha256(), low, high)
        mask_all([update, counts], *(((), (pair,)) if low == VICTIM else ((pair,), ())))
    seed_key = derive(exchange.seeds[VICTIM], "self", context.sha256(), VICTIM)
    mask_all([update, counts], (), (seed_key,))
    return update


@pytest.mark.parametrize("checked", [True, False], ids=["protected", "control"])
def test_server_cannot_swap_mask_keys(consortium, monkeypatch, checked):
    exchange = Exchange(consortium)
    exchange.seeds = {}
    session = exchange.sites[VICTIM]
    # The seed of a survivor is revealed in each good round, so the server may be given it here.
    monkeypatch.setattr(
        site, "seed_commitment", lambda context, name, seed: exchange.seeds.setdefault(name, seed)
    )
    if checked:
        with pytest.raises(ProtocolError, match="signature"):
            swap_mask_keys(exchange)
        assert session.stage is site.Stage.closed
        return

    def trusting(data, context, name, _roster):
        envelope = Envelope.from_bytes(data)
        return envelope, Prepared.from_body(envelope.body, context.cohort)

    monkeypatch.setattr(site, "read_prepared", trusting)
    assert is_recovered(exchange, swap_mask_keys(exchange))


def test_a_mask_key_of_low_order_is_refused_before_training(consortium):
    exchange = Exchange(consortium)
    exchange.ask("prepare")
    session = exchange.sites["site-00"]
    reply, boxes = exchange.reply("prepare", "site-00")
    bad = seal(
        consortium.signers["site-00"],
        reply.type,
        reply.context,
        reply.sequence,
        {**reply.body, "mask_key": "00" * 32},
        reply.parts,
    )
    with pytest.raises(ProtocolError, match="X25519"):
        exchange.server.take_prepared("site-00", bad, boxes)
    for name in consortium.names[1:]:
        exchange.reply("prepare", name)
        exchange.take("prepare", name)
    exchange.server._prepared["site-00"] = (bad.to_bytes(), None)
    with pytest.raises(ProtocolError, match="X25519"):
        exchange.sites[VICTIM].open_training(
            *train_request(exchange, VICTIM, consortium.names), MODEL
        )
    assert session.stage is site.Stage.prepared


# --- alive and dead ---


def alive_and_dead(exchange, again):
    """Ask all for the sum with the victim, then ``again(name)`` for the sum without it."""
    names = exchange.context.cohort
    exchange.until("train")
    before = {name: snapshot(exchange.sites[name]) for name in names}
    shares = {}
    for survivors in (names, tuple(name for name in names if name != VICTIM)):
        asked = {name: exchange.sites[name] for name in survivors}
        if shares:
            asked = {name: again(exchange, before, name) for name in survivors}
        confirmed = {
            name: session.confirm(*confirm_request(exchange, survivors))[0]
            for name, session in asked.items()
        }
        for name, session in asked.items():
            revealed = session.reveal(*reveal_request(exchange, confirmed))[0].body
            for kind in ("seeds", "mask_keys"):
                if VICTIM in revealed[kind]:
                    share = bytes.fromhex(revealed[kind][VICTIM])
                    shares.setdefault(kind, {})[name] = share
    seed = seed_of(exchange, VICTIM, shares["seeds"])
    private = seed_of(exchange, VICTIM, shares["mask_keys"])
    peers = [name for name in names if name != VICTIM]
    return unmasked(exchange, VICTIM, seed, private, peers)


def test_victim_is_not_both_alive_and_dead(consortium):
    with pytest.raises(ProtocolError, match="takes this step when"):
        alive_and_dead(Exchange(consortium), lambda exchange, _before, name: exchange.sites[name])


def test_victim_is_not_both_alive_and_dead_for_a_site_that_was_set_back(consortium):
    with pytest.raises(ProtocolError, match="confirmed the survivors of this attempt before"):
        alive_and_dead(Exchange(consortium), lambda _exchange, before, name: before[name])


def test_control_a_site_that_was_set_back_and_forgets_gives_the_update(consortium):
    def again(_exchange, before, name):
        before[name]._journal = Forgetful()
        return before[name]

    exchange = Exchange(consortium)
    assert is_recovered(exchange, alive_and_dead(exchange, again))


def split_views(exchange):
    """Tell half of the sites that the victim is alive, the other half that it is dead.

    Each half gets its own confirmations, so that no site sees a contradiction.
    """
    names = exchange.context.cohort
    exchange.until("train")
    without = tuple(name for name in names if name != VICTIM)
    views = [(("site-00", VICTIM), names), (("site-01", "site-02"), without)]
    shares = {"seeds": {}, "mask_keys": {}}
    for group, survivors in views:
        confirmed = {
            name: exchange.sites[name].confirm(*confirm_request(exchange, survivors))[0]
            for name in group
        }
        for name in group:
            request = reveal_request(exchange, confirmed)
            revealed = exchange.sites[name].reveal(*request)[0].body
            for kind, found in shares.items():
                if VICTIM in revealed[kind]:
                    found[name] = bytes.fromhex(revealed[kind][VICTIM])
    seed = seed_of(exchange, VICTIM, shares["seeds"])
    private = seed_of(exchange, VICTIM, shares["mask_keys"])
    return unmasked(exchange, VICTIM, seed, private, without)


def test_split_views_of_the_survivors_are_too_small_to_be_confirmed(consortium):
    with pytest.raises(ProtocolError, match="2 confirmations are too few"):
        split_views(Exchange(consortium))


def test_control_split_views_give_the_update_at_a_threshold_of_one_half(consortium, monkeypatch):
    lower_threshold(monkeypatch, 2)
    exchange = Exchange(consortium)
    assert is_recovered(exchange, split_views(exchange))


def test_confirmations_of_other_survivors_do_not_count(consortium):
    names = consortium.names
    exchange = Exchange(consortium).until("train")
    confirmed = {}
    for name in names:
        survivors = names[:3] if name == "site-02" else names
        confirmed[name] = exchange.sites[name].confirm(*confirm_request(exchange, survivors))[0]
    with pytest.raises(ProtocolError, match="other survivors than this one"):
        exchange.sites["site-00"].reveal(*reveal_request(exchange, confirmed))
    # Control: the three that agree are enough.
    del confirmed["site-02"]
    reply, _ = exchange.sites["site-01"].reveal(*reveal_request(exchange, confirmed))
    assert set(reply.body["seeds"]) == set(names)


def test_confirmations_of_sites_that_dropped_out_do_not_count(consortium):
    exchange = Exchange(consortium).until("train")
    survivors, context = consortium.names[:3], exchange.context.sha256()
    request = confirm_request(exchange, survivors)
    confirmed = {name: exchange.sites[name].confirm(*request)[0] for name in survivors}
    colluder = consortium.signers[VICTIM]
    body = confirmed["site-00"].body
    third = {VICTIM: seal(colluder, "confirmed", context, 3, body)}
    for wrong in (third, {"site-02": confirmed["site-02"], **third}):
        two = {name: confirmed[name] for name in survivors[:2]}
        with pytest.raises(ProtocolError, match="no survivor"):
            snapshot(exchange.sites["site-00"]).reveal(*reveal_request(exchange, {**two, **wrong}))
    exchange.sites["site-00"].reveal(*reveal_request(exchange, confirmed))


def test_a_request_with_a_part_too_many_is_refused(consortium):
    exchange = Exchange(consortium).until("train")
    envelope, parts = exchange.ask("confirm")[VICTIM]
    signed = from_server(exchange, CONFIRM, Survivors(consortium.names), {"extra": b"1"})
    for request in (signed, (signed[0], {}), (envelope, {"extra": b"1"})):
        with pytest.raises(ProtocolError, match="other parts"):
            snapshot(exchange.sites[VICTIM]).confirm(*request)
    exchange.sites[VICTIM].confirm(envelope, parts)


def split_sharers(exchange, sharers_of_victim):
    """Let the victim make masks with sites that drop out, and not with those in the sum.

    The others make masks with the victim all the same, confirm the sum that it is in, and reveal
    the mask keys of those that dropped out.
    """
    names = exchange.context.cohort
    gone = "site-02"
    exchange.until("prepare")
    exchange.requests["train"] = {
        name: train_request(exchange, name, sharers_of_victim if name == VICTIM else names)
        for name in names
        if name != gone
    }
    for name in exchange.requests["train"]:
        exchange.reply("train", name)
    survivors = tuple(name for name in names if name != gone)
    honest = ("site-00", "site-01")
    confirmed = {
        name: exchange.sites[name].confirm(*confirm_request(exchange, survivors))[0]
        for name in honest
    }
    if VICTIM not in confirmed and len(confirmed) < site.threshold(len(names)):
        request = confirm_request(exchange, survivors)
        confirmed[VICTIM] = exchange.sites[VICTIM].confirm(*request)[0]
    seeds, keys = {}, {}
    for name in honest:
        body = exchange.sites[name].reveal(*reveal_request(exchange, confirmed))[0].body
        seeds[name] = bytes.fromhex(body["seeds"][VICTIM])
        keys[name] = bytes.fromhex(body["mask_keys"][gone])
    context = exchange.context.sha256()
    seed, private = seed_of(exchange, VICTIM, seeds), seed_of(exchange, gone, keys)
    pair = derive(
        MaskKey(private).agree(mask_keys(exchange)[VICTIM]), "pair", context, gone, VICTIM
    )
    parts = exchange.replies["train"][VICTIM][1]
    update = np.frombuffer(parts["update"], np.uint32).copy()
    counts = np.frombuffer(parts["counts"], np.uint64).copy()
    mask_all([update, counts], [pair], [derive(seed, "self", context, VICTIM)])
    return update


def test_victim_cannot_be_parted_from_the_other_survivors_masks(consortium):
    with pytest.raises(ProtocolError, match="too few to make masks with"):
        split_sharers(Exchange(consortium), ("site-02", VICTIM))
    # With enough sharers the victim makes a mask with a survivor, and does not confirm the other.
    other = Exchange(consortium, consortium.context(round=2))
    with pytest.raises(ProtocolError, match="made no mask with"):
        split_sharers(other, ("site-00", "site-02", VICTIM))


def test_control_split_sharers_give_the_update_at_a_threshold_of_one_half(consortium, monkeypatch):
    lower_threshold(monkeypatch, 2)
    exchange = Exchange(consortium)
    assert is_recovered(exchange, split_sharers(exchange, ("site-02", VICTIM)))
