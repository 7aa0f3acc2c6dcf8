"""Who belongs to the consortium now: its published files, read again when they change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from fedmed.errors import ConfigurationError, TrustError
from fedmed.trust.certificate_checks import check_member_certificate
from fedmed.trust.issuance import Purpose
from fedmed.trust.publication import CRL, ROOT, ROSTER, Publication, load_publication
from fedmed.trust.roster import Member

_Stamps = tuple[tuple[int, int, int], ...]


class Membership:
    """Root, roster and revocation list of a member's folder; for any number of threads.

    A revocation counts from the moment that its list lies in the folder, without a restart.
    Whatever is wrong with the files (unreadable, unsigned, older than before, past their date)
    closes the link: nobody is a member until they are put right.

    Args:
        folder: the member's folder, with ``root.crt``, ``roster.json`` and ``crl.pem``.
        publication: what was read at start; its root is pinned for the life of the process.
        now: tells the time, in UTC.
    """

    def __init__(
        self,
        folder: Path,
        publication: Publication,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._now = now
        self._publication = publication
        # No stamps: the files may have changed since the publication was read.
        self._stamps: _Stamps | None = None
        self._fault: TrustError | None = None
        self._lock = threading.Lock()

    @property
    def revocation_list(self) -> Path:
        """The file of the revocation list."""
        return self._folder / CRL

    @property
    def root(self) -> x509.Certificate:
        """The root that was pinned at start."""
        return self._publication.root

    def publication(self) -> Publication:
        """Return what holds now; the same object until the files change.

        Raises:
            TrustError: the files do not hold, or the revocation list has passed its date.
        """
        with self._lock:
            stamps = self._read_stamps()
            if stamps != self._stamps:
                self._stamps = stamps
                self._fault = None
                try:
                    found = load_publication(self._folder, self._now())
                    found.check_not_older(self._publication)
                    self._publication = found
                except (TrustError, ConfigurationError) as error:
                    self._fault = TrustError(str(error))
            if self._fault is not None:
                raise self._fault
            self._publication.check(self._now())
            return self._publication

    def member(self, certificate: x509.Certificate, purpose: Purpose) -> Member:
        """Return the member to whom a certificate of the other side belongs.

        Raises:
            TrustError: the certificate is revoked, expired, not yet valid, for another purpose
                or role, or its key is not in the roster; or see :meth:`publication`.
        """
        return check_member_certificate(certificate, self.publication(), purpose, self._now())

    def _read_stamps(self) -> _Stamps:
        stamps = []
        for name in (ROOT, ROSTER, CRL):
            try:
                status = (self._folder / name).stat()
            except OSError:
                stamps.append((0, 0, 0))
            else:
                stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(stamps)
