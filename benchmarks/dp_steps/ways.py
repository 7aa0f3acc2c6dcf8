"""Whole training steps: gradients, clipping, noise, and the optimiser's step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from opacus.grad_sample.utils import wrap_model
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

from dp_steps.networks import Problem
from fedmed.configuration.groups import Clipping
from fedmed.training.clipping.choice import choose_clipper
from fedmed.training.noise import SecureNoise
from fedmed.training.private import NoisyOptimizer

Step = Callable[[], None]

CLIPPING_NORM = 1.0
NOISE_MULTIPLIER = 1.0
PATIENT_ROWS = 4


def _sgd(problem: Problem) -> torch.optim.Optimizer:
    return torch.optim.SGD(problem.model.parameters(), lr=0.01, momentum=0.9)


def plain(problem: Problem) -> Step:
    """SGD without privacy."""
    optimizer = _sgd(problem)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        problem.loss(problem.model(problem.inputs), problem.targets).mean().backward()
        optimizer.step()

    return step


def _fedmed(problem: Problem, clipping: Clipping, rows: int = 1) -> Step:
    """One of fedmed's ways, with noise from the cryptographic generator."""
    sizes = [rows] * (len(problem.inputs) // rows)
    clipper = choose_clipper(problem.model, problem.loss, clipping)
    optimizer = NoisyOptimizer(
        _sgd(problem),
        SecureNoise(),
        NOISE_MULTIPLIER * CLIPPING_NORM,
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIPPING_NORM,
        expected_batch_size=len(sizes),
    )

    def step() -> None:
        clipped = clipper.clipped_sum(problem.inputs, problem.targets, sizes, CLIPPING_NORM)
        optimizer.step_with(clipped.sums)

    return step


def _opacus(problem: Problem, mode: str) -> Step:
    """Stock Opacus, with its own optimiser and torch's generator for the noise."""
    wrapped = wrap_model(problem.model, mode, loss_reduction="mean")
    optimizer = DPOptimizer(
        _sgd(problem),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIPPING_NORM,
        expected_batch_size=len(problem.inputs),
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        problem.loss(wrapped(problem.inputs), problem.targets).mean().backward()
        optimizer.step()

    return step


def _opacus_ghost(problem: Problem) -> Step:
    """Stock Opacus with its two backward passes."""
    wrapped = wrap_model(problem.model, "ghost", loss_reduction="mean", max_grad_norm=CLIPPING_NORM)
    optimizer = DPOptimizerFastGradientClipping(
        _sgd(problem),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIPPING_NORM,
        expected_batch_size=len(problem.inputs),
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses = problem.loss(wrapped(problem.inputs), problem.targets)
        DPTensorFastGradientClipping(wrapped, optimizer, losses).backward()
        optimizer.step()

    return step


WAYS: dict[str, tuple[str, Callable[[Problem], Step]]] = {
    "sgd": ("plain SGD", plain),
    "auto": ("fedmed auto", lambda problem: _fedmed(problem, Clipping.auto)),
    "auto_patients": (
        f"fedmed auto, patients of {PATIENT_ROWS}",
        lambda problem: _fedmed(problem, Clipping.auto, PATIENT_ROWS),
    ),
    "functional": ("fedmed functional", lambda problem: _fedmed(problem, Clipping.functional)),
    "hooks": ("fedmed hooks", lambda problem: _fedmed(problem, Clipping.hooks)),
    "opacus_hooks": ("Opacus hooks", lambda problem: _opacus(problem, "hooks")),
    "opacus_functorch": ("Opacus functorch", lambda problem: _opacus(problem, "functorch")),
    "opacus_ew": ("Opacus ew", lambda problem: _opacus(problem, "ew")),
    "opacus_ghost": ("Opacus ghost", _opacus_ghost),
}
"""Title and maker of each way by key."""
