"""Sites that deal or reveal wrong shares: found by commitments, named, and the sum stays exact."""

from __future__ import annotations

import numpy as np
import pytest
from secagg_round import MODEL, Consortium, Exchange

from fedmed.errors import ProtocolError
from fedmed.secagg import server, site
from fedmed.secagg.dealing import SharePair
from fedmed.secagg.errors import AggregationError
from fedmed.trust.envelope import seal

LIAR = "site-01"


@pytest.fixture
def consortium(tmp_path):
    return Consortium(tmp_path, 5)


def other(share):
    # Not the lowest bits: X25519 does not look at those of a private key.
    return share[:9] + bytes([share[9] ^ 1]) + share[10:]


def reveal_with_liars(exchange, liars, kind="seeds"):
    exchange.ask("reveal")
    for name in exchange.requests["reveal"]:
        envelope, parts = exchange.reply("reveal", name)
        if name in liars:
            shares = dict(envelope.body[kind])
            victim = next(iter(shares))
            shares[victim] = other(bytes.fromhex(shares[victim])).hex()
            signer = exchange.consortium.signers[name]
            body = {**envelope.body, kind: shares}
            lie = seal(signer, envelope.type, envelope.context, envelope.sequence, body)
            with pytest.raises(ProtocolError, match=f"{name!r} revealed"):
                exchange.take("reveal", name, (lie, parts))
        else:
            exchange.take("reveal", name)


def test_a_wrong_revealed_share_is_named_and_the_sum_is_exact(consortium):
    exchange = Exchange(consortium).until("confirm")
    reveal_with_liars(exchange, {LIAR})
    sums = exchange.server.finish()
    np.testing.assert_array_equal(sums.update, exchange.expected(consortium.names)[0])
    assert sums.suspects == (LIAR,)


def test_a_wrong_share_of_a_mask_key_is_named(tmp_path):
    consortium = Consortium(tmp_path, 7)
    exchange = Exchange(consortium, absent={"train": {"site-06"}}).until("confirm")
    reveal_with_liars(exchange, {LIAR}, "mask_keys")
    sums = exchange.server.finish()
    np.testing.assert_array_equal(sums.update, exchange.expected(consortium.names[:6])[0])
    assert sums.suspects == (LIAR,)


def test_too_many_wrong_shares_end_without_a_sum(consortium):
    exchange = Exchange(consortium).until("confirm")
    reveal_with_liars(exchange, {LIAR, "site-02"})
    with pytest.raises(AggregationError, match="Wrong shares came from: site-01, site-02") as error:
        exchange.server.finish()
    assert error.value.suspects == (LIAR, "site-02")
    assert error.value.missing == (LIAR, "site-02")
    assert error.value.survivors == consortium.names


def test_control_without_commitments_the_blame_falls_on_the_others(consortium, monkeypatch):
    monkeypatch.setattr(server, "check_revealed", lambda *_arguments: None)
    exchange = Exchange(consortium).until("confirm")
    exchange.ask("reveal")
    for name in consortium.names:
        envelope, parts = exchange.reply("reveal", name)
        if name == LIAR:
            shares = {
                dealer: other(bytes.fromhex(s)).hex()
                for dealer, s in envelope.body["seeds"].items()
            }
            body = {**envelope.body, "seeds": shares}
            envelope = seal(consortium.signers[name], envelope.type, envelope.context, 4, body)
        exchange.take("reveal", name, (envelope, parts))
    # Other subsets of t shares are tried, so the sum is found, but the dealers are suspected.
    sums = exchange.server.finish()
    np.testing.assert_array_equal(sums.update, exchange.expected(consortium.names)[0])
    assert set(sums.suspects) == set(consortium.names)


def deal_wrongly(exchange, monkeypatch, wrong):
    """Let one site deal, sign and seal shares that are not on its polynomial."""
    exchange.ask("prepare")
    for name in exchange.context.cohort:
        with monkeypatch.context() as patch:
            if name == LIAR:
                real = site.deal

                def deal(*arguments, real=real):
                    return {
                        holder: SharePair(other(pair.seed), other(pair.mask_key))
                        if holder in wrong
                        else pair
                        for holder, pair in real(*arguments).items()
                    }

                patch.setattr(site, "deal", deal)
            exchange.reply("prepare", name)
        exchange.take("prepare", name)


@pytest.mark.parametrize("alive", [True, False])
def test_one_share_dealt_wrongly_spoils_nothing_and_its_dealer_is_named(
    tmp_path, monkeypatch, alive
):
    consortium = Consortium(tmp_path, 8)
    exchange = Exchange(consortium, absent={} if alive else {"train": {LIAR}})
    deal_wrongly(exchange, monkeypatch, {"site-00"})
    for step in ("train", "confirm", "reveal"):
        exchange.step(step)
    sums = exchange.server.finish()
    np.testing.assert_array_equal(sums.update, exchange.expected(sums.survivors)[0])
    assert sums.suspects == (LIAR,)
    assert (LIAR in sums.survivors) == alive


@pytest.mark.parametrize("alive", [True, False])
def test_secrets_that_were_dealt_wrongly_end_without_a_sum(tmp_path, monkeypatch, alive):
    consortium = Consortium(tmp_path, 8)
    exchange = Exchange(consortium, absent={} if alive else {"train": {LIAR}})
    deal_wrongly(exchange, monkeypatch, set(consortium.names))
    for step in ("train", "confirm", "reveal"):
        exchange.step(step)
    masked = exchange.server._update.copy()
    with pytest.raises(AggregationError, match="Wrong shares came from: site-01") as error:
        exchange.server.finish()
    assert error.value.suspects == (LIAR,)
    np.testing.assert_array_equal(exchange.server._update, masked)


def test_a_box_that_holds_other_shares_than_were_signed_is_refused_before_training(
    consortium, monkeypatch
):
    exchange = Exchange(consortium)
    exchange.ask("prepare")
    for name in consortium.names:
        with monkeypatch.context() as patch:
            if name == LIAR:
                real = site.close_box
                patch.setattr(
                    site,
                    "close_box",
                    lambda key, context, dealer, holder, pair, real=real: real(
                        key, context, dealer, holder, SharePair(other(pair.seed), pair.mask_key)
                    ),
                )
            exchange.reply("prepare", name)
        exchange.take("prepare", name)
    exchange.ask("train")
    session = exchange.sites["site-00"]
    with pytest.raises(ProtocolError, match="'site-01' are not the ones that it signed"):
        session.open_training(*exchange.requests["train"]["site-00"], MODEL)
    assert session.stage is site.Stage.closed


def test_a_commitment_is_for_one_secret_of_one_dealer_to_one_holder_in_one_attempt():
    from fedmed.secagg.dealing import (
        key_share_commitment,
        seed_commitment,
        seed_share_commitment,
    )

    share = bytes(33)
    commitments = {
        seed_share_commitment("aa", "x", "y", share),
        seed_share_commitment("bb", "x", "y", share),
        seed_share_commitment("aa", "z", "y", share),
        seed_share_commitment("aa", "x", "z", share),
        seed_share_commitment("aa", "x", "y", other(share)),
        key_share_commitment("aa", "x", "y", share),
        seed_commitment("aa", "x", share),
        seed_commitment("bb", "x", share),
        seed_commitment("aa", "y", share),
    }
    assert len(commitments) == 9
