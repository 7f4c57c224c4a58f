"""Each loss term against a value worked out by hand, and its sign: a descent step must do what the term is for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from emask.train import losses
from emask.train.draws import Draws

E1, E2 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
# cosines 0.6 and 0.8 with E1 and E2
BETWEEN = torch.tensor([[0.6, 0.8]])


def descend(term: object, x: Tensor, rate: float = 1e-3) -> Tensor:
    """x after a small step down a term of it."""
    x = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(term(x), x)  # type: ignore[operator]
    assert torch.isfinite(grad).all() and grad.any()
    return (x - rate * grad).detach()


def cosine(x: Tensor, y: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(x, y).mean())


def test_toward_is_what_is_missing_to_the_reach() -> None:
    both = torch.cat([E1, E1])
    assert float(losses.toward(both, torch.cat([E1, E2]))) == pytest.approx(0.5)  # 1 - 1 and 1 - 0
    assert float(losses.toward(BETWEEN, E1)) == pytest.approx(0.4)
    assert float(losses.toward(BETWEEN, E1, reach=0.65)) == pytest.approx(0.05)
    assert float(losses.toward(BETWEEN, E1, reach=0.6)) == pytest.approx(0.0, abs=1e-6)
    assert float(losses.toward(BETWEEN, E2, reach=0.65)) == 0.0  # 0.8: content
    assert float(losses.toward(BETWEEN, -E1)) == pytest.approx(1.6)
    assert cosine(descend(lambda x: losses.toward(x, E1), BETWEEN), E1) > 0.6


def test_owner_counts_only_what_exceeds_the_margin() -> None:
    assert float(losses.owner([E1], [E1], 0.1)) == pytest.approx(0.9)
    assert float(losses.owner([E1], [E2], 0.1)) == 0.0
    # the mean over surrogates, 0.5 and 0.7, whose embeddings may have other lengths
    wide = torch.tensor([[0.8, 0.6, 0.0]])
    assert float(losses.owner([BETWEEN, wide], [E1, torch.tensor([[1.0, 0.0, 0.0]])], 0.1)) == pytest.approx(0.6)
    assert cosine(descend(lambda x: losses.owner([x], [E1], 0.1), BETWEEN), E1) < 0.6


def test_perturbation_is_one_within_the_budget_and_grows_beyond() -> None:
    mask = torch.ones(1, 3, 2, 2)  # norm sqrt(12)
    assert float(losses.perturbation(mask, torch.tensor([4.0]))) == pytest.approx(1.0)
    assert float(losses.perturbation(mask, torch.tensor([1.0]))) == pytest.approx(12**0.5)
    # of each image by its own budget
    pair, budgets = torch.cat([mask, 2 * mask]), torch.tensor([4.0, 2.0])
    assert float(losses.perturbation(pair, budgets)) == pytest.approx((1 + 12**0.5) / 2)
    assert descend(lambda x: losses.perturbation(x, torch.tensor([1.0])), mask).norm() < mask.norm()


def test_roughness_of_a_step_in_a_flat_photo() -> None:
    """A step of 0.5 between two columns of 16: a difference in one of 15 columns; the weight of a flat photo is 1."""
    change = torch.zeros(1, 3, 16, 16)
    change[..., 8:] = 0.5
    assert float(losses.roughness(change, torch.zeros_like(change))) == pytest.approx(0.5 / 15)
    # in a ramp of slope 0.1 the contrast is 0.1 but near the border, where the 5 x 5 mean takes zeros in
    ramp = (torch.arange(16.0) * 0.1).expand(1, 3, 16, 16)
    assert float(losses.roughness(change, ramp)) == pytest.approx(0.5 / 15 * 0.5, rel=0.05)
    spike = torch.zeros(1, 3, 16, 16)
    spike[..., 8, 8] = 0.5
    smoother = descend(lambda x: losses.roughness(x, ramp), spike, rate=1.0)
    assert losses.roughness(smoother, ramp) < losses.roughness(spike, ramp)


def test_roughness_ignores_a_flat_change_and_forgives_busy_places() -> None:
    source = torch.Generator().manual_seed(0)
    flat, busy = torch.zeros(1, 3, 16, 16), torch.rand(1, 3, 16, 16, generator=source)
    assert float(losses.roughness(torch.full((1, 3, 16, 16), 0.3), flat)) == 0.0
    change = torch.rand(1, 3, 16, 16, generator=source)
    assert float(losses.roughness(change, flat)) > 2 * float(losses.roughness(change, busy))


def test_attribute_is_cross_entropy_of_the_labels_that_are_known() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 5.0]])  # probabilities 1/2, 3/4, 3/4
    labels = torch.tensor([[1.0, -1.0], [1.0, 0.0]])
    by_hand = (math.log(2) + math.log(4) + math.log(4 / 3)) / 3
    assert float(losses.attribute(logits, labels)) == pytest.approx(by_hand)
    # half sure that it is so: a label of 0.5 is a probability of 3/4
    unsure = losses.attribute(torch.tensor([[math.log(3)]]), torch.tensor([[0.5]]))
    assert float(unsure) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert float(losses.attribute(logits, torch.zeros(2, 2))) == 0.0
    moved = descend(lambda x: losses.attribute(x, labels), logits)
    assert (moved - logits).sign().tolist() == [[1, -1], [1, 0]]


def test_reconstruction_is_the_mean_absolute_difference() -> None:
    crop = torch.zeros(1, 3, 2, 2)
    rebuilt = torch.tensor([0.3, -0.1, 0.2]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert float(losses.reconstruction(rebuilt, crop)) == pytest.approx(0.2)
    assert descend(lambda x: losses.reconstruction(x, crop), rebuilt).abs().sum() < rebuilt.abs().sum()


def test_wasserstein_lifts_real_scores_and_lowers_those_of_fakes() -> None:
    real, fake = torch.tensor([3.0, 1.0]), torch.tensor([0.5, 0.5])
    assert float(losses.wasserstein(real, fake)) == pytest.approx(-1.5)
    assert (descend(lambda x: losses.wasserstein(x, fake), real) > real).all()
    assert (descend(lambda x: losses.wasserstein(real, x), fake) < fake).all()


def test_rare_attributes_can_weigh_as_much_as_common_ones() -> None:
    """One photo of ten is on: balanced, saying no to all costs as much as saying yes to all."""
    labels = torch.full((10, 1), -1.0)
    labels[0] = 1.0
    on = torch.tensor([0.1])
    no, yes = (losses.attribute(torch.full((10, 1), z), labels, on) for z in (-2.0, 2.0))
    assert float(no) == pytest.approx(float(yes), rel=1e-5)
    assert losses.attribute(torch.full((10, 1), -2.0), labels) < losses.attribute(torch.full((10, 1), 2.0), labels)


class Linear(torch.nn.Module):
    """A critic whose gradient is known: score = slope * sum of pixels."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(slope))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x.sum((1, 2, 3))


@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0])
def test_gradient_penalty_of_a_linear_critic(slope: float) -> None:
    x = torch.rand(2, 3, 2, 2)
    critic = Linear(slope)
    penalty = losses.gradient_penalty(critic, x, -x, Draws(0))
    assert penalty.item() == pytest.approx((slope * 12**0.5 - 1) ** 2, rel=1e-5)
    if slope:  # it draws the gradient's norm to 1, which is at a slope of 0.29
        penalty.backward()
        assert critic.slope.grad is not None and (critic.slope.grad > 0) == (slope > 12**-0.5)


def test_gradient_penalty_looks_between_real_and_fake() -> None:
    def square(x: Tensor) -> Tensor:
        return x.square().sum((1, 2, 3)) / 2  # the gradient is x itself

    share = Draws(3).uniform(2, 1, 1, 1)
    real, fake = torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    by_hand = ((share.flatten() * 12**0.5 - 1) ** 2).mean()
    assert losses.gradient_penalty(square, real, fake, Draws(3)).item() == pytest.approx(float(by_hand), rel=1e-5)


def test_pixels_is_mean_absolute_plus_root_mean_square_of_each_image() -> None:
    crop = torch.zeros(2, 3, 2, 2)
    restored = torch.zeros(2, 3, 2, 2)
    restored[0, 0] = 0.6  # 4 of 12 values
    restored[1] = -0.1
    by_hand = (0.2 + 0.1) / 2 + (0.6 / 3**0.5 + 0.1) / 2
    assert float(losses.pixels(restored, crop)) == pytest.approx(by_hand, rel=1e-5)
    assert descend(lambda x: losses.pixels(x, crop), restored).norm() < restored.norm()


def test_pixels_of_an_image_that_is_right_already_gives_no_nan() -> None:
    crop = torch.rand(2, 3, 4, 4)
    restored = crop.clone().requires_grad_(True)
    losses.pixels(restored, crop).backward()
    assert restored.grad is not None and not restored.grad.any()


def test_identity_draws_to_the_source() -> None:
    assert float(losses.identity(torch.cat([BETWEEN, E1]), torch.cat([E1, E1]))) == pytest.approx(0.2)
    assert float(losses.identity(E1, -E1)) == 2.0
    assert cosine(descend(lambda x: losses.identity(x, E1), BETWEEN), E1) > 0.6


def test_away_counts_only_what_exceeds_the_margin() -> None:
    both, target = torch.cat([BETWEEN, E2]), torch.cat([E1, E1])
    assert float(losses.away(both, target, 0.1)) == pytest.approx(0.25)  # 0.5 and 0
    assert float(losses.away(-BETWEEN, E1, 0.1)) == 0.0
    assert cosine(descend(lambda x: losses.away(x, E1, 0.1), BETWEEN), E1) < 0.6
