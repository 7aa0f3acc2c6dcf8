"""Classification: binary, several classes, or several labels an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmed.configuration.groups import TaskConfig
from fedmed.data.manifest import ImageRecord
from fedmed.tasks.base import Aggregate
from fedmed.tasks.classification import loss as losses
from fedmed.tasks.classification import metrics as figures


@dataclass(frozen=True)
class Classification:
    """One answer for the whole image.

    Two exclusive classes are answered by one logit, more by a softmax, and labels that may occur
    together by one sigmoid each.
    """

    config: TaskConfig

    @property
    def name(self) -> str:
        """Name of the task folder."""
        return "classification"

    @property
    def primary_metric(self) -> str:
        """Metric that plots and tables show first."""
        return "auroc"

    @property
    def classes(self) -> int:
        """Number of names in the label schema."""
        return len(self.config.labels)

    @property
    def binary(self) -> bool:
        """Whether one logit is enough."""
        return self.classes == 2 and not self.config.multi_label

    @property
    def outputs(self) -> int:
        """Logits an image."""
        return 1 if self.binary else self.classes

    @property
    def required_columns(self) -> frozenset[str]:
        """Manifest columns without which a site cannot take part."""
        return frozenset({"image", "patient_id", "label"})

    def encode(self, labels: Sequence[int]) -> Tensor:
        """Turn class indices into ``[classes]`` of 0 and 1 (multi-label) or one index ``[]``.

        Raises:
            ValueError: if an exclusive class is not given exactly once.
        """
        if self.config.multi_label:
            target = torch.zeros(self.classes)
            target[list(labels)] = 1.0
            return target
        if len(labels) != 1:
            raise ValueError("an image needs exactly one label; see task.multi_label")
        return torch.tensor(labels[0])

    def strata(self, records: Sequence[ImageRecord], labels: Sequence[Sequence[int]]) -> list[int]:
        """Balance splits by the highest class index of an image."""
        return [max(indices, default=-1) + 1 for indices in labels]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each image, ``[N]``, in nats."""
        if self.config.multi_label:
            return losses.multilabel_loss(outputs, targets)
        if self.binary:
            return losses.binary_loss(outputs, targets)
        return losses.multiclass_loss(outputs, targets)

    @property
    def aggregate_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of each array of an aggregate."""
        tables = (self.outputs, 2, 2)
        if self.outputs > 1 and not self.config.multi_label:
            tables = (1, self.classes, self.classes)
        curves = self.outputs if self.config.multi_label else 1
        return {
            "scores": (self.outputs, 2, figures.SCORE_BINS),
            "confusion": tables,
            "reliability": (curves, 3, figures.CONFIDENCE_BINS),
            "loss": (2,),
        }

    def aggregate(self, outputs: Tensor, targets: Tensor) -> Aggregate:
        """Count what the metrics need; see :func:`metrics.classification_metrics`."""
        outputs, targets = outputs.double().cpu(), targets.cpu()
        loss = self.loss(outputs, targets)
        sums = {"loss": np.array([float(loss.sum()), float(len(loss))])}
        if self.outputs > 1 and not self.config.multi_label:
            return {**sums, **self._aggregate_exclusive(outputs, targets)}
        return {**sums, **self._aggregate_sigmoids(outputs, targets.reshape(outputs.shape))}

    def _aggregate_sigmoids(self, logits: Tensor, targets: Tensor) -> Aggregate:
        columns = range(self.outputs)
        probabilities = torch.sigmoid(logits)
        predicted = (logits >= 0).long()
        return {
            "scores": np.stack(
                [figures.score_histogram(logits[:, c], targets[:, c]) for c in columns]
            ),
            "confusion": np.stack(
                [figures.confusion(predicted[:, c], targets[:, c], 2) for c in columns]
            ),
            "reliability": np.stack(
                [figures.reliability(probabilities[:, c], targets[:, c]) for c in columns]
            ),
        }

    def _aggregate_exclusive(self, logits: Tensor, targets: Tensor) -> Aggregate:
        log_probability = torch.log_softmax(logits, dim=1)
        # The logit of "class c against the rest"; log1p keeps digits where p is near 1.
        rest = torch.log1p(-log_probability.exp().clamp(max=1 - 1e-12))
        one_against_rest = log_probability - rest
        confidence, predicted = log_probability.exp().max(dim=1)
        return {
            "scores": np.stack(
                [
                    figures.score_histogram(one_against_rest[:, c], targets == c)
                    for c in range(self.classes)
                ]
            ),
            "confusion": figures.confusion(predicted, targets, self.classes)[np.newaxis],
            "reliability": figures.reliability(confidence, predicted == targets)[np.newaxis],
        }

    def metrics(self, aggregate: Aggregate) -> dict[str, float]:
        """Compute ``auroc accuracy sensitivity specificity ece loss``."""
        return figures.classification_metrics(aggregate)

    def error_bounds(self, aggregate: Aggregate) -> dict[str, float]:
        """Only the AUROC depends on bins: return the largest error it can have."""
        bounds = [figures.auroc_error_bound(histogram) for histogram in aggregate["scores"]]
        return {"auroc": max((b for b in bounds if not np.isnan(b)), default=float("nan"))}
