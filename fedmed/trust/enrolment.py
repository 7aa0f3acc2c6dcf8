"""A member's side: it makes its own keys, asks for certificates, and installs what it gets."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from fedmed.errors import ConfigurationError, TrustError
from fedmed.trust.bundle import Bundle, MemberCertificates, read_bundle
from fedmed.trust.certificate_checks import check_member_certificate
from fedmed.trust.fingerprints import require_fingerprint, root_fingerprint
from fedmed.trust.issuance import Purpose, tls_purpose
from fedmed.trust.key_files import write_private_key
from fedmed.trust.member_folder import (
    CRL,
    NEXT,
    REQUEST,
    ROOT,
    ROSTER,
    SIGNING_CERTIFICATE,
    SIGNING_KEY,
    TLS_CERTIFICATE,
    TLS_KEY,
    load_signing_key,
    load_tls_key,
)
from fedmed.trust.protected_files import PUBLIC, make_folder, read_public, replace, write_new
from fedmed.trust.publication import Publication, read_certificate, read_publication
from fedmed.trust.request import Request, check_identity, make_request, read_request
from fedmed.trust.roster import Role


def enroll(
    folder: Path, name: str, role: Role, hosts: Sequence[str], passphrase: bytes | None
) -> Request:
    """Make a member's keys, which stay in the folder, and its request, which goes out.

    Args:
        folder: is made when missing.
        name: of the member.
        role: site or server.
        hosts: names and addresses of a server.
        passphrase: encrypts both keys; None leaves them as they are.

    Raises:
        ConfigurationError: the name or a host cannot be used, or there are keys already.
    """
    check_identity(name, role, hosts)
    make_folder(folder, private=True)
    for file in (TLS_KEY, SIGNING_KEY, REQUEST):
        if (folder / file).exists():
            raise ConfigurationError(
                f"{file} exists in the folder {folder.name!r} and is not written over; choose "
                "another folder. New keys of a member: fedmed pki rotate."
            )
    return _make_keys(folder, name, role, hosts, passphrase, None)


def rotate(folder: Path, passphrase: bytes | None, hosts: Sequence[str] | None = None) -> Request:
    """Make new keys in the folder ``next``, and a request that the present keys vouch for.

    The present keys are used until the certificates of the new ones are installed.

    Args:
        folder: of the member.
        passphrase: of the present keys, and of the new ones.
        hosts: new names and addresses of a server; None keeps those it has.

    Raises:
        ConfigurationError: a host cannot be used, nothing is installed, or ``next`` holds keys
            already.
    """
    present_request = read_request(read_public(folder / REQUEST))
    if not (folder / TLS_CERTIFICATE).exists():
        raise ConfigurationError(
            "no certificates are installed here, so there are none to rotate: send request.json "
            "to the consortium and install its answer"
        )
    if (folder / NEXT / REQUEST).exists():
        raise ConfigurationError(
            f"the folder {NEXT!r} holds new keys already: send its request.json to the consortium "
            f"and install the answer, or remove the folder {NEXT!r}"
        )
    hosts = present_request.hosts if hosts is None else hosts
    check_identity(present_request.name, present_request.role, hosts)
    previous = load_signing_key(folder, passphrase)
    if (folder / NEXT).exists():
        # Left by a crash: without a request nobody has certified these keys.
        shutil.rmtree(folder / NEXT)
    make_folder(folder / NEXT, private=True)
    return _make_keys(
        folder / NEXT,
        present_request.name,
        present_request.role,
        hosts,
        passphrase,
        previous,
    )


def install(
    folder: Path,
    data: bytes,
    passphrase: bytes | None,
    fingerprint: str | None = None,
    at: datetime | None = None,
) -> Publication:
    """Check a bundle and take it over: certificates for the keys here, roster, revocation list.

    Repeat it after a crash: it takes up where it stopped.

    Args:
        folder: of the member.
        data: content of the bundle.
        passphrase: of the member's keys.
        fingerprint: of the root; needed once, then ``root.crt`` is pinned.
        at: time of the check; now when None.

    Raises:
        ConfigurationError: a key is missing, or its passphrase is.
        TrustError: another root, something older than what is installed, out of date, tampered
            with, or for other keys.
    """
    bundle = read_bundle(data)
    publication = bundle.publication
    _check_root(folder, publication.root, fingerprint)
    publication.check(at)
    if (folder / ROSTER).exists():
        publication.check_not_older(read_publication(folder))
    source = _keys_of(folder, bundle, passphrase, at)
    if source is not None:
        _take_keys(folder, source, bundle.certificates[_name(source)])
    replace(folder / ROOT, publication.root.public_bytes(Encoding.PEM), PUBLIC)
    replace(folder / CRL, publication.crl.public_bytes(Encoding.PEM), PUBLIC)
    replace(folder / ROSTER, publication.signed_roster.to_bytes(), PUBLIC)
    return publication


def _make_keys(
    folder: Path,
    name: str,
    role: Role,
    hosts: Sequence[str],
    passphrase: bytes | None,
    previous: Ed25519PrivateKey | None,
) -> Request:
    tls_key = ec.generate_private_key(ec.SECP256R1())
    signing_key = Ed25519PrivateKey.generate()
    request = make_request(name, role, hosts, tls_key, signing_key, previous)
    write_private_key(folder / TLS_KEY, tls_key, passphrase)
    write_private_key(folder / SIGNING_KEY, signing_key, passphrase)
    write_new(folder / REQUEST, request.to_bytes(), PUBLIC)
    return request


def _check_root(folder: Path, root: x509.Certificate, fingerprint: str | None) -> None:
    if fingerprint is not None:
        require_fingerprint(fingerprint, root_fingerprint(root), "the root of the consortium")
    if (folder / ROOT).exists():
        if read_certificate(read_public(folder / ROOT), ROOT) != root:
            raise TrustError("The bundle is from another root than the one pinned in root.crt.")
    elif fingerprint is None:
        raise TrustError(
            "This is the first bundle here, so its root is not known yet. Have the consortium "
            "read the root's fingerprint to you, and give it with --root-fingerprint."
        )


def _keys_of(
    folder: Path, bundle: Bundle, passphrase: bytes | None, at: datetime | None
) -> Path | None:
    """Return the folder whose keys the bundle has certificates for; None: nothing to change."""
    name = _name(folder)
    certificates = bundle.certificates.get(name)
    if certificates is not None:
        if _is_installed(folder, certificates):
            return None
        for source in (folder / NEXT, folder):
            if (source / REQUEST).exists() and _fit(source, certificates, bundle, passphrase, at):
                return source
    if certificates is None:
        if (folder / TLS_CERTIFICATE).exists():
            return None
        found = ", ".join(sorted(bundle.certificates)) or "nobody"
        raise TrustError(f"The bundle has certificates for {found}, none for {name!r}.")
    raise TrustError(
        f"The bundle's certificates of {name!r} are for other keys than those in this folder. If "
        "the request that was signed is not yours, call the consortium: somebody took your name."
    )


def _fit(
    source: Path,
    certificates: MemberCertificates,
    bundle: Bundle,
    passphrase: bytes | None,
    at: datetime | None,
) -> bool:
    """Tell whether certificates are for the keys of a folder; they are checked when they are."""
    request = read_request(read_public(source / REQUEST))
    if (
        certificates.tls.public_key() != request.tls_key
        or certificates.signing.public_key() != request.signing_key
    ):
        return False
    _require_keys(source, request, passphrase)
    for certificate, purpose in (
        (certificates.tls, tls_purpose(request.role)),
        (certificates.signing, Purpose.signing),
    ):
        member = check_member_certificate(certificate, bundle.publication, purpose, at)
        if member.name != request.name or member.role is not request.role:
            raise TrustError("The bundle's certificates name another member than was asked for.")
    return True


def _is_installed(folder: Path, certificates: MemberCertificates) -> bool:
    # New keys that wait may be half moved after a crash: then they are gone through once more.
    return not (folder / NEXT / REQUEST).exists() and all(
        (folder / file).exists() and read_certificate(read_public(folder / file), file) == held
        for file, held in (
            (TLS_CERTIFICATE, certificates.tls),
            (SIGNING_CERTIFICATE, certificates.signing),
        )
    )


def _require_keys(source: Path, request: Request, passphrase: bytes | None) -> None:
    """Check that the private keys are here; after a crash one may have been moved already."""
    for file, load, key in (
        (TLS_KEY, load_tls_key, request.tls_key),
        (SIGNING_KEY, load_signing_key, request.signing_key),
    ):
        places = [source, source.parent] if source.name == NEXT else [source]
        place = next((place for place in places if (place / file).exists()), source)
        if load(place, passphrase).public_key() != key:
            raise TrustError(f"{file} is not the key of {REQUEST}.")


def _take_keys(folder: Path, source: Path, certificates: MemberCertificates) -> None:
    if source != folder:
        for file in (TLS_KEY, SIGNING_KEY):
            if (source / file).exists():
                (source / file).replace(folder / file)
    for file, certificate in (
        (TLS_CERTIFICATE, certificates.tls),
        (SIGNING_CERTIFICATE, certificates.signing),
    ):
        replace(folder / file, certificate.public_bytes(Encoding.PEM), PUBLIC)
    if source != folder:
        (source / REQUEST).replace(folder / REQUEST)
        shutil.rmtree(source)


def _name(folder: Path) -> str:
    return read_request(read_public(folder / REQUEST)).name
