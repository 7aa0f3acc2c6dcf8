"""What a member checks of the others' messages before it uses anything of them."""

from __future__ import annotations

from collections.abc import Mapping

from fedmed.errors import ProtocolError
from fedmed.secagg.keys import EncryptionKeys
from fedmed.secagg.messages import (
    CONFIRMED,
    JOINED,
    PREPARE,
    PREPARED,
    Joined,
    Prepare,
    Prepared,
    Report,
    Survivors,
    verify_message,
)
from fedmed.trust.context import EVALUATION, TRAINING, RoundContext
from fedmed.trust.envelope import Envelope, seal
from fedmed.trust.roster import Role, Roster
from fedmed.trust.signatures import Signer


def join(signer: Signer, joining_context: str, keys: EncryptionKeys, report: Report) -> Envelope:
    """Return the site's signed message of step 0, once a run: its encryption key.

    Args:
        signer: the site's.
        joining_context: hex SHA-256 of the run's joining context.
        keys: made for this run.
        report: the caller's fields.
    """
    body = Joined(keys.encryption_key, report).to_body()
    return seal(signer, JOINED.type, joining_context, JOINED.sequence, body)


def read_prepare(request: Envelope, server: str, roster: Roster) -> Prepare:
    """Read the server's first message of a round: its context and report.

    The context must still be held against what the site allows and knows (policy, plan, log);
    ``SiteSession`` checks cohort, roster and purpose.

    Raises:
        ProtocolError: if the server did not sign it, or it is not of the agreed form.
    """
    verify_message(request, PREPARE, request.context, server, roster)
    body = Prepare.from_body(request.body)
    if body.context.sha256() != request.context:
        raise ProtocolError("A round's context is not the one that its message was signed for.")
    return body


def check_cohort(context: RoundContext, roster: Roster, minimum_sites: int) -> tuple[str, ...]:
    """Return the sites of a round, if updates of such a cohort may be summed.

    Raises:
        ProtocolError: if the purpose, the roster or the cohort is not acceptable.
    """
    if context.purpose not in (TRAINING, EVALUATION):
        raise ProtocolError("Nothing is summed for this purpose.")
    if context.roster != roster.sha256():
        raise ProtocolError("The server has another roster of the consortium than this member.")
    if context.cohort != tuple(sorted(set(context.cohort))):
        raise ProtocolError("The cohort of a round is not sorted, or names a site twice.")
    if len(context.cohort) < minimum_sites:
        raise ProtocolError(
            f"A cohort of {len(context.cohort)} sites is too small: at least {minimum_sites}."
        )
    for name in context.cohort:
        if roster.member(name).role is not Role.site:
            raise ProtocolError(f"{name!r} is in the cohort, but is no site of the consortium.")
    return context.cohort


def read_joined(data: bytes, joining_context: str, site: str, roster: Roster) -> Joined:
    """Read a site's signed message of step 0, as the server hands it on.

    Raises:
        ProtocolError: if the site did not sign it for this run.
    """
    envelope = Envelope.from_bytes(data)
    verify_message(envelope, JOINED, joining_context, site, roster)
    return Joined.from_body(envelope.body)


def read_prepared(
    data: bytes, context: RoundContext, site: str, roster: Roster
) -> tuple[Envelope, Prepared]:
    """Read a site's signed message of step 1, as the server hands it on.

    Raises:
        ProtocolError: if the site did not sign it for this attempt.
    """
    envelope = Envelope.from_bytes(data)
    verify_message(envelope, PREPARED, context.sha256(), site, roster)
    return envelope, Prepared.from_body(envelope.body, context.cohort)


def check_confirmations(
    parts: Mapping[str, bytes],
    context: RoundContext,
    survivors: tuple[str, ...],
    threshold: int,
    roster: Roster,
) -> None:
    """Check that enough survivors have signed the same list of survivors.

    Args:
        parts: signed messages of step 3, named ``confirmed/NAME``.
        context: the attempt.
        survivors: what all must have confirmed.
        threshold: how many there must be.
        roster: pinned by this site.

    Raises:
        ProtocolError: if there are too few, one is of no survivor, or one is about other survivors.
    """
    prefix = "confirmed/"
    names = {name.removeprefix(prefix) for name in parts}
    if any(not name.startswith(prefix) for name in parts) or not names <= set(survivors):
        raise ProtocolError("A confirmation came from a site that is no survivor.")
    if len(names) < threshold:
        raise ProtocolError(
            f"{len(names)} confirmations are too few: a sum of this cohort needs {threshold}."
        )
    for name in names:
        envelope = Envelope.from_bytes(parts[prefix + name])
        verify_message(envelope, CONFIRMED, context.sha256(), name, roster)
        if Survivors.from_body(envelope.body).survivors != survivors:
            raise ProtocolError("Sites have confirmed other survivors than this one.")
