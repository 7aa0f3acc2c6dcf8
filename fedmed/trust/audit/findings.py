"""What an audit of a bundle has found to hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SiteFindings:
    """What the log proves of one site.

    Attributes:
        asked: rounds (training and evaluation) in whose cohort it was.
        delivered: of them, those with a message of it in the result.
        confirmed: lists of survivors that it signed.
        cosigned: heads of the log that it signed.
        last_cosigned: size of the newest of them; 0 if there is none.
        epsilon: the last that it stated; None without.
        delta: stated with it.
    """

    asked: int = 0
    delivered: int = 0
    confirmed: int = 0
    cosigned: int = 0
    last_cosigned: int = 0
    epsilon: float | None = None
    delta: float | None = None


@dataclass(frozen=True)
class EarlierFindings:
    """What was compared with an earlier state of the same log.

    Attributes:
        source: ``witness state``, ``checkpoint`` or ``bundle``.
        size: leaves of its newest head.
        heads: number of heads compared.
    """

    source: str
    size: int
    heads: int


@dataclass(frozen=True)
class AuditReport:
    """What holds; whatever does not is an error instead.

    Attributes:
        origin: name of the log, ``SERVER/RUN``.
        consortium: by the roster.
        root_fingerprint: of the root certificate that all was checked against.
        leaves: number of them, with as many checkpoints signed by the server.
        head: Merkle root over all leaves, hex.
        first_time, last_time: seconds since 1970, by the server's clock.
        rosters: signed rosters in the log.
        rounds: of training with secure aggregation.
        evaluations: with secure aggregation.
        open_rounds: of either kind, in which the server saw single updates.
        abandoned: attempts that the server says it gave up.
        resumed: times that the server went back to an earlier model.
        masked, confirmations, updates, cosignatures: signatures of sites that hold.
        model: hex SHA-256 of the last model.
        witnessed: size of the newest head that a site cosigned; 0 if there is none.
        witnesses: sites that cosigned it.
        sites: by name, all that were ever in the roster.
        site: that was asked for.
        earlier: state that was asked for.
    """

    origin: str
    consortium: str
    root_fingerprint: str
    leaves: int
    head: str
    first_time: int
    last_time: int
    rosters: int
    rounds: int
    evaluations: int
    open_rounds: int
    abandoned: int
    resumed: int
    masked: int
    confirmations: int
    updates: int
    cosignatures: int
    model: str
    witnessed: int
    witnesses: tuple[str, ...]
    sites: Mapping[str, SiteFindings]
    site: str | None = None
    earlier: EarlierFindings | None = None

    @property
    def signatures(self) -> int:
        """Number of all signatures that were checked."""
        return (
            self.leaves
            + self.rosters
            + self.masked
            + self.confirmations
            + self.updates
            + self.cosignatures
        )
