"""Models trained alone, beside the federation."""

import torch

from fedmed.configuration.groups import (
    FederationConfig,
    ModelConfig,
    PrivacyConfig,
    TaskConfig,
    TrainingConfig,
)
from fedmed.configuration.plan import Plan
from fedmed.data.image_set import ImageSet
from fedmed.models.parameters import flatten
from fedmed.tasks.classification.task import Classification
from fedmed.training.baselines import Baseline, train_baseline
from fedmed.training.noise import SeededNoise


def trained(model):
    plan = Plan(
        model=ModelConfig(width=2, stages=1),
        training=TrainingConfig(optimizer="sgd", augment=False, schedule="constant"),
        federation=FederationConfig(rounds=1, local_epochs=0.5, minimum_sites=3),
        privacy=PrivacyConfig(
            enabled=True, model=model, noise_multiplier=2.0, sample_rate=0.5, delta=1e-5
        ),
    )
    draws = torch.Generator().manual_seed(0)
    images = ImageSet(
        torch.rand(20, 1, 8, 8, generator=draws),
        torch.randint(0, 2, (20,), generator=draws),
        torch.arange(20),
    )
    task = Classification(TaskConfig())
    return flatten(train_baseline(plan, task, Baseline("alone", images), "cpu", SeededNoise(1)))


def test_a_model_trained_alone_carries_all_of_its_noise_whoever_adds_it_in_the_federation():
    alone = trained("local")
    assert (trained("distributed") == alone).all()
    assert (trained("central") == alone).all()
