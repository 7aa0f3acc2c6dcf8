"""Counts of what holds, leaf by leaf, for the report of an audit."""

from __future__ import annotations

from dataclasses import replace

from fedmed.trust.audit.checkpoint_lines import CheckpointLines
from fedmed.trust.audit.findings import AuditReport, EarlierFindings, SiteFindings
from fedmed.trust.audit.history import History
from fedmed.trust.audit.leaves import (
    AbandonedLeaf,
    Leaf,
    OpenRoundLeaf,
    ResumedLeaf,
    RosterLeaf,
    RoundLeaf,
    StartLeaf,
)
from fedmed.trust.audit.round_messages import CheckedMessages
from fedmed.trust.context import TRAINING
from fedmed.trust.roster import Role, Roster


class Tally:
    """Counts checked leaves.

    Attributes:
        sites: findings of all sites that were ever in a roster, by name.
    """

    def __init__(self) -> None:
        self.sites: dict[str, SiteFindings] = {}
        self._rosters = self._rounds = self._evaluations = self._open = 0
        self._abandoned = self._resumed = self._masked = self._confirmations = self._updates = 0

    def add(self, leaf: Leaf, messages: CheckedMessages | None, roster: Roster) -> None:
        """Count a leaf that holds; ``roster`` is the one in force after it."""
        if isinstance(leaf, StartLeaf | RosterLeaf):
            self._rosters += 1
            for name in roster.names(Role.site):
                self.sites.setdefault(name, SiteFindings())
        self._abandoned += isinstance(leaf, AbandonedLeaf)
        self._resumed += isinstance(leaf, ResumedLeaf)
        self._open += isinstance(leaf, OpenRoundLeaf)
        if isinstance(leaf, RoundLeaf):
            self._rounds += leaf.context.purpose == TRAINING
            self._evaluations += leaf.context.purpose != TRAINING
        if isinstance(leaf, RoundLeaf | OpenRoundLeaf) and messages is not None:
            self._add_messages(leaf, messages)

    def report(
        self,
        history: History,
        heads: CheckpointLines,
        *,
        fingerprint: str,
        site: str | None,
        earlier: EarlierFindings | None,
    ) -> AuditReport:
        """Return the findings on all leaves counted."""
        for size, signatures in heads.cosignatures.items():
            for name in signatures:
                found = self.sites[name]
                self.sites[name] = replace(found, cosigned=found.cosigned + 1, last_cosigned=size)
        witnessed = max(heads.cosignatures, default=0)
        last = heads.checkpoints[-1]
        return AuditReport(
            origin=last.origin,
            consortium=history.roster.consortium,
            root_fingerprint=fingerprint,
            leaves=last.size,
            head=last.root,
            first_time=heads.checkpoints[0].time,
            last_time=last.time,
            rosters=self._rosters,
            rounds=self._rounds,
            evaluations=self._evaluations,
            open_rounds=self._open,
            abandoned=self._abandoned,
            resumed=self._resumed,
            masked=self._masked,
            confirmations=self._confirmations,
            updates=self._updates,
            cosignatures=sum(map(len, heads.cosignatures.values())),
            model=history.model,
            witnessed=witnessed,
            witnesses=tuple(sorted(heads.cosignatures.get(witnessed, ()))),
            sites=dict(sorted(self.sites.items())),
            site=site,
            earlier=earlier,
        )

    def _add_messages(self, leaf: RoundLeaf | OpenRoundLeaf, messages: CheckedMessages) -> None:
        confirmed = leaf.confirmed if isinstance(leaf, RoundLeaf) else {}
        if isinstance(leaf, RoundLeaf):
            self._masked += messages.inputs
        else:
            self._updates += messages.inputs
        self._confirmations += messages.confirmations
        for name in leaf.context.cohort:
            found = self.sites[name]
            stated = messages.statements.get(name)
            self.sites[name] = replace(
                found,
                asked=found.asked + 1,
                delivered=found.delivered + (name in leaf.survivors),
                confirmed=found.confirmed + (name in confirmed),
                epsilon=stated.epsilon if stated else found.epsilon,
                delta=stated.delta if stated else found.delta,
            )
