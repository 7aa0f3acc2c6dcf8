"""The rounds of a plain Flower app: FedAvg and its loop as Flower ships them."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from round_engines.echo import PARAMETERS, SITES, STEP, RoundTime, echoed, site_of_partition


def flower_client_app() -> ClientApp:
    """Return an app that answers the weights with new weights at once, as FedAvg expects them."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        weights = message.content.array_records["arrays"]["weights"].numpy()
        trained = weights + echoed(weights, site_of_partition(context))
        content = RecordDict(
            {
                "arrays": ArrayRecord({"weights": Array(trained)}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        return Message(content, reply_to=message)

    return app


def time_flower_rounds(grid: Grid, _folder: Path, rounds: int) -> list[RoundTime]:
    """Run rounds and return the times of each but the first, which warms up.

    A round is: the model to three sites, three models back, weighted mean. There is no evaluation
    and no checkpoint.

    Raises:
        RuntimeError: the model is not what that many updates of all sites make of it.
    """
    from flwr.serverapp.strategy import FedAvg  # noqa: PLC0415 - not for the sites' processes

    ends: list[float] = []
    result = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=len(SITES), min_available_nodes=len(SITES)
    ).start(
        grid,
        ArrayRecord({"weights": Array(np.ones(PARAMETERS, np.float32))}),
        num_rounds=rounds + 1,
        evaluate_fn=lambda _number, _arrays: ends.append(time.perf_counter()),
    )
    weights = result.arrays["weights"].numpy()
    if not np.allclose(weights, (1 + STEP) ** (rounds + 1), rtol=1e-4):
        raise RuntimeError("the model is not what these rounds should make of it")
    return [RoundTime(after - before, math.nan) for before, after in itertools.pairwise(ends[1:])]
