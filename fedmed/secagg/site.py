"""The site's part of one secure aggregation: four steps, each at most once and in this order.

The site trusts nobody but the root's roster: it checks what the server says, lets no message of
another round or site pass, and gives away what opens a sum of at least t sites' updates, once.
The masks follow Bonawitz et al. (CCS 2017), figure 4, with signatures at every step.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from fedmed.errors import ProtocolError
from fedmed.secagg.dealing import (
    SEED_BYTES,
    SharePair,
    close_box,
    deal,
    key_share_commitment,
    open_box,
    seed_commitment,
    seed_share_commitment,
)
from fedmed.secagg.journal import Journal
from fedmed.secagg.keys import EncryptionKeys, MaskKey
from fedmed.secagg.masking import derive, mask_all
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
from fedmed.secagg.verification import (
    check_cohort,
    check_confirmations,
    read_joined,
    read_prepared,
)
from fedmed.trust.context import RoundContext
from fedmed.trust.envelope import Envelope, Part, seal
from fedmed.trust.roster import Roster
from fedmed.trust.signatures import Signer

Vector = npt.NDArray[np.unsignedinteger]


class Stage(IntEnum):
    """How far a session is."""

    new = 0
    prepared = 1
    opened = 2
    masked = 3
    confirmed = 4
    closed = 5


@dataclass(frozen=True)
class _Secrets:
    """What must not leave before it is masked: the seed of the self mask, the mask key."""

    seed: bytes
    mask_key: MaskKey


class SiteSession:
    """One attempt at one round, at one site.

    A message that comes in a wrong order is refused and changes nothing. A step that fails ends
    the session: its secrets are dropped, and all further steps are refused.

    Args:
        signer: the site's.
        roster: as this site has pinned it.
        server: name of the server in the roster.
        keys: those that the site joined this run with.
        journal: the site's.
        context: the attempt; the caller has checked plan, model allow-list and log.
        joining_context: hex SHA-256 of the run's joining context.
        minimum_sites: smallest cohort that this site takes part in, at least 3.

    Raises:
        ProtocolError: if the site is not asked, the roster is another one, the cohort is too small
            or has a member that is no site.
    """

    def __init__(
        self,
        signer: Signer,
        roster: Roster,
        server: str,
        keys: EncryptionKeys,
        journal: Journal,
        context: RoundContext,
        joining_context: str,
        *,
        minimum_sites: int = MINIMUM_SITES,
    ) -> None:
        self._signer = signer
        self._roster = roster
        self._server = server
        self._keys = keys
        self._journal = journal
        self._round = context
        self._context = context.sha256()
        self._joining_context = joining_context
        self._cohort = check_cohort(context, roster, max(minimum_sites, MINIMUM_SITES))
        self._threshold = threshold(len(self._cohort))
        if signer.name not in self._cohort:
            raise ProtocolError("This site is not in the cohort that it is asked to join.")
        self._stage = Stage.new
        self._secrets: _Secrets | None = None
        self._mine: bytes = b""
        self._shares: dict[str, SharePair] = {}
        self._self_key = b""
        self._pair_keys: dict[str, bytes] = {}
        self._sharers: tuple[str, ...] = ()
        self._survivors: tuple[str, ...] = ()

    @property
    def stage(self) -> Stage:
        """How far the session is."""
        return self._stage

    @property
    def sharers(self) -> tuple[str, ...]:
        """Sites that this one makes masks with, itself included; known once training is open."""
        return self._sharers

    def close(self) -> None:
        """End the session and drop its secrets; nothing more can be asked of it."""
        self._stage = Stage.closed
        self._secrets = None
        self._self_key = b""
        self._pair_keys = {}
        self._shares = {}

    def prepare(
        self, request: Envelope, parts: Mapping[str, bytes], report: Report | None = None
    ) -> Message:
        """Step 1: make keys, and deal shares of both secrets to the cohort.

        Args:
            request: type ``prepare``, parts ``joined/NAME`` of each other site of the cohort.
            parts: as received.
            report: the caller's fields for the reply.

        Returns:
            Reply ``prepared`` with the parts ``box/NAME``, to each other site.

        Raises:
            ProtocolError: if a message is not what it should be, or this attempt was begun before.
            PrivacyError: if the journal cannot be written.
        """
        with self._step(Stage.new, Stage.prepared):
            self._verify(request, PREPARE)
            if Prepare.from_body(request.body).context != self._round:
                raise ProtocolError("A message is about another round than this session.")
            encryption_keys = self._read_joined(request, parts)
            self._journal.begin(self._round)
            me = self._signer.name
            own = _Secrets(secrets.token_bytes(SEED_BYTES), MaskKey())
            dealt = deal(own.seed, own.mask_key.private_bytes(), self._cohort)
            boxes = {
                f"box/{peer}": close_box(key, self._context, me, peer, dealt[peer])
                for peer, key in encryption_keys.items()
            }
            body = Prepared(
                own.mask_key.public,
                seed_commitment(self._context, me, own.seed),
                {
                    name: seed_share_commitment(self._context, me, name, pair.seed)
                    for name, pair in dealt.items()
                },
                {
                    name: key_share_commitment(self._context, me, name, pair.mask_key)
                    for name, pair in dealt.items()
                },
                report or {},
            )
            reply = self._seal(PREPARED, body.to_body(), boxes)
            self._secrets, self._mine, self._shares = own, reply.to_bytes(), {me: dealt[me]}
            return reply, boxes

    def open_training(
        self, request: Envelope, parts: Mapping[str, bytes], model_sha256: str
    ) -> Report:
        """Step 2, first half: check with whom masks are made, and open their boxes.

        Args:
            request: type ``train``, parts ``prepared/NAME`` of each sharer (this site included)
                and ``box/NAME`` from each other one. The model's arrays are no parts of it: the
                context binds them.
            parts: as received.
            model_sha256: hex, of the arrays that came with the message, counted by this site.

        Returns:
            The server's report, verified.

        Raises:
            ProtocolError: if anything is not as agreed; train nothing then.
        """
        with self._step(Stage.prepared, Stage.opened):
            self._verify(request, TRAIN)
            body = Bare.from_body(request.body)
            if model_sha256 != self._round.model:
                raise ProtocolError("The model is another one than the sites have agreed on.")
            sharers = self._read_sharers(parts)
            boxes = {f"box/{name}" for name in sharers if name != self._signer.name}
            check_parts(request, parts, boxes | {f"prepared/{name}" for name in sharers})
            own = self._held()
            for name in sharers:
                self._open_peer(own, name, parts)
            self._self_key = derive(own.seed, "self", self._context, self._signer.name)
            self._secrets = None
            self._sharers = tuple(sharers)
            return body.report

    def mask(self, update: Vector, counts: Vector, report: Report | None = None) -> Envelope:
        """Step 2, second half: mask both vectors in place; what was in them is gone.

        Args:
            update: uint32 or uint16 (p,), quantised; empty in evaluation.
            counts: uint64 (k,), fixed point.
            report: the caller's fields, such as the signed epsilon.

        Returns:
            Reply ``masked``; its parts ``update`` and ``counts`` are the bytes of the two vectors,
            which the caller sends and does not change.

        Raises:
            ProtocolError: if it is not the time for it: a session masks once.
            ValueError: if a vector is not a contiguous, writable, little-endian one.
        """
        with self._step(Stage.opened, Stage.masked):
            me = self._signer.name
            added = [self._self_key, *(key for peer, key in self._pair_keys.items() if me < peer)]
            subtracted = [key for peer, key in self._pair_keys.items() if me > peer]
            self._self_key, self._pair_keys = b"", {}
            if update.dtype not in (np.uint16, np.uint32) or counts.dtype != np.uint64:
                raise ValueError("an update is masked as uint16 or uint32, counts as uint64")
            mask_all([update, counts], added, subtracted)
            described = {"update": Part.of(update.data.cast("B") if update.size else b"")}
            described["counts"] = Part.of(counts.data.cast("B") if counts.size else b"")
            body = Masked(self._sharers, report or {}).to_body()
            return seal(self._signer, MASKED.type, self._context, MASKED.sequence, body, described)

    def confirm(
        self, request: Envelope, parts: Mapping[str, bytes], report: Report | None = None
    ) -> Message:
        """Step 3: confirm whose updates are in the sum; it is in the journal before this returns.

        Args:
            request: type ``confirm``, no parts.
            parts: as received.
            report: the caller's fields for the reply.

        Returns:
            Reply ``confirmed``.

        Raises:
            ProtocolError: if the survivors are too few, without this site, with one that makes no
                masks, or others than this site confirmed at an earlier attempt at the round.
            PrivacyError: if the journal cannot be written.
        """
        with self._step(Stage.masked, Stage.confirmed):
            self._verify(request, CONFIRM)
            check_parts(request, parts, ())
            survivors = Survivors.from_body(request.body).survivors
            if not set(survivors) <= set(self._sharers):
                raise ProtocolError("A survivor is named that this site made no mask with.")
            if self._signer.name not in survivors:
                raise ProtocolError("This site's update is not in the sum that it shall confirm.")
            if len(survivors) < self._threshold:
                raise ProtocolError(
                    f"{len(survivors)} survivors are too few: a sum of this cohort needs "
                    f"{self._threshold}."
                )
            self._journal.confirm(self._round, survivors)
            self._survivors = survivors
            body = Survivors(survivors, report or {}).to_body()
            return self._seal(CONFIRMED, body, {}), {}

    def reveal(
        self, request: Envelope, parts: Mapping[str, bytes], report: Report | None = None
    ) -> Message:
        """Step 4: reveal one share for each sharer; it is in the journal before this returns.

        Args:
            request: type ``reveal``, parts ``confirmed/NAME`` of at least t survivors.
            parts: as received.
            report: the caller's fields for the reply.

        Returns:
            Reply ``revealed``. The session is closed.

        Raises:
            ProtocolError: if too few have confirmed, or one of them other survivors.
            PrivacyError: if the journal cannot be written.
        """
        with self._step(Stage.confirmed, Stage.closed):
            self._verify(request, REVEAL)
            Bare.from_body(request.body)
            check_parts(request, parts, set(parts))
            check_confirmations(parts, self._round, self._survivors, self._threshold, self._roster)
            self._journal.reveal(self._round, self._survivors)
            dropped = set(self._shares) - set(self._survivors)
            body = Revealed(
                {name: self._shares[name].seed for name in self._survivors},
                {name: self._shares[name].mask_key for name in sorted(dropped)},
                report or {},
            )
            reply = self._seal(REVEALED, body.to_body(), {})
            self.close()
            return reply, {}

    @contextmanager
    def _step(self, expected: Stage, then: Stage) -> Iterator[None]:
        if self._stage is not expected:
            raise ProtocolError(
                f"This site's session is {self._stage.name}; it takes this step when it is "
                f"{expected.name}, and once."
            )
        self._stage = Stage.closed
        try:
            yield
        except BaseException:
            self.close()
            raise
        self._stage = then

    def _verify(self, request: Envelope, kind: Kind) -> None:
        verify_message(request, kind, self._context, self._server, self._roster)

    def _seal(self, kind: Kind, body: Report, parts: Mapping[str, bytes]) -> Envelope:
        described = {name: Part.of(data) for name, data in parts.items()}
        return seal(self._signer, kind.type, self._context, kind.sequence, body, described)

    def _held(self) -> _Secrets:
        if self._secrets is None:
            raise ProtocolError("This site's session holds no secrets any more.")
        return self._secrets

    def _read_joined(self, request: Envelope, parts: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the encryption key of each other site of the cohort."""
        peers = [name for name in self._cohort if name != self._signer.name]
        check_parts(request, parts, {f"joined/{peer}" for peer in peers})
        keys = {}
        for peer in peers:
            joined = read_joined(parts[f"joined/{peer}"], self._joining_context, peer, self._roster)
            keys[peer] = joined.encryption_key
        return keys

    def _read_sharers(self, parts: Mapping[str, bytes]) -> list[str]:
        """Return the sites whose step-1 message came along."""
        prefix = "prepared/"
        sharers = sorted(name.removeprefix(prefix) for name in parts if name.startswith(prefix))
        if not set(sharers) <= set(self._cohort) or self._signer.name not in sharers:
            raise ProtocolError("Masks shall be made with sites that were not asked.")
        if len(sharers) < self._threshold:
            raise ProtocolError(
                f"{len(sharers)} sites are too few to make masks with: a sum of this cohort "
                f"needs {self._threshold}."
            )
        return sharers

    def _open_peer(self, own: _Secrets, peer: str, parts: Mapping[str, bytes]) -> None:
        """Take the key of the pairwise mask, and the shares in the peer's box if it signed them."""
        me = self._signer.name
        data = parts[f"prepared/{peer}"]
        if peer == me:
            if data != self._mine:
                raise ProtocolError("The server hands on another message than this site sent.")
            return
        envelope, body = read_prepared(data, self._round, peer, self._roster)
        box = parts[f"box/{peer}"]
        envelope.check_part(f"box/{me}", box)
        pair = open_box(self._keys, self._context, peer, me, box)
        if body.seed_shares[me] != seed_share_commitment(
            self._context, peer, me, pair.seed
        ) or body.key_shares[me] != key_share_commitment(self._context, peer, me, pair.mask_key):
            raise ProtocolError(f"The shares of {peer!r} are not the ones that it signed.")
        agreed = own.mask_key.agree(body.mask_key)
        self._pair_keys[peer] = derive(agreed, "pair", self._context, *sorted((me, peer)))
        self._shares[peer] = pair
