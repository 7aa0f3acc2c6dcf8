"""What the root has published, and each member holds a copy of: root, roster, revocation list."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from fedmed.errors import TrustError
from fedmed.trust.issuance import present
from fedmed.trust.malformed import MALFORMED, whole_octets
from fedmed.trust.protected_files import read_public
from fedmed.trust.revocation import check_fresh, number_of, read_crl, roster_version_of
from fedmed.trust.roster import Roster
from fedmed.trust.roster_file import SignedRoster, read_signed_roster

ROOT = "root.crt"
ROSTER = "roster.json"
CRL = "crl.pem"


@dataclass(frozen=True)
class Publication:
    """Root, roster and revocation list; the root has signed both others.

    Attributes:
        root: certificate of the root.
        signed_roster: the members.
        crl: the revoked certificates.
    """

    root: x509.Certificate
    signed_roster: SignedRoster
    crl: x509.CertificateRevocationList

    @property
    def roster(self) -> Roster:
        """The members."""
        return self.signed_roster.roster

    def check(self, at: datetime | None = None) -> None:
        """Check what depends on the time, and that the roster and the list belong together.

        Raises:
            TrustError: the root or the list is out of date, or the list belongs to another
                version of the roster.
        """
        check_validity(self.root, "the root", at)
        check_fresh(self.crl, at)
        if roster_version_of(self.crl) != self.roster.version:
            raise TrustError(
                "The roster and the list of revoked certificates are of different versions. "
                "Install the newest bundle of the consortium once more (fedmed pki install)."
            )

    def check_not_older(self, held: Publication) -> None:
        """Refuse to go back from what is held already to something older.

        Raises:
            TrustError: another root, an older roster or list, or two that have the same number
                and differ.
        """
        if self.root != held.root:
            raise TrustError("This is signed by another root than the one that was pinned.")
        if self.roster.version < held.roster.version:
            raise TrustError(
                f"This roster is version {self.roster.version}, older than the installed version "
                f"{held.roster.version}. Ask the consortium for its newest bundle."
            )
        if number_of(self.crl) < number_of(held.crl):
            raise TrustError(
                "This list of revoked certificates is older than the installed one. Ask the "
                "consortium for its newest bundle."
            )
        if self.roster.version == held.roster.version and self.roster != held.roster:
            raise TrustError(
                f"There are two rosters of version {self.roster.version} that differ. The root was "
                "used twice for one version: call the consortium."
            )


def load_publication(folder: Path, at: datetime | None = None) -> Publication:
    """Read and check ``root.crt``, ``roster.json`` and ``crl.pem`` of a folder.

    Needs no private key, so a server that runs may read again what was installed meanwhile.

    Raises:
        ConfigurationError: a file is missing.
        TrustError: one does not hold, or is out of date.
    """
    publication = read_publication(folder)
    publication.check(at)
    return publication


def read_publication(folder: Path) -> Publication:
    """Read a folder's publication and check the signatures, whatever the time is.

    Raises:
        ConfigurationError: a file is missing.
        TrustError: one does not hold.
    """
    root = read_root(read_public(folder / ROOT))
    return Publication(
        root,
        read_signed_roster(read_public(folder / ROSTER), root),
        read_crl(read_public(folder / CRL), root),
    )


def read_root(pem: bytes) -> x509.Certificate:
    """Read a root's certificate; whether it is the right one is for its fingerprint to tell.

    Raises:
        TrustError: it is no P-384 authority that signed itself.
    """
    root = read_certificate(pem, ROOT)
    try:
        root.verify_directly_issued_by(root)
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
    except MALFORMED as error:
        raise TrustError("root.crt is no certificate of a root.") from error
    key = root.public_key()
    if (
        not constraints.ca
        or not isinstance(key, EllipticCurvePublicKey)
        or not isinstance(key.curve, SECP384R1)
    ):
        raise TrustError("root.crt is no certificate of a consortium's root.")
    return root


def read_certificate(pem: bytes, name: str) -> x509.Certificate:
    """Read exactly one certificate, spelt as this program writes it.

    Raises:
        TrustError: naming the file.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        spelt = certificate.public_bytes(Encoding.PEM)
        # Parsed when first asked for: what cannot be read is to be found here.
        _ = certificate.public_key(), certificate.extensions, certificate.not_valid_after_utc
        whole = whole_octets(certificate)
    except MALFORMED as error:
        raise TrustError(f"{name} is no certificate.") from error
    if spelt != pem or not whole:
        raise TrustError(f"{name} is not exactly one certificate.")
    return certificate


def check_validity(certificate: x509.Certificate, whose: str, at: datetime | None = None) -> None:
    """Check a certificate's dates.

    Raises:
        TrustError: it has expired, or is not valid yet.
    """
    now = present(at)
    if now > certificate.not_valid_after_utc:
        raise TrustError(
            f"The certificate of {whose} expired on {certificate.not_valid_after_utc:%Y-%m-%d}. "
            "A member runs fedmed pki rotate and has the request signed."
        )
    if now < certificate.not_valid_before_utc:
        raise TrustError(
            f"The certificate of {whose} is not valid before "
            f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; is this machine's clock right?"
        )
