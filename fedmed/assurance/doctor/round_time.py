"""How long a round will take at this site: a few steps on synthetic images, and the payload."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from fedmed.assurance.doctor.check_result import CheckResult, failed, not_measured, passed, warned
from fedmed.assurance.doctor.connection import Upload
from fedmed.assurance.report.wording import seconds_text
from fedmed.configuration.groups import TransportMode, Unit
from fedmed.configuration.plan import Plan
from fedmed.data.image_set import ImageSet
from fedmed.models.parameters import ParameterLayout
from fedmed.models.registry import build_model
from fedmed.tasks.base import Task
from fedmed.tasks.registry import build_task
from fedmed.training.accounting import GaussianSteps
from fedmed.training.noise import SecureNoise
from fedmed.training.private import Mechanism, train_privately
from fedmed.training.trainer import LocalRound, train

SPEED = "training speed"
ROUND = "round time"

_STEPS = 4
_LARGEST_BATCH = 64
# Of a step: a step with large images and DP-SGD can take a minute on a CPU.
_MOST_PIXELS = 2**20
_PATIENCE = 10.0
# Four exchanges, each a request and an answer of several short messages.
_ROUND_TRIPS = 40
_COUNTS_BYTES = 64 * 2**10
_SHARE_OF_DEADLINE = 0.5


@dataclass(frozen=True)
class Payload:
    """Bytes of one round.

    Attributes:
        parameters: numbers of the model.
        up: from the site.
        down: to the site.
    """

    parameters: int
    up: int
    down: int


@dataclass(frozen=True)
class RoundTime:
    """Prediction for one round at this site.

    Attributes:
        training: seconds.
        transfer: seconds; None where the bandwidth was not measured.
    """

    training: float
    transfer: float | None

    @property
    def total(self) -> float:
        """Seconds of what is known."""
        return self.training + (self.transfer or 0.0)


def payload_of(plan: Plan) -> Payload:
    """Return what a round of a plan moves; weights come as float32."""
    task = build_task(plan.task)
    parameters = ParameterLayout.of(_model(plan, task, torch.device("cpu"))).size
    width = plan.transport.bits // 8 if plan.transport.mode == TransportMode.secagg else 4
    return Payload(parameters, parameters * width + _COUNTS_BYTES, 4 * parameters)


def seconds_per_image(plan: Plan, device: torch.device, threads: int) -> float:
    """Train a few steps of a plan on synthetic images and return the seconds an image takes.

    The ledger is not touched: no patient's image is looked at. The first step is left out where
    there are others: it prepares what the later ones find.

    Raises:
        FedmedError: the plan cannot be trained.
    """
    task = build_task(plan.task)
    images = _synthetic_images(plan, task)
    model = _model(plan, task, device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times = _step_times(plan, task, model, images, device)
    finally:
        torch.set_num_threads(before)
    later = times[1:] or times
    return min(later) / len(images)


def predict_round(
    plan: Plan, training_images: int, image_seconds: float, payload: Payload, upload: Upload | None
) -> RoundTime:
    """Predict one round.

    Args:
        plan: epochs of a round.
        training_images: at this site.
        image_seconds: see :func:`seconds_per_image`; holds all views of an image.
        payload: see :func:`payload_of`.
        upload: its rate is taken for both ways; None was not measured.
    """
    training = plan.federation.local_epochs * training_images * image_seconds
    if upload is None:
        return RoundTime(training, None)
    moved = (payload.up + payload.down) / upload.bytes_per_second
    return RoundTime(training, moved + _ROUND_TRIPS * upload.round_trip)


def check_speed(image_seconds: float, plan: Plan) -> CheckResult:
    """Tell the measured speed."""
    way = "DP-SGD" if plan.privacy.enabled else "SGD without privacy"
    size = plan.preprocessing.size
    speed = 1 / image_seconds
    shown = f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}"
    return passed(SPEED, f"{shown} images/s with {way}, {plan.model.name}, {size} pixels")


def check_round_time(predicted: RoundTime | None, plan: Plan) -> CheckResult:
    """Compare the prediction with the plan's deadline."""
    if predicted is None:
        return not_measured(ROUND, "needs the manifest and the training speed")
    deadline = plan.federation.deadline_seconds
    parts = f"training {seconds_text(predicted.training)}"
    parts += (
        ", transfer not measured"
        if predicted.transfer is None
        else f", transfer {seconds_text(predicted.transfer)}"
    )
    detail = f"about {seconds_text(predicted.total)} ({parts}); deadline {seconds_text(deadline)}"
    remedy = (
        "use a GPU (site.device), more threads, or ask for fewer federation.local_epochs or a "
        "longer federation.deadline_seconds"
    )
    if predicted.total > deadline:
        return failed(ROUND, detail, remedy)
    if predicted.total > _SHARE_OF_DEADLINE * deadline:
        return warned(ROUND, detail, remedy)
    return passed(ROUND, detail)


class _EnoughError(Exception):
    """Ends the training of a slow machine."""


def _step_times(
    plan: Plan, task: Task, model: torch.nn.Module, images: ImageSet, device: torch.device
) -> list[float]:
    times: list[float] = []
    began = last = time.monotonic()

    def done(_share: float) -> None:
        nonlocal last
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.monotonic()
        times.append(now - last)
        last = now
        if now - began > _PATIENCE:
            raise _EnoughError

    local = LocalRound(number=1, rounds=1, local_epochs=_STEPS, seed=0, progress=done)
    training = replace(plan.training, batch_size=len(images))
    try:
        if plan.privacy.enabled:
            train_privately(
                model,
                images,
                task,
                training,
                plan.privacy,
                _mechanism(plan),
                SecureNoise(),
                local,
            )
        else:
            train(model, images, task, training, local)
    except _EnoughError:
        pass
    return times


def _mechanism(plan: Plan) -> Mechanism:
    """A mechanism that takes every image at every step; its noise costs what any noise costs."""
    privacy = plan.privacy
    return Mechanism(
        GaussianSteps(privacy.noise_multiplier or 1.0, 1.0, _STEPS),
        privacy.clipping_norm,
        privacy.max_physical_batch,
        privacy.unit,
        privacy.images_per_patient,
    )


def _synthetic_images(plan: Plan, task: Task) -> ImageSet:
    size, channels = plan.preprocessing.size, plan.preprocessing.channels
    most = max(1, _MOST_PIXELS // (size * size))
    wanted = plan.privacy.max_physical_batch if plan.privacy.enabled else plan.training.batch_size
    count = min(wanted, _LARGEST_BATCH, most)
    draws = torch.Generator().manual_seed(0)
    classes = len(plan.task.labels)
    targets = torch.stack([task.encode([number % classes]) for number in range(count)])
    lent = plan.privacy.images_per_patient if plan.privacy.unit == Unit.patient else 1
    return ImageSet(
        torch.rand(count, channels, size, size, generator=draws),
        targets,
        torch.arange(count) // max(1, lent),
    )


def _model(plan: Plan, task: Task, device: torch.device) -> torch.nn.Module:
    model = build_model(
        plan.model, channels=plan.preprocessing.channels, outputs=task.outputs, seed=0
    )
    return model.to(device)
