"""Speak to the server once, as the site's client does, and time it.

No run is needed: the requests are ones that the server refuses after it has let the site in, and
after it has read their bodies.
"""

from __future__ import annotations

import base64
import os
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedmed.federation.flower_link.fleet_transport import (
    checked_address,
    checked_proxy,
    refusal,
    translated,
)
from fedmed.federation.membership import Membership
from fedmed.federation.mutual_tls import client_context
from fedmed.trust.credentials import Credentials

_TIMEOUT = 30.0
_CONNECT_SECONDS = 5.0
# Not among the paths of the gateway: a member gets 404, anybody else 403.
_NOWHERE = "/v1/fleet/doctor"
# The server reads the body and then refuses it, for it has no signature of Flower's.
_UPLOAD = "/v1/fleet/push-object"
_REFUSED_UNREAD = frozenset({404, 408, 413, 429})
_SMALL = 256 * 2**10
_LARGE = 4 * 2**20
_PATIENCE = 10.0
"""Seconds that an upload of the large body may be expected to take."""


@dataclass(frozen=True)
class Greeting:
    """First answer of the server to a member.

    Attributes:
        seconds: for connection, handshake and answer.
        server_time: from the answer's Date header; None without a readable one.
        local_time: when half of that time had passed.
    """

    seconds: float
    server_time: datetime | None
    local_time: datetime


@dataclass(frozen=True)
class Upload:
    """A timed upload.

    Attributes:
        size: bytes.
        seconds: that the bytes took, less the time of an empty request.
        round_trip: seconds of an empty request on an open connection.
    """

    size: int
    seconds: float
    round_trip: float

    @property
    def bytes_per_second(self) -> float:
        """Measured rate."""
        return self.size / self.seconds


def first_hop(address: str, proxy: str | None) -> tuple[str, int]:
    """Return host and port that this machine connects to: the proxy's, or the server's.

    Raises:
        ConfigurationError: the address or the proxy cannot be used.
    """
    proxy = checked_proxy(proxy)
    parts = urlsplit(proxy) if proxy else urlsplit(f"//{checked_address(address)}")
    return parts.hostname or "", parts.port or 0


def connect(host: str, port: int) -> float:
    """Open and close a TCP connection; return the seconds that opening took.

    Raises:
        OSError: unknown name (``socket.gaierror``), refused, or no answer (``TimeoutError``).
    """
    started = time.monotonic()
    with socket.create_connection((host, port), timeout=_CONNECT_SECONDS):
        return time.monotonic() - started


class ServerProbe:
    """The site's connection to the server, for measurements; a context manager.

    Args:
        address: ``HOST:PORT`` of the server.
        credentials: of the site.
        proxy: URL of the HTTP proxy, or None.

    Raises:
        FedmedError: the address, the proxy or the credentials cannot be used.
    """

    def __init__(self, address: str, credentials: Credentials, proxy: str | None = None) -> None:
        self._address = checked_address(address)
        context = client_context(
            credentials, Membership(credentials.folder, credentials.publication)
        )
        key = credentials.tls_key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        self._client = httpx.Client(
            base_url=f"https://{self._address}",
            verify=context,
            trust_env=False,
            proxy=checked_proxy(proxy),
            follow_redirects=False,
            timeout=httpx.Timeout(_TIMEOUT, connect=_CONNECT_SECONDS),
            headers={"flwr-public-key": base64.b64encode(key).decode()},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def greet(self) -> Greeting:
        """Connect, shake hands, and see whether the server knows this site.

        Raises:
            FederationError: the server cannot be reached, is not the consortium's, or refuses
                this site.
        """
        started = datetime.now(UTC)
        response, seconds = self._ask(_NOWHERE, b"")
        if response.status_code != httpx.codes.NOT_FOUND:
            raise refusal(self._address, response)
        return Greeting(
            seconds, _http_date(response.headers.get("date")), started + (_now() - started) / 2
        )

    def upload(self) -> Upload | None:
        """Send a few megabytes for the server to throw away, and time them.

        Returns:
            None if the server did not read them, so that nothing was measured.

        Raises:
            FederationError: the connection broke.
        """
        if not self._taken(b"x")[0]:  # opens the connection
            return None
        taken, round_trip = self._taken(b"x")
        size = _SMALL
        small, seconds = self._taken(os.urandom(size))
        if taken and small and seconds * _LARGE / _SMALL < _PATIENCE:
            size = _LARGE
            small, seconds = self._taken(os.urandom(size))
        if not (taken and small):
            return None
        # A clock tick at least: on one machine the difference can be nothing.
        return Upload(size, max(seconds - round_trip, 1e-4), round_trip)

    def _taken(self, body: bytes) -> tuple[bool, float]:
        response, seconds = self._ask(_UPLOAD, body)
        code = response.status_code
        refused_unread = code in _REFUSED_UNREAD or "fedmed-refusal" in response.headers
        return not (refused_unread or code >= httpx.codes.INTERNAL_SERVER_ERROR), seconds

    def _ask(self, path: str, body: bytes) -> tuple[httpx.Response, float]:
        started = time.monotonic()
        try:
            response = self._client.post(path, content=body)
        except httpx.HTTPError as error:
            raise translated(self._address, error) from error
        return response, time.monotonic() - started


def _now() -> datetime:
    return datetime.now(UTC)


def _http_date(text: str | None) -> datetime | None:
    """Read a Date header (RFC 9110, section 5.6.7)."""
    try:
        return datetime.strptime(text or "", "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    except ValueError:
        return None
