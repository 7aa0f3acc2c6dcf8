"""Poisson sampling of images or patients, and batches that are cut between units."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmed.configuration.groups import Unit
from fedmed.data.image_set import ImageSet
from fedmed.training.units import UnitBatch, Units


def image_set(patients):
    count = len(patients)
    return ImageSet(torch.zeros(count, 1, 2, 2), torch.zeros(count), torch.tensor(patients))


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def test_each_image_is_drawn_independently_at_the_rate():
    units = Units(image_set(list(range(200))), Unit.image)
    batches = list(units.batches(0.1, 2000, draws()))
    sizes = torch.tensor([float(len(batch.images)) for batch in batches])
    assert sizes.mean() == pytest.approx(20, abs=0.5)
    assert sizes.var() == pytest.approx(200 * 0.1 * 0.9, rel=0.15)  # fixed sizes would have 0
    counts = torch.bincount(torch.cat([batch.images for batch in batches]), minlength=200)
    assert counts.min() > 120
    assert counts.max() < 280
    assert all(batch.sizes == [1] * len(batch.images) for batch in batches[:10])


def test_a_patient_comes_whole_and_as_often_as_one_with_fewer_images():
    patients = [0] * 3 + [7] + [2] * 9
    units = Units(image_set(patients), Unit.patient, images_per_patient=100)
    assert len(units) == 3
    assert units.largest == 9
    seen = {0: 0, 7: 0, 2: 0}
    for batch in units.batches(0.3, 3000, draws()):
        start = 0
        for size in batch.sizes:
            rows = batch.images[start : start + size].tolist()
            owners = {patients[row] for row in rows}
            assert len(owners) == 1
            owner = owners.pop()
            assert len(rows) == patients.count(owner)
            seen[owner] += 1
            start += size
    assert all(count == pytest.approx(900, rel=0.1) for count in seen.values())


def test_a_patient_with_many_images_lends_different_ones_each_time():
    units = Units(image_set([0] * 50), Unit.patient, images_per_patient=4)
    batches = list(units.batches(1.0, 200, draws()))
    assert all(batch.sizes == [4] for batch in batches)
    assert all(len(set(batch.images.tolist())) == 4 for batch in batches)
    assert len(torch.unique(torch.cat([batch.images for batch in batches]))) == 50


def test_an_empty_sample_is_an_empty_batch():
    units = Units(image_set([0, 1]), Unit.image)
    (batch,) = units.batches(1e-12, 1, draws())
    assert batch.sizes == []
    assert list(batch.split(8)) == []


def test_views_lie_beside_their_image():
    batch = UnitBatch(torch.tensor([4, 5, 9]), [2, 1]).repeated(2)
    assert batch.images.tolist() == [4, 4, 5, 5, 9, 9]
    assert batch.sizes == [4, 2]


@given(sizes=st.lists(st.integers(1, 9), max_size=30), rows=st.integers(1, 12))
def test_splitting_loses_nothing_and_never_cuts_a_unit(sizes, rows):
    batch = UnitBatch(torch.arange(sum(sizes)), sizes)
    parts = list(batch.split(rows))
    assert [size for part in parts for size in part.sizes] == sizes
    assert [row for part in parts for row in part.images.tolist()] == batch.images.tolist()
    for part in parts:
        assert sum(part.sizes) == len(part.images)
        assert len(part.images) <= rows or len(part.sizes) == 1
