"""The Merkle tree against published vectors and a naive tree."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmed.errors import ProtocolError
from fedmed.trust.audit.merkle import (
    EMPTY_ROOT,
    MAX_PROOF_NODES,
    MerkleTree,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

# Test vectors of the certificate-transparency reference implementation (transparency-dev/merkle,
# testonly/constants.go): leaves, roots of the first 1..8, and proofs.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
    (6, 7): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
MOST = 64


def tree_of(leaves):
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf_hash(leaf))
    return tree


def naive_root(leaves):
    """MTH of RFC 6962, section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(m, leaves):
    """PATH of RFC 6962, section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_proof(m, leaves, known=True):
    """SUBPROOF of RFC 6962, section 2.1.2."""
    if m == len(leaves):
        return [] if known else [naive_root(leaves)]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m <= k:
        return [*naive_proof(m, leaves[:k], known), naive_root(leaves[k:])]
    return [*naive_proof(m - k, leaves[k:], False), naive_root(leaves[:k])]


BIG = [str(number).encode() for number in range(MOST)]
BIG_TREE = tree_of(BIG)


@pytest.mark.parametrize("size", range(9))
def test_published_roots(size):
    assert tree_of(LEAVES[:size]).root().hex() == ROOTS[size]
    assert tree_of(LEAVES).root(size).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_published_inclusion_proofs(index, size):
    proof = tree_of(LEAVES).inclusion(index, size)
    assert [node.hex() for node in proof] == INCLUSION[index, size]
    verify_inclusion(leaf_hash(LEAVES[index]), index, size, proof, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("old", "size"), CONSISTENCY)
def test_published_consistency_proofs(old, size):
    proof = tree_of(LEAVES).consistency(old, size)
    assert [node.hex() for node in proof] == CONSISTENCY[old, size]
    verify_consistency(old, bytes.fromhex(ROOTS[old]), size, bytes.fromhex(ROOTS[size]), proof)


def test_all_roots_and_proofs_up_to_64_leaves_are_those_of_the_naive_tree():
    for size in range(1, MOST + 1):
        root = naive_root(BIG[:size])
        assert BIG_TREE.root(size) == root
        for index in range(size):
            path = BIG_TREE.inclusion(index, size)
            assert path == naive_path(index, BIG[:size])
            verify_inclusion(leaf_hash(BIG[index]), index, size, path, root)
        for old in range(1, size + 1):
            proof = BIG_TREE.consistency(old, size)
            assert proof == naive_proof(old, BIG[:size])
            verify_consistency(old, BIG_TREE.root(old), size, root, proof)
        verify_consistency(0, EMPTY_ROOT, size, root, BIG_TREE.consistency(0, size))


@st.composite
def sizes(draw):
    size = draw(st.integers(2, MOST))
    return draw(st.integers(1, size - 1)), size


@given(sizes(), st.data())
def test_a_changed_consistency_proof_is_refused(pair, data):
    old, size = pair
    old_root, root = BIG_TREE.root(old), BIG_TREE.root(size)
    proof = BIG_TREE.consistency(old, size)
    # Not the sizes: a root alone does not tell them, which is why checkpoints sign both.
    change = data.draw(st.sampled_from(["old root", "root", "node", "less", "more"]))
    flipped = data.draw(st.integers(0, 255))

    def flip(digest):
        changed = bytearray(digest)
        changed[flipped // 8] ^= 1 << flipped % 8
        return bytes(changed)

    if change == "old root":
        old_root = flip(old_root)
    elif change == "root":
        root = flip(root)
    elif change == "node":
        at = data.draw(st.integers(0, len(proof) - 1))
        proof[at] = flip(proof[at])
    elif change == "less":
        proof.pop(data.draw(st.integers(0, len(proof) - 1)))
    else:
        proof.insert(data.draw(st.integers(0, len(proof))), bytes(32))
    with pytest.raises(ProtocolError):
        verify_consistency(old, old_root, size, root, proof)


@given(st.integers(1, MOST), st.data())
def test_a_changed_inclusion_proof_is_refused(size, data):
    index = data.draw(st.integers(0, size - 1))
    leaf, root, path = leaf_hash(BIG[index]), BIG_TREE.root(size), BIG_TREE.inclusion(index, size)
    change = data.draw(st.sampled_from(["leaf", "root", "node", "less", "more", "index"]))
    if change == "leaf":
        leaf = leaf_hash(b"another")
    elif change == "root":
        root = node_hash(root, root)
    elif change == "more":
        path.append(bytes(32))
    elif change == "index":
        index = data.draw(st.integers(-1, MOST).filter(lambda other: other != index))
    elif path:
        at = data.draw(st.integers(0, len(path) - 1))
        path[at : at + 1] = [bytes(32)] if change == "node" else []
    else:
        root = bytes(32)
    with pytest.raises(ProtocolError):
        verify_inclusion(leaf, index, size, path, root)


@given(sizes())
def test_a_fork_has_no_proof(pair):
    old, size = pair
    fork = tree_of([*BIG[: old - 1], b"rewritten", *BIG[old:size]])
    with pytest.raises(ProtocolError, match="two histories"):
        verify_consistency(old, BIG_TREE.root(old), size, fork.root(), fork.consistency(old, size))


def test_a_smaller_tree_is_refused():
    with pytest.raises(ProtocolError, match="shrunk from 5 leaves to 4"):
        verify_consistency(5, BIG_TREE.root(5), 4, BIG_TREE.root(4), [])


@pytest.mark.parametrize("proof", [[b"short"], [bytes(32)] * (MAX_PROOF_NODES + 1)])
def test_a_proof_that_is_none_is_refused(proof):
    with pytest.raises(ProtocolError, match="short list of SHA-256"):
        verify_consistency(1, BIG_TREE.root(1), 2, BIG_TREE.root(2), proof)


def test_there_is_no_root_or_proof_beyond_the_tree():
    tree = tree_of(LEAVES)
    for ask in (
        lambda: tree.root(9),
        lambda: tree.inclusion(8, 8),
        lambda: tree.inclusion(0, 9),
        lambda: tree.consistency(9),
        lambda: tree.consistency(-1),
    ):
        with pytest.raises(ProtocolError, match="The log has no"):
            ask()
