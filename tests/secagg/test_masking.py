"""Masks: the keystream against published values, masks that cancel, masked vectors uniform."""

from __future__ import annotations

import numpy as np
import pytest
from Crypto.Cipher import AES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from fedmed.errors import ProtocolError
from fedmed.secagg import masking
from fedmed.secagg.masking import derive, mask, mask_all

CHUNK = 2**18  # bytes, as in the module
keys = st.binary(min_size=32, max_size=32)
dtypes = st.sampled_from([np.uint16, np.uint32, np.uint64])


def reference(key, length):
    """The keystream from pycryptodome, another implementation."""
    return AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=0).encrypt(bytes(length))


def test_keystream_is_the_published_one():
    # AES-256 under the zero key, of counters 0, 1 and 2: the hash subkey H and the tag of test
    # case 13, and the ciphertext of test case 14, of the specification of GCM (McGrew and Viega).
    blocks = np.zeros(12, np.uint32)
    mask([blocks], bytes(32), subtract=False)
    assert blocks.tobytes().hex() == (
        "dc95c078a2408989ad48a21492842087"
        "530f8afbc74536b9a963b4f1c4cb738b"
        "cea7403d4d606b6e074ec5d3baf39d18"
    )


def test_cipher_is_that_of_sp_800_38a():
    # F.5.5, CTR-AES256: same construction, the standard's counter and first two blocks.
    key = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
    counter = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"
    text = "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    encryptor = Cipher(
        algorithms.AES(bytes.fromhex(key)), modes.CTR(bytes.fromhex(counter))
    ).encryptor()
    assert encryptor.update(bytes.fromhex(text)).hex() == (
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    )


@given(keys, st.lists(st.tuples(dtypes, st.integers(0, 40)), max_size=5))
@settings(max_examples=100, deadline=None)
def test_one_keystream_runs_on_over_all_vectors(key, layout):
    vectors = [np.zeros(size, dtype) for dtype, size in layout]
    mask(vectors, key, subtract=False)
    found = b"".join(vector.tobytes() for vector in vectors)
    assert found == reference(key, len(found))


@pytest.mark.parametrize("extra", [-1, 0, 1, 5])
def test_chunk_borders_leave_no_trace(extra):
    update = np.zeros(CHUNK // 4 * 2 + extra, np.uint32)
    counts = np.zeros(CHUNK // 8 + extra, np.uint64)
    mask([update, counts], bytes(range(32)), subtract=False)
    stream = reference(bytes(range(32)), update.nbytes + counts.nbytes)
    assert update.tobytes() + counts.tobytes() == stream
    # Disjoint parts: what masks the counts is found nowhere in what masks the update.
    assert counts[:2].tobytes() not in update.tobytes()


@given(
    st.integers(3, 7),
    st.sampled_from([np.uint16, np.uint32]),
    st.sampled_from([1, 13, CHUNK // 4 - 1, CHUNK // 2 + 1]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_pairwise_masks_cancel_in_the_sum(sites, dtype, size, seed):
    random = np.random.default_rng(seed)
    plain = [
        [
            random.integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True),
            random.integers(0, 2**64 - 1, 5, np.uint64, endpoint=True),
        ]
        for _ in range(sites)
    ]
    masked = [[vector.copy() for vector in vectors] for vectors in plain]
    pair = {(one, other): random.bytes(32) for other in range(sites) for one in range(other)}
    for site, vectors in enumerate(masked):
        added = [key for (one, _), key in pair.items() if one == site]
        subtracted = [key for (_, other), key in pair.items() if other == site]
        mask_all(vectors, added, subtracted)
        assert not np.array_equal(vectors[1], plain[site][1])
    for part in range(2):
        sums = [
            np.sum([v[part] for v in all_], axis=0, dtype=all_[0][part].dtype)
            for all_ in (plain, masked)
        ]
        assert np.array_equal(*sums)
    # The control: without one of the sites the masks do not cancel.
    assert not np.array_equal(
        np.sum([v[1] for v in masked[1:]], axis=0, dtype=np.uint64),
        np.sum([v[1] for v in plain[1:]], axis=0, dtype=np.uint64),
    )


@given(st.lists(keys, max_size=4), st.lists(keys, max_size=4), st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_many_masks_at_once_are_the_same_as_one_by_one(added, subtracted, size):
    together = [np.arange(size, dtype=np.uint32), np.arange(3, dtype=np.uint64)]
    one_by_one = [vector.copy() for vector in together]
    mask_all(together, added, subtracted)
    for key in added:
        mask(one_by_one, key, subtract=False)
    for key in subtracted:
        mask(one_by_one, key, subtract=True)
    for left, right in zip(together, one_by_one, strict=True):
        assert np.array_equal(left, right)


def test_what_was_added_can_be_taken_off():
    plain = np.arange(1000, dtype=np.uint16)
    masked = plain.copy()
    mask([masked], bytes(32), subtract=False)
    assert not np.array_equal(masked, plain)
    mask([masked], bytes(32), subtract=True)
    assert np.array_equal(masked, plain)


class BiasedStream:
    """A keystream with a planted bias: each 64th word is zero."""

    def __init__(self, stream):
        self.stream = stream

    def update_into(self, data, room):
        written = self.stream.update_into(data, room)
        np.frombuffer(room, np.uint32, written // 4)[::64] = 0
        return written


def uniformity(vector):
    """Smallest p value over the positions of the byte within a word."""
    columns = vector.view(np.uint8).reshape(-1, vector.itemsize)
    return min(chisquare(np.bincount(column, minlength=256)).pvalue for column in columns.T)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("content", [0, 1, 12345])
def test_masked_vectors_are_uniform(dtype, content, monkeypatch):
    # The keys are fixed, so that chance plays no part from run to run.
    def masked():
        vector = np.full(200_000, content, dtype)
        names = [("a", "b"), ("a", "c"), ("a", "d")]
        shared = [derive(bytes(32), "pairwise", "00", *pair) for pair in names]
        mask_all([vector], shared[:2], shared[2:])
        return vector

    assert uniformity(masked()) > 1e-4
    assert uniformity(np.full(200_000, content, dtype)) < 1e-9
    honest = masking.keystream
    monkeypatch.setattr(masking, "keystream", lambda key: BiasedStream(honest(key)))
    assert uniformity(masked()) < 1e-9


def test_masked_vector_does_not_correlate_with_the_update():
    update = (np.arange(200_000) % 1000).astype(np.uint32) * 2**20
    masked = update.copy()
    mask([masked], derive(bytes(32), "self", "00", "a"), subtract=False)
    correlation = np.corrcoef(update.astype(float), masked.astype(float))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(update.size)


def test_derived_keys_differ_in_every_field():
    secret = bytes(range(32))
    variants = {
        derive(secret, "pairwise", "00", "a", "b"),
        derive(secret[::-1], "pairwise", "00", "a", "b"),
        derive(secret, "self", "00", "a", "b"),
        derive(secret, "pairwise", "01", "a", "b"),
        derive(secret, "pairwise", "00", "b", "a"),
        derive(secret, "pairwise", "00", "ab"),
        derive(secret, "pairwise", "00", "a,b"),
        derive(secret, "pairwise", "00", 'a","b'),
        derive(secret, "pairwise", "00", "a"),
    }
    assert len(variants) == 9
    assert derive(secret, "self", "00", "a") == derive(secret, "self", "00", "a")


def test_derivation_is_hkdf_of_rfc_5869():
    from Crypto.Hash import SHA256
    from Crypto.Protocol.KDF import HKDF

    info = b'["fedmed mask key 1","pairwise","00","a","b"]'
    expected = HKDF(bytes(range(32)), 32, b"", SHA256, context=info)
    assert derive(bytes(range(32)), "pairwise", "00", "a", "b") == expected


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_keys_of_another_length_are_refused(length):
    vector = np.zeros(3, np.uint32)
    with pytest.raises(ProtocolError):
        mask_all([vector], [bytes(32), bytes(length)], [])
    assert not vector.any()
    with pytest.raises(ProtocolError):
        derive(bytes(length), "self", "00", "a")


def _read_only():
    vector = np.zeros(4, np.uint32)
    vector.flags.writeable = False
    return vector


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(4, np.int32),
        np.zeros(4, np.float32),
        np.zeros((2, 2), np.uint32),
        np.zeros(8, np.uint32)[::2],
        np.zeros(4, ">u4"),
        _read_only(),
    ],
)
def test_vectors_that_cannot_be_masked_in_place_are_refused(vector):
    good = np.zeros(4, np.uint32)
    with pytest.raises(ValueError, match="mask"):
        mask([good, vector], bytes(32), subtract=False)
    assert not good.any()
