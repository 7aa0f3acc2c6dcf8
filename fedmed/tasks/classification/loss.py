"""Per-image losses of classification."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def binary_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of one logit an image.

    Args:
        logits: ``[N, 1]``.
        targets: class indices 0 or 1, ``[N]``.

    Returns:
        ``[N]``, in nats.
    """
    return functional.binary_cross_entropy_with_logits(
        logits[:, 0], targets.to(logits.dtype), reduction="none"
    )


def multiclass_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy.

    Args:
        logits: ``[N, classes]``.
        targets: class indices, ``[N]``.

    Returns:
        ``[N]``, in nats.
    """
    return functional.cross_entropy(logits, targets, reduction="none")


def multilabel_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over classes of the binary cross-entropy.

    Args:
        logits: ``[N, classes]``.
        targets: 0 or 1, ``[N, classes]``.

    Returns:
        ``[N]``, in nats.
    """
    losses = functional.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), reduction="none"
    )
    return losses.mean(dim=1)
