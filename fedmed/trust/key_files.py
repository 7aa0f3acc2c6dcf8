"""Private keys in files: PKCS 8 in PEM, encrypted when there is a passphrase.

Encryption is PBES2 (RFC 8018) with AES-256-CBC, as ``openssl pkcs8`` reads it. The library's own
writer stretches the passphrase by 2,048 rounds only; a root key that lies in a safe for ten years
needs more.
"""

from __future__ import annotations

import base64
import secrets
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from fedmed.errors import ConfigurationError
from fedmed.trust.protected_files import PRIVATE, read_private, write_new

PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey

# OWASP password storage cheat sheet (2023) for PBKDF2-HMAC-SHA256; about 0.2 s.
ROUNDS = 600_000
_PBES2 = "1.2.840.113549.1.5.13"
_PBKDF2 = "1.2.840.113549.1.5.12"
_HMAC_SHA256 = "1.2.840.113549.2.9"
_AES_256_CBC = "2.16.840.1.101.3.4.1.42"
_BLOCK_BITS = 128


def write_private_key(path: Path, key: PrivateKey, passphrase: bytes | None) -> None:
    """Write a new key with mode 0600.

    Args:
        path: must not exist.
        key: to write.
        passphrase: None leaves the key unencrypted.

    Raises:
        ConfigurationError: the file exists, or cannot be written.
    """
    write_new(path, private_key_pem(key, passphrase), PRIVATE)


def private_key_pem(key: PrivateKey, passphrase: bytes | None) -> bytes:
    """Return a key as PKCS 8 in PEM, encrypted when there is a passphrase."""
    der = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    if passphrase is None:
        return _pem("PRIVATE KEY", der)
    return _pem("ENCRYPTED PRIVATE KEY", _encrypted(der, passphrase))


def load_ec_key(path: Path, passphrase: bytes | None) -> EllipticCurvePrivateKey:
    """Read an EC private key that only its owner can read.

    Args:
        path: PEM file.
        passphrase: ignored when the key is not encrypted.

    Raises:
        ConfigurationError: missing, readable by others, of another kind, or the passphrase is
            missing or wrong.
    """
    key = _load(path, passphrase)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path.name} is no private key of an elliptic curve (ECDSA)")
    return key


def load_ed25519_key(path: Path, passphrase: bytes | None) -> Ed25519PrivateKey:
    """Read an Ed25519 private key that only its owner can read.

    Args:
        path: PEM file.
        passphrase: ignored when the key is not encrypted.

    Raises:
        ConfigurationError: see :func:`load_ec_key`.
    """
    key = _load(path, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path.name} is no Ed25519 private key")
    return key


def is_encrypted(pem: bytes) -> bool:
    """Tell whether a PEM file holds an encrypted PKCS 8 key."""
    return b"BEGIN ENCRYPTED PRIVATE KEY" in pem


def _load(path: Path, passphrase: bytes | None) -> object:
    text = read_private(path)
    encrypted = is_encrypted(text)
    if encrypted and passphrase is None:
        raise ConfigurationError(
            f"{path.name} is encrypted: set FEDMED_PASSPHRASE_FILE to a file that holds its "
            "passphrase (mode 0600), or FEDMED_PASSPHRASE"
        )
    try:
        return serialization.load_pem_private_key(text, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = "the passphrase is wrong, or the file is damaged" if encrypted else "no PEM key"
        raise ConfigurationError(f"cannot use the private key {path.name}: {reason}") from error


def _encrypted(plain: bytes, passphrase: bytes) -> bytes:
    """Return EncryptedPrivateKeyInfo (RFC 5958, section 3) in DER."""
    salt, vector = secrets.token_bytes(16), secrets.token_bytes(16)
    key = PBKDF2HMAC(hashes.SHA256(), 32, salt, ROUNDS).derive(passphrase)
    padder = padding.PKCS7(_BLOCK_BITS).padder()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(vector)).encryptor()
    padded = padder.update(plain) + padder.finalize()
    secret = encryptor.update(padded) + encryptor.finalize()
    stretching = _sequence(
        _identifier(_PBKDF2),
        _sequence(
            _octets(salt),
            _integer(ROUNDS),
            _sequence(_identifier(_HMAC_SHA256), _element(0x05, b"")),
        ),
    )
    cipher = _sequence(_identifier(_AES_256_CBC), _octets(vector))
    scheme = _sequence(_identifier(_PBES2), _sequence(stretching, cipher))
    return _sequence(scheme, _octets(secret))


def _pem(label: str, der: bytes) -> bytes:
    text = base64.b64encode(der).decode()
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def _element(tag: int, content: bytes) -> bytes:
    """One DER element (X.690, 8.1): tag, definite length, content."""
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _sequence(*elements: bytes) -> bytes:
    return _element(0x30, b"".join(elements))


def _octets(content: bytes) -> bytes:
    return _element(0x04, content)


def _integer(value: int) -> bytes:
    return _element(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _identifier(dotted: str) -> bytes:
    first, second, *rest = (int(number) for number in dotted.split("."))
    content = bytearray([40 * first + second])
    for number in rest:
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(0x80 | number & 0x7F)
        content += bytes(reversed(digits))
    return _element(0x06, bytes(content))
