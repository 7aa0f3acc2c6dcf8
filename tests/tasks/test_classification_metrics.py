"""Merged counts of several sites give the figures that independent libraries give on the union."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryCalibrationError,
    BinaryRecall,
    BinarySpecificity,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MultilabelAccuracy,
    MultilabelAUROC,
)

from fedmed.configuration.groups import TaskConfig
from fedmed.tasks.base import merge
from fedmed.tasks.classification.metrics import (
    SCORE_BINS,
    auroc,
    auroc_error_bound,
    score_histogram,
)
from fedmed.tasks.classification.task import Classification

BINARY = Classification(TaskConfig())
EXCLUSIVE = Classification(TaskConfig(labels=["a", "b", "c", "d"]))
SEVERAL = Classification(TaskConfig(labels=["a", "b", "c"], multi_label=True))


def merged(task, outputs, targets, sites=4):
    parts = zip(outputs.chunk(sites), targets.chunk(sites), strict=True)
    return merge([task.aggregate(o, t) for o, t in parts])


def binary_scores(images=4000, offset=0.0, spread=1.0, seed=0):
    draws = torch.Generator().manual_seed(seed)
    targets = (torch.rand(images, generator=draws) < 0.3).long()
    noise = torch.randn(images, generator=draws)
    return (offset + spread * (noise + 1.2 * targets))[:, None], targets


@pytest.mark.parametrize(
    ("offset", "spread"),
    [(0.0, 1.0), (-1.5, 0.05), (0.0, 0.02), (0.0, 8.0), (-6.0, 3.0)],
    ids=["usual", "young model", "undecided", "far too sure", "rare finding"],
)
def test_binary_auroc_agrees_with_scikit_learn_on_the_union(offset, spread):
    outputs, targets = binary_scores(offset=offset, spread=spread)
    figures = BINARY.metrics(merged(BINARY, outputs, targets))
    assert figures["auroc"] == pytest.approx(roc_auc_score(targets, outputs[:, 0]), abs=1e-3)


def test_the_error_bound_holds_and_is_not_trivial():
    outputs, targets = binary_scores()
    histogram = score_histogram(outputs[:, 0], targets)
    exact = roc_auc_score(targets, outputs[:, 0])
    assert abs(auroc(histogram) - exact) <= auroc_error_bound(histogram) < 0.02


def test_binary_threshold_and_calibration_figures_agree_with_torchmetrics():
    outputs, targets = binary_scores(offset=-0.7)
    figures = BINARY.metrics(merged(BINARY, outputs, targets))
    probability = torch.sigmoid(outputs[:, 0].double())
    for name, metric in {
        "accuracy": BinaryAccuracy(),
        "sensitivity": BinaryRecall(),
        "specificity": BinarySpecificity(),
        "ece": BinaryCalibrationError(n_bins=15),
    }.items():
        assert figures[name] == pytest.approx(metric(probability, targets).item(), abs=1e-6), name


def test_exclusive_classes_agree_with_torchmetrics():
    draws = torch.Generator().manual_seed(3)
    targets = torch.randint(0, 4, (3000,), generator=draws)
    outputs = torch.randn(3000, 4, generator=draws)
    outputs[torch.arange(3000), targets] += 1.0
    figures = EXCLUSIVE.metrics(merged(EXCLUSIVE, outputs, targets))
    assert figures["auroc"] == pytest.approx(
        MulticlassAUROC(4)(outputs.softmax(1), targets).item(), abs=1e-3
    )
    assert figures["accuracy"] == pytest.approx(
        MulticlassAccuracy(4, average="micro")(outputs, targets).item(), abs=1e-6
    )
    assert figures["sensitivity"] == pytest.approx(
        balanced_accuracy_score(targets, outputs.argmax(1)), abs=1e-6
    )
    assert figures["ece"] == pytest.approx(
        MulticlassCalibrationError(4, n_bins=15)(outputs.double().softmax(1), targets).item(),
        abs=1e-6,
    )


def test_several_labels_agree_with_torchmetrics():
    draws = torch.Generator().manual_seed(4)
    targets = (torch.rand(3000, 3, generator=draws) < torch.tensor([0.1, 0.4, 0.7])).long()
    outputs = torch.randn(3000, 3, generator=draws) + 1.5 * targets - 0.5
    figures = SEVERAL.metrics(merged(SEVERAL, outputs, targets.float()))
    probability = outputs.sigmoid()
    assert figures["auroc"] == pytest.approx(
        MultilabelAUROC(3)(probability, targets).item(), abs=1e-3
    )
    assert figures["accuracy"] == pytest.approx(
        MultilabelAccuracy(3)(probability, targets).item(), abs=1e-6
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(0, 2**31))
def test_how_images_are_dealt_to_sites_changes_nothing(images, sites, seed):
    outputs, targets = binary_scores(images, seed=seed)
    whole, parts = BINARY.aggregate(outputs, targets), merged(BINARY, outputs, targets, sites)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-12)


@pytest.mark.parametrize("task", [BINARY, EXCLUSIVE, SEVERAL])
def test_aggregates_have_the_declared_shapes_even_without_images(task):
    targets = torch.zeros((0, *task.encode([0]).shape), dtype=task.encode([0]).dtype)
    aggregate = task.aggregate(torch.zeros(0, task.outputs), targets)
    assert {name: array.shape for name, array in aggregate.items()} == dict(task.aggregate_shapes)
    assert all(np.isnan(value) for value in task.metrics(aggregate).values())


def test_one_class_only_has_no_auroc():
    histogram = score_histogram(torch.randn(10), torch.ones(10))
    assert histogram.shape == (2, SCORE_BINS)
    assert np.isnan(auroc(histogram))
