"""Keys and certificates for a demonstration: one authority, one server, one key for each site.

All keys are EC P-384. A private key is written with mode 0600 from its first byte on, is never
written over, and is not used while others can read it. The operator's public-key infrastructure
of a real consortium replaces the authority; the files keep their formats.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmed.errors import ConfigurationError

AUTHORITY_CERTIFICATE = "ca.crt"
AUTHORITY_KEY = "ca.key"
SERVER_CERTIFICATE = "server.crt"
SERVER_KEY = "server.key"

_SITE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
# Clocks differ: a certificate is valid from a little before it was made.
_BACKDATED = datetime.timedelta(minutes=10)


def create_authority(folder: Path, name: str, days: int = 3650) -> Path:
    """Make a certificate authority: ``ca.crt`` for everybody, ``ca.key`` for the operator.

    Args:
        folder: is made when missing.
        name: common name of the authority.
        days: validity.

    Returns:
        Path of ``ca.crt``, the file that sites pin.

    Raises:
        ConfigurationError: the folder has an authority already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(name)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _certificate(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
    )
    _write_private(folder / AUTHORITY_KEY, _pem(key))
    return _write_public(
        folder / AUTHORITY_CERTIFICATE,
        builder.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM),
    )


def issue_server_certificate(
    folder: Path, hosts: Sequence[str] = ("localhost", "127.0.0.1"), days: int = 365
) -> tuple[Path, Path]:
    """Issue the certificate of the server: ``server.crt`` and ``server.key``.

    Args:
        folder: has the authority's two files.
        hosts: every name and address under which sites reach the server.
        days: validity.

    Returns:
        Paths of the certificate and of the key.

    Raises:
        ConfigurationError: no authority in the folder, no host, or a certificate is there
            already.
    """
    if not hosts:
        raise ConfigurationError("a server's certificate needs at least one host name or address")
    authority_key = _load_private(folder / AUTHORITY_KEY)
    authority = x509.load_pem_x509_certificate(_read(folder / AUTHORITY_CERTIFICATE))
    key = ec.generate_private_key(ec.SECP384R1())
    issuer = authority_key.public_key()
    builder = (
        _certificate(_name(hosts[0]), authority.subject, key.public_key(), days)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
    )
    private = _write_private(folder / SERVER_KEY, _pem(key))
    certificate = builder.sign(authority_key, hashes.SHA384())
    public = _write_public(
        folder / SERVER_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM)
    )
    return public, private


def create_site_key(folder: Path, site: str) -> tuple[Path, Path]:
    """Make the key with which a site signs its requests, in OpenSSH's format as Flower has it.

    Args:
        folder: is made when missing.
        site: lower-case letters, digits, ``-`` and ``_``; becomes the name of the files.

    Returns:
        Paths of the private key ``SITE.key``, which stays at the site, and of the public key
        ``SITE.pub``, which goes to the operator of the server.

    Raises:
        ConfigurationError: the name is not usable, or the site has a key already.
    """
    if not _SITE_NAME.fullmatch(site):
        raise ConfigurationError(
            f"{site!r} is no name for a site; use up to 63 lower-case letters, digits, - and _"
        )
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP384R1())
    private = _write_private(
        folder / f"{site}.key",
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private, _write_public(folder / f"{site}.pub", public + b"\n")


def load_site_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a site's private key.

    Raises:
        ConfigurationError: the file is missing, readable by others, or no EC key.
    """
    return _load_private(path)


def load_public_keys(folder: Path) -> dict[str, ec.EllipticCurvePublicKey]:
    """Read the public keys of all sites, ``SITE.pub``, in order of names.

    Raises:
        ConfigurationError: there are none, or a file is no EC key or is named like no site.
    """
    keys: dict[str, ec.EllipticCurvePublicKey] = {}
    for path in sorted(folder.glob("*.pub")):
        try:
            key = serialization.load_ssh_public_key(_read(path))
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not _SITE_NAME.fullmatch(path.stem):
            raise ConfigurationError(
                f"{path.name} is not the public key of a site; ask the site for the .pub file "
                "that was made with its key, or remove this file"
            )
        keys[path.stem] = key
    if not keys:
        raise ConfigurationError(
            f"no public key of a site in the folder {folder.name!r}; "
            "put the SITE.pub file of every hospital there"
        )
    return keys


def require_private_mode(path: Path) -> None:
    """Refuse a private key that others than its owner can read or change.

    Raises:
        ConfigurationError: the file is missing or its mode is too wide; the message has the
            command that puts it right.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the private key {path.name}: {error.strerror}; check the path"
        ) from error
    _check_mode(path, mode)


def _check_mode(path: Path, mode: int) -> None:
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(
            f"others can read the private key {path.name} (mode {mode:04o}); "
            f"run: chmod 600 {path.name}"
        )


def _load_private(path: Path) -> ec.EllipticCurvePrivateKey:
    require_private_mode(path)
    with path.open("rb") as file:
        # Once more on the open file: the path may lead to another one by now.
        _check_mode(path, stat.S_IMODE(os.fstat(file.fileno()).st_mode))
        text = file.read()
    load = (
        serialization.load_ssh_private_key
        if b"OPENSSH PRIVATE KEY" in text
        else serialization.load_pem_private_key
    )
    try:
        key = load(text, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(
            f"{path.name} is not an EC private key without a password; make a new one"
        )
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path.name}: {error.strerror}") from error


def _write_private(path: Path, content: bytes) -> Path:
    return _write_new(path, content, 0o600)


def _write_public(path: Path, content: bytes) -> Path:
    return _write_new(path, content, 0o644)


def _write_new(path: Path, content: bytes, mode: int) -> Path:
    """Write a file that must not exist, with its final mode from the start."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{path.name} exists in the folder {path.parent.name!r} and is not written over; "
            "remove it, or choose another folder"
        ) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return path


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
