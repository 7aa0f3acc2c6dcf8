"""What a member proves with who it is, checked whole before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from fedmed.errors import ConfigurationError, TrustError
from fedmed.trust.certificate_checks import (
    check_member_certificate,
    named_member,
)
from fedmed.trust.issuance import Purpose, tls_purpose
from fedmed.trust.key_files import is_encrypted
from fedmed.trust.member_folder import (
    REQUEST,
    SIGNING_CERTIFICATE,
    SIGNING_KEY,
    TLS_CERTIFICATE,
    TLS_KEY,
    load_signing_key,
    load_tls_key,
)
from fedmed.trust.protected_files import read_private, read_public
from fedmed.trust.publication import Publication, load_publication, read_certificate
from fedmed.trust.roster import Role, Roster
from fedmed.trust.signatures import Signer


@dataclass(frozen=True)
class Credentials:
    """A member's keys and certificates, and what it checks others against.

    Attributes:
        name: of the member.
        role: site or server.
        folder: where the files are; ``ssl`` reads ``tls.crt`` and ``tls.key`` from there.
        tls_key: P-256.
        tls_certificate: over it.
        signer: Ed25519, for messages.
        publication: root, roster and revocation list.
        passphrase: of the TLS key; None if it is not encrypted.
    """

    name: str
    role: Role
    folder: Path
    tls_key: EllipticCurvePrivateKey = field(repr=False)
    tls_certificate: x509.Certificate
    signer: Signer = field(repr=False)
    publication: Publication = field(repr=False)
    passphrase: bytes | None = field(repr=False)

    @property
    def roster(self) -> Roster:
        """The members of the consortium."""
        return self.publication.roster

    @property
    def root(self) -> x509.Certificate:
        """The root that was pinned."""
        return self.publication.root

    @property
    def crl(self) -> x509.CertificateRevocationList:
        """The revoked certificates."""
        return self.publication.crl


def load_credentials(
    folder: Path, passphrase: bytes | None, at: datetime | None = None
) -> Credentials:
    """Read a member's folder and check all of it.

    The keys must be private (mode 0600) and those of the certificates; both certificates must
    satisfy :func:`fedmed.trust.certificate_checks.check_member_certificate`; the revocation list
    must be in force.

    Args:
        folder: of the member, see ``fedmed pki install``.
        passphrase: see :func:`fedmed.trust.passphrase.find_passphrase`.
        at: time of the check; now when None.

    Raises:
        ConfigurationError: a file is missing, readable by others, or its passphrase is.
        TrustError: something does not hold.
    """
    _demand_installed(folder)
    tls_key = load_tls_key(folder, passphrase)
    signing_key = load_signing_key(folder, passphrase)
    publication = load_publication(folder, at)
    tls = read_certificate(read_public(folder / TLS_CERTIFICATE), TLS_CERTIFICATE)
    signing = read_certificate(read_public(folder / SIGNING_CERTIFICATE), SIGNING_CERTIFICATE)
    role, name = named_member(tls)
    if named_member(signing) != (role, name):
        raise TrustError(f"{TLS_CERTIFICATE} and {SIGNING_CERTIFICATE} name different members.")
    for key, certificate, file in (
        (tls_key.public_key(), tls, TLS_KEY),
        (signing_key.public_key(), signing, SIGNING_KEY),
    ):
        if key != certificate.public_key():
            raise TrustError(
                f"{file} is not the key of its certificate. Install the bundle that the consortium "
                "made for this folder's request (fedmed pki install)."
            )
    check_member_certificate(tls, publication, tls_purpose(role), at)
    check_member_certificate(signing, publication, Purpose.signing, at)
    return Credentials(
        name,
        role,
        folder,
        tls_key,
        tls,
        Signer(name, signing_key),
        publication,
        passphrase if is_encrypted(read_private(folder / TLS_KEY)) else None,
    )


def _demand_installed(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigurationError(
            f"{folder}: there is no such folder with keys. Is the name of the site (or "
            f"link.credentials) right? Make keys with: fedmed pki enroll NAME --folder {folder}"
        )
    if (folder / REQUEST).is_file() and not (folder / TLS_CERTIFICATE).is_file():
        raise ConfigurationError(
            f"{folder}: keys are made, but there is no {TLS_CERTIFICATE} yet. Install the bundle "
            f"that the consortium sends back: fedmed pki install BUNDLE --folder {folder}"
        )
