"""A site that answers at once: what is left of a round is the engine's overhead."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fedmed.federation.records import FLOAT32, Joined, Trained, pack, unpack_arrays, unpack_request

SITES = ("alder", "birch", "cedar")
PARAMETERS = 1_000_000
STEP = -0.01
"""The mean update is this share of the weights, so the model shows how often it was updated."""

_SHARES = dict(zip(SITES, (0.9, 1.0, 1.1), strict=True))


class RoundTime(NamedTuple):
    """Seconds of a round.

    Attributes:
        whole: from the end of the round before.
        exchange: from the first request to the last answer, the engine's own part; NaN where the
            loop does not tell.
    """

    whole: float
    exchange: float


def echoed(weights: NDArray[np.float32], site: str) -> NDArray[np.float32]:
    """Return a site's update; no two are alike, else a server could store them as one object."""
    return weights * np.float32(STEP * _SHARES[site])


def site_of_partition(context: Context) -> str:
    """Return the site's name where Flower numbers the nodes: in simulation."""
    return SITES[int(context.node_config["partition-id"])]


def echo_client_app(site_of: Callable[[Context], str] = site_of_partition) -> ClientApp:
    """Return an app that joins, and answers the weights with an update at once."""
    app = ClientApp()

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        return Message(pack(Joined(site_of(context), 1, 1, 1, {}, None)), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        unpack_request(message.content)
        arrays = unpack_arrays(message.content, {"weights": (PARAMETERS,)}, FLOAT32)
        weights = arrays["weights"].astype(np.float32, copy=False)
        site = site_of(context)
        report = Trained(site, 1, 0.0, None, 0.0)
        return Message(pack(report, {"update": echoed(weights, site)}), reply_to=message)

    return app
