"""What the server does with revealed shares: check each, put secrets together, take masks off."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedmed.errors import ProtocolError
from fedmed.secagg.dealing import key_share_commitment, seed_commitment, seed_share_commitment
from fedmed.secagg.keys import MaskKey
from fedmed.secagg.masking import derive, mask_all
from fedmed.secagg.messages import Prepared, Revealed
from fedmed.secagg.shamir import combine

Vector = npt.NDArray[np.unsignedinteger]

# A share that its dealer committed to is wrong only if the dealer cheats; some further subsets
# are tried, so that one wrong share dealt does not spoil the round.
_MAX_SUBSETS = 128


@dataclass(frozen=True)
class Sharing:
    """How secrets were shared.

    Attributes:
        context: hex SHA-256 of the attempt.
        cohort: sorted; a site's index is its position, from 1.
        threshold: shares that make a secret.
        survivors: sorted names.
    """

    context: str
    cohort: tuple[str, ...]
    threshold: int
    survivors: tuple[str, ...]


@dataclass(frozen=True)
class Opened:
    """Secrets that were put together.

    Attributes:
        seeds: of the survivors.
        mask_keys: of the others that make masks.
        failed: sites whose secret could not be put together.
        suspects: sites that dealt a wrong share.
    """

    seeds: Mapping[str, bytes]
    mask_keys: Mapping[str, MaskKey]
    failed: frozenset[str]
    suspects: frozenset[str]


@dataclass(frozen=True)
class Sums:
    """What one secure aggregation gives.

    Attributes:
        update: uint32 or uint16 (p,), sum of the survivors' quantised updates in the ring.
        counts: uint64 (k,), sum of their counts.
        sharers: sites that made masks, sorted.
        survivors: sites in the sum, sorted.
        masked: each survivor's signed envelope of step 2.
        confirmed: signed envelopes of step 3, at least t of them.
        suspects: sites that gave wrong shares; the sum is exact all the same.
    """

    update: Vector
    counts: Vector
    sharers: tuple[str, ...]
    survivors: tuple[str, ...]
    masked: Mapping[str, bytes]
    confirmed: Mapping[str, bytes]
    suspects: tuple[str, ...]


def check_revealed(
    context: str, holder: str, revealed: Revealed, dealers: Mapping[str, Prepared]
) -> None:
    """Hold a site's shares against the commitments of those who dealt them.

    Raises:
        ProtocolError: if one differs.
    """
    for dealer, share in revealed.seeds.items():
        expected = dealers[dealer].seed_shares[holder]
        if seed_share_commitment(context, dealer, holder, share) != expected:
            raise ProtocolError(f"A share that {holder!r} revealed is not the one it was dealt.")
    for dealer, share in revealed.mask_keys.items():
        expected = dealers[dealer].key_shares[holder]
        if key_share_commitment(context, dealer, holder, share) != expected:
            raise ProtocolError(f"A share that {holder!r} revealed is not the one it was dealt.")


def open_secrets(
    sharing: Sharing, dealers: Mapping[str, Prepared], revealed: Mapping[str, Revealed]
) -> Opened:
    """Put together the seeds of the survivors and the mask keys of the others.

    Args:
        sharing: how they were shared.
        dealers: step-1 message of each site that makes masks.
        revealed: checked shares, by holder; at least t.
    """
    index = {name: place for place, name in enumerate(sharing.cohort, start=1)}
    seeds: dict[str, bytes] = {}
    mask_keys: dict[str, MaskKey] = {}
    failed, suspects = set(), set()
    for name, dealer in dealers.items():
        alive = name in sharing.survivors
        shares = {
            index[holder]: (body.seeds if alive else body.mask_keys)[name]
            for holder, body in revealed.items()
        }
        for tried, secret in enumerate(_candidates(shares, sharing.threshold)):
            if tried:
                suspects.add(name)
            if secret is None:
                continue
            if alive and seed_commitment(sharing.context, name, secret) == dealer.seed_commitment:
                seeds[name] = secret
                break
            if not alive and (key := MaskKey(secret)).public == dealer.mask_key:
                mask_keys[name] = key
                break
        else:
            failed.add(name)
            suspects.add(name)
    return Opened(seeds, mask_keys, frozenset(failed), frozenset(suspects))


def unmask(
    vectors: Sequence[Vector], sharing: Sharing, dealers: Mapping[str, Prepared], opened: Opened
) -> None:
    """Take all masks off the sum of the survivors' vectors, in place."""
    added: list[bytes] = []
    subtracted = [
        derive(seed, "self", sharing.context, name) for name, seed in opened.seeds.items()
    ]
    for gone, key in opened.mask_keys.items():
        for name in sharing.survivors:
            low, high = sorted((gone, name))
            secret = key.agree(dealers[name].mask_key)
            mask_key = derive(secret, "pair", sharing.context, low, high)
            # The survivor added it if its name is the lower one.
            (subtracted if name == low else added).append(mask_key)
    mask_all(vectors, added, subtracted)


def _candidates(shares: Mapping[int, bytes], threshold: int) -> Iterator[bytes | None]:
    """Yield what each of a bounded number of subsets gives; None where it is no secret."""
    subsets = itertools.combinations(sorted(shares), threshold)
    for subset in itertools.islice(subsets, _MAX_SUBSETS):
        try:
            yield combine({index: shares[index] for index in subset}, threshold)
        except ProtocolError:
            yield None
