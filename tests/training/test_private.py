"""DP-SGD does what the accounting assumes: clips each image, adds the stated noise, counts all."""

import copy
from dataclasses import replace

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
    Unit,
)
from fedmed.data.image_set import ImageSet
from fedmed.errors import PrivacyError
from fedmed.models.registry import build_model
from fedmed.tasks.classification.task import Classification
from fedmed.training.accounting import GaussianSteps
from fedmed.training.noise import CLIPPING_MARGIN, SecureNoise, SeededNoise
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


def one_step(
    model,
    data,
    rate=1.0,
    noise=None,
    physical=256,
    multiplier=1.0,
    steps=1,
    privacy=None,
    training=SGD,
    **more,
):
    train_privately(
        model,
        data,
        TASK,
        training,
        privacy or PrivacyConfig(enabled=True),
        Mechanism(GaussianSteps(multiplier, rate, steps), CLIP, physical, **more),
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
            summed.add_(gradient * min(1.0, CLIP * CLIPPING_MARGIN / norm.item()))
    return torch.cat([t.flatten() for t in total])


def flat(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


@pytest.mark.parametrize("physical", [256, 5, 1])
def test_a_step_without_noise_is_the_clipped_sum_over_the_expected_batch(physical):
    model, data = small_model(), images()
    before, reference = flat(model), clipped_sum_by_loop(model, data)
    one_step(model, data, physical=physical)
    moved = (before - flat(model)) * len(data)
    # 1e-4 is the lattice of the noise; the clipped sums themselves are tested to 1e-5 elsewhere.
    assert torch.linalg.norm(moved - reference) / torch.linalg.norm(reference) < 1e-4


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


def patients_of(*image_counts, seed=1):
    """Images of patients with so many images each; the last patient's are hard to learn."""
    draws = torch.Generator().manual_seed(seed)
    total = sum(image_counts)
    return ImageSet(
        torch.rand(total, 1, 16, 16, generator=draws),
        torch.randint(0, 2, (total,), generator=draws),
        torch.repeat_interleave(torch.arange(len(image_counts)), torch.tensor(image_counts)),
    )


def without_last_patient(data):
    kept = data.patients < data.patients.max()
    return ImageSet(data.images[kept], data.targets[kept], data.patients[kept])


def released_sum(data, unit, images_per_patient):
    """What a noiseless step makes public: the clipped sum. The expected batch is divided out."""
    model = small_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # large gradients, so that clipping is at work
    before = flat(model)
    units = data.patient_count if unit == Unit.patient else len(data)
    one_step(model, data, unit=unit, images_per_patient=images_per_patient)
    return (before - flat(model)) * units


@pytest.mark.parametrize("images_of_patient", [1, 5, 50])
def test_one_patient_moves_the_sum_by_at_most_the_clipping_norm(images_of_patient):
    data = patients_of(3, 1, 2, images_of_patient)
    moved = released_sum(data, Unit.patient, 64) - released_sum(
        without_last_patient(data), Unit.patient, 64
    )
    assert 0.5 * CLIP < torch.linalg.norm(moved) <= CLIP


def test_control_with_images_as_the_unit_a_patient_of_fifty_moves_it_much_further():
    data = patients_of(3, 1, 2, 50)
    moved = released_sum(data, Unit.image, 1) - released_sum(
        without_last_patient(data), Unit.image, 1
    )
    assert torch.linalg.norm(moved) > 3 * CLIP


def test_several_views_of_an_image_are_clipped_as_one():
    torch.manual_seed(0)
    data = images(6)
    privacy = PrivacyConfig(enabled=True, augmentation_multiplicity=4)
    model = small_model()
    before = flat(model)
    one_step(model, data, privacy=privacy, physical=8)
    plain = small_model()
    one_step(plain, data)
    # Without augmentation the views are equal, so their mean is the image's own gradient.
    assert torch.allclose(before - flat(model), before - flat(plain), atol=1e-5)


def test_random_views_do_not_follow_from_the_seed_of_the_plan():
    """Known draws would shift from image to image with every unit that comes or goes."""
    sums = []
    augmenting = replace(SGD, augment=True)
    for noise in (SecureNoise(), SecureNoise(), NoNoise(3), NoNoise(3)):
        model = small_model()
        one_step(model, images(), noise=noise, noise_share=0.0, training=augmenting)
        sums.append(flat(model))
    assert not torch.allclose(sums[0], sums[1])
    assert torch.equal(sums[2], sums[3])  # control: nothing else is random


def test_the_average_of_the_steps_is_sent_if_asked_for():
    data, privacy = images(), PrivacyConfig(enabled=True, ema_decay=0.5)
    visited = []
    model = small_model()

    class Watching(NoNoise):
        def normal(self, shape):
            visited.append(flat(model))
            return super().normal(shape)

    one_step(model, data, privacy=privacy, steps=3, noise=Watching(0))
    last = small_model()
    one_step(last, data, steps=3)
    second, third = visited[1], visited[2]  # weights before steps 2 and 3: after 1 and 2
    expected = (0.125 * second + 0.25 * third + 0.5 * flat(last)) / 0.875
    assert torch.allclose(flat(model), expected, atol=1e-6)


def test_frozen_layers_stay_and_are_not_noised():
    model = small_model()
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)
    before = {name: value.clone() for name, value in model.named_parameters()}
    one_step(model, images(), noise=SecureNoise(), multiplier=5.0)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("encoder")


def test_a_site_that_leaves_the_noise_to_the_server_adds_none():
    data, first, second = images(), small_model(), small_model()
    one_step(first, data, noise=SecureNoise(), noise_share=0.0)
    one_step(second, data, noise=SecureNoise(), noise_share=0.0)
    assert torch.equal(flat(first), flat(second))
