"""Each loss term against a value worked out by hand, and its sign."""

from __future__ import annotations

import pytest
import torch

from emask.train import losses

E1, E2 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


def test_adversarial_is_the_weighted_sum_of_one_minus_cosine() -> None:
    total, each = losses.adversarial([E1, E1], [E1, E2], torch.tensor([1.5, 0.5]))
    assert each.tolist() == [0.0, 1.0]
    assert float(total) == pytest.approx(0.5)
    content, each = losses.adversarial([E1, E1], [E1, E2], torch.ones(2), reach=0.6)
    assert float(content) == pytest.approx(0.6)
    assert each.tolist() == [0.0, 1.0]


def test_adaptive_weights_favour_the_harder_surrogate_within_bounds() -> None:
    weights = losses.adaptive_weights(torch.tensor([0.01, 1.0, 1.0]))
    assert weights.argmin() == 0
    assert weights.min() == 0.5
    assert weights.max() <= 2.0
    assert torch.equal(losses.adaptive_weights(torch.ones(3)), torch.ones(3))


def test_owner_counts_only_what_exceeds_the_margin() -> None:
    assert float(losses.owner([E1], [E1], 0.1)) == pytest.approx(0.9)
    assert float(losses.owner([E1], [E2], 0.1)) == 0.0


def test_perturbation_is_one_within_the_budget_and_grows_beyond() -> None:
    mask = torch.ones(1, 3, 2, 2)  # norm sqrt(12)
    assert float(losses.perturbation(mask, torch.tensor([4.0]))) == pytest.approx(1.0)
    assert float(losses.perturbation(mask, torch.tensor([1.0]))) == pytest.approx(12**0.5)


def test_roughness_ignores_a_flat_change_and_forgives_busy_places() -> None:
    flat, busy = torch.zeros(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    assert float(losses.roughness(torch.full((1, 3, 16, 16), 0.3), flat)) == 0.0
    change = torch.rand(1, 3, 16, 16)
    assert float(losses.roughness(change, flat)) > 2 * float(losses.roughness(change, busy))


def test_chroma_ignores_grey_changes() -> None:
    grey = torch.rand(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert float(losses.chroma(grey)) == pytest.approx(0.0, abs=1e-7)
    cast = torch.zeros(1, 3, 16, 16)
    cast[:, 0] = 0.3
    assert float(losses.chroma(cast)) == pytest.approx(2 * (0.2 + 0.1 + 0.1) / 3)


class Linear(torch.nn.Module):
    """A critic whose gradient is known: score = slope * sum of pixels."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(slope))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.slope * x.sum((1, 2, 3)), x


@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0])
def test_gradient_penalty_of_a_linear_critic(slope: float) -> None:
    x = torch.rand(2, 3, 2, 2)
    penalty = losses.gradient_penalty(Linear(slope), x, -x, torch.Generator().manual_seed(0))
    assert float(penalty) == pytest.approx((slope * 12**0.5 - 1) ** 2, rel=1e-5)
