"""How a site speaks to the server: HTTP over the link's TLS, errors made plain."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.message import DecodeError

from fedmed.errors import ConfigurationError, FederationError, ProtocolError

_CONNECT_SECONDS = 5.0
# Shorter than the server's (server/superlink.py), so that no request meets a closing connection.
_IDLE_SECONDS = 30.0
# The server says in this header why it turns a site away (server/admission.py).
_REFUSAL_HEADER = "fedmed-refusal"
_TOO_MANY_REQUESTS = 429
_LONGEST_PAUSE = 30.0
_OUR_CERTIFICATE = ("certificate", "unknown ca", "access denied")


class ServerUnreachableError(FederationError):
    """The server cannot be reached or has restarted; a new connection may cure it."""


class ServerCertificateError(FederationError):
    """The server is not one that the consortium vouches for; nothing was sent to it."""


class SiteRefusedError(FederationError):
    """The server answers, but does not let this site in."""


class MessageClosedError(FederationError):
    """The server no longer wants this message or its reply: too late, or the run is over."""


class FleetClient(FleetHttpClient):
    """Flower's protobuf client on an HTTP client of our own settings."""

    def __init__(
        self,
        address: str,
        private_key: ec.EllipticCurvePrivateKey,
        context: ssl.SSLContext,
        timeout: float,
        proxy: str | None,
    ) -> None:
        # Deliberately without Flower's: that one heeds proxy variables and follows redirects.
        self._base_url = f"https://{address}"
        self._interceptors = (NodeAuthHttpInterceptor(private_key, private_key.public_key()),)
        self._retry_invoker = None
        self._client = httpx.Client(
            verify=context,
            trust_env=False,
            proxy=proxy,
            follow_redirects=False,
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
            limits=httpx.Limits(keepalive_expiry=_IDLE_SECONDS),
        )

    def hurry(self, seconds: float) -> None:
        """Let requests from now on fail after this time."""
        self._client.timeout = httpx.Timeout(seconds)


def checked_address(address: str) -> str:
    """Return the address if it is ``HOST:PORT``."""
    try:
        parts = urlsplit(f"//{address}")
        usable = bool(parts.hostname) and parts.port is not None and parts.netloc == address
    except ValueError:
        usable = False
    if not usable or "@" in address:
        raise ConfigurationError(
            f"{address!r} is no address of a server; write HOST:PORT, for instance "
            "federation.example.org:8443"
        )
    return address


def checked_proxy(proxy: str | None) -> str | None:
    """Return the URL of a proxy if it can be used; a message never holds it: it has a password.

    Raises:
        ConfigurationError: it is no ``http://`` URL with a host and a port.
    """
    if not proxy:
        return None
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme == "http" and bool(parts.hostname) and parts.port is not None
        usable = usable and parts.path in {"", "/"} and not parts.query and not parts.fragment
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(
            "link.proxy cannot be used; write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT "
            "(what passes through the proxy is encrypted all the same)"
        )
    return proxy


def pause_asked(error: httpx.HTTPError | ValueError) -> float | None:
    """Return the seconds that the server asks the site to wait before it repeats a request.

    ``None`` when the error is of another kind (RFC 6585, section 4; RFC 9110, section 10.2.3).
    """
    if (
        not isinstance(error, httpx.HTTPStatusError)
        or error.response.status_code != _TOO_MANY_REQUESTS
    ):
        return None
    asked = error.response.headers.get("retry-after", "")
    return min(float(asked), _LONGEST_PAUSE) if asked.isascii() and asked.isdigit() else 1.0


def refusal(address: str, response: httpx.Response) -> FederationError:
    """Say why the server did not let the site in."""
    status = response.status_code
    refused = _refused_member(address, response)
    if refused is not None:
        return refused
    if status >= 500 or status == _TOO_MANY_REQUESTS:
        return ServerUnreachableError(f"the server {address} answers {status}")
    if status in {401, 412}:
        return SiteRefusedError(
            f"the server {address} does not know the key of this site, or the clocks "
            "of the two machines differ by more than five minutes; "
            "check this site's enrolment (fedmed pki status) and set the clock"
        )
    return SiteRefusedError(
        f"{address} is not a fedmed server (it answers {status}); "
        "check the server's address in the configuration of this site"
    )


def translated(
    address: str, error: httpx.HTTPError | ValueError | DecodeError
) -> FederationError | ProtocolError:
    """Say what an error of the HTTP client means for the site."""
    if isinstance(error, httpx.HTTPStatusError):
        return _translated_status(address, error.response)
    if isinstance(error, httpx.ProxyError):
        return ServerUnreachableError(
            f"the proxy does not connect this site to {address} ({str(error)[:3]}); check "
            "link.proxy with its user and password, and that the proxy allows this address"
        )
    if isinstance(error, httpx.TransportError):
        return _translated_transport(address, error)
    return ProtocolError(f"the answer of the server {address} is malformed")


def _translated_transport(address: str, error: httpx.TransportError) -> FederationError:
    failure = _tls_failure(error)
    if failure is None and isinstance(error, httpx.RemoteProtocolError):
        return ServerUnreachableError(
            f"the server {address} hung up; it does so when it stops, and on a site whose "
            "certificate it does not accept: if this goes on, see fedmed pki status"
        )
    if failure is None:
        return ServerUnreachableError(
            f"the server {address} cannot be reached ({type(error).__name__}); check "
            "that it runs and that the firewall lets this site connect to it"
        )
    if "alert" in failure and any(word in failure for word in _OUR_CERTIFICATE):
        # The other side's word on our certificate (RFC 8446, section 6.2).
        return SiteRefusedError(
            f"the server {address} refuses the certificate of this site ({failure}); "
            "see fedmed pki status"
        )
    return ServerCertificateError(
        f"the server {address} could not prove that it is the federation's "
        f"server ({failure}); nothing was sent to it. Check its address, and that "
        "this site has the certificate of the federation's authority"
    )


def _refused_member(address: str, response: httpx.Response) -> FederationError | None:
    """Say why the server's door is shut to this site; ``None`` when it is not."""
    reason = response.headers.get(_REFUSAL_HEADER)
    if reason is None:
        return None
    if response.status_code >= 500:
        return ServerUnreachableError(
            f"the server {address} lets nobody in: its own roster or list of revoked "
            "certificates does not hold; tell its operator"
        )
    if reason == "key":
        return SiteRefusedError(
            f"the server {address} refuses this site: its key is not the one of its certificate"
        )
    return SiteRefusedError(
        f"the server {address} refuses the certificate of this site: it is revoked, out of its "
        "dates, or not in the roster; see fedmed pki status"
    )


def _translated_status(address: str, response: httpx.Response) -> FederationError | ProtocolError:
    refused = _refused_member(address, response)
    if refused is not None:
        return refused
    known = FlowerError.from_json(response.text)
    if known is not None and known.code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
        return MessageClosedError("the run of this message is over")
    if response.status_code in {400, 403, 413, 415, 422}:
        return ProtocolError(f"the server refuses a message of this site ({response.status_code})")
    return ServerUnreachableError(
        f"the server {address} has restarted or is overloaded ({response.status_code})"
    )


def _tls_failure(error: BaseException) -> str | None:
    """Return the reason if TLS failed for good, not because the connection broke."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        if isinstance(cause, ssl.SSLError) and not isinstance(
            cause, ssl.SSLEOFError | ssl.SSLZeroReturnError
        ):
            return (cause.reason or "TLS failed").lower().replace("_", " ")
        cause = cause.__cause__ or cause.__context__
    return None
