"""AUROC, accuracy, sensitivity, specificity and calibration error from counts that add up.

No score of a single image is needed: a site counts its scores in bins whose edges are the same
everywhere, and the counts of all sites are summed. Only the AUROC depends on the bins, and its
largest possible error is computed beside it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmed.tasks.base import Aggregate

SCORE_BINS = 2048
CONFIDENCE_BINS = 15
_LOGIT_LIMIT = 16.0
# Edges are even in asinh(8 z): 0.0007 wide at z = 0, where a young model's logits crowd, and 0.07
# wide at z = 12, where a sure model's logits spread.
_STEEPNESS = 8.0

Counts = NDArray[np.float64]


def score_histogram(logits: Tensor, positive: Tensor) -> Counts:
    """Count scores of one class in bins of the logit.

    Args:
        logits: ``[N]``, any real value; beyond +-16 they fall in the outermost bins.
        positive: 0 or 1, ``[N]``.

    Returns:
        ``[2, SCORE_BINS]``: counts of negative images, then of positive ones. The middle edge is
        at logit 0, that is at probability 0.5.
    """
    limit = np.arcsinh(_STEEPNESS * _LOGIT_LIMIT)
    place = torch.asinh(_STEEPNESS * logits.double()) / limit
    bins = ((place + 1) / 2 * SCORE_BINS).floor().clamp(0, SCORE_BINS - 1).long()
    flat = torch.bincount(positive.long() * SCORE_BINS + bins, minlength=2 * SCORE_BINS)
    return flat.double().cpu().numpy().reshape(2, SCORE_BINS)


def auroc(histogram: Counts) -> float:
    """Area under the ROC curve from a score histogram ``[2, bins]``, ties counting one half.

    Returns:
        0 to 1, or NaN where only one class is present.
    """
    negatives, positives = histogram
    pairs = negatives.sum() * positives.sum()
    if pairs == 0:
        return float("nan")
    below = np.cumsum(negatives) - negatives
    return float(np.sum(positives * (below + negatives / 2)) / pairs)


def auroc_error_bound(histogram: Counts) -> float:
    """Largest possible distance of :func:`auroc` from the figure with unbinned scores."""
    negatives, positives = histogram
    pairs = negatives.sum() * positives.sum()
    if pairs == 0:
        return float("nan")
    return float(np.sum(positives * negatives) / 2 / pairs)


def confusion(predicted: Tensor, actual: Tensor, classes: int) -> Counts:
    """Count images by actual class (rows) and predicted class (columns): ``[classes, classes]``."""
    flat = torch.bincount(actual.long() * classes + predicted.long(), minlength=classes**2)
    return flat.double().cpu().numpy().reshape(classes, classes)


def reliability(confidence: Tensor, correct: Tensor) -> Counts:
    """Sums for a reliability curve.

    Args:
        confidence: predicted probability in [0, 1], ``[N]``.
        correct: whether what was predicted came true, 0 or 1, ``[N]``.

    Returns:
        ``[3, CONFIDENCE_BINS]``: counts, sums of confidence, sums of ``correct``.
    """
    edges = torch.linspace(0, 1, CONFIDENCE_BINS + 1, dtype=torch.float64)
    # Closed on the left, as in torchmetrics; 1.0 belongs to the last bin.
    bins = torch.bucketize(confidence.double().cpu().contiguous(), edges, right=True) - 1
    bins = bins.clamp(0, CONFIDENCE_BINS - 1)
    sums = torch.zeros(3, CONFIDENCE_BINS, dtype=torch.float64)
    sums[0].index_add_(0, bins, torch.ones_like(confidence, dtype=torch.float64).cpu())
    sums[1].index_add_(0, bins, confidence.double().cpu())
    sums[2].index_add_(0, bins, correct.double().cpu())
    return sums.numpy()


def expected_calibration_error(sums: Counts) -> float:
    """Expected calibration error (Naeini et al., 2015) from ``[3, bins]``, L1 norm."""
    counts, confidence, correct = sums
    if counts.sum() == 0:
        return float("nan")
    return float(np.abs(confidence - correct).sum() / counts.sum())


def classification_metrics(aggregate: Aggregate) -> dict[str, float]:
    """Compute all figures of a classification from a merged aggregate.

    Several classes give macro averages over the classes that occur: AUROC one against the rest,
    sensitivity and specificity of each class in the same sense.

    Args:
        aggregate: ``scores [C, 2, SCORE_BINS]``, ``confusion [C, 2, 2]`` or ``[1, K, K]``,
            ``reliability [C, 3, CONFIDENCE_BINS]``, ``loss [2]`` (sum and count).
    """
    tables = aggregate["confusion"]
    if tables.shape[-1] > 2:
        tables = _one_against_rest(tables[0])
        correct, total = np.trace(aggregate["confusion"][0]), aggregate["confusion"].sum()
    else:
        correct, total = tables[:, 0, 0].sum() + tables[:, 1, 1].sum(), tables.sum()
    loss_sum, images = aggregate["loss"]
    return {
        "auroc": _mean([auroc(histogram) for histogram in aggregate["scores"]]),
        "accuracy": _ratio(correct, total),
        "sensitivity": _mean([_ratio(t[1, 1], t[1].sum()) for t in tables]),
        "specificity": _mean([_ratio(t[0, 0], t[0].sum()) for t in tables]),
        "ece": _mean([expected_calibration_error(sums) for sums in aggregate["reliability"]]),
        "loss": _ratio(loss_sum, images),
    }


def _one_against_rest(table: Counts) -> Counts:
    hits = np.diag(table)
    missed = table.sum(axis=1) - hits
    false_alarms = table.sum(axis=0) - hits
    rest = table.sum() - hits - missed - false_alarms
    return np.stack([np.stack([rest, false_alarms], -1), np.stack([missed, hits], -1)], 1)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")


def _mean(values: list[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
