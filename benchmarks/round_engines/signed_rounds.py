"""The same rounds with secure aggregation: four exchanges each, and the transparency log."""

from __future__ import annotations

from pathlib import Path

from flwr.serverapp import Grid

from fedmed.configuration.groups import TransportMode
from fedmed.federation.channels.signed import ServerParty
from fedmed.federation.cohort import Roster
from fedmed.federation.survivors import NamedSurvivors
from fedmed.trust.audit.log import TransparencyLog
from fedmed.trust.credentials import load_credentials
from round_engines.echo import RoundTime
from round_engines.rounds import RUN, time_rounds


def time_signed_rounds(
    grid: Grid, folder: Path, rounds: int, keys: Path, roster: Roster | None = None
) -> list[RoundTime]:
    """Run rounds as :func:`round_engines.rounds.time_rounds` does, with secure aggregation.

    Args:
        grid: link to the sites.
        folder: of the run.
        rounds: to time.
        keys: the server's folder of credentials.
        roster: names of nodes, in deployment.
    """
    credentials = load_credentials(keys, None)
    with TransparencyLog(folder / "audit", credentials.signer, RUN) as log:
        party = ServerParty(
            credentials.signer,
            credentials.publication.signed_roster,
            log,
            NamedSurvivors(folder / "survivors.json"),
        )
        return time_rounds(grid, folder, rounds, roster, TransportMode.secagg, party)
