"""Train, validation and test sets of one site, cut between patients, never through one."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from fedmed.errors import ConfigurationError, DataError

SPLITS = ("train", "val", "test")
# A patient is known to be in three sets only if there are three patients.
_ENOUGH = len(SPLITS)
_MOST_ROWS_SHOWN = 10


def split_by_patient(
    patient_ids: Sequence[str],
    given: Sequence[str | None],
    *,
    fractions: tuple[float, float, float],
    seed: int,
    strata: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> tuple[str, ...]:
    """Assign each image to ``train``, ``val`` or ``test``; all images of a patient to one.

    A split that the manifest gives holds for all images of its patient. The other patients are
    ordered by a seeded hash of their identifiers, so the result does not depend on the order of the
    rows, and dealt out within each stratum to whichever split is furthest below its share.
    A stratum of three patients or more, and the whole site, leave no split empty whose fraction is
    above 0, as far as the given splits permit.

    Args:
        patient_ids: one per image.
        given: the manifest's split per image, or None.
        fractions: shares of patients for train, validation and test; they sum to 1.
        seed: same seed, same patients, same split.
        strata: class per image, 0 and up; a patient belongs to the largest of theirs.
        rows: row numbers for messages; positions counted from 1 where absent.

    Returns:
        One of ``train``, ``val``, ``test`` per image.

    Raises:
        DataError: a patient is given two different splits; the message names rows.
        ConfigurationError: the fractions are negative or do not sum to 1.
    """
    _check_fractions(fractions)
    numbers = rows if rows is not None else range(1, len(patient_ids) + 1)
    assigned = _given_splits(patient_ids, given, numbers)
    stratum_of: dict[str, int] = {}
    for patient, stratum in zip(patient_ids, strata or [0] * len(patient_ids), strict=True):
        stratum_of[patient] = max(stratum, stratum_of.get(patient, stratum))
    carry = [0.0] * len(SPLITS)
    for stratum in sorted(set(stratum_of.values())):
        members = [patient for patient, own in stratum_of.items() if own == stratum]
        carry = _deal(sorted(members, key=_PatientOrder(seed)), assigned, fractions, carry)
    given_patients = {
        patient for patient, split in zip(patient_ids, given, strict=True) if split is not None
    }
    _fill_empty(assigned, given_patients, fractions, stratum_of, seed)
    return tuple(assigned[patient] for patient in patient_ids)


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    if min(fractions) < 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
        raise ConfigurationError(f"the split fractions {fractions} must be at least 0 and sum to 1")


def _given_splits(
    patient_ids: Sequence[str], given: Sequence[str | None], numbers: Sequence[int]
) -> dict[str, str]:
    """Split by patient, as far as the manifest gives one."""
    assigned: dict[str, str] = {}
    first_row: dict[str, int] = {}
    clashes: list[tuple[int, int]] = []
    for patient, split, number in zip(patient_ids, given, numbers, strict=True):
        if split is None:
            continue
        if split not in SPLITS:
            raise DataError(f"row {number}: the split is none of {', '.join(SPLITS)}")
        if assigned.setdefault(patient, split) != split:
            clashes.append((first_row[patient], number))
        first_row.setdefault(patient, number)
    if clashes:
        pairs = ", ".join(f"{first} and {second}" for first, second in clashes[:_MOST_ROWS_SHOWN])
        more = ", ..." if len(clashes) > _MOST_ROWS_SHOWN else ""
        raise DataError(
            f"a patient may be in one split only; rows {pairs}{more} are of one patient each but "
            "name different splits"
        )
    return assigned


class _PatientOrder:
    """Sorting key: a seeded hash, so that the order says nothing of the identifier."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, patient: str) -> bytes:
        return hashlib.sha256(f"{self._seed}\x00{patient}".encode()).digest()


def _deal(
    members: list[str],
    assigned: dict[str, str],
    fractions: tuple[float, float, float],
    carry: list[float],
) -> list[float]:
    """Assign one stratum's free patients; return what each split is still owed by it.

    The debt passes to the next stratum, so that many strata of one or two patients do not all fall
    to the largest split.
    """
    counts = [sum(assigned.get(member) == split for member in members) for split in SPLITS]
    shares = [
        fraction * len(members) + owed for fraction, owed in zip(fractions, carry, strict=True)
    ]
    active = [index for index, fraction in enumerate(fractions) if fraction > 0]
    for member in members:
        if member in assigned:
            continue
        empty = [index for index in active if counts[index] == 0]
        choices = empty if empty and len(members) >= _ENOUGH else active
        chosen = max(choices, key=lambda index: (shares[index] - counts[index], -index))
        counts[chosen] += 1
        assigned[member] = SPLITS[chosen]
    # Bounded: a site that gives a whole stratum to one split does not want the reverse elsewhere.
    return [min(1.0, max(-1.0, share - count)) for share, count in zip(shares, counts, strict=True)]


def _fill_empty(
    assigned: dict[str, str],
    given_patients: set[str],
    fractions: tuple[float, float, float],
    stratum_of: Mapping[str, int],
    seed: int,
) -> None:
    """Move one free patient to each empty split, from the fullest split that can spare one."""
    if len(assigned) < _ENOUGH:
        return
    stratum_sizes = Counter(stratum_of.values())
    order = _PatientOrder(seed)
    for split, fraction in zip(SPLITS, fractions, strict=True):
        sizes = Counter(assigned.values())
        if sizes[split] or fraction == 0:
            continue
        movable = [
            patient
            for patient, own in assigned.items()
            if patient not in given_patients and sizes[own] > 1
        ]
        if movable:
            # From the largest stratum of that split, whose share changes least.
            moved = max(
                movable,
                key=lambda patient: (
                    sizes[assigned[patient]],
                    stratum_sizes[stratum_of[patient]],
                    order(patient),
                ),
            )
            assigned[moved] = split
