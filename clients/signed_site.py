"""A hospital among strangers: signed messages, masked or sealed updates, the log's witness.

The hospital's work is :class:`clients.site.Site`; here is what it checks before it works, and in
what form the result leaves.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from flwr.app import RecordDict

from clients.round_work import Work, bounded, demand_whole_share, train_and_count
from clients.site import Site
from fedmed.configuration.groups import PrivacyModel, TransportMode
from fedmed.configuration.plan import Plan
from fedmed.data.cohort import SPLITS
from fedmed.errors import FedmedError, ProtocolError
from fedmed.federation.channels.sealed import ASK, PARTS, TRAINED, sealing_info
from fedmed.federation.channels.signed import (
    JOIN,
    LARGEST_WEIGHT,
    REFUSED,
    joining_context,
    weights_sha256,
)
from fedmed.federation.counts import CountsLayout
from fedmed.federation.records import FLOAT32, WEIGHTS, Request, unpack_arrays
from fedmed.federation.wire import pack_message, unpack_message
from fedmed.models.parameters import FloatVector
from fedmed.secagg.journal import Journal
from fedmed.secagg.keys import EncryptionKeys, seal_box
from fedmed.secagg.messages import Message, Report, verify_message
from fedmed.secagg.quantise import Ring, encode_counts
from fedmed.secagg.site import SiteSession, Vector
from fedmed.secagg.verification import join, read_prepare
from fedmed.trust.audit.checkpoint import log_origin
from fedmed.trust.audit.witness import Witness
from fedmed.trust.canonical import Json
from fedmed.trust.context import TRAINING, RoundContext
from fedmed.trust.credentials import Credentials
from fedmed.trust.envelope import Envelope, Part, seal
from fedmed.trust.policy import check_plan
from fedmed.trust.roster import Role


class NotJoinedError(ProtocolError):
    """The site has restarted since it joined the run; the server asks it to join again."""


@dataclass
class _Run:
    """A run that the site has joined.

    Attributes:
        server: name in the roster.
        credentials: the site's, and the roster pinned for this run.
        plan: parsed.
        request: the plan's text, for :class:`Site`.
        joining: hex SHA-256 of the joining context.
        keys: made for this run, in memory only.
        session: the secure aggregation under way.
        context: of the attempt under way.
        evaluate: sets of images that the attempt evaluates.
    """

    server: str
    credentials: Credentials
    plan: Plan
    request: Request
    joining: str
    keys: EncryptionKeys
    session: SiteSession | None = None
    context: RoundContext | None = None
    evaluate: tuple[str, ...] = ()


@dataclass
class SignedSite:
    """Answers the signed messages of a server.

    Attributes:
        site: reads, reserves, trains.
        load: reads the site's keys and roster; called at each joining, so that rotated keys count.
    """

    site: Site
    load: Callable[[], Credentials]
    _run: _Run | None = None
    _credentials: Credentials | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def answer(self, step: str, content: RecordDict) -> RecordDict:
        """Answer one message; what is wrong with it, or forbidden, is a signed refusal.

        Args:
            step: ``join``, ``prepare``, ``work``, ``confirm`` or ``reveal``.
            content: of the message.
        """
        steps = {
            "join": self._join,
            "prepare": self._prepare,
            "work": self._work,
            "confirm": self._confirm,
            "reveal": self._reveal,
        }
        with self._lock:
            envelope, parts = unpack_message(content)
            return steps[step](envelope, parts, content)

    def refuse(self, error: FedmedError, reason: str) -> RecordDict:
        """Return a signed refusal; it is bound to no context, as it may be to no known one."""
        with self._lock:
            credentials = self._credentials or self.load()
            body: dict[str, Json] = {"kind": type(error).__name__, "reason": reason[:2000]}
            refusal = seal(credentials.signer, REFUSED.type, "", REFUSED.sequence, body)
            released = self.site.egress.release_envelope(refusal, {}, None)
            return pack_message(released.header, released.parts)

    def _join(self, envelope: Envelope, _parts: object, _content: RecordDict) -> RecordDict:
        self._credentials = credentials = self.load()
        server = envelope.site
        verify_message(envelope, JOIN, envelope.context, server, credentials.roster)
        fields, text = envelope.body.get("context"), envelope.body.get("plan")
        if not isinstance(fields, dict) or not isinstance(text, str):
            raise ProtocolError("An invitation is not of the agreed form.")
        plan = Plan.from_json(text)
        context = RoundContext.from_json(fields)
        expected = joining_context(context.run, credentials.roster.sha256(), plan.sha256())
        if context.roster != expected.roster:
            raise ProtocolError(
                "The server and this site hold different rosters of the consortium. Install the "
                "newest one at both (fedmed pki install)."
            )
        if context != expected or context.sha256() != envelope.context:
            raise ProtocolError("An invitation is not of the agreed form.")
        if plan.transport.mode == TransportMode.plain:
            raise ProtocolError("The plan wants plain messages, and the server sends signed ones.")
        self._check_policy(plan, server, plan.federation.minimum_sites)
        request = Request(context.run, 0, text)
        joined = self.site.join(request)
        report: dict[str, Json] = {
            "delta": joined.delta,
            "witnessed_size": self._witness(credentials).witnessed_size(
                log_origin(server, context.run)
            ),
        }
        if self.site.policy.per_site_counts:
            counts = {"train": joined.train, "val": joined.val, "test": joined.test}
            report |= {**counts, "excluded": dict(joined.excluded)}
        keys = EncryptionKeys()
        self._run = _Run(server, credentials, plan, request, envelope.context, keys)
        answer = join(credentials.signer, envelope.context, keys, report)
        return self._release(answer, {}, context)

    def _prepare(
        self, envelope: Envelope, parts: dict[str, bytes], _content: RecordDict
    ) -> RecordDict:
        run = self._joined()
        prepare = read_prepare(envelope, run.server, run.credentials.roster)
        cosignature = self._begin(run, prepare.context, prepare.report)
        if run.plan.transport.mode != TransportMode.secagg:
            raise ProtocolError("The plan does not aggregate securely, and the server asks for it.")
        run.session = SiteSession(
            run.credentials.signer,
            run.credentials.roster,
            run.server,
            run.keys,
            Journal(self.site.state / "secagg.jsonl"),
            prepare.context,
            run.joining,
            minimum_sites=max(self.site.policy.smallest_cohort, 3),
        )
        return self._send(run, run.session.prepare(envelope, parts, {"cosignature": cosignature}))

    def _work(self, envelope: Envelope, parts: dict[str, bytes], content: RecordDict) -> RecordDict:
        run = self._joined()
        if envelope.type == ASK.type:
            return self._work_sealed(run, envelope, content)
        session, context = self._under_way(run, envelope)
        weights = self._weights(run, content)
        transport = run.plan.transport
        # Before anything is trained and counted: bounds that cannot be used cost no epsilon.
        ring = Ring(
            transport.bits,
            transport.update_bound,
            max(1, context.weight_bound),
            len(context.cohort),
        )
        session.open_training(envelope, parts, weights_sha256(weights))
        try:
            done = self._done(run, context, weights)
            update: Vector = np.empty(0, np.uint32 if transport.bits == 32 else np.uint16)
            tallies = done.tallies
            if context.purpose == TRAINING:
                encoded = ring.encode(done.update, tallies.weight)
                update = encoded.values
                demand_whole_share(run.plan, tallies, context.weight_bound, encoded.clipped)
                tallies = bounded(tallies, context.weight_bound, encoded.clipped)
            layout = CountsLayout(self.site.task(run.request).aggregate_shapes, run.evaluate)
            counts = encode_counts(layout.join(tallies, done.aggregates), len(context.cohort))
            answer = session.mask(update, counts, done.report)
        except Exception:
            session.close()
            raise
        sizes = {"update": update.nbytes, "counts": counts.nbytes}
        vectors = {"update": update, "counts": counts}
        return self._release(answer, vectors, context, sizes, done.images)

    def _work_sealed(self, run: _Run, envelope: Envelope, content: RecordDict) -> RecordDict:
        verify_message(envelope, ASK, envelope.context, run.server, run.credentials.roster)
        fields, report = envelope.body.get("context"), envelope.body.get("report")
        if not isinstance(fields, dict) or not isinstance(report, dict):
            raise ProtocolError("A request is not of the agreed form.")
        context = RoundContext.from_json(fields)
        if context.sha256() != envelope.context:
            raise ProtocolError("A round's context is not the one that its message was signed for.")
        if run.plan.transport.mode != TransportMode.sealed:
            raise ProtocolError("The plan does not seal updates, and the server asks for it.")
        cosignature = self._begin(run, context, report)
        Journal(self.site.state / "secagg.jsonl").begin(context)
        weights = self._weights(run, content)
        if weights_sha256(weights) != context.model:
            raise ProtocolError("The model is not the one that the round's context names.")
        done = self._done(run, context, weights)
        layout = CountsLayout(self.site.task(run.request).aggregate_shapes, run.evaluate)
        tallies = done.tallies
        if context.purpose == TRAINING:
            tallies = bounded(tallies, context.weight_bound, 0)
        values = {"update": done.update, "counts": layout.join(tallies, done.aggregates)}
        _demand_finite(done.update)
        parts = {}
        for name, dtype in PARTS.items():
            raw = np.ascontiguousarray(values[name], dtype=dtype).tobytes()
            info = sealing_info(envelope.context, self.site.name, name)
            parts[name] = seal_box(_key(report), raw, info)
        answer = seal(
            run.credentials.signer,
            TRAINED.type,
            envelope.context,
            TRAINED.sequence,
            {"report": {**done.report, "cosignature": cosignature}},
            {name: Part.of(data) for name, data in parts.items()},
        )
        sizes = {name: len(data) for name, data in parts.items()}
        return self._release(answer, parts, context, sizes, done.images)

    def _confirm(
        self, envelope: Envelope, parts: dict[str, bytes], _content: RecordDict
    ) -> RecordDict:
        run = self._joined()
        session, _ = self._under_way(run, envelope)
        return self._send(run, session.confirm(envelope, parts))

    def _reveal(
        self, envelope: Envelope, parts: dict[str, bytes], _content: RecordDict
    ) -> RecordDict:
        run = self._joined()
        session, _ = self._under_way(run, envelope)
        return self._send(run, session.reveal(envelope, parts))

    def _begin(self, run: _Run, context: RoundContext, report: Report) -> str:
        """Check a round against policy, plan and log; return the cosignature of the log, in hex."""
        if context.run != run.request.run or context.plan != run.plan.sha256():
            raise NotJoinedError("This site has joined another run, or the plan has changed.")
        if context.round > run.plan.federation.rounds or context.round < 1:
            raise ProtocolError("The plan has no such round.")
        if context.roster != run.credentials.roster.sha256():
            raise ProtocolError("The round is of another roster than this site has joined with.")
        if self.site.name not in context.cohort:
            raise ProtocolError("The round does not name this site.")
        if len(context.cohort) < run.plan.federation.minimum_sites:
            # Shares of noise (privacy.model=distributed) are made for the plan's smallest cohort.
            raise ProtocolError("The round asks fewer sites than the plan's minimum_sites.")
        self._check_policy(run.plan, run.server, len(context.cohort))
        shared = run.plan.privacy.enabled and run.plan.privacy.model == PrivacyModel.distributed
        if (
            shared
            and not self.site.policy.per_site_counts
            and context.weight_bound < LARGEST_WEIGHT
        ):
            # Whether a share of noise may be sent whole would tell the site's weight, bit by bit.
            raise ProtocolError(
                "The round's bound on weights is below that of sites without counts."
            )
        evaluate = report.get("evaluate", [])
        if not isinstance(evaluate, list) or any(
            split not in SPLITS[1:] or evaluate.count(split) > 1 for split in evaluate
        ):
            raise ProtocolError("Models are evaluated on validation or test images only.")
        server_keys = run.credentials.roster.signing_keys(run.server, Role.server)
        cosignature = self._witness(run.credentials).cosign(
            report.get("log"), context, run.server, server_keys
        )
        if run.session is not None:
            run.session.close()
        run.session, run.context = None, context
        run.evaluate = tuple(str(split) for split in evaluate)
        return cosignature.hex()

    def _done(self, run: _Run, context: RoundContext, weights: FloatVector) -> Work:
        request = Request(run.request.run, context.round, run.request.plan)
        return train_and_count(self.site, request, context, weights, run.evaluate)

    def _weights(self, run: _Run, content: RecordDict) -> FloatVector:
        size = self.site.layout(run.request).size
        weights = unpack_arrays(content, {WEIGHTS: (size,)}, FLOAT32)[WEIGHTS]
        return weights.astype(np.float32, copy=False)

    def _check_policy(self, plan: Plan, server: str, cohort: int) -> None:
        check_plan(
            plan,
            self.site.policy,
            transport=plan.transport.mode.value,
            cohort=cohort,
            server=server,
            now=datetime.now().astimezone(),
        )

    def _witness(self, credentials: Credentials) -> Witness:
        return Witness(self.site.state / "witness.json", credentials.signer)

    def _joined(self) -> _Run:
        if self._run is None:
            raise NotJoinedError("This site has not joined a run since it was started.")
        return self._run

    def _under_way(self, run: _Run, envelope: Envelope) -> tuple[SiteSession, RoundContext]:
        session, context = run.session, run.context
        if session is None or context is None or context.sha256() != envelope.context:
            raise ProtocolError("A message belongs to no round that this site has prepared.")
        return session, context

    def _send(self, run: _Run, message: Message) -> RecordDict:
        if run.context is None:  # pragma: no cover - a session has a context
            raise ProtocolError("A message belongs to no round.")
        return self._release(message[0], message[1], run.context)

    def _release(
        self,
        envelope: Envelope,
        parts: Mapping[str, object],
        context: RoundContext,
        sizes: Mapping[str, int] | None = None,
        images: int = 0,
    ) -> RecordDict:
        released = self.site.egress.release_envelope(
            envelope,
            parts,  # type: ignore[arg-type]
            context,
            sizes=sizes,
            metric_images=images,
        )
        return pack_message(released.header, released.parts)


def _demand_finite(update: FloatVector) -> None:
    """Secure aggregation cannot encode such numbers; a sealed update could hold them."""
    if not np.isfinite(update).all():
        raise ProtocolError("The update holds NaN or infinity; it was not sent.")


def _key(report: Mapping[str, Json]) -> bytes:
    text = report.get("encryption_key")
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError as error:
        raise ProtocolError("The server's encryption key is not of the agreed form.") from error
