"""A site's two secrets of one attempt, and how they are dealt among the cohort in sealed boxes.

Each site shares the seed of its self mask and its private mask key separately, with the same
threshold. It signs a commitment to every single share, so that a wrong share is seen where it
turns up, and it is known whose it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from fedmed.errors import ProtocolError
from fedmed.secagg.keys import SEALING_OVERHEAD, EncryptionKeys, seal_box
from fedmed.secagg.quorum import threshold
from fedmed.secagg.shamir import SHARE_BYTES, split

SEED_BYTES = 32
BOX_BYTES = 2 * SHARE_BYTES + SEALING_OVERHEAD


@dataclass(frozen=True)
class SharePair:
    """What one site holds of another one's secrets.

    Attributes:
        seed: share of the seed of the self mask.
        mask_key: share of the private mask key.
    """

    seed: bytes
    mask_key: bytes


def deal(seed: bytes, mask_key: bytes, cohort: Sequence[str]) -> dict[str, SharePair]:
    """Split both secrets, 32 bytes each, among a cohort (itself included).

    Args:
        seed: of the self mask.
        mask_key: private.
        cohort: sorted names; a site's index is its position, from 1.
    """
    indices = range(1, len(cohort) + 1)
    seeds = split(seed, indices, threshold(len(cohort)))
    keys = split(mask_key, indices, threshold(len(cohort)))
    return {
        name: SharePair(seeds[index], keys[index])
        for index, name in zip(indices, cohort, strict=True)
    }


def seed_commitment(context: str, dealer: str, seed: bytes) -> bytes:
    """Return the SHA-256 that binds a site to its seed; the seed is 256 random bits."""
    return _commitment("seed", context, dealer, "", seed)


def seed_share_commitment(context: str, dealer: str, holder: str, share: bytes) -> bytes:
    """Return the SHA-256 that binds a dealer to one share of its seed."""
    return _commitment("seed share", context, dealer, holder, share)


def key_share_commitment(context: str, dealer: str, holder: str, share: bytes) -> bytes:
    """Return the SHA-256 that binds a dealer to one share of its mask key."""
    return _commitment("mask key share", context, dealer, holder, share)


def close_box(
    encryption_key: bytes, context: str, dealer: str, holder: str, shares: SharePair
) -> bytes:
    """Seal a pair of shares to the site that shall hold it, 1202 bytes.

    Raises:
        ProtocolError: if the holder's encryption key cannot be used.
    """
    info = _box_info(context, dealer, holder)
    return seal_box(encryption_key, shares.seed + shares.mask_key, info)


def open_box(keys: EncryptionKeys, context: str, dealer: str, holder: str, box: bytes) -> SharePair:
    """Open a box that ``dealer`` sealed to ``holder``.

    Raises:
        ProtocolError: if it was sealed by, to or for another one.
    """
    try:
        plaintext = keys.open(box, _box_info(context, dealer, holder))
    except ProtocolError as error:
        raise ProtocolError(f"The sealed box of {dealer!r} does not open.") from error
    if len(plaintext) != 2 * SHARE_BYTES:
        raise ProtocolError(f"The sealed box of {dealer!r} holds no pair of shares.")
    return SharePair(plaintext[:SHARE_BYTES], plaintext[SHARE_BYTES:])


def _box_info(context: str, dealer: str, holder: str) -> bytes:
    return _joined("box", context, dealer, holder)


def _commitment(label: str, context: str, dealer: str, holder: str, secret: bytes) -> bytes:
    return hashlib.sha256(_joined(label, context, dealer, holder) + secret).digest()


def _joined(*texts: str) -> bytes:
    # A context is hex and names hold no zero byte, so no two lists of texts look the same.
    return b"fedmed secagg 1\0" + b"".join(text.encode() + b"\0" for text in texts)
