"""The files of a member: its keys, its certificates, and what the root has published."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedmed.trust.key_files import load_ec_key, load_ed25519_key
from fedmed.trust.publication import CRL, ROOT, ROSTER

TLS_KEY = "tls.key"
TLS_CERTIFICATE = "tls.crt"
SIGNING_KEY = "signing.key"
SIGNING_CERTIFICATE = "signing.crt"
REQUEST = "request.json"
NEXT = "next"
"""Folder of the keys that replace the present ones once their certificates are installed."""

__all__ = [
    "CRL",
    "NEXT",
    "REQUEST",
    "ROOT",
    "ROSTER",
    "SIGNING_CERTIFICATE",
    "SIGNING_KEY",
    "TLS_CERTIFICATE",
    "TLS_KEY",
    "load_signing_key",
    "load_tls_key",
]


def load_tls_key(folder: Path, passphrase: bytes | None) -> EllipticCurvePrivateKey:
    """Read a member's TLS key.

    Raises:
        ConfigurationError: see :func:`fedmed.trust.key_files.load_ec_key`.
    """
    return load_ec_key(folder / TLS_KEY, passphrase)


def load_signing_key(folder: Path, passphrase: bytes | None) -> Ed25519PrivateKey:
    """Read a member's signing key.

    Raises:
        ConfigurationError: see :func:`fedmed.trust.key_files.load_ec_key`.
    """
    return load_ed25519_key(folder / SIGNING_KEY, passphrase)
