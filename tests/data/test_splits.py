"""Patients dealt to train, validation and test."""

import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmed.data.manifest import read_manifest
from fedmed.data.splits import SPLITS, split_by_patient
from fedmed.errors import ConfigurationError, DataError

LGG = Path(__file__).parents[3] / "shared" / "data" / "lgg_mri"
FRACTIONS = (0.7, 0.15, 0.15)


def nothing_given(patients):
    return [None] * len(patients)


def by_patient(patients, splits):
    found = defaultdict(set)
    for patient, split in zip(patients, splits, strict=True):
        found[patient].add(split)
    return found


patient_lists = st.lists(st.sampled_from([f"P{number}" for number in range(30)]), max_size=120)
fraction_triples = (
    st.tuples(*[st.integers(0, 10)] * 3)
    .filter(any)
    .map(lambda parts: tuple(part / sum(parts) for part in parts))
)


@given(patients=patient_lists, fractions=fraction_triples, seed=st.integers(), data=st.data())
def test_properties(patients, fractions, seed, data):
    strata = data.draw(
        st.one_of(
            st.none(),
            st.lists(st.integers(0, 4), min_size=len(patients), max_size=len(patients)),
        )
    )
    arguments = {"fractions": fractions, "seed": seed}
    splits = split_by_patient(patients, nothing_given(patients), strata=strata, **arguments)
    assert len(splits) == len(patients)
    assert set(splits) <= set(SPLITS)
    found = by_patient(patients, splits)
    assert all(len(own) == 1 for own in found.values())
    used = Counter(split for own in found.values() for split in own)
    for split, fraction in zip(SPLITS, fractions, strict=True):
        if fraction == 0:
            assert used[split] == 0
        elif len(found) >= 3:
            assert used[split] >= 1
    # The order of the rows does not matter.
    order = list(range(len(patients)))
    random.Random(0).shuffle(order)
    shuffled = split_by_patient(
        [patients[index] for index in order],
        nothing_given(patients),
        strata=None if strata is None else [strata[index] for index in order],
        **arguments,
    )
    assert [shuffled[order.index(index)] for index in range(len(order))] == list(splits)


@given(
    patients=patient_lists,
    fractions=fraction_triples,
    wanted=st.dictionaries(
        st.sampled_from([f"P{number}" for number in range(30)]), st.sampled_from(SPLITS)
    ),
    every=st.integers(1, 3),
)
def test_given_splits_hold_for_the_whole_patient(patients, fractions, wanted, every):
    # Said on some rows of a patient only, the first always.
    seen = Counter()
    given_splits = []
    for patient in patients:
        said = patient in wanted and seen[patient] % every == 0
        given_splits.append(wanted[patient] if said else None)
        seen[patient] += 1
    splits = split_by_patient(patients, given_splits, fractions=fractions, seed=1)
    for patient, split in zip(patients, splits, strict=True):
        if patient in wanted:
            assert split == wanted[patient]
    assert all(len(own) == 1 for own in by_patient(patients, splits).values())


@pytest.mark.parametrize("count", [3, 4, 7, 10, 40, 333])
def test_shares_of_patients(count):
    patients = [f"P{number}" for number in range(count)]
    splits = Counter(
        split_by_patient(patients, nothing_given(patients), fractions=FRACTIONS, seed=5)
    )
    for split, fraction in zip(SPLITS, FRACTIONS, strict=True):
        # One patient for each of the small ones costs the large one up to 1.1 of three.
        assert abs(splits[split] - fraction * count) <= 1.2


def test_the_seed_decides():
    patients = [f"P{number}" for number in range(60)]
    results = {
        split_by_patient(patients, nothing_given(patients), fractions=FRACTIONS, seed=seed)
        for seed in range(10)
    }
    assert len(results) == 10
    again = split_by_patient(patients, nothing_given(patients), fractions=FRACTIONS, seed=3)
    assert again in results


def test_fewer_than_three_patients():
    assert split_by_patient([], [], fractions=FRACTIONS, seed=0) == ()
    assert split_by_patient(["a"], [None], fractions=FRACTIONS, seed=0) == ("train",)
    only_test = split_by_patient(["a", "b"], [None, None], fractions=(0, 0, 1), seed=0)
    assert only_test == ("test", "test")


@given(
    positives=st.integers(3, 12),
    negatives=st.integers(3, 200),
    seed=st.integers(0, 2**32),
    fractions=st.sampled_from([FRACTIONS, (0.8, 0.1, 0.1), (0.98, 0.01, 0.01)]),
)
def test_every_split_has_positives_when_there_are_enough(positives, negatives, seed, fractions):
    patients, strata = [], []
    for number in range(positives + negatives):
        # Two images a patient; one positive image makes a positive patient.
        patients += [f"P{number}"] * 2
        strata += [0, int(number < positives)]
    splits = split_by_patient(
        patients, nothing_given(patients), fractions=fractions, seed=seed, strata=strata
    )
    positive = {f"P{number}" for number in range(positives)}
    for split in SPLITS:
        inside = {p for p, own in zip(patients, splits, strict=True) if own == split}
        assert inside & positive
        assert inside - positive


def test_without_strata_rare_positives_do_get_lost():
    """Control for the test above: stratification is what puts them there."""
    patients = [f"P{number}" for number in range(103)]
    lost = 0
    for seed in range(20):
        splits = split_by_patient(patients, nothing_given(patients), fractions=FRACTIONS, seed=seed)
        lost += set(splits[:3]) != set(SPLITS)
    assert lost > 5


def test_strata_of_one_patient_each_do_not_all_fall_to_train():
    patients = [f"P{number}" for number in range(40)]
    splits = Counter(
        split_by_patient(
            patients, nothing_given(patients), fractions=FRACTIONS, seed=0, strata=range(40)
        )
    )
    assert abs(splits["val"] - 6) <= 1
    assert abs(splits["test"] - 6) <= 1


@pytest.mark.parametrize("strata", [[0, 1, 2], [3, 3, 1]])
@pytest.mark.parametrize("fractions", [FRACTIONS, (0.98, 0.01, 0.01), (0.01, 0.01, 0.98)])
def test_three_patients_fill_three_splits_whatever_their_strata(strata, fractions):
    splits = split_by_patient(
        ["a", "b", "c"], [None] * 3, fractions=fractions, seed=0, strata=strata
    )
    assert set(splits) == set(SPLITS)


def test_a_given_patient_is_not_moved_to_fill_a_split():
    splits = split_by_patient(
        ["a", "b", "c"], ["train", "train", None], fractions=(0.98, 0.01, 0.01), seed=0
    )
    assert splits[:2] == ("train", "train")
    assert splits[2] != "train"
    assert split_by_patient(["a", "b", "c"], ["val"] * 3, fractions=FRACTIONS, seed=0) == (
        "val",
        "val",
        "val",
    )


def test_the_free_patients_make_up_for_the_given_ones():
    patients = [f"P{number}" for number in range(100)]
    given_splits = ["test"] * 15 + [None] * 85
    splits = Counter(split_by_patient(patients, given_splits, fractions=FRACTIONS, seed=0))
    assert splits == {"train": 70, "val": 15, "test": 15}


def test_a_patient_in_two_splits_is_an_error_that_names_rows_only():
    patients = ["ZZQMARKER", "b", "ZZQMARKER", "ZZQMARKER", "b"]
    given_splits = ["train", "val", None, "test", "val"]
    with pytest.raises(DataError, match="rows 1 and 4 ") as error:
        split_by_patient(patients, given_splits, fractions=FRACTIONS, seed=0)
    assert "ZZQMARKER" not in str(error.value)
    with pytest.raises(DataError, match="rows 11 and 14 "):
        split_by_patient(
            patients, given_splits, fractions=FRACTIONS, seed=0, rows=[11, 12, 13, 14, 15]
        )
    with pytest.raises(DataError, match="row 1: the split"):
        split_by_patient(["a"], ["holdout"], fractions=FRACTIONS, seed=0)


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.1, -0.1), (0, 0, 0)])
def test_fractions_that_make_no_sense(fractions):
    with pytest.raises(ConfigurationError, match="sum to 1"):
        split_by_patient(["a"], [None], fractions=fractions, seed=0)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="zip"):
        split_by_patient(["a", "b"], [None], fractions=FRACTIONS, seed=0)


def test_real_sites():
    if not LGG.is_dir():
        pytest.skip("shared/data/lgg_mri is not here")
    for site in ("CS", "DU", "FG"):
        records = read_manifest(LGG / site).records
        patients = [record.patient_id for record in records]
        strata = [int(record.labels[0]) for record in records]
        splits = split_by_patient(
            patients, nothing_given(patients), fractions=FRACTIONS, seed=0, strata=strata
        )
        counts = Counter(next(iter(own)) for own in by_patient(patients, splits).values())
        assert min(counts[split] for split in SPLITS) >= 2
        for split in SPLITS:
            assert any(label for label, own in zip(strata, splits, strict=True) if own == split)
