"""The Merkle tree of RFC 6962, section 2.1: roots, proofs, and how they are checked.

The proofs are checked by the algorithms of RFC 9162, sections 2.1.3.2 and 2.1.4.2; both documents
describe the same tree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fedmed.errors import ProtocolError

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
# More than a tree of 2^63 leaves needs; longer proofs are not looked at.
MAX_PROOF_NODES = 128


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf, 32 bytes: SHA-256 over 0x00 and its bytes."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node, 32 bytes: SHA-256 over 0x01 and its children's hashes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """A tree that grows at its end and knows the root and the proofs of every earlier size.

    It keeps the hashes of all complete subtrees, 64 bytes a leaf; a leaf costs O(1) on average, a
    root or a proof O(log² n) at most.
    """

    def __init__(self) -> None:
        # _levels[k][i] is the root of the leaves i·2^k to (i+1)·2^k.
        self._levels: list[list[bytes]] = [[]]

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Add the hash of a leaf (see :func:`leaf_hash`) at the end."""
        self._levels[0].append(leaf)
        level = 0
        while len(self._levels[level]) % 2 == 0:
            if level + 1 == len(self._levels):
                self._levels.append([])
            left, right = self._levels[level][-2:]
            self._levels[level + 1].append(node_hash(left, right))
            level += 1

    def root(self, size: int | None = None) -> bytes:
        """Return the root, 32 bytes, of the first ``size`` leaves (None: all).

        Raises:
            ProtocolError: if there are not so many leaves.
        """
        size = self._checked(self.size if size is None else size)
        return self._subtree(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """Return the audit path of leaf ``index`` in the tree of the first ``size`` leaves.

        Raises:
            ProtocolError: if there are not so many leaves, or the index is not below ``size``.
        """
        size = self._checked(self.size if size is None else size)
        if not 0 <= index < size:
            raise ProtocolError(f"The log has no leaf {index} among its first {size}.")
        path: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                path.append(self._subtree(middle, end))
                end = middle
            else:
                path.append(self._subtree(start, middle))
                start = middle
        return path[::-1]

    def consistency(self, old_size: int, size: int | None = None) -> list[bytes]:
        """Return the proof that the first ``old_size`` leaves are a prefix of the first ``size``.

        It is empty for an empty old tree and for one of the same size.

        Raises:
            ProtocolError: if there are not so many leaves.
        """
        size = self._checked(self.size if size is None else size)
        if not 0 <= old_size <= size:
            raise ProtocolError(f"The log has no {old_size} leaves; it has {size}.")
        if old_size in (0, size):
            return []
        proof: list[bytes] = []
        start, end, known = 0, size, True
        while end != old_size:
            middle = start + _split(end - start)
            if old_size <= middle:
                proof.append(self._subtree(middle, end))
                end = middle
            else:
                proof.append(self._subtree(start, middle))
                start, known = middle, False
        if not known:
            proof.append(self._subtree(start, end))
        return proof[::-1]

    def _checked(self, size: int) -> int:
        if not 0 <= size <= self.size:
            raise ProtocolError(f"The log has no {size} leaves; it has {self.size}.")
        return size

    def _subtree(self, start: int, end: int) -> bytes:
        """Return the root of leaves ``start`` to ``end``; ``start`` is a multiple of a full one."""
        count = end - start
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            return self._levels[level][start >> level]
        middle = start + _split(count)
        return node_hash(self._subtree(start, middle), self._subtree(middle, end))


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that a leaf's hash is leaf ``index`` of a tree (RFC 9162, section 2.1.3.2).

    Raises:
        ProtocolError: if the proof does not hold.
    """
    _check_nodes(proof)
    held = 0 <= index < size
    position, last, found = index, size - 1, leaf
    for node in proof if held else ():
        if last == 0:
            held = False
            break
        if position & 1 or position == last:
            found = node_hash(node, found)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            found = node_hash(found, node)
        position, last = position >> 1, last >> 1
    if not held or last != 0 or found != root:
        raise ProtocolError(f"The proof that leaf {index} is in the log does not hold.")


def verify_consistency(
    old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that a tree is another one with leaves added (RFC 9162, section 2.1.4.2).

    Raises:
        ProtocolError: if the proof does not hold, or the new tree is smaller.
    """
    _check_nodes(proof)
    if not 0 <= old_size <= size:
        raise ProtocolError(f"The log has shrunk from {old_size} leaves to {size}.")
    if old_size in (0, size):
        expected = EMPTY_ROOT if old_size == 0 else root
        if proof or old_root != expected or (size == 0 and root != EMPTY_ROOT):
            raise _inconsistent(old_size, size)
        return
    # A complete old tree is itself the first node of the proof, and is left out of it.
    nodes = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    if not nodes:
        raise _inconsistent(old_size, size)
    position, last = old_size - 1, size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old = new = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            raise _inconsistent(old_size, size)
        if position & 1 or position == last:
            old, new = node_hash(node, old), node_hash(node, new)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            new = node_hash(new, node)
        position, last = position >> 1, last >> 1
    if last != 0 or old != old_root or new != root:
        raise _inconsistent(old_size, size)


def _split(count: int) -> int:
    """Return the largest power of two below ``count``, at which RFC 6962 splits a tree."""
    return 1 << ((count - 1).bit_length() - 1)


def _check_nodes(proof: Sequence[bytes]) -> None:
    if len(proof) > MAX_PROOF_NODES or any(len(node) != HASH_BYTES for node in proof):
        raise ProtocolError("A proof about the log is not a short list of SHA-256 hashes.")


def _inconsistent(old_size: int, size: int) -> ProtocolError:
    return ProtocolError(
        f"The log of {size} leaves does not begin with the log of {old_size} leaves seen before: "
        "the server shows two histories."
    )
