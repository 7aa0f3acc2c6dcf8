"""How certificates and lists from outside are found to be not well formed."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

MALFORMED = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.AttributeNotFound,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises."""


def whole_octets(signed: x509.Certificate | x509.CertificateRevocationList) -> bool:
    """Tell whether the signature, a bit string at the end, has no unused bits (X.690, 8.6.2.2).

    OpenSSL and ``cryptography`` take a count of 1 where the last bit is 0: the one bit outside of
    what is signed that could be changed unseen.
    """
    return signed.public_bytes(Encoding.DER)[-len(signed.signature) - 1] == 0
