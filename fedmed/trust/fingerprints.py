"""Fingerprints that two people compare over the phone."""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedmed.errors import TrustError

# 96 bits: whoever wants another file with the same fingerprint must try 2^96 of them.
_DIGITS = 24
_GROUP = 4


def fingerprint(data: bytes) -> str:
    """Return the first 96 bits of SHA-256 as six groups of four digits: ``3F2A-91C0-...``."""
    digits = hashlib.sha256(data).hexdigest()[:_DIGITS].upper()
    return "-".join(digits[start : start + _GROUP] for start in range(0, _DIGITS, _GROUP))


def root_fingerprint(root: x509.Certificate) -> str:
    """Return the fingerprint of a root certificate (over its DER bytes)."""
    return fingerprint(root.public_bytes(Encoding.DER))


def require_fingerprint(said: str, actual: str, what: str) -> None:
    """Compare what was read over the phone with what lies here; case and separators do not count.

    Raises:
        TrustError: they differ.
    """
    digits = "".join(character for character in said.upper() if character not in " -:.\t\n")
    if digits != actual.replace("-", ""):
        raise TrustError(
            f"The fingerprint given is not that of {what}, which is {actual}. Call the other side "
            "on a number you know. If what they read differs from that, the file was swapped on "
            "its way: do not use it."
        )
