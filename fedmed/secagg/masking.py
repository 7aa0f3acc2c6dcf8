"""Masks that cancel in the sum: an AES-256-CTR keystream added to, or taken from, a ring.

One key makes one keystream (NIST SP 800-38A, section 6.5, counter from zero), which runs on over
all vectors of a message: each gets bytes of its own. A key is derived for one context and one pair
of names and used for one message, so no keystream byte ever masks two values.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedmed.errors import ProtocolError
from fedmed.trust.canonical import canonical_json

KEY_BYTES: Final = 32
_CHUNK_BYTES: Final = 2**18
_BLOCK_BYTES: Final = 16
_PROTOCOL: Final = "fedmed mask key 1"

Vector = npt.NDArray[np.unsignedinteger[Any]]


def derive(secret: bytes, label: str, context: str, *names: str) -> bytes:
    """Return a key for one use: HKDF-SHA256 (RFC 5869) without salt.

    The info field is canonical JSON of protocol, label, context and names; no two uses share it.

    Args:
        secret: what the key comes from: a shared X25519 secret or a random seed, 32 bytes.
        label: the use, such as ``pairwise``.
        context: hex SHA-256 of the round's context.
        names: whom the key is for, in the order that both sides agree on.

    Returns:
        32 bytes.

    Raises:
        ProtocolError: if the secret is not 32 bytes.
    """
    if len(secret) != KEY_BYTES:
        raise ProtocolError(f"A secret that keys come from has {KEY_BYTES} bytes.")
    info = canonical_json([_PROTOCOL, label, context, *names])
    return HKDF(hashes.SHA256(), KEY_BYTES, None, info).derive(secret)


def keystream(key: bytes) -> CipherContext:
    """Return AES-256-CTR with the counter at zero: zeros put in, keystream comes out.

    Raises:
        ProtocolError: if the key is not 32 bytes.
    """
    if len(key) != KEY_BYTES:
        raise ProtocolError(f"The key of a mask has {KEY_BYTES} bytes.")
    return Cipher(algorithms.AES(key), modes.CTR(bytes(_BLOCK_BYTES))).encryptor()


def mask(vectors: Sequence[Vector], key: bytes, *, subtract: bool) -> None:
    """Add one mask to the vectors in place, or take it off; see :func:`mask_all`."""
    mask_all(vectors, *(((), (key,)) if subtract else ((key,), ())))


def mask_all(
    vectors: Sequence[Vector], added: Sequence[bytes], subtracted: Sequence[bytes]
) -> None:
    """Add and subtract masks in place, modulo 2 to the width of each vector.

    The masks are applied chunk by chunk, so that a chunk stays in the cache for all of them: many
    masks in one call are quicker than as many calls, and the result is the same.

    Args:
        vectors: one-dimensional, contiguous, little-endian, unsigned; the keystream runs over
            their bytes in this order.
        added: keys of the masks to add, 32 bytes each.
        subtracted: keys of the masks to take off.

    Raises:
        ProtocolError: if a key has another length; nothing was changed.
        ValueError: if a vector is of another kind; nothing was changed.
    """
    for vector in vectors:
        _check(vector)
    streams: list[tuple[CipherContext, np.ufunc]] = [(keystream(key), np.add) for key in added]
    streams += [(keystream(key), np.subtract) for key in subtracted]
    zeros = memoryview(bytes(_CHUNK_BYTES))
    # ``update_into`` asks for room for one block more, less a byte.
    buffer = np.empty(_CHUNK_BYTES + _BLOCK_BYTES, np.uint8)
    room = buffer.data
    for vector in vectors:
        step = _CHUNK_BYTES // vector.itemsize
        whole = buffer[:_CHUNK_BYTES].view(vector.dtype)
        for start in range(0, vector.size, step):
            chunk = vector[start : start + step]
            source, words = zeros[: chunk.nbytes], whole[: chunk.size]
            for stream, operation in streams:
                stream.update_into(source, room)
                operation(chunk, words, out=chunk)


def _check(vector: Vector) -> None:
    """Refuse what cannot be masked in place, or whose bytes would depend on the machine."""
    if (
        vector.dtype.kind != "u"
        or vector.ndim != 1
        or not vector.flags.c_contiguous
        or not vector.flags.writeable
        or _is_big_endian(vector.dtype)
    ):
        raise ValueError(
            "a mask needs a contiguous, writable, little-endian vector of unsigned integers"
        )


def _is_big_endian(dtype: np.dtype[Any]) -> bool:
    order = sys.byteorder if dtype.byteorder == "=" else dtype.byteorder
    return order in {">", "big"}
