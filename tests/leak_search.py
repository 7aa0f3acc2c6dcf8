"""Looks for secrets in recorded bytes: as they are, spelt in other ways, packed, preprocessed."""

from __future__ import annotations

import base64
import binascii
import io
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_PREFIX = 8
_DEPTH = 3
_MOST = 64 * 2**20
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{16,}={0,2}|[A-Za-z0-9_-]{16,}={0,2}")
_HEX = re.compile(rb"(?:[0-9a-f]{2}){8,}|(?:[0-9A-F]{2}){8,}")
_ZLIB = re.compile(rb"\x78[\x01\x5e\x9c\xda]")
_LOCAL_FILE = struct.Struct("<4s5H3I2H")
_WINDOW = 8
"""Pixels of a row that are looked for; a leak of fewer is not found."""


def spellings(secret: bytes) -> set[bytes]:
    """Return a text or some bytes in the spellings in which they may travel."""
    found = {secret, secret[::-1], secret.hex().encode(), secret.hex().upper().encode()}
    for offset in range(3):
        # What stands before shifts the letters; those that depend on neighbours are left off.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(bytes(offset) + secret)
            found.add(text[(0, 2, 3)[offset] : len(text) - 4])
    try:
        text = secret.decode("ascii")
    except UnicodeDecodeError:
        return found
    return found | {text.encode("utf-16-le"), text.encode("utf-16-be"), text.encode("utf-32-le")}


def row_windows(images: NDArray[np.float32]) -> Iterator[bytes]:
    """Yield a stretch of each row of preprocessed images ``[n, c, h, w]``, as it may be stored.

    Rows that are nearly constant tell nothing and would be found by chance.
    """
    for row in images.reshape(-1, images.shape[-1]):
        steps = np.lib.stride_tricks.sliding_window_view(row, _WINDOW)
        bytes_of = np.rint(np.clip(steps, 0, 1) * 255).astype(np.uint8)
        distinct = np.array([len(set(window.tobytes())) for window in bytes_of])
        best = int(distinct.argmax())
        if distinct[best] < _WINDOW - 1:
            continue
        window = steps[best]
        for dtype in ("<f4", ">f4", "<f8", "<f2"):
            yield window.astype(dtype).tobytes()
        yield bytes_of[best].tobytes()


class LeakSearch:
    """Finds any of many needles.

    Args:
        secrets: bytes of at least 8, by a name that says what they are.
    """

    def __init__(self, secrets: Mapping[str, Iterable[bytes]]) -> None:
        self._needles: dict[int, list[tuple[bytes, str]]] = {}
        for name, needles in secrets.items():
            for needle in needles:
                if len(needle) < _PREFIX:
                    raise ValueError(f"a needle of {name} is too short")
                key = int.from_bytes(needle[:_PREFIX], "little")
                self._needles.setdefault(key, []).append((needle, name))
        self._keys = np.array(sorted(self._needles), np.uint64)

    def __len__(self) -> int:
        return sum(len(found) for found in self._needles.values())

    def found_in(self, data: bytes) -> set[str]:
        """Return the names of what is in the data, also after it is unpacked."""
        found: set[str] = set()
        for layer in unpacked(data):
            found |= self._in_layer(layer)
        return found

    def _in_layer(self, data: bytes) -> set[str]:
        found = set()
        for start in range(_PREFIX):
            count = (len(data) - start) // _PREFIX
            if count <= 0:
                break
            words = np.frombuffer(data, "<u8", count, start)
            places = np.searchsorted(self._keys, words)
            hits = self._keys[np.minimum(places, len(self._keys) - 1)] == words
            for index in np.flatnonzero(hits):
                at = start + int(index) * _PREFIX
                for needle, name in self._needles[int(words[index])]:
                    if data.startswith(needle, at):
                        found.add(name)
        return found


def unpacked(data: bytes, depth: int = _DEPTH) -> Iterator[bytes]:
    """Yield the data and whatever can be unpacked from them."""
    yield data
    if depth == 0:
        return
    for inner in _packed_in(data):
        yield from unpacked(inner, depth - 1)


def _packed_in(data: bytes) -> Iterator[bytes]:
    for match in _ZLIB.finditer(data):
        yield from _decompressed(data[match.start() :], zlib.MAX_WBITS)
    for match in re.finditer(rb"\x1f\x8b\x08", data):
        yield from _decompressed(data[match.start() :], zlib.MAX_WBITS | 16)
    for match in re.finditer(rb"PK\x03\x04", data):
        head = data[match.start() : match.start() + _LOCAL_FILE.size]
        if len(head) == _LOCAL_FILE.size:
            *_, name, extra = _LOCAL_FILE.unpack(head)
            begin = match.start() + _LOCAL_FILE.size + name + extra
            yield from _decompressed(data[begin:], -zlib.MAX_WBITS)
    for match in re.finditer(rb"\x89PNG\r\n\x1a\n", data):
        try:
            yield Image.open(io.BytesIO(data[match.start() :])).tobytes()
        except (OSError, SyntaxError, ValueError):
            continue
    decoded = []
    for match in _BASE64.finditer(data):
        text = match.group().rstrip(b"=")
        for offset in range(4):  # it may follow letters that do not belong to it
            try:
                padded = text[offset:] + b"=" * (-len(text[offset:]) % 4)
                decoded.append(
                    base64.b64decode(padded, b"-_" if b"-" in text or b"_" in text else None)
                )
            except binascii.Error:
                continue
    for match in _HEX.finditer(data):
        decoded.append(bytes.fromhex(match.group().decode()))
    if decoded:
        yield b"\xff\x00".join(decoded)


def _decompressed(data: bytes, bits: int) -> Iterator[bytes]:
    try:
        found = zlib.decompressobj(bits).decompress(data, _MOST)
    except zlib.error:
        # What came out before it broke off is lost; whole streams are what is looked for.
        return
    if len(found) >= _PREFIX:
        yield found
