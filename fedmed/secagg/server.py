"""The server's part of one secure aggregation: it collects four answers and opens one sum.

Masked updates are added up as they come, so that the memory is one update's, whatever the number
of sites. The server is not trusted with anything; its checks are there to name who is at fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum

import numpy as np

from fedmed.errors import ProtocolError
from fedmed.secagg.dealing import BOX_BYTES
from fedmed.secagg.errors import AggregationError
from fedmed.secagg.keys import MaskKey
from fedmed.secagg.messages import (
    CONFIRM,
    CONFIRMED,
    MASKED,
    PREPARE,
    PREPARED,
    REVEAL,
    REVEALED,
    TRAIN,
    Bare,
    Kind,
    Masked,
    Message,
    Prepare,
    Prepared,
    Report,
    Revealed,
    Survivors,
    check_parts,
    verify_message,
)
from fedmed.secagg.quorum import MINIMUM_SITES, threshold
from fedmed.secagg.unmasking import Sharing, Sums, check_revealed, open_secrets, unmask
from fedmed.secagg.verification import check_cohort, read_joined
from fedmed.trust.context import RoundContext
from fedmed.trust.envelope import Envelope, Part, seal
from fedmed.trust.roster import Role, Roster
from fedmed.trust.signatures import Signer

_UPDATE_TYPES: dict[int, np.dtype[np.unsignedinteger]] = {
    16: np.dtype("<u2"),
    32: np.dtype("<u4"),
}
_COUNT_TYPE: np.dtype[np.unsignedinteger] = np.dtype("<u8")


class _Step(IntEnum):
    new = 0
    prepare = 1
    train = 2
    confirm = 3
    reveal = 4
    closed = 5


class ServerSession:
    """One attempt at one round, at the server.

    ``*_requests`` closes the step before: who has not answered by then is out. ``take_*`` raises
    ProtocolError for an answer that is not what it should be; nothing of it is used then, and the
    site is a drop-out unless a good one follows.

    Args:
        signer: the server's.
        roster: of the consortium.
        context: the attempt.
        joined: for each site of the cohort, its joined envelope as bytes.
        joining_context: hex SHA-256 of the run's joining context.
        update_size: parameters of an update; 0 in evaluation.
        bits: width of the ring of updates, 16 or 32.
        count_size: how many counts each site sends.

    Raises:
        ProtocolError: if the cohort is too small, or a joined envelope is not its site's.
    """

    def __init__(
        self,
        signer: Signer,
        roster: Roster,
        context: RoundContext,
        joined: Mapping[str, bytes],
        joining_context: str,
        *,
        update_size: int,
        bits: int = 32,
        count_size: int,
    ) -> None:
        self._signer = signer
        self._roster = roster
        self._round = context
        self._context = context.sha256()
        roster.signing_keys(signer.name, Role.server)
        self._cohort = check_cohort(context, roster, MINIMUM_SITES)
        self._threshold = threshold(len(self._cohort))
        self._joined: dict[str, bytes] = {}
        for site in self._cohort:
            if site not in joined:
                raise ProtocolError(f"{site!r} is in the cohort, but has not joined the run.")
            read_joined(joined[site], joining_context, site, roster)
            self._joined[site] = joined[site]
        self._update = np.zeros(update_size, _UPDATE_TYPES[bits])
        self._counts = np.zeros(count_size, _COUNT_TYPE)
        self._step = _Step.new
        self._prepared: dict[str, tuple[bytes, Prepared]] = {}
        self._boxes: dict[str, dict[str, bytes]] = {}
        self._masked: dict[str, bytes] = {}
        self._confirmed: dict[str, bytes] = {}
        self._revealed: dict[str, Revealed] = {}
        self._suspects: set[str] = set()
        self._sharers: tuple[str, ...] = ()
        self._survivors: tuple[str, ...] = ()

    @property
    def sharers(self) -> tuple[str, ...]:
        """Sites that make masks with each other, sorted; known from ``train_requests`` on."""
        return self._sharers

    @property
    def survivors(self) -> tuple[str, ...]:
        """Sites whose updates are in the sum, sorted; known from ``confirm_requests`` on."""
        return self._survivors

    def prepare_requests(self, reports: Mapping[str, Report] | None = None) -> dict[str, Message]:
        """Step 1: return the request to each site of the cohort.

        Args:
            reports: the caller's fields for some sites, by name.
        """
        self._advance(_Step.new, _Step.prepare)
        requests = {}
        for site in self._cohort:
            parts = {f"joined/{peer}": data for peer, data in self._joined.items() if peer != site}
            body = Prepare(self._round, _report_for(site, reports)).to_body()
            requests[site] = self._seal(PREPARE, body, parts)
        return requests

    def take_prepared(self, site: str, reply: Envelope, parts: Mapping[str, bytes]) -> Report:
        """Take a site's mask key and sealed boxes, and return its report.

        Raises:
            ProtocolError: if the answer is not what it should be.
        """
        self._verify(_Step.prepare, PREPARED, site, reply, self._cohort, self._prepared)
        peers = [name for name in self._cohort if name != site]
        check_parts(reply, parts, {f"box/{peer}" for peer in peers})
        if any(len(data) != BOX_BYTES for data in parts.values()):
            raise ProtocolError(f"A sealed box of {site!r} has a wrong size.")
        body = Prepared.from_body(reply.body, self._cohort)
        MaskKey().agree(body.mask_key)  # A key of low order would stop the other sites.
        self._prepared[site] = (reply.to_bytes(), body)
        self._boxes[site] = {peer: bytes(parts[f"box/{peer}"]) for peer in peers}
        return body.report

    def train_requests(self, reports: Mapping[str, Report] | None = None) -> dict[str, Message]:
        """Step 2: return the request to each site that prepared; the model travels beside it.

        Args:
            reports: the caller's fields for some sites, by name.

        Raises:
            AggregationError: if fewer than t sites have prepared.
        """
        self._advance(_Step.prepare, _Step.train)
        self._require("prepare", self._prepared, self._cohort)
        self._sharers = tuple(sorted(self._prepared))
        prepared = {f"prepared/{name}": self._prepared[name][0] for name in self._sharers}
        requests = {}
        for site in self._sharers:
            boxes = {
                f"box/{name}": self._boxes[name][site] for name in self._sharers if name != site
            }
            body = Bare(_report_for(site, reports)).to_body()
            requests[site] = self._seal(TRAIN, body, {**prepared, **boxes})
        self._boxes = {}
        return requests

    def take_masked(
        self, site: str, reply: Envelope, update: bytes | memoryview, counts: bytes | memoryview
    ) -> Report:
        """Add a site's masked vectors to the sum, and return its report.

        Args:
            site: who answered.
            reply: type ``masked``.
            update: bytes of the masked update, little-endian; not kept.
            counts: bytes of the masked counts, little-endian; not kept.

        Raises:
            ProtocolError: if the answer is not what it should be; the sum is unchanged.
        """
        self._verify(_Step.train, MASKED, site, reply, self._sharers, self._masked)
        for name, data, total in (
            ("update", update, self._update),
            ("counts", counts, self._counts),
        ):
            if len(data) != total.nbytes:
                raise ProtocolError(
                    f"The {name} of {site!r} has {len(data)} bytes instead of {total.nbytes}."
                )
        check_parts(reply, {"update": update, "counts": counts}, ("update", "counts"))
        body = Masked.from_body(reply.body)
        if body.sharers != self._sharers:
            raise ProtocolError(f"{site!r} has made masks with other sites than it was asked to.")
        self._update += np.frombuffer(update, self._update.dtype)
        self._counts += np.frombuffer(counts, self._counts.dtype)
        self._masked[site] = reply.to_bytes()
        return body.report

    def confirm_requests(self, reports: Mapping[str, Report] | None = None) -> dict[str, Message]:
        """Step 3: return the request to each survivor.

        Args:
            reports: the caller's fields for some sites, by name.

        Raises:
            AggregationError: if there are fewer than t survivors.
        """
        self._advance(_Step.train, _Step.confirm)
        self._require("train", self._masked, self._sharers)
        self._survivors = tuple(sorted(self._masked))
        return {
            site: self._seal(
                CONFIRM, Survivors(self._survivors, _report_for(site, reports)).to_body(), {}
            )
            for site in self._survivors
        }

    def take_confirmed(self, site: str, reply: Envelope, parts: Mapping[str, bytes]) -> Report:
        """Take a site's confirmation of the survivors, and return its report.

        Raises:
            ProtocolError: if the answer is not what it should be.
        """
        self._verify(_Step.confirm, CONFIRMED, site, reply, self._survivors, self._confirmed)
        check_parts(reply, parts, ())
        body = Survivors.from_body(reply.body)
        if body.survivors != self._survivors:
            raise ProtocolError(f"{site!r} has confirmed other survivors than it was asked to.")
        self._confirmed[site] = reply.to_bytes()
        return body.report

    def reveal_requests(self, reports: Mapping[str, Report] | None = None) -> dict[str, Message]:
        """Step 4: return the request to each site that confirmed.

        Args:
            reports: the caller's fields for some sites, by name.

        Raises:
            AggregationError: if fewer than t sites have confirmed.
        """
        self._advance(_Step.confirm, _Step.reveal)
        self._require("confirm", self._confirmed, self._survivors)
        parts = {f"confirmed/{name}": self._confirmed[name] for name in sorted(self._confirmed)}
        return {
            site: self._seal(REVEAL, Bare(_report_for(site, reports)).to_body(), parts)
            for site in sorted(self._confirmed)
        }

    def take_revealed(self, site: str, reply: Envelope, parts: Mapping[str, bytes]) -> Report:
        """Take a site's shares, each held against its dealer's commitment; return its report.

        Raises:
            ProtocolError: if the answer is not what it should be, or a share is wrong: the site is
                a suspect then, and none of its shares is used.
        """
        self._verify(_Step.reveal, REVEALED, site, reply, self._confirmed, self._revealed)
        check_parts(reply, parts, ())
        dropped = set(self._sharers) - set(self._survivors)
        body = Revealed.from_body(reply.body, self._survivors, dropped)
        try:
            check_revealed(self._context, site, body, self._dealers())
        except ProtocolError:
            self._suspects.add(site)
            raise
        self._revealed[site] = body
        return body.report

    def finish(self) -> Sums:
        """Open the sum; the session is closed.

        Raises:
            AggregationError: if too few shares were revealed, or a site had dealt shares that do
                not make its secret; it is named.
        """
        self._advance(_Step.reveal, _Step.closed)
        self._require("reveal", self._revealed, self._confirmed)
        sharing = Sharing(self._context, self._cohort, self._threshold, self._survivors)
        opened = open_secrets(sharing, self._dealers(), self._revealed)
        if opened.failed:
            raise AggregationError(
                "reveal",
                "shares that sites had dealt do not make what they were said to make",
                suspects=self._suspects | opened.suspects,
                survivors=self._survivors,
            )
        unmask([self._update, self._counts], sharing, self._dealers(), opened)
        self._revealed = {}
        return Sums(
            self._update,
            self._counts,
            self._sharers,
            self._survivors,
            self._masked,
            self._confirmed,
            tuple(sorted(self._suspects | opened.suspects)),
        )

    def _dealers(self) -> dict[str, Prepared]:
        return {name: self._prepared[name][1] for name in self._sharers}

    def _advance(self, expected: _Step, then: _Step) -> None:
        if self._step is not expected:
            raise ProtocolError(
                f"The server's session is at the step {self._step.name!r}, not {expected.name!r}."
            )
        self._step = then

    def _require(self, step: str, answers: Iterable[str], asked: Iterable[str]) -> None:
        """Close the session unless t sites have answered."""
        there, all_asked = set(answers), set(asked)
        if len(there) >= self._threshold:
            return
        self._step = _Step.closed
        self._revealed = {}
        raise AggregationError(
            step,
            f"{len(there)} of {len(self._cohort)} sites gave a valid answer and "
            f"{self._threshold} are needed",
            missing=all_asked - there,
            suspects=self._suspects,
            survivors=self._survivors,
        )

    def _verify(
        self,
        step: _Step,
        kind: Kind,
        site: str,
        reply: Envelope,
        asked: Iterable[str],
        answered: Iterable[str],
    ) -> None:
        if self._step is not step:
            raise ProtocolError(f"The step that {site!r} answers is not open.")
        if site not in asked:
            raise ProtocolError(f"{site!r} was not asked at this step.")
        if site in answered:
            raise ProtocolError(f"{site!r} has answered this step before.")
        verify_message(reply, kind, self._context, site, self._roster)

    def _seal(self, kind: Kind, body: Report, parts: dict[str, bytes]) -> Message:
        described = {name: Part.of(data) for name, data in parts.items()}
        envelope = seal(self._signer, kind.type, self._context, kind.sequence, body, described)
        return envelope, parts


def _report_for(site: str, reports: Mapping[str, Report] | None) -> Report:
    return (reports or {}).get(site, {})
