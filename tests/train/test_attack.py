"""The meta-auxiliary attack against a closed form, finite differences and arithmetic done by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from emask.nets.generator import Editor, Generator, NetConfig
from emask.train import losses
from emask.train.attack import AdaptiveWeights, Attack, MaskAt, Theta, attack_loss, primaries_of
from emask.train.surrogates import Surrogate

K, SIZE = 3, 5
ALPHA = 0.07
WEIGHTS = torch.tensor([0.6, 0.9, 1.5], dtype=torch.float64)
ALL = tuple(range(K))


class Quadratic:
    """L_k(theta) = (theta - c_k)^T A_k (theta - c_k) / 2 with symmetric A_k: everything about it is known."""

    def __init__(self) -> None:
        source = torch.Generator().manual_seed(0)
        root = torch.randn(K, SIZE, SIZE, dtype=torch.float64, generator=source)
        self.a = root @ root.transpose(1, 2) / SIZE + torch.eye(SIZE, dtype=torch.float64)
        self.c = torch.randn(K, SIZE, dtype=torch.float64, generator=source)
        self.x = torch.randn(SIZE, dtype=torch.float64, generator=source).requires_grad_(True)
        self.idle = torch.ones(2, dtype=torch.float64, requires_grad=True)  # no loss reaches it

    def theta(self) -> Theta:
        return {"x": self.x, "idle": self.idle}

    def losses_at(self, theta: Theta, which: Sequence[int]) -> list[Tensor]:
        assert torch.equal(theta["idle"], self.idle)
        away = [theta["x"] - self.c[k] for k in which]
        return [d @ self.a[k] @ d / 2 for d, k in zip(away, which, strict=True)]

    def loss(
        self, kind: Attack, weights: Tensor = WEIGHTS, alpha: float = ALPHA, primaries: Sequence[int] = ALL
    ) -> Tensor:
        at_theta = self.losses_at(self.theta(), ALL)
        return attack_loss(kind, at_theta, self.losses_at, self.theta(), weights, alpha, primaries)

    def gradient(self, kind: Attack, **settings: object) -> Tensor:
        (grad,) = torch.autograd.grad(self.loss(kind, **settings), self.x)  # type: ignore[arg-type]
        return grad

    def expected(self, second_order: bool, alpha: float = ALPHA, weights: Tensor = WEIGHTS) -> Tensor:
        """sum_k [ g_k(x) + sum_{j != k} w_j (I - alpha A_k) g_j(x - alpha g_k(x)) ] with g_k(x) = A_k (x - c_k)."""
        x, one = self.x.detach(), torch.eye(SIZE, dtype=torch.float64)
        total = torch.zeros_like(x)
        for k in ALL:
            own = self.a[k] @ (x - self.c[k])
            total += own
            factor = one - alpha * self.a[k] if second_order else one
            for j in ALL:
                if j != k:
                    total += weights[j] * (factor @ (self.a[j] @ (x - alpha * own - self.c[j])))
        return total


def relative(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())


@pytest.fixture
def quadratic() -> Quadratic:
    return Quadratic()


def test_meta_gradient_has_the_closed_form(quadratic: Quadratic) -> None:
    assert relative(quadratic.gradient(Attack.meta), quadratic.expected(second_order=True)) < 1e-10


def test_first_order_gradient_is_the_closed_form_without_the_curvature(quadratic: Quadratic) -> None:
    first = quadratic.gradient(Attack.meta_first_order)
    assert relative(first, quadratic.expected(second_order=False)) < 1e-10
    assert relative(first, quadratic.gradient(Attack.meta)) > 0.01


def test_both_forms_have_the_same_value(quadratic: Quadratic) -> None:
    assert torch.equal(quadratic.loss(Attack.meta), quadratic.loss(Attack.meta_first_order))


@pytest.mark.parametrize("kind", [Attack.meta, Attack.meta_first_order])
def test_the_inner_step_goes_down_and_the_weights_count(quadratic: Quadratic, kind: Attack) -> None:
    """The closed forms of two likely mistakes are far enough away to be told apart."""
    gradient, second = quadratic.gradient(kind), kind is Attack.meta
    assert relative(gradient, quadratic.expected(second, alpha=-ALPHA)) > 0.01
    assert relative(gradient, quadratic.expected(second, weights=torch.ones_like(WEIGHTS))) > 0.01


def test_value_by_hand() -> None:
    """L_0 = x^2 / 2 and L_1 = (x - 3)^2 / 2 at x = 1 with alpha 0.1: theta'_0 = 0.9, theta'_1 = 1.2."""
    x = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def losses_at(theta: Theta, which: Sequence[int]) -> list[Tensor]:
        return [(theta["x"] - 3 * k) ** 2 / 2 for k in which]

    theta, weights = {"x": x}, torch.tensor([0.5, 2.0], dtype=torch.float64)
    loss = attack_loss(Attack.meta, losses_at(theta, (0, 1)), losses_at, theta, weights, 0.1, (0, 1))
    assert float(loss.detach()) == pytest.approx(0.5 + 2.0 * 2.1**2 / 2 + 2.0 + 0.5 * 1.2**2 / 2, rel=1e-12)
    # 1 + 2.0 * 0.9 * (0.9 - 3) + (1 - 3) + 0.5 * 0.9 * 1.2
    assert float(torch.autograd.grad(loss, x)[0]) == pytest.approx(1 - 3.78 - 2 + 0.54, rel=1e-12)


@pytest.mark.parametrize("kind", [Attack.meta, Attack.meta_first_order])
def test_without_an_inner_step_meta_is_a_weighted_sum(quadratic: Quadratic, kind: Attack) -> None:
    each = [float(value.detach()) for value in quadratic.losses_at(quadratic.theta(), ALL)]
    expected = sum(each[k] + sum(float(WEIGHTS[j]) * each[j] for j in ALL if j != k) for k in ALL)
    assert float(quadratic.loss(kind, alpha=0.0).detach()) == pytest.approx(expected, rel=1e-12)


def test_ensemble_is_the_weighted_sum_and_takes_no_inner_step(quadratic: Quadratic) -> None:
    def refuse(theta: Theta, which: Sequence[int]) -> list[Tensor]:
        raise AssertionError

    each = quadratic.losses_at(quadratic.theta(), ALL)
    loss = attack_loss(Attack.ensemble, each, refuse, quadratic.theta(), WEIGHTS, ALPHA, ALL)
    assert float(loss.detach()) == pytest.approx(float((WEIGHTS * torch.stack(each).detach()).sum()), rel=1e-12)
    grad = torch.autograd.grad(loss, quadratic.x)[0]
    expected = sum(WEIGHTS[k] * (quadratic.a[k] @ (quadratic.x - quadratic.c[k])) for k in ALL)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(grad, expected.detach())


@pytest.mark.parametrize("kind", [Attack.meta, Attack.meta_first_order])
def test_one_primary_a_step_adds_up_to_all_in_one(quadratic: Quadratic, kind: Attack) -> None:
    turns = [quadratic.gradient(kind, primaries=primaries_of(step, K, True)) for step in range(7, 7 + K)]
    all_in_one = quadratic.gradient(kind, primaries=primaries_of(7, K, False))
    torch.testing.assert_close(torch.stack(turns).sum(0), all_in_one, rtol=1e-12, atol=0)
    assert relative(turns[0], turns[1]) > 0.01


def test_every_surrogate_takes_its_turn() -> None:
    assert [primaries_of(step, 3, True) for step in range(4)] == [(0,), (1,), (2,), (0,)]
    assert primaries_of(4, 3, False) == (0, 1, 2)


def test_a_single_surrogate_has_nobody_to_ask(quadratic: Quadratic) -> None:
    (only,) = quadratic.losses_at(quadratic.theta(), [0])
    loss = attack_loss(Attack.meta, [only], quadratic.losses_at, quadratic.theta(), torch.ones(1), ALPHA, (0,))
    assert torch.equal(loss, only)


def test_the_inner_step_walks_back_through_the_primary_only(quadratic: Quadratic) -> None:
    """The backward pass of a recognizer is what costs."""
    walked: list[int] = []

    def noting(k: int) -> Callable[[Tensor], None]:
        return lambda grad: walked.append(k)

    embeddings = [quadratic.x * 1 for _ in ALL]
    for k, embedding in enumerate(embeddings):
        embedding.register_hook(noting(k))
    each = [(embeddings[k] - quadratic.c[k]).square().sum() for k in ALL]
    attack_loss(Attack.meta, each, quadratic.losses_at, quadratic.theta(), WEIGHTS, ALPHA, (1,))
    assert walked == [1]


@pytest.mark.parametrize("kind", [Attack.meta, Attack.meta_first_order])
def test_processes_that_share_a_batch_make_the_same_step(quadratic: Quadratic, kind: Attack) -> None:
    """Two processes whose losses are twice L_k and nothing: averaged, their inner step is that of one with L_k."""
    twice = [2 * value for value in quadratic.losses_at(quadratic.theta(), ALL)]
    theta = quadratic.theta()
    loss = attack_loss(kind, twice, quadratic.losses_at, theta, WEIGHTS, ALPHA, ALL, average=lambda grad: grad / 2)
    # what the losses at theta itself are too large by
    (grad,) = torch.autograd.grad(loss - sum(twice) / 2, quadratic.x)
    torch.testing.assert_close(grad, quadratic.gradient(kind))


class Toy(nn.Module):
    """Smooth everywhere, so that finite differences are sharp: 4 numbers to 6 through tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 7), nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(x))))


@pytest.mark.parametrize("primaries", [ALL, (2,)])
def test_meta_gradient_against_finite_differences(primaries: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = Toy().double()
    recognizers = [nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double() for _ in ALL]
    x = torch.randn(3, 4, dtype=torch.float64)
    targets = torch.randn(K, 3, 5, dtype=torch.float64)

    def losses_at(theta: Theta, which: Sequence[int]) -> list[Tensor]:
        made = torch.func.functional_call(net, theta, (x,))
        return [1 - nn.functional.cosine_similarity(recognizers[k](made), targets[k]).mean() for k in which]

    def value(theta: Theta) -> Tensor:
        return attack_loss(Attack.meta, losses_at(theta, ALL), losses_at, theta, WEIGHTS, 0.5, primaries)

    theta: Theta = dict(net.named_parameters())
    analytic = torch.autograd.grad(value(theta), list(theta.values()))
    step = 1e-5
    numeric = []
    for name, parameter in theta.items():
        flat = torch.zeros(parameter.numel(), dtype=torch.float64)
        for index in range(parameter.numel()):
            nudge = torch.zeros(parameter.numel(), dtype=torch.float64)
            nudge[index] = step
            nudge = nudge.view_as(parameter)
            above = {**theta, name: (parameter + nudge).detach().requires_grad_(True)}
            below = {**theta, name: (parameter - nudge).detach().requires_grad_(True)}
            flat[index] = (value(above) - value(below)).detach() / (2 * step)
        numeric.append(flat)
    got, wanted = torch.cat([g.flatten() for g in analytic]), torch.cat(numeric)
    assert relative(got, wanted) < 1e-7
    first = attack_loss(Attack.meta_first_order, losses_at(theta, ALL), losses_at, theta, WEIGHTS, 0.5, primaries)
    without = torch.cat([g.flatten() for g in torch.autograd.grad(first, list(theta.values()))])
    assert relative(without, wanted) > 1e-3  # the second derivative is not lost in the noise of the comparison


CONFIG = NetConfig(size=128, widths=(4, 6, 8, 8), hidden=8)


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    generator = Generator(Editor(CONFIG).eval())
    with torch.no_grad():
        generator.modulation.out.weight.normal_(0, 0.3)
    return generator


@pytest.fixture
def asked() -> tuple[Tensor, ...]:
    """crop, target, a, b, w."""
    torch.manual_seed(1)
    crop, target = torch.rand(2, 3, 128, 128) * 2 - 1, nn.functional.normalize(torch.randn(2, CONFIG.target))
    labels = torch.zeros(2, CONFIG.attributes)
    return crop, target, labels, labels, torch.zeros(2)


def test_mask_at_the_own_parameters_is_the_mask(generator: Generator, asked: tuple[Tensor, ...]) -> None:
    mask_at = MaskAt(generator)
    theta = mask_at.theta()
    assert {id(p) for p in theta.values()} == {id(p) for p in generator.trainable()}
    direct = torch.autograd.grad(generator.mask(*asked, edit=False)[0].square().sum(), list(theta.values()))
    for own in (None, theta):
        mask, edit = mask_at(own, *asked, edit=False)
        torch.testing.assert_close((mask, edit), generator.mask(*asked, edit=False), rtol=0, atol=0)
        grads = torch.autograd.grad(mask.square().sum(), list(theta.values()))
        torch.testing.assert_close(grads, direct, rtol=0, atol=0)


def test_mask_elsewhere_differs_and_leaves_the_generator_alone(generator: Generator, asked: tuple[Tensor, ...]) -> None:
    mask_at = MaskAt(generator)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    theta = mask_at.theta()
    ahead = {name: value + 0.05 for name, value in theta.items()}
    mask, _ = mask_at(ahead, *asked, edit=False)
    assert float((mask - generator.mask(*asked, edit=False)[0]).detach().abs().max()) > 1e-3
    assert all(g is not None for g in torch.autograd.grad(mask.sum(), list(theta.values()), allow_unused=True))
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


def test_meta_through_generator_and_recognizers_in_bfloat16(
    generator: Generator, asked: tuple[Tensor, ...], surrogates: list[Surrogate]
) -> None:
    mask_at, crop = MaskAt(generator), asked[0]
    wanted = [nn.functional.normalize(torch.randn(2, 16)) for _ in surrogates]
    theta = mask_at.theta()

    def gradient(kind: Attack, bf16: bool) -> Tensor:
        def losses_at(at: Theta | None, which: Sequence[int]) -> list[Tensor]:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                mask, edit = mask_at(at, *asked, edit=False)
            change = generator.compose(crop, mask, edit, torch.full((2,), 9.5))
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                return [losses.toward(surrogates[k](crop + change), wanted[k]) for k in which]

        loss = attack_loss(kind, losses_at(None, (0, 1)), losses_at, theta, torch.ones(2), 0.5, (0, 1))
        grads = torch.autograd.grad(loss, list(theta.values()))
        assert all(grad.dtype == torch.float32 for grad in grads)
        return torch.cat([grad.flatten() for grad in grads])

    exact, coarse = gradient(Attack.meta, False), gradient(Attack.meta, True)
    assert relative(coarse, exact) < 0.1
    assert relative(gradient(Attack.meta_first_order, False), exact) > 0.1  # rounding is less than what this leaves out


def test_adaptive_weights_grow_with_the_loss() -> None:
    adaptive = AdaptiveWeights(3)
    assert torch.equal(adaptive.weights(), torch.ones(3))
    adaptive.update(torch.tensor([0.9, 1.0, 1.1], requires_grad=True))
    assert not adaptive.weights().requires_grad
    torch.testing.assert_close(adaptive.weights(), torch.tensor([0.9, 1.0, 1.1]))
    adaptive.update(torch.tensor([0.5, 1.2, 1.3]))
    adaptive.update(torch.tensor([0.4, 0.8, 0.9]))  # mean losses 0.6, 1.0, 1.1
    torch.testing.assert_close(adaptive.weights(), torch.tensor([0.6, 1.0, 1.1]) / 0.9)
    assert float(adaptive.weights().mean()) == pytest.approx(1.0)


def test_adaptive_weights_stay_within_bounds() -> None:
    adaptive = AdaptiveWeights(3)
    adaptive.update(torch.tensor([0.01, 0.01, 3.0]))
    assert adaptive.weights().tolist() == [0.5, 0.5, 2.0]
    adaptive.start_epoch()
    adaptive.update(torch.zeros(3))
    assert torch.equal(adaptive.weights(), torch.ones(3))


def test_an_epoch_begins_with_the_weights_of_the_last_and_forgets_them() -> None:
    adaptive = AdaptiveWeights(2)
    for _ in range(5):
        adaptive.update(torch.tensor([1.0, 3.0]))
    adaptive.start_epoch()
    torch.testing.assert_close(adaptive.weights(), torch.tensor([0.5, 1.5]))
    adaptive.update(torch.tensor([1.2, 0.8]))
    torch.testing.assert_close(adaptive.weights(), torch.tensor([1.2, 0.8]))


def test_adaptive_weights_go_on_from_a_checkpoint() -> None:
    adaptive, other = AdaptiveWeights(2), AdaptiveWeights(2)
    adaptive.update(torch.tensor([1.0, 2.0]))
    adaptive.update(torch.tensor([1.5, 2.5]))
    state = adaptive.state()
    other.restore(state)
    for each in (adaptive, other):
        each.update(torch.tensor([0.1, 0.9]))
    assert torch.equal(adaptive.weights(), other.weights())
    torch.testing.assert_close(state["means"], torch.tensor([1.25, 2.25]))  # not written to afterwards
