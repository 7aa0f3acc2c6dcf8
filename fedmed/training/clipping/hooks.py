"""Clipping with Opacus's hooks: each row's gradient is held for every parameter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from fedmed.errors import PrivacyError
from fedmed.training.clipping.base import WAY_OUT, ClippedSum, RowLoss, trained_parameters
from fedmed.training.clipping.row_units import RowUnits, clip_factors, full_precision

_ATTRIBUTES = (
    "grad_sample",
    "summed_grad",
    "_forward_counter",
    "_current_grad_sample",
    "activations",
    "max_batch_len",
)


class Hooks:
    """Slow and hungry for memory, and the reference that the field trusts.

    Args:
        model: network that does not mix rows.
        loss: one loss a row.

    Raises:
        PrivacyError: if Opacus does not support the network.
    """

    way = "hooks"

    def __init__(self, model: nn.Module, loss: RowLoss) -> None:
        self._model, self._loss = model, loss
        self._parameters = trained_parameters(model)
        with self._wrapped():
            pass

    def clipped_sum(
        self, inputs: Tensor, targets: Tensor, sizes: Sequence[int], clipping_norm: float
    ) -> ClippedSum:
        """Clip each unit's gradient and add them up; see :class:`Clipper`.

        Raises:
            PrivacyError: if a parameter had a gradient that Opacus did not take apart.
        """
        units = RowUnits.of(sizes, len(inputs))
        if not sizes:
            return ClippedSum([torch.zeros_like(p) for p in self._parameters], inputs.new_zeros(0))
        with self._wrapped() as wrapped:
            flat = self._unit_gradients(wrapped, inputs, targets, units)
        with full_precision(inputs.device):
            squared = torch.stack([torch.linalg.vector_norm(f, dim=1).square() for f in flat])
            norms = squared.sum(dim=0).sqrt()
            factors = clip_factors(norms, clipping_norm)
            sums = [(factors @ f).view_as(p) for f, p in zip(flat, self._parameters, strict=True)]
        return ClippedSum(sums, norms)

    def close(self) -> None:
        """Nothing to take off: Opacus's hooks are there only while a pass runs."""

    @contextmanager
    def _wrapped(self) -> Iterator[GradSampleModule]:
        """Hang Opacus's hooks on the network, and take off all that they leave."""
        try:
            wrapped = GradSampleModule(
                self._model, batch_first=True, loss_reduction="sum", strict=True
            )
        except (NotImplementedError, ValueError) as error:
            raise PrivacyError(
                f"privacy.clipping=hooks does not fit this network: {error} {WAY_OUT}"
            ) from error
        try:
            yield wrapped
        finally:
            wrapped.remove_hooks()
            for owner in (*wrapped.parameters(), *wrapped.modules()):
                for name in _ATTRIBUTES:
                    if hasattr(owner, name):
                        delattr(owner, name)

    def _unit_gradients(
        self, wrapped: GradSampleModule, inputs: Tensor, targets: Tensor, units: RowUnits
    ) -> list[Tensor]:
        """Return each parameter's gradients ``[units, values]``."""
        with torch.enable_grad():
            losses = self._loss(wrapped(inputs), targets)
            total = (losses * units.row_weights(losses.device, losses.dtype)).sum()
            whole = torch.autograd.grad(total, self._parameters, allow_unused=True)
        gradients = []
        for parameter, summed in zip(self._parameters, whole, strict=True):
            sample = parameter.grad_sample  # type: ignore[attr-defined]
            if sample is None and summed is not None:
                raise PrivacyError(
                    "privacy.clipping=hooks does not fit this network: a parameter is used outside "
                    f"a layer. {WAY_OUT}"
                )
            if sample is None:
                gradients.append(parameter.new_zeros((len(units.sizes), parameter.numel())))
            else:
                gradients.append(units.sum_rows(sample.detach().to(parameter.dtype)).flatten(1))
        return gradients
