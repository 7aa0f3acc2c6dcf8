"""Gradient inversion on what the server sees of one site: its masked update, and the sum.

Each site takes one step on one image, the attacker's best case. On the plain update the attack
succeeds; that is the control.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from secagg_round import Consortium, Exchange

from fedmed.assurance.privacy_audit import inversion
from fedmed.assurance.privacy_audit.canaries import PLAIN_SGD
from fedmed.assurance.privacy_audit.inversion import ATTACKS, RECOGNISED, correlation, phantom_image
from fedmed.data.image_set import ImageSet
from fedmed.secagg.masking import derive, mask
from fedmed.secagg.quantise import Ring
from fedmed.secagg.unmasking import Sharing, open_secrets
from fedmed.training.trainer import LocalRound, train

pytestmark = pytest.mark.slow

SEED = 3
SITES = 3
ITERATIONS = 400
RING = Ring(32, 8.0, 1, SITES)


def images():
    return [phantom_image(SEED, number) for number in range(SITES)]


def update_of(model, image):
    """Return what one step on one image changes, ``[parameters]``."""
    before = torch.cat([p.detach().clone().flatten() for p in model.parameters()])
    data = ImageSet(image, torch.tensor([inversion._LABEL]), torch.tensor([0]))
    sgd = replace(PLAIN_SGD, learning_rate=inversion._RATE, batch_size=1)
    train(model, data, inversion._TASK, sgd, LocalRound(1, 1, 1.0, SEED))
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    return (after - before).numpy()


def attacked(attack, update):
    """Return the image that the attack reads from an update."""
    build, reconstruct = ATTACKS[attack]
    model = build(SEED)
    gradients, start = [], 0
    for parameter in model.parameters():
        piece = torch.from_numpy(update[start : start + parameter.numel()].astype(np.float32))
        gradients.append((-piece / inversion._RATE).view(parameter.shape))
        start += parameter.numel()
    assert start == len(update)
    return reconstruct(model, gradients, ITERATIONS, SEED)


class Round:
    """Three sites' updates through secure aggregation, and all that the server has of it."""

    def __init__(self, folder, updates):
        consortium = Consortium(folder, SITES)
        self.exchange = Exchange(consortium, size=len(updates[0]), counts=1)
        self.names = self.exchange.context.cohort
        for name, update in zip(self.names, updates, strict=True):
            self.exchange.updates[name] = RING.encode(update, 1.0).values
        self.exchange.until("reveal")
        server = self.exchange.server
        # Before the session closes: what the server can open, as it does to open the sum.
        self.sharing = Sharing(
            server._context, server._cohort, server._threshold, server._survivors
        )
        self.opened = open_secrets(self.sharing, server._dealers(), server._revealed)
        self.sums = server.finish()

    def masked(self, name):
        return np.frombuffer(self.exchange.replies["train"][name][1]["update"], "<u4").copy()

    def without_self_mask(self, name):
        """Take off the mask whose seed the survivors have revealed; pairs' masks stay on."""
        vector = self.masked(name)
        counts = np.zeros(1, np.uint64)
        key = derive(self.opened.seeds[name], "self", self.sharing.context, name)
        mask([vector, counts], key, subtract=True)
        return vector


def decoded(vector):
    """Read a vector as if it were one site's encoding."""
    return RING.mean(vector, 1.0)


@pytest.mark.parametrize("attack", ATTACKS)
def test_one_sites_masked_update_gives_no_image(attack, tmp_path):
    originals = images()
    build, _ = ATTACKS[attack]
    updates = [update_of(build(SEED), image) for image in originals]
    seen = Round(tmp_path, updates)
    name, image = seen.names[0], originals[0][0, 0]
    # Controls: the plain update gives the image, also after it went into the ring.
    assert correlation(attacked(attack, updates[0]), image) > RECOGNISED
    encoded = decoded(RING.encode(updates[0], 1.0).values)
    assert correlation(attacked(attack, encoded), image) > RECOGNISED
    assert set(seen.opened.seeds) == set(seen.names)
    assert not seen.opened.mask_keys
    for view in (seen.masked(name), seen.without_self_mask(name)):
        assert abs(correlation(attacked(attack, decoded(view)), image)) < 0.3
    # Looking at any other patient's image tells more.
    assert correlation(originals[1][0, 0], image) > 0.3


def test_if_all_other_sites_help_the_server_the_image_is_open(tmp_path):
    """Control: beyond the number of colluders that the protocol bears, nothing hides an update."""
    originals = images()
    build, _ = ATTACKS["closed form"]
    seen = Round(tmp_path, [update_of(build(SEED), image) for image in originals])
    others = np.sum([seen.exchange.updates[peer] for peer in seen.names[1:]], axis=0, dtype="<u4")
    opened = decoded(seen.sums.update - others)
    assert correlation(attacked("closed form", opened), originals[0][0, 0]) > RECOGNISED


def test_the_opened_sum_is_all_that_there_is(tmp_path):
    """The server sees the same bytes whoever of the sites sent which update."""
    build, _ = ATTACKS["closed form"]
    updates = [update_of(build(SEED), image) for image in images()]
    first = Round(tmp_path / "one", updates)
    again = Round(tmp_path / "two", updates[::-1])
    np.testing.assert_array_equal(first.sums.update, again.sums.update)
    # Two sites that trade a part of their updates change nothing that is opened, and with it
    # the image that the attack would have read from one of them alone.
    traded = [updates[0] + updates[1], np.zeros_like(updates[1]), updates[2]]
    other = Round(tmp_path / "three", traded)
    mean = RING.mean(first.sums.update, SITES)
    bound = RING.error_bound(SITES, SITES)
    np.testing.assert_allclose(RING.mean(other.sums.update, SITES), mean, atol=2 * bound)
    plain = np.mean(updates, axis=0, dtype=np.float64)
    np.testing.assert_allclose(mean, plain, atol=bound)
    # So the attack on it is the attack on the plain sum.
    found, expected = attacked("closed form", mean), attacked("closed form", plain)
    assert correlation(found, expected) > 0.999
