"""DP-SGD does what the accounting assumes: clips each image, adds the stated noise, counts all."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fedmed.configuration.groups import (
    ModelConfig,
    Normalisation,
    PrivacyConfig,
    TaskConfig,
    TrainingConfig,
)
from fedmed.data.image_set import ImageSet
from fedmed.errors import PrivacyError
from fedmed.models.registry import build_model
from fedmed.tasks.classification.task import Classification
from fedmed.training.accounting import GaussianSteps
from fedmed.training.noise import SecureNoise, SeededNoise
from fedmed.training.private import Mechanism, check_trainable_privately, train_privately
from fedmed.training.trainer import LocalRound

TASK = Classification(TaskConfig())
SGD = TrainingConfig(
    optimizer="sgd",
    learning_rate=1.0,
    momentum=0.0,
    weight_decay=0.0,
    schedule="constant",
    augment=False,
)
CLIP = 0.5


class NoNoise(SeededNoise):
    def normal(self, shape):
        return torch.zeros(shape)


def small_model(seed=0):
    return build_model(ModelConfig(width=4, stages=2), channels=1, outputs=1, seed=seed)


def images(count=12):
    draws = torch.Generator().manual_seed(1)
    return ImageSet(
        torch.rand(count, 1, 16, 16, generator=draws),
        torch.randint(0, 2, (count,), generator=draws),
        torch.arange(count),
    )


def one_step(model, data, rate=1.0, noise=None, physical=256, multiplier=1.0, steps=1):
    train_privately(
        model,
        data,
        TASK,
        SGD,
        PrivacyConfig(enabled=True),
        Mechanism(GaussianSteps(multiplier, rate, steps), CLIP, physical),
        noise or NoNoise(0),
        LocalRound(1, 1, 1.0, seed=0),
    )


def clipped_sum_by_loop(model, data):
    """Reference: one image at a time, in float64."""
    model = copy.deepcopy(model).double()
    total = [torch.zeros_like(p) for p in model.parameters()]
    for image, target in zip(data.images.double(), data.targets, strict=True):
        loss = TASK.loss(model(image[None]), target[None]).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        for summed, gradient in zip(total, gradients, strict=True):
            summed.add_(gradient * min(1.0, CLIP / norm.item()))
    return torch.cat([t.flatten() for t in total])


def flat(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


@pytest.mark.parametrize("physical", [256, 5, 1])
def test_a_step_without_noise_is_the_clipped_sum_over_the_expected_batch(physical):
    model, data = small_model(), images()
    before, reference = flat(model), clipped_sum_by_loop(model, data)
    one_step(model, data, physical=physical)
    moved = (before - flat(model)) * len(data)
    assert torch.linalg.norm(moved - reference) / torch.linalg.norm(reference) < 1e-5


@pytest.mark.parametrize("extra", [0, 5, 11])
def test_one_image_more_moves_the_sum_by_at_most_the_clipping_norm(extra):
    """Sensitivity, the quantity that the noise is scaled to."""
    data = images()
    fewer = [i for i in range(len(data)) if i != extra]
    without = ImageSet(data.images[fewer], data.targets[fewer], data.patients[fewer])
    sums = []
    for one in (data, without):
        model = small_model()
        before = flat(model)
        one_step(model, one)
        sums.append((before - flat(model)) * len(one))
    assert torch.linalg.norm(sums[0] - sums[1]) <= CLIP * (1 + 1e-5)


def test_the_noise_has_the_stated_size_and_an_empty_batch_is_noise_alone():
    model, data = small_model(), images()
    before = flat(model)
    rate = 1e-9  # certainly an empty batch
    one_step(model, data, rate=rate, noise=SecureNoise(), multiplier=3.0)
    noise = (before - flat(model)) * rate * len(data)
    scale = 3.0 * CLIP
    assert stats.kstest(noise.numpy() / scale, "norm").pvalue > 1e-4
    assert stats.kstest(noise.numpy() / (scale / 2), "norm").pvalue < 1e-9  # control


def test_secure_noise_is_standard_normal_and_never_repeats():
    first, second = SecureNoise(), SecureNoise()
    values = first.normal(torch.Size([200_001])).numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
    assert not np.array_equal(values[:100], second.normal(torch.Size([100])).numpy())
    assert first.sampling_generator().initial_seed() != second.sampling_generator().initial_seed()


def test_seeded_noise_repeats_and_says_that_it_is_void():
    assert "void" in SeededNoise.description
    shape = torch.Size([5])
    assert torch.equal(SeededNoise(1).normal(shape), SeededNoise(1).normal(shape))


def test_torch_manual_seed_does_not_make_production_noise_repeatable():
    outcomes = []
    for _ in range(2):
        torch.manual_seed(0)
        model = small_model()
        one_step(model, images(), noise=SecureNoise())
        outcomes.append(flat(model))
    assert not torch.equal(*outcomes)


def test_a_model_is_left_as_it_was_found():
    model = small_model()
    one_step(model, images())
    assert type(model).__name__ == "ResidualClassifier"
    assert not any(hasattr(p, "grad_sample") for p in model.parameters())
    one_step(model, images())  # wrapping it again must work


def test_batch_statistics_are_refused():
    config = ModelConfig(width=4, stages=1, normalisation=Normalisation.batch)
    with pytest.raises(PrivacyError, match="normalisation=group"):
        check_trainable_privately(build_model(config, channels=1, outputs=1, seed=0))
    frozen = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    for parameter in frozen[1].parameters():
        parameter.requires_grad_(False)
    with pytest.raises(PrivacyError):  # its running statistics still move
        check_trainable_privately(frozen)
    check_trainable_privately(small_model())
