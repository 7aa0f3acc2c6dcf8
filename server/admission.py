"""Which site a request comes from, and whether that site is still a member."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from cryptography.hazmat.primitives.asymmetric import ec

from fedmed.errors import ConfigurationError, FedmedError, TrustError
from fedmed.federation.membership import Membership
from fedmed.trust.issuance import Purpose
from fedmed.trust.publication import Publication
from server.peer import PEER, Peer

_logger = logging.getLogger(__name__)

NODE_KEY_HEADER = b"flwr-public-key"
REFUSAL_HEADER = b"fedmed-refusal"

# The dates of a certificate are looked at this often on a connection that stays open.
_RECHECK_SECONDS = 1.0

RegisterSite = Callable[[str, ec.EllipticCurvePublicKey], object]
"""Told the name and the key of a site that announces itself."""


class NotAdmittedError(FedmedError):
    """A request comes from nobody who may ask.

    Attributes:
        status: of the HTTP response.
        reason: word for the site, which knows what to do about it.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class _Found:
    name: str
    publication: Publication
    at: float


class Admission:
    """Tells a site by its certificate, at every request; for one event loop.

    Args:
        membership: what the root has published.
        register: called when a site announces itself.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        membership: Membership,
        register: RegisterSite = lambda _name, _key: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._membership = membership
        self._register = register
        self._clock = clock
        self._found: dict[bytes, _Found] = {}
        self._said: set[str] = set()

    def site(self, scope: Mapping[str, object]) -> str:
        """Return the name of the site that sends a request.

        Args:
            scope: ASGI scope of the request.

        Raises:
            NotAdmittedError: no certificate; one that is revoked, out of its dates, of another
                role or not in the roster; or the request names the key of another node.
        """
        try:
            return self._site(scope)
        except NotAdmittedError as error:
            self._say(str(error))
            raise

    def announced(self, scope: Mapping[str, object], name: str) -> None:
        """Register the key of a site that announces itself.

        Raises:
            NotAdmittedError: the key cannot be registered.
        """
        try:
            self._register(name, _peer(scope).key)
        except ConfigurationError as error:
            self._say(str(error))
            raise NotAdmittedError(403, "key", str(error)) from error

    def _site(self, scope: Mapping[str, object]) -> str:
        peer = _peer(scope)
        try:
            publication = self._membership.publication()
        except TrustError as error:
            raise NotAdmittedError(503, "published", f"no site is let in: {error}") from error
        name = self._name(peer, publication)
        headers = cast("Iterable[tuple[bytes, bytes]]", scope.get("headers", ()))
        keys = [value for header, value in headers if header.lower() == NODE_KEY_HEADER]
        # Flower's authentication, behind this door, ties that key to the node of the request.
        if keys != [peer.node_key]:
            raise NotAdmittedError(
                403, "key", f"a request of {name!r} names the key of another node"
            )
        return name

    def _name(self, peer: Peer, publication: Publication) -> str:
        known = self._found.get(peer.fingerprint)
        now = self._clock()
        if (
            known is not None
            and known.publication is publication
            and now - known.at < _RECHECK_SECONDS
        ):
            return known.name
        try:
            name = self._membership.member(peer.certificate, Purpose.site_tls).name
        except TrustError as error:
            self._found.pop(peer.fingerprint, None)
            raise NotAdmittedError(403, "certificate", f"a site is turned away: {error}") from error
        self._found[peer.fingerprint] = _Found(name, publication, now)
        return name

    def _say(self, text: str) -> None:
        # Once each: a site that is turned away may ask for ever.
        if text not in self._said and len(self._said) < 1000:
            self._said.add(text)
            _logger.warning("%s", text)


def _peer(scope: Mapping[str, object]) -> Peer:
    extensions = cast("Mapping[str, object]", scope.get("extensions") or {})
    peer = extensions.get(PEER)
    if not isinstance(peer, Peer):
        raise NotAdmittedError(403, "certificate", "a request came without a certificate")
    return peer
