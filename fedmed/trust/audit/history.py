"""What each leaf must have to do with the leaves before it.

The server follows its own log with it before it writes a leaf, the verifier after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedmed.errors import ProtocolError
from fedmed.trust.audit.checkpoint import split_origin
from fedmed.trust.audit.leaves import (
    AbandonedLeaf,
    Leaf,
    OpenRoundLeaf,
    ResumedLeaf,
    RosterLeaf,
    RoundLeaf,
    StartLeaf,
)
from fedmed.trust.audit.round_messages import Statement
from fedmed.trust.canonical import Json
from fedmed.trust.context import EVALUATION, TRAINING, RoundContext
from fedmed.trust.roster import Role, Roster

RosterReader = Callable[[Mapping[str, Json]], Roster]
SECURE_AGGREGATION = "secagg"


class History:
    """The state of a run after the leaves followed so far.

    Args:
        origin: name of the log, ``SERVER/RUN``.
        read_roster: reads a signed roster; raises if it does not hold.

    Attributes:
        size: number of leaves followed.
        models: hex SHA-256 of the weights after each round of training; 0 is the initial model.
        epsilons: largest epsilon stated so far, by site.
    """

    def __init__(self, origin: str, read_roster: RosterReader) -> None:
        self.server, self.run = split_origin(origin)
        self.size = 0
        self.models: dict[int, str] = {}
        self.epsilons: dict[str, float] = {}
        self._read_roster = read_roster
        self._roster: Roster | None = None
        self._roster_hash = ""
        self._signed_roster: Mapping[str, Json] = {}
        self._plan = ""
        self._mode = ""
        self._last = {TRAINING: 0, EVALUATION: -1}

    @property
    def roster(self) -> Roster:
        """The roster in force.

        Raises:
            ProtocolError: before the first leaf.
        """
        if self._roster is None:
            raise ProtocolError("The log does not begin with the start of a run.")
        return self._roster

    @property
    def signed_roster(self) -> Mapping[str, Json]:
        """The roster in force with the root's signature, as in the leaf."""
        return self._signed_roster

    @property
    def model(self) -> str:
        """Hex SHA-256 of the weights now."""
        return self.models[self._last[TRAINING]]

    def follow(self, leaf: Leaf, root: str) -> None:
        """Check the next leaf and take it over; nothing changes if it does not hold.

        Args:
            leaf: as read.
            root: hex Merkle root over the leaves before it.

        Raises:
            ProtocolError: if it does not continue the log.
            TrustError: if the roster in it is not signed by the root of the consortium.
        """
        if isinstance(leaf, StartLeaf):
            self._follow_start(leaf)
        elif isinstance(leaf, RosterLeaf):
            self._demand_run(leaf.run)
            self._take_roster(leaf.roster)
        elif isinstance(leaf, ResumedLeaf):
            self._follow_resumed(leaf)
        else:
            self._check_context(leaf.context, root)
            if not isinstance(leaf, AbandonedLeaf):
                self._follow_round(leaf)
        self.size += 1

    def follow_statements(self, statements: Mapping[str, Statement]) -> None:
        """Check what the sites state in a round of training.

        Raises:
            ProtocolError: if the epsilon of a site falls; what was spent cannot be unspent.
        """
        for site, statement in statements.items():
            before = self.epsilons.get(site)
            if before is not None and (statement.epsilon is None or statement.epsilon < before):
                raise ProtocolError(
                    f"The epsilon that {site!r} states falls from {before:g} to "
                    f"{'none' if statement.epsilon is None else format(statement.epsilon, 'g')}."
                )
            if statement.epsilon is not None:
                self.epsilons[site] = statement.epsilon

    def _follow_start(self, leaf: StartLeaf) -> None:
        if self._roster is not None:
            raise ProtocolError("The run starts twice.")
        if leaf.run != self.run:
            raise ProtocolError("The leaf belongs to another run than the log.")
        self._take_roster(leaf.roster)
        self._plan, self._mode = leaf.plan, leaf.mode
        self.models[0] = leaf.model

    def _follow_resumed(self, leaf: ResumedLeaf) -> None:
        self._demand_run(leaf.run)
        if self.models.get(leaf.round) != leaf.model:
            raise ProtocolError(
                f"The run goes on from a model that the log does not have after round {leaf.round}."
            )
        self.models = {number: m for number, m in self.models.items() if number <= leaf.round}
        self._last = {
            TRAINING: leaf.round,
            EVALUATION: min(self._last[EVALUATION], leaf.round - 1),
        }

    def _follow_round(self, leaf: RoundLeaf | OpenRoundLeaf) -> None:
        context = leaf.context
        if isinstance(leaf, OpenRoundLeaf) and self._mode == SECURE_AGGREGATION:
            raise ProtocolError("The plan has secure aggregation, and the round has not.")
        # The last model may be evaluated on several splits; a round is trained once.
        due = self._last[context.purpose] + (context.purpose == TRAINING)
        if context.round < due:
            raise ProtocolError(
                f"Round {context.round} ({context.purpose}) comes after round "
                f"{self._last[context.purpose]}."
            )
        if context.model != self.model:
            raise ProtocolError(
                "The sites were given another model than the last round ended with."
            )
        self._last[context.purpose] = context.round
        if context.purpose == TRAINING:
            self.models[context.round] = leaf.model_out

    def _check_context(self, context: RoundContext, root: str) -> None:
        self._demand_run(context.run)
        if (context.log_size, context.log_root) != (self.size, root):
            raise ProtocolError(
                f"The round was agreed on another log: its context has {context.log_size} leaves "
                f"before it, the log {self.size}."
                if context.log_size != self.size
                else "The round was agreed on another log: its context has another root."
            )
        if context.roster != self._roster_hash:
            raise ProtocolError("The round was agreed on another roster than the log has.")
        if context.plan != self._plan:
            raise ProtocolError("The round was agreed on another plan than the run started with.")
        sites = set(self.roster.names(Role.site))
        for site in context.cohort:
            if site not in sites:
                raise ProtocolError(f"{site!r} was asked, and is no site of the roster.")

    def _take_roster(self, signed: Mapping[str, Json]) -> None:
        roster = self._read_roster(signed)
        if self._roster is not None and (
            roster.consortium != self._roster.consortium or roster.version <= self._roster.version
        ):
            raise ProtocolError("A roster follows that is not a newer one of the same consortium.")
        self._roster, self._roster_hash = roster, roster.sha256()
        self._signed_roster = dict(signed)

    def _demand_run(self, run: str) -> None:
        if self._roster is None:
            raise ProtocolError("The log does not begin with the start of a run.")
        if run != self.run:
            raise ProtocolError("The leaf belongs to another run than the log.")
