"""A trial of a way of clipping against the plainest one: a backward pass for each unit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedmed.errors import PrivacyError
from fedmed.training.clipping.base import WAY_OUT, ClippedSum, Clipper, RowLoss, trained_parameters
from fedmed.training.clipping.row_units import RowUnits, clip_factors

TOLERANCE = 1e-4
"""Largest relative difference: far above rounding in float32, far below any true mistake."""
_TRIALS = ((1, 1, 1), (1, 2, 1))
_NUDGE = 0.05


def clipped_sum_by_loop(
    model: nn.Module,
    loss: RowLoss,
    inputs: Tensor,
    targets: Tensor,
    sizes: Sequence[int],
    clipping_norm: float,
) -> ClippedSum:
    """Return what every way must: one ordinary backward pass a unit, in the model's precision."""
    units = RowUnits.of(sizes, len(inputs))
    parameters = trained_parameters(model)
    sums = [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]
    norms = []
    for rows in units.slices():
        with torch.enable_grad():
            mean = loss(model(inputs[rows]), targets[rows]).mean()
            gradients = torch.autograd.grad(mean, parameters, allow_unused=True)
        found = [
            torch.zeros_like(p) if gradient is None else gradient
            for p, gradient in zip(parameters, gradients, strict=True)
        ]
        norm = torch.stack([torch.linalg.vector_norm(one) for one in found]).norm()
        for total, one in zip(sums, found, strict=True):
            total.add_(one * clip_factors(norm, clipping_norm))
        norms.append(norm)
    return ClippedSum(sums, torch.stack(norms) if norms else inputs.new_zeros(0))


def check_against_loop(
    make: Callable[[nn.Module, RowLoss], Clipper],
    model: nn.Module,
    loss: RowLoss,
    inputs: Tensor,
    targets: Tensor,
) -> None:
    """Try a way on a copy of the network and made-up rows of the batch's shape.

    The copy's weights are nudged, so that a layer that starts at zero hides nothing, and its
    dropout is off. torch's global generator is left as it was.

    Args:
        make: the way.
        model: network; not changed.
        loss: one loss a row.
        inputs: a batch ``[N, ...]``, N at least 1; only shape, type and device count.
        targets: ``[N, ...]``; repeated as needed.

    Raises:
        PrivacyError: if norms or sums differ by more than ``TOLERANCE``.
    """
    draws = torch.Generator().manual_seed(0)
    trial = copy.deepcopy(model)
    for module in trial.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    for parameter in trained_parameters(trial):
        nudge = torch.randn(parameter.shape, generator=draws) * _NUDGE
        parameter.data.add_(nudge.to(parameter))
    clipper = make(trial, loss)
    device = inputs.device
    try:
        # Half precision and TF32 would hide a mistake behind their own rounding.
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(allow_tf32=False),
        ):
            for sizes in _TRIALS:
                count = sum(sizes)
                rows = torch.rand((count, *inputs.shape[1:]), generator=draws).to(inputs)
                some = targets[torch.arange(count, device=targets.device) % len(targets)]
                free = clipped_sum_by_loop(trial, loss, rows, some, sizes, float("inf"))
                bound = float(free.norms.median()) or 1.0
                expected = clipped_sum_by_loop(trial, loss, rows, some, sizes, bound)
                _compare(clipper.way, clipper.clipped_sum(rows, some, sizes, bound), expected)
    finally:
        clipper.close()


def _compare(way: str, found: ClippedSum, expected: ClippedSum) -> None:
    pairs = [
        (torch.cat([one.flatten() for one in side.sums]), side.norms) for side in (found, expected)
    ]
    for one, other in zip(*pairs, strict=True):
        difference = torch.linalg.vector_norm(one - other)
        # A comparison with NaN is false: such sums are refused too.
        if not bool(difference <= TOLERANCE * torch.linalg.vector_norm(other)):
            raise PrivacyError(
                f"privacy.clipping={way} does not fit this network: in a trial its clipped sum was "
                "not that of one backward pass a unit. " + WAY_OUT
            )
