"""Membership inference works on training without privacy and hardly at epsilon 1."""

import numpy as np
import pytest
import torch
from scipy import stats

from fedmed.assurance.privacy_audit.bounds import largest_advantage
from fedmed.assurance.privacy_audit.membership import (
    DELTA,
    AttackResult,
    Estimate,
    MembershipDesign,
    MembershipResult,
    audit_membership,
    confidences,
    lira_scores,
    measure,
)
from fedmed.assurance.privacy_audit.verdict import Verdict
from fedmed.training.noise import SeededNoise


def worlds(shift, models=16, pool=300, seed=0):
    """Confidences that are higher by ``shift`` for members, on images of unlike difficulty."""
    draws = np.random.default_rng(seed)
    members = np.argsort(np.argsort(draws.random((models, pool)), axis=0), axis=0) < models // 2
    difficulty = 5 * draws.normal(size=pool)
    return difficulty + shift * members + draws.normal(size=(models, pool)), members


def test_each_image_is_in_half_of_the_models():
    members = MembershipDesign(pool=50, models=10).members()
    assert (members.sum(axis=0) == 5).all()
    assert members.sum(axis=1).min() > 10
    assert members.sum(axis=1).max() < 40
    assert len({row.tobytes() for row in members}) == 10


def test_figures_at_the_extremes_and_against_the_rank_test():
    members = np.array([[True] * 50 + [False] * 50])
    perfect = measure(np.where(members, 1.0, 0.0), members, 0)
    assert perfect.advantage.value == perfect.auroc.value == perfect.tpr.value == 1.0
    useless = measure(np.zeros((1, 100)), members, 0)
    assert (useless.advantage.value, useless.auroc.value, useless.tpr.value) == (0.0, 0.5, 0.0)
    scores = np.round(np.random.default_rng(1).normal(size=(1, 100)) + 0.5 * members, 1)  # ties
    found = measure(scores, members, 0)
    inside, outside = scores[members], scores[~members]
    rank = stats.mannwhitneyu(inside, outside).statistic / (50 * 50)
    assert found.auroc.value == pytest.approx(rank)
    assert found.advantage.value == pytest.approx(
        stats.ks_2samp(inside, outside, alternative="less").statistic
    )
    assert found.auroc.low < rank < found.auroc.high


def test_lira_sees_past_the_difficulty_of_images_and_a_threshold_does_not():
    confidence, members = worlds(shift=1.5)
    threshold = measure(confidence, members, 0)
    lira = measure(lira_scores(confidence, members), members, 0)
    # Two normal laws 1.5 standard deviations apart have an AUROC of 0.856.
    assert 0.78 < lira.auroc.value < stats.norm.cdf(1.5 / np.sqrt(2)) + 0.02
    assert lira.auroc.low > threshold.auroc.high


def test_lira_finds_nothing_where_there_is_nothing():
    """Shadow models are other models than the target; else this would exceed chance."""
    confidence, members = worlds(shift=0.0)
    lira = measure(lira_scores(confidence, members), members, 0)
    assert abs(lira.auroc.value - 0.5) < 0.03
    assert lira.tpr.value < 0.025


def test_confidence_is_the_log_odds_of_the_true_label():
    design = MembershipDesign(pool=20, models=4)
    pool = design.images()
    found = confidences(design, design.members(), lambda number, _images: design.network(number))
    with torch.inference_mode():
        logit = design.network(2)(pool.images)[:, 0].double()
    right = torch.sigmoid(logit * (2 * pool.targets - 1))
    np.testing.assert_allclose(found[2], torch.log(right / (1 - right)).numpy(), atol=1e-9)


def result_with(protected, control, epsilon=1.0):
    def attack(low, high):
        estimate = Estimate((low + high) / 2, low, high)
        return {"LiRA": AttackResult(estimate, estimate, estimate)}

    return MembershipResult(epsilon, attack(*protected), attack(*control))


def test_verdicts():
    limit = largest_advantage(1.0, DELTA)
    works = (0.6, 0.7)
    assert result_with((0.0, 0.1), works).verdict("LiRA") == Verdict.holds
    assert result_with((limit + 0.01, 0.6), works).verdict("LiRA") == Verdict.broken
    assert result_with((limit - 0.01, 0.6), works).verdict("LiRA") == Verdict.inconclusive
    assert result_with((0.0, 0.1), (0.1, 0.4)).verdict("LiRA") == Verdict.inconclusive


@pytest.mark.slow
def test_members_are_told_without_privacy_and_not_at_epsilon_1():
    result = audit_membership(MembershipDesign(models=16), 1.0, 1.0, SeededNoise)
    for attack in ("loss threshold", "LiRA"):
        protected, control = result.protected[attack], result.control[attack]
        assert control.advantage.low > 0.4
        assert control.auroc.low > 0.7
        assert protected.advantage.value < 0.12
        assert protected.auroc.value < 0.57
        assert protected.tpr.value < 0.04
        assert result.verdict(attack) == Verdict.holds
    assert result.control["LiRA"].tpr.low > 0.04


@pytest.mark.slow
def test_an_unbounded_claim_lets_the_attack_through():
    """Control of the protected side: with next to no noise the same code gives members away."""
    result = audit_membership(MembershipDesign(models=8), 300.0, 1.0, SeededNoise)
    assert result.protected["loss threshold"].advantage.low > 0.15
