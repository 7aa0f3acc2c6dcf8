"""Flower's Ray engine, with fedmed's round loop and with Flower's own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from round_engines.echo import SITES, RoundTime, echo_client_app
from round_engines.flower_loop import flower_client_app, time_flower_rounds
from round_engines.rounds import time_rounds


def on_ray(folder: Path, rounds: int) -> list[RoundTime]:
    """Time the same apps and rounds as :func:`round_engines.fedmed_engines.in_process`.

    Raises:
        ImportError: Ray is not installed.
    """
    return _time(echo_client_app(), lambda grid: time_rounds(grid, folder, rounds))


def on_ray_with_flower_loop(folder: Path, rounds: int) -> list[RoundTime]:
    """Time the rounds of Flower's FedAvg.

    Raises:
        ImportError: Ray is not installed.
    """
    return _time(flower_client_app(), lambda grid: time_flower_rounds(grid, folder, rounds))


def _time(client_app: ClientApp, rounds: Callable[[Grid], list[RoundTime]]) -> list[RoundTime]:
    """Run with an actor for each site; the clock is in the ServerApp: no start-up is counted."""
    import ray  # noqa: F401, PLC0415 - an extra
    from flwr.simulation import run_simulation  # noqa: PLC0415

    times: list[RoundTime] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _context: Context) -> None:
        times.extend(rounds(grid))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that run_simulation is deprecated; Ray's tips
        run_simulation(
            server_app=server_app,
            client_app=client_app,
            num_supernodes=len(SITES),
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {
                    "num_cpus": len(SITES),
                    "log_to_driver": False,
                    "include_dashboard": False,
                    "logging_level": logging.CRITICAL,
                },
            },
        )
    return times
