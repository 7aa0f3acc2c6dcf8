"""What a malicious server can do with its own key and what it holds, for the tests of attacks."""

from __future__ import annotations

import copy

import numpy as np
from secagg_round import SERVER, described

from fedmed.secagg import dealing, server, site
from fedmed.secagg.keys import MaskKey
from fedmed.secagg.masking import derive, mask_all
from fedmed.secagg.messages import (
    CONFIRM,
    REVEAL,
    TRAIN,
    Bare,
    Prepared,
    Survivors,
)
from fedmed.secagg.shamir import combine
from fedmed.trust.envelope import seal

VICTIM = "site-03"


def from_server(exchange, kind, body, parts):
    """A message that the server's own key has signed, whatever it says."""
    signer = exchange.consortium.signers[SERVER]
    context = exchange.context.sha256()
    envelope = seal(signer, kind.type, context, kind.sequence, body.to_body(), described(parts))
    return envelope, parts


def train_request(exchange, name, sharers):
    prepared = {f"prepared/{peer}": exchange.server._prepared[peer][0] for peer in sharers}
    boxes = {
        f"box/{peer}": exchange.replies["prepare"][peer][1][f"box/{name}"]
        for peer in sharers
        if peer != name
    }
    return from_server(exchange, TRAIN, Bare(), {**prepared, **boxes})


def confirm_request(exchange, survivors):
    return from_server(exchange, CONFIRM, Survivors(tuple(survivors)), {})


def reveal_request(exchange, confirmed):
    parts = {f"confirmed/{name}": message.to_bytes() for name, message in confirmed.items()}
    return from_server(exchange, REVEAL, Bare(), parts)


def mask_keys(exchange):
    return {
        name: Prepared.from_body(envelope.body, exchange.context.cohort).mask_key
        for name, (envelope, _) in exchange.replies["prepare"].items()
    }


def seed_of(exchange, name, shares):
    """Put a secret together from shares by name of holder."""
    cohort = exchange.context.cohort
    return combine(
        {cohort.index(holder) + 1: share for holder, share in shares.items()},
        site.threshold(len(cohort)),
    )


def unmasked(exchange, victim, seed, private, peers):
    """Take all masks off a victim's vector with both of its secrets."""
    context, public = exchange.context.sha256(), mask_keys(exchange)
    added, subtracted = [], [derive(seed, "self", context, victim)]
    for peer in peers:
        low, high = sorted((victim, peer))
        key = derive(MaskKey(private).agree(public[peer]), "pair", context, low, high)
        (subtracted if victim == low else added).append(key)
    parts = exchange.replies["train"][victim][1]
    update = np.frombuffer(parts["update"], np.uint32).copy()
    mask_all([update, np.frombuffer(parts["counts"], np.uint64).copy()], added, subtracted)
    return update


def is_recovered(exchange, update, victim=VICTIM):
    return np.array_equal(update, exchange.updates[victim])


class Forgetful:
    """A journal that forgets."""

    def begin(self, context):
        pass

    def confirm(self, context, survivors):
        pass

    def reveal(self, context, survivors):
        pass


def snapshot(session):
    """A copy that goes on by itself: a site that was set back."""
    again = copy.copy(session)
    again._shares = dict(session._shares)
    again._pair_keys = dict(session._pair_keys)
    return again


def lower_threshold(monkeypatch, value):
    for module in (site, server, dealing):
        monkeypatch.setattr(module, "threshold", lambda _sites: value)
