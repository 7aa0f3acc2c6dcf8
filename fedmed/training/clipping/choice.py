"""Which way of clipping: the quickest whose sums are right for this network, shown by trial."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedmed.configuration.groups import Clipping
from fedmed.errors import PrivacyError
from fedmed.training.clipping.base import WAY_OUT, ClippedSum, Clipper, RowLoss
from fedmed.training.clipping.book_keeping import BookKeeping
from fedmed.training.clipping.functional import Functional
from fedmed.training.clipping.hooks import Hooks
from fedmed.training.clipping.trial import check_against_loop

logger = logging.getLogger(__name__)

Maker = Callable[[nn.Module, RowLoss], Clipper]

WAYS: dict[Clipping, Maker] = {
    Clipping.book_keeping: BookKeeping,
    Clipping.functional: Functional,
    Clipping.hooks: Hooks,
}
"""All ways, the quickest first."""


def choose_clipper(model: nn.Module, loss: RowLoss, clipping: Clipping) -> Clipper:
    """Return a way of clipping, bound to a network and a loss.

    Before its first batch each way is tried on a few made-up rows of the batch's shape, on a copy
    of the network, against one ordinary backward pass a unit. With ``auto`` the next way takes
    over from one that fails; a way that was asked for by name fails with an error.

    Args:
        model: network that does not mix rows; close the clipper before changing which parameters
            are trained.
        loss: one loss a row.
        clipping: ``auto`` or one way.

    Raises:
        PrivacyError: if nothing is trained, or the way that was asked for does not fit the
            network; ``clipped_sum`` raises it too, where only a batch shows that.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise PrivacyError(
            "Every parameter of the network is frozen: nothing is left to train. Leave out a "
            "pattern of model.freeze."
        )
    ways = list(WAYS) if clipping == Clipping.auto else [clipping]
    return TriedClipper(model, loss, ways)


class TriedClipper:
    """The first of some ways that fits; which one that is, a batch decides.

    Attributes:
        way: name of the way in use.
    """

    def __init__(self, model: nn.Module, loss: RowLoss, ways: Sequence[Clipping]) -> None:
        self._model, self._loss = model, loss
        self._ways = list(ways)
        self._tried = False
        self._clipper = self._next_that_can_be_made()
        self.way: str = self._clipper.way

    def clipped_sum(
        self, inputs: Tensor, targets: Tensor, sizes: Sequence[int], clipping_norm: float
    ) -> ClippedSum:
        """Clip each unit's gradient and add them up; see :class:`Clipper`."""
        while True:
            try:
                if not self._tried and len(inputs) > 0:
                    self._try(inputs, targets)
                    self._tried = True
                return self._clipper.clipped_sum(inputs, targets, sizes, clipping_norm)
            except PrivacyError as error:
                self._fall_back(error)

    def close(self) -> None:
        """Take every hook and attribute off the network again."""
        self._clipper.close()

    def _next_that_can_be_made(self) -> Clipper:
        while True:
            try:
                return WAYS[self._ways[0]](self._model, self._loss)
            except PrivacyError as error:
                self._drop_first(error)

    def _fall_back(self, error: PrivacyError) -> None:
        self._clipper.close()
        self._drop_first(error)
        self._tried = False
        self._clipper = self._next_that_can_be_made()
        self.way = self._clipper.way

    def _drop_first(self, error: PrivacyError) -> None:
        if len(self._ways) == 1:
            raise error
        dropped = self._ways.pop(0)
        logger.warning("%s; trying privacy.clipping=%s", str(error).split(". ")[0], self._ways[0])
        logger.debug("privacy.clipping=%s was dropped", dropped, exc_info=error)

    def _try(self, inputs: Tensor, targets: Tensor) -> None:
        way = self._ways[0]
        try:
            check_against_loop(WAYS[way], self._model, self._loss, inputs, targets)
        except (PrivacyError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise PrivacyError(
                f"privacy.clipping={way} does not fit this network: it fails with "
                f"{type(error).__name__}. {WAY_OUT}"
            ) from error
