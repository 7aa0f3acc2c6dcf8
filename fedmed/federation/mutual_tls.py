"""TLS 1.3 between members of the consortium: each side shows its certificate.

OpenSSL checks chain, dates, purpose, revocation list and host name in the handshake; what it
cannot know (role, name and key in the roster) is checked before the first byte is sent.
"""

from __future__ import annotations

import logging
import socket
import ssl
from typing import TYPE_CHECKING, Any, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedmed.errors import ConfigurationError, TrustError
from fedmed.federation.membership import Membership
from fedmed.trust.issuance import Purpose
from fedmed.trust.member_folder import TLS_CERTIFICATE, TLS_KEY
from fedmed.trust.publication import Publication
from fedmed.trust.roster import Role

if TYPE_CHECKING:
    from fedmed.trust.credentials import Credentials

_logger = logging.getLogger(__name__)


def server_context(credentials: Credentials, membership: Membership) -> ssl.SSLContext:
    """TLS settings of the server: a client without a member's certificate gets no connection.

    Each handshake uses the revocation list that lies in the folder at that moment.

    Args:
        credentials: of the server.
        membership: of the same folder.

    Raises:
        ConfigurationError: the key or the certificate cannot be used.
        TrustError: the credentials are not those of a server, or the published files do not hold.
    """
    _require_role(credentials, Role.server)
    context = _ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.prepare(credentials, membership)
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would skip the check of the certificate.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    context.sni_callback = context.greeted
    return context


def client_context(credentials: Credentials, membership: Membership) -> ssl.SSLContext:
    """TLS settings of a site: nothing but a server of the roster is spoken to.

    Args:
        credentials: of the site.
        membership: of the same folder.

    Raises:
        ConfigurationError: the key or the certificate cannot be used.
        TrustError: the credentials are not those of a site, or the published files do not hold.
    """
    _require_role(credentials, Role.site)
    context = _SiteContext(ssl.PROTOCOL_TLS_CLIENT)
    context.prepare(credentials, membership)
    return context


class _MemberContext(ssl.SSLContext):
    """What both sides share."""

    _credentials: Credentials
    _membership: Membership
    _publication: Publication
    _successor: Self | None = None

    def prepare(self, credentials: Credentials, membership: Membership) -> None:
        """Load key, certificate, root and revocation list."""
        self._credentials = credentials
        self._membership = membership
        self._publication = membership.publication()
        self.minimum_version = ssl.TLSVersion.TLSv1_3
        self.verify_flags |= (
            ssl.VerifyFlags.VERIFY_X509_STRICT | ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        )
        try:
            self.load_cert_chain(
                credentials.folder / TLS_CERTIFICATE,
                credentials.folder / TLS_KEY,
                # Without a callable OpenSSL would ask on the terminal.
                password=lambda: credentials.passphrase or b"",
            )
        except OSError as error:  # ssl.SSLError is one
            raise ConfigurationError(
                f"cannot use {TLS_CERTIFICATE} with {TLS_KEY} "
                f"({error.strerror or type(error).__name__}); check the passphrase, and that "
                "both files are of the same enrolment"
            ) from error
        self.load_verify_locations(cadata=membership.root.public_bytes(Encoding.DER))
        try:
            self.load_verify_locations(cafile=membership.revocation_list)
        except OSError as error:
            raise TrustError("the revocation list cannot be read; install it again") from error

    def present(self) -> Self:
        """Return these settings, or ones with the revocation list that lies there by now.

        OpenSSL cannot forget a list: of two of the same second it would use the older one.

        Raises:
            ConfigurationError, TrustError: see :func:`server_context`.
        """
        newest = self._successor or self
        if self._membership.publication() is not newest._publication:
            newest = type(self)(self.protocol)
            newest.prepare(self._credentials, self._membership)
            self._successor = newest
        return newest


class _ServerContext(_MemberContext):
    def greeted(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> int | None:
        """Bring a connection's settings up to date; called at a handshake's first message."""
        try:
            connection.context = self.present()
        except (ConfigurationError, TrustError) as error:
            _logger.error("no site is let in: %s", error)
            return ssl.AlertDescription.ALERT_DESCRIPTION_ACCESS_DENIED
        return None


class _SiteContext(_MemberContext):
    def wrap_socket(self, sock: socket.socket, *args: Any, **settings: Any) -> ssl.SSLSocket:
        """Shake hands, and hang up unless a server of the roster answers."""
        try:
            newest = self.present()
        except (ConfigurationError, TrustError) as error:
            raise _not_verified(error) from error
        connection = ssl.SSLContext.wrap_socket(newest, sock, *args, **settings)
        try:
            encoded = connection.getpeercert(binary_form=True)
            if encoded is None:
                raise TrustError("the server showed no certificate")
            self._membership.member(x509.load_der_x509_certificate(encoded), Purpose.server_tls)
        except (TrustError, ValueError) as error:
            connection.close()
            raise _not_verified(error) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def wrap_bio(self, *_args: Any, **_settings: Any) -> ssl.SSLObject:
        """Refuse the way round :meth:`wrap_socket`."""
        raise NotImplementedError("the server's certificate is checked on sockets only")


def _require_role(credentials: Credentials, role: Role) -> None:
    if credentials.role != role:
        raise TrustError(
            f"the folder {credentials.folder.name!r} has the certificate of a "
            f"{credentials.role.value}, not of a {role.value}; check link.credentials"
        )


def _not_verified(error: Exception) -> ssl.SSLCertVerificationError:
    failure = ssl.SSLCertVerificationError(1, str(error))
    failure.verify_message = str(error)
    return failure
