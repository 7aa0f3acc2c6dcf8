"""Checks of the way to the server: name, port, proxy, TLS, clock, bandwidth."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

from fedmed.assurance.doctor.check_result import (
    CheckResult,
    failed,
    failed_by,
    not_measured,
    passed,
    warned,
)
from fedmed.assurance.doctor.connection import Greeting, Upload, connect, first_hop
from fedmed.assurance.doctor.round_time import Payload
from fedmed.assurance.report.wording import seconds_text
from fedmed.errors import ConfigurationError, FedmedError

REACHABLE = "server reachable"
TLS = "mutual TLS"
CLOCK = "clock"
BANDWIDTH = "bandwidth"

CLOCK_TOLERANCE = timedelta(minutes=5)
"""Beyond it the server refuses the site's signed requests."""

_CLOCK_NOTICE = timedelta(minutes=1)
_SHARE_OF_DEADLINE = 0.25
_PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def check_reachable(address: str, proxy: str | None) -> CheckResult:
    """Open a connection to the first machine on the way: the proxy, or else the server."""
    what = "the proxy" if proxy else address
    try:
        seconds = connect(*first_hop(address, proxy))
    except ConfigurationError as error:
        return failed_by(REACHABLE, error, "correct link.address or link.proxy")
    except socket.gaierror:
        return failed(
            REACHABLE,
            f"there is no machine of the name of {what}",
            "check the spelling, and this machine's name server",
        )
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror
        return failed(
            REACHABLE,
            f"{what} cannot be reached ({reason or type(error).__name__})",
            "ask the operator whether the server runs, and your network's whether its firewall "
            f"lets this machine connect there{_proxy_hint(proxy)}",
        )
    return passed(REACHABLE, f"{what} answers within {_milliseconds(seconds)}")


def check_tls(found: Greeting | FedmedError, proxy: str | None) -> CheckResult:
    """Judge the first request: whether each side took the other's certificate."""
    if isinstance(found, FedmedError):
        return failed_by(
            TLS,
            found,
            "a proxy that reads along must not do so for this address; else see the message"
            if proxy
            else f"see the message{_proxy_hint(proxy)}",
        )
    through = " through the proxy" if proxy else ""
    return passed(
        TLS, f"the server is the consortium's and lets this site in{through}; "
        f"{_milliseconds(found.seconds)}"
    )  # fmt: skip


def check_clock(found: Greeting) -> CheckResult:
    """Compare this machine's clock with the server's, which is told to the second."""
    if found.server_time is None:
        return not_measured(CLOCK, "the server's answer has no date")
    ahead = found.local_time - found.server_time
    detail = (
        f"{abs(ahead).total_seconds():.0f} s {'ahead of' if ahead > timedelta(0) else 'behind'}"
    )
    detail += " the server's"
    remedy = "set this machine's clock by a time server (NTP), or tell the server's operator"
    if abs(ahead) > CLOCK_TOLERANCE:
        return failed(CLOCK, detail, remedy)
    if abs(ahead) > _CLOCK_NOTICE:
        return warned(CLOCK, detail, remedy)
    return passed(CLOCK, detail)


def check_bandwidth(
    upload: Upload | None, payload: Payload, deadline_seconds: float
) -> CheckResult:
    """Compare a measured upload with what a round sends."""
    if upload is None:
        return not_measured(BANDWIDTH, "the server did not take a trial upload")
    rate = upload.bytes_per_second
    seconds = payload.up / rate
    detail = (
        f"{rate / 1e6:.1f} MB/s up (measured with {upload.size / 1e6:.1f} MB), round trip "
        f"{_milliseconds(upload.round_trip)}; a round sends {payload.up / 1e6:.1f} MB: "
        f"{seconds_text(seconds)}"
    )
    if seconds > _SHARE_OF_DEADLINE * deadline_seconds:
        return warned(
            BANDWIDTH,
            detail,
            "ask for transport.bits=16, a smaller model or a longer federation.deadline_seconds",
        )
    return passed(BANDWIDTH, detail)


def _proxy_hint(proxy: str | None) -> str:
    if proxy or not any(os.environ.get(name) for name in _PROXY_VARIABLES):
        return ""
    return "; this machine names a proxy in its environment, which is used only as link.proxy=URL"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
