"""The ClientApp: the questions that a server may ask, and nothing else.

It is the code installed at the site. Every answer, a refusal too, leaves through the site's
egress.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.signed_site import SignedSite
from clients.site import Site
from fedmed.configuration.groups import TransportMode
from fedmed.configuration.plan import Plan
from fedmed.data.cohort import SPLITS
from fedmed.errors import DataError, EmptyCohortError, FedmedError, ProtocolError
from fedmed.federation.records import (
    FLOAT32,
    UPDATE,
    WEIGHTS,
    Refused,
    Request,
    unpack_arrays,
    unpack_request,
)
from fedmed.federation.wire import is_signed
from fedmed.models.parameters import FloatVector
from fedmed.trust.policy import SitePolicy, check_plan

log = logging.getLogger(__name__)

FindSite = Callable[[Context], SignedSite]
_Plain = Callable[[Site, Message], RecordDict]


def make_client_app(
    find_site: FindSite, tell: Callable[[str], None] = lambda _event: None
) -> ClientApp:
    """Return the ClientApp of one site, or of all sites of a simulation.

    Args:
        find_site: tells which site a Flower context belongs to.
        tell: told in one line what the site refuses, for its own console.
    """
    app = ClientApp()

    def answer(step: str, plain: _Plain) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            signed = find_site(context)
            site = signed.site
            is_plain = not is_signed(message.content)
            try:
                content = plain(site, message) if is_plain else signed.answer(step, message.content)
            except FedmedError as error:
                log.warning("%s refuses: %s", site.name, error)
                tell(f"refused ({step}): {error}")
                if is_plain:
                    refused = Refused(site.name, type(error).__name__, _outside(error, site.policy))
                    content = site.egress.release(refused)
                else:
                    content = signed.refuse(error, _outside(error, site.policy))
            return Message(content, reply_to=message)

        return handle

    app.query("join")(answer("join", _join))
    app.query("prepare")(answer("prepare", _never))
    app.train()(answer("work", _train))
    app.evaluate()(answer("work", _evaluate))
    app.query("confirm")(answer("confirm", _never))
    app.query("reveal")(answer("reveal", _never))
    return app


def _never(_site: Site, _message: Message) -> RecordDict:
    raise ProtocolError("This step exists in signed messages only.")


def _plain_request(site: Site, message: Message) -> Request:
    """Read an unsigned request; a site takes one only if plan and policy say so."""
    request = unpack_request(message.content)
    plan = Plan.from_json(request.plan)
    if plan.transport.mode != TransportMode.plain:
        raise ProtocolError("The plan wants signed messages, and this one is not.")
    check_plan(
        plan,
        site.policy,
        transport=TransportMode.plain.value,
        cohort=plan.federation.minimum_sites,
        server="",
        now=datetime.now().astimezone(),
    )
    return request


def _outside(error: FedmedError, policy: SitePolicy) -> str:
    """Return what the server may read of an error.

    Messages about an archive quote its manifest: names of columns and classes, which may hold
    anything where a column was mixed up. They stay in the site's own log; numbers of images do so
    where the policy keeps them.
    """
    told = isinstance(error, EmptyCohortError) and policy.per_site_counts
    if isinstance(error, DataError) and not told:
        return "the site's archive cannot be used as it is; the log at the site says why"
    return str(error)


def _join(site: Site, message: Message) -> RecordDict:
    return site.egress.release(site.join(_plain_request(site, message)))


def _train(site: Site, message: Message) -> RecordDict:
    request = _plain_request(site, message)
    report, update = site.train(request, _weights(site, request, message.content))
    return site.egress.release(report, {UPDATE: update}, {UPDATE: (site.layout(request).size,)})


def _evaluate(site: Site, message: Message) -> RecordDict:
    request = _plain_request(site, message)
    if request.split not in SPLITS[1:]:
        raise ProtocolError("Models are evaluated on validation or test images only.")
    report, counts = site.evaluate(request, _weights(site, request, message.content))
    return site.egress.release(report, counts, site.task(request).aggregate_shapes)


def _weights(site: Site, request: Request, content: RecordDict) -> FloatVector:
    size = site.layout(request).size
    weights = unpack_arrays(content, {WEIGHTS: (size,)}, FLOAT32)[WEIGHTS]
    return weights.astype(np.float32, copy=False)
