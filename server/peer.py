"""Who is at the other end of a connection: the certificate that its handshake has verified."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedmed.trust.malformed import MALFORMED

PEER = "fedmed.peer"
"""Key of the :class:`Peer` in the ``extensions`` of an ASGI scope."""

# A site has six at most; a cut connection may linger at the server for a while.
_CONNECTIONS_PER_KEY = 32


@dataclass(frozen=True)
class Peer:
    """The holder of the key of a verified certificate.

    Attributes:
        certificate: as shown in the handshake; that its sender holds the key is proven, whether
            it is a member now is not.
        key: its public key.
        fingerprint: SHA-256 of the certificate.
        node_key: the key as a request's ``flwr-public-key`` header has to spell it.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePublicKey
    fingerprint: bytes
    node_key: bytes


def read_peer(encoded: bytes) -> Peer | None:
    """Return the peer with this certificate (DER); ``None`` if no site can have such a one."""
    try:
        certificate = x509.load_der_x509_certificate(encoded)
        key = certificate.public_key()
    except MALFORMED:
        return None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return None
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return Peer(certificate, key, hashlib.sha256(encoded).digest(), base64.b64encode(pem))


class PeerProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1 protocol; tells the application who the peer is."""

    peer: Peer | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Remember the peer, and bound the number of its connections."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if not isinstance(tls, ssl.SSLObject | ssl.SSLSocket):
            return
        encoded = tls.getpeercert(binary_form=True)
        if encoded is None:
            return  # the context decides whether that is enough
        self.peer = read_peer(encoded)
        if self.peer is None or self._connections_of(self.peer) > _CONNECTIONS_PER_KEY:
            transport.abort()
            return
        self.app = cast("Any", _introduced(cast("Any", self.app), self.peer))

    def _connections_of(self, peer: Peer) -> int:
        keys = Counter(
            other.peer.node_key
            for other in self.connections
            if isinstance(other, PeerProtocol) and other.peer is not None
        )
        return keys[peer.node_key]


_Scope = MutableMapping[str, Any]
_Application = Callable[[_Scope, Any, Any], Awaitable[None]]


def _introduced(application: _Application, peer: Peer) -> _Application:
    async def introduced(scope: _Scope, receive: Any, send: Any) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), PEER: peer}
        await application(scope, receive, send)

    return introduced
