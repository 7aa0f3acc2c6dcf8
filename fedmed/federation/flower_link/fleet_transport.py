"""How a site speaks to the server: TLS 1.3 to the pinned authority only, errors made plain."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedmed.errors import ConfigurationError, FederationError, ProtocolError

_CONNECT_SECONDS = 5.0
# Shorter than the server's (server/superlink.py), so that no request meets a closing connection.
_IDLE_SECONDS = 30.0


class ServerUnreachableError(FederationError):
    """The server cannot be reached or has restarted; a new connection may cure it."""


class ServerCertificateError(FederationError):
    """The server is not the one that the pinned authority vouches for; nothing was sent to it."""


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


def pinned_context(root_certificates: Path) -> ssl.SSLContext:
    """TLS 1.3 only, host name checked, exactly this authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cafile=root_certificates)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"cannot read the authority's certificate {root_certificates.name}; "
            "get it from the operator of the federation and check the path"
        ) from error
    return context


def refusal(address: str, status: int) -> FederationError:
    """Say why the server did not let the site in."""
    if status >= 500:
        return ServerUnreachableError(f"the server {address} answers {status}")
    if status in {401, 412}:
        return SiteRefusedError(
            f"the server {address} does not know the key of this site, or the clocks "
            "of the two machines differ by more than five minutes; "
            "send the site's .pub file to the operator of the server and set the clock"
        )
    return SiteRefusedError(
        f"{address} is not a fedmed server (it answers {status}); "
        "check the server's address in the configuration of this site"
    )


def translated(
    address: str, error: httpx.HTTPError | ValueError
) -> FederationError | ProtocolError:
    """Say what an error of the HTTP client means for the site."""
    if isinstance(error, httpx.HTTPStatusError):
        return _translated_status(address, error.response)
    if isinstance(error, httpx.TransportError):
        failure = _tls_failure(error)
        if failure is not None:
            return ServerCertificateError(
                f"the server {address} could not prove that it is the federation's "
                f"server ({failure}); nothing was sent to it. Check its address, and that "
                "this site has the certificate of the federation's authority"
            )
        return ServerUnreachableError(
            f"the server {address} cannot be reached ({type(error).__name__}); check "
            "that it runs and that the firewall lets this site connect to it"
        )
    return ProtocolError(f"the answer of the server {address} is malformed")


def _translated_status(address: str, response: httpx.Response) -> FederationError | ProtocolError:
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
