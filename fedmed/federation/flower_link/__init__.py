"""The one place that touches non-public modules of Flower, which is why flwr is pinned exactly.

Everything else in fedmed uses ``flwr.app``, ``flwr.serverapp`` and ``flwr.clientapp`` only.
``tests/federation/test_flower_link.py`` pins the private names that are used here, so that a
Flower upgrade fails there first.

The two ends of a deployment are loaded when they are first used: they bring a web framework and
a database layer, about a second that a simulation should not pay.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fedmed.federation.flower_link.identity import (
    SERVER_NODE_ID,
    ErrorCode,
    Run,
    assign_message_id,
    empty_run,
    set_task_identity,
)

if TYPE_CHECKING:
    from fedmed.federation.flower_link.fleet import FleetConnection
    from fedmed.federation.flower_link.fleet_transport import (
        MessageClosedError,
        ServerCertificateError,
        ServerUnreachableError,
        SiteRefusedError,
    )
    from fedmed.federation.flower_link.grid import SuperLinkGrid
    from fedmed.federation.flower_link.superlink import SuperLink, Traffic

__all__ = [
    "SERVER_NODE_ID",
    "ErrorCode",
    "FleetConnection",
    "MessageClosedError",
    "Run",
    "ServerCertificateError",
    "ServerUnreachableError",
    "SiteRefusedError",
    "SuperLink",
    "SuperLinkGrid",
    "Traffic",
    "assign_message_id",
    "empty_run",
    "set_task_identity",
]

_LATER = {
    "FleetConnection": "fleet",
    "MessageClosedError": "fleet_transport",
    "ServerCertificateError": "fleet_transport",
    "ServerUnreachableError": "fleet_transport",
    "SiteRefusedError": "fleet_transport",
    "SuperLink": "superlink",
    "SuperLinkGrid": "grid",
    "Traffic": "superlink",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
