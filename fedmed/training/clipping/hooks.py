"""Clipping with Opacus's hooks: each row's gradient is held for every parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from fedmed.errors import PrivacyError
from fedmed.training.clipping.base import ClippedSum, RowLoss, trained_parameters
from fedmed.training.clipping.row_units import RowUnits, clip_factors

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
        self._loss = loss
        self._parameters = trained_parameters(model)
        try:
            self._wrapped = GradSampleModule(
                model, batch_first=True, loss_reduction="sum", strict=True
            )
        except (NotImplementedError, ValueError) as error:
            raise PrivacyError(
                f"privacy.clipping=hooks does not fit this network: {error} "
                "Choose privacy.clipping=auto, which finds a way that fits."
            ) from error

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
        try:
            flat = self._unit_gradients(inputs, targets, units)
        finally:
            for parameter in self._parameters:
                parameter.grad_sample = None  # type: ignore[attr-defined]
        squared = torch.stack([torch.linalg.vector_norm(f, dim=1).square() for f in flat])
        norms = squared.sum(dim=0).sqrt()
        factors = clip_factors(norms, clipping_norm)
        sums = [(factors @ f).view_as(p) for f, p in zip(flat, self._parameters, strict=True)]
        return ClippedSum([one.detach() for one in sums], norms)

    def close(self) -> None:
        """Take Opacus's hooks and attributes off the network."""
        self._wrapped.remove_hooks()
        for owner in (*self._wrapped.parameters(), *self._wrapped.modules()):
            for name in _ATTRIBUTES:
                if hasattr(owner, name):
                    delattr(owner, name)

    def _unit_gradients(self, inputs: Tensor, targets: Tensor, units: RowUnits) -> list[Tensor]:
        """Return each parameter's gradients ``[units, values]``."""
        with torch.enable_grad():
            losses = self._loss(self._wrapped(inputs), targets)
            total = (losses * units.row_weights(losses.device, losses.dtype)).sum()
            whole = torch.autograd.grad(total, self._parameters, allow_unused=True)
        gradients = []
        for parameter, summed in zip(self._parameters, whole, strict=True):
            sample = parameter.grad_sample  # type: ignore[attr-defined]
            if sample is None and summed is not None:
                raise PrivacyError(
                    "privacy.clipping=hooks does not fit this network: a parameter is used outside "
                    "a layer. Choose privacy.clipping=auto, which finds a way that fits."
                )
            if sample is None:
                gradients.append(parameter.new_zeros((len(units.sizes), parameter.numel())))
            else:
                gradients.append(units.sum_rows(sample.detach()).flatten(1))
        return gradients
