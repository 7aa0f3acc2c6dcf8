"""The ClientApp: three questions that a server may ask, and nothing else.

It is the code installed at the site. Every answer, a refusal too, leaves through the site's
egress.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.site import Site
from fedmed.data.cohort import SPLITS
from fedmed.errors import DataError, EmptyCohortError, FedmedError, ProtocolError
from fedmed.federation.records import (
    FLOAT32,
    Refused,
    Request,
    unpack_arrays,
    unpack_request,
)
from fedmed.federation.rounds import UPDATE, WEIGHTS
from fedmed.models.parameters import FloatVector

log = logging.getLogger(__name__)

FindSite = Callable[[Context], Site]
_Handler = Callable[[Site, Message], RecordDict]


def make_client_app(find_site: FindSite) -> ClientApp:
    """Return the ClientApp of one site, or of all sites of a simulation.

    Args:
        find_site: tells which site a Flower context belongs to.
    """
    app = ClientApp()

    def answer(handler: _Handler) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            site = find_site(context)
            try:
                content = handler(site, message)
            except FedmedError as error:
                log.warning("%s refuses: %s", site.name, error)
                content = site.egress.release(
                    Refused(site.name, type(error).__name__, _outside(error))
                )
            return Message(content, reply_to=message)

        return handle

    app.query("join")(answer(_join))
    app.train()(answer(_train))
    app.evaluate()(answer(_evaluate))
    return app


def _outside(error: FedmedError) -> str:
    """Return what the server may read of an error.

    Messages about an archive quote its manifest: names of columns and classes, which may hold
    anything where a column was mixed up. They stay in the site's own log.
    """
    if isinstance(error, DataError) and not isinstance(error, EmptyCohortError):
        return "the site's archive cannot be used as it is; the log at the site says why"
    return str(error)


def _join(site: Site, message: Message) -> RecordDict:
    return site.egress.release(site.join(unpack_request(message.content)))


def _train(site: Site, message: Message) -> RecordDict:
    request = unpack_request(message.content)
    report, update = site.train(request, _weights(site, request, message.content))
    return site.egress.release(report, {UPDATE: update}, {UPDATE: (site.layout(request).size,)})


def _evaluate(site: Site, message: Message) -> RecordDict:
    request = unpack_request(message.content)
    if request.split not in SPLITS[1:]:
        raise ProtocolError("Models are evaluated on validation or test images only.")
    report, counts = site.evaluate(request, _weights(site, request, message.content))
    return site.egress.release(report, counts, site.task(request).aggregate_shapes)


def _weights(site: Site, request: Request, content: RecordDict) -> FloatVector:
    size = site.layout(request).size
    weights = unpack_arrays(content, {WEIGHTS: (size,)}, FLOAT32)[WEIGHTS]
    return weights.astype(np.float32, copy=False)
