"""Peers keep what they promise, do what their papers say by independent computations, and reach the target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
from torch import Tensor, nn

from emask.attributes import ATTRIBUTES
from emask.bench.peers import PEERS, Peer
from emask.bench.peers.advfaces import AdvFaces, PerturbationGenerator
from emask.bench.peers.ball import EPS, Ball
from emask.bench.peers.fgsm import FGSM
from emask.bench.peers.gmaa import TargetManifold
from emask.bench.peers.mi_fgsm import MIFGSM, diverse, smoothed
from emask.bench.peers.pgd import PGD
from emask.bench.peers.semantic_adv import SemanticAdv, decode_from, variation
from emask.bench.peers.sibling import AttributeFeatures, SiblingAttack
from emask.bench.peers.similarity import dissimilarity, embed
from emask.bench.peers.tip_im import SIGMAS, TIPIM, best_candidate, copies, gain, mmd, warped
from emask.bench.protocol import locate
from emask.engine import to_network
from emask.face.align import INNER, MARGIN
from emask.face.detect import Detector
from emask.images import load_photo
from emask.nets.blocks import feather_window
from emask.nets.discriminator import Classifier
from emask.nets.generator import Editor, NetConfig
from emask.recognize import load_folder
from emask.train.data import find_photos
from emask.train.prepare import open_surrogates
from emask.train.surrogates import Surrogate

SHARED = Path(__file__).resolve().parents[3] / "shared"
# Few and long steps, everything random switched on: what the tests of all peers run.
SMALL: dict[str, dict] = {
    "fgsm": {},
    "pgd": {"steps": 3, "step": 0.4},
    "mi-fgsm": {"steps": 3, "step": 0.4, "diversity": 1.0},
    "tip-im": {"steps": 3, "step": 0.4, "copies": 2, "spread": 0.02},
    "sibling": {"steps": 2, "inner_steps": 2, "step": 0.4, "inner_step": 0.2, "gamma": 0.4},
    "gmaa-like": {"steps": 3, "step": 0.4, "poses": 1, "draws": 1, "probability": 1.0},
    "advfaces": {"eps": 2.0},
    "semantic-adv": {"steps": 10, "rate": 0.3, "start": 0.5, "smoothness": 0.01},
}
# Another value for each parameter, and for "norm" a budget as long as the change would be.
OTHER: dict[str, dict] = {
    "fgsm": {"eps": 0.05, "norm": "l2"},
    "pgd": {"eps": 0.05, "norm": "l2", "steps": 2, "step": 0.2, "random_start": False, "seed": 1},
    "mi-fgsm": {
        "eps": 0.05, "norm": "l2", "steps": 2, "step": 0.2, "momentum": 0.0, "diversity": 0.0, "smallest": 0.5,
        "kernel": 1, "seed": 1,
    },
    "tip-im": {
        "eps": 0.05, "norm": "l2", "steps": 2, "step": 0.2, "momentum": 0.0, "gamma": 100.0, "copies": 1,
        "spread": 0.0, "seed": 1,
    },
    "sibling": {
        "eps": 0.05, "norm": "l2", "steps": 1, "inner_steps": 1, "step": 0.2, "inner_step": 0.1, "gamma": 0.1,
        "stabilization": 100.0,
    },
    "gmaa-like": {
        "eps": 0.05, "norm": "l2", "steps": 2, "step": 0.2, "momentum": 0.0, "poses": 0, "degrees": 90.0,
        "zoom": 0.9, "shift": 0.5, "draws": 2, "probability": 0.0, "noise": 0.0, "smallest": 0.5, "seed": 1,
    },
    "advfaces": {"eps": 1.0, "norm": "linf"},
    "semantic-adv": {
        "eps": 0.05, "norm": "l2", "attribute": "Eyeglasses", "value": -1.0, "layer": 0, "steps": 2, "rate": 0.02,
        "start": 0.2, "least": 0.9, "smoothness": 1e4,
    },
}  # fmt: skip


class Tiny(nn.Module):
    """A recognizer of 112-pixel squares with what real ones have; of larger crops it takes the middle."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 16, 3, 4, 1),
            nn.PReLU(16), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16),
        )  # fmt: skip
        self.net.train()
        for _ in range(10):
            self.net(nn.functional.interpolate(torch.rand(16, 3, 9, 9) * 2 - 1, size=(INNER, INNER), mode="bicubic"))
        self.eval().requires_grad_(False)

    def forward(self, crops: Tensor) -> Tensor:
        cut = MARGIN if crops.shape[-1] != INNER else 0
        return nn.functional.normalize(self.net(crops[:, :, cut : cut + INNER, cut : cut + INNER]), dim=1)


def colour(crops: Tensor) -> Tensor:
    """A recognizer whose embedding is the mean colour, so that right answers can be told by eye."""
    return nn.functional.normalize(crops.mean((2, 3)) + 1e-6, dim=1)


def painted(*colours: tuple[float, float, float]) -> Tensor:
    """(N, 3, 16, 16) pictures of one colour each."""
    return torch.tensor(colours)[:, :, None, None].expand(-1, -1, 16, 16).clone()


def pictures(count: int, seed: int) -> Tensor:
    """(count, 3, 128, 128) smooth pictures that reach black and white."""
    coarse = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    return (nn.functional.interpolate(coarse, size=(128, 128), mode="bicubic") * 2.4 - 1.2).clamp(-1, 1)


@pytest.fixture(scope="module")
def surrogates() -> list[Tiny]:
    return [Tiny(0), Tiny(1)]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(2)
    return Classifier(5, (4, 4)).eval()


@pytest.fixture(scope="module")
def crop() -> Tensor:
    return pictures(2, 3)


@pytest.fixture(scope="module")
def targets() -> Tensor:
    return pictures(2, 4)


@pytest.fixture(scope="module")
def editor() -> Editor:
    """One that sees labels and shows it; real ones learn to."""
    torch.manual_seed(3)
    editor = Editor(NetConfig(widths=(4, 8, 8, 8), hidden=16)).eval().requires_grad_(False)
    editor.decoder.to_image.weight *= 100
    return editor


class Ideal(nn.Module):
    """What AdvFaces' generator would be if training reached its aim: it changes what the surrogates ask for.

    How the real one trains is tested in tests/train/test_advfaces.py.
    """

    def __init__(self, surrogates: list[Tiny]) -> None:
        super().__init__()
        self.surrogates = surrogates

    def forward(self, crop: Tensor, target: Tensor) -> Tensor:
        with torch.enable_grad():
            return PGD(eps=0.3, steps=2, step=0.5, random_start=False)(crop, target, self.surrogates)


@pytest.fixture(scope="module")
def made(classifier: Classifier, editor: Editor, surrogates: list[Tiny]) -> Callable[..., Peer]:
    networks: dict[str, dict[str, nn.Module]] = {
        "sibling": {"classifier": classifier}, "advfaces": {"generator": Ideal(surrogates)},
        "semantic-adv": {"editor": editor},
    }  # fmt: skip

    def make(name: str, **parameters: object) -> Peer:
        return PEERS[name](**{**networks.get(name, {}), **SMALL[name], **parameters})

    return make


@pytest.fixture(scope="module")
def plain(
    made: Callable[..., Peer], crop: Tensor, targets: Tensor, surrogates: list[Tiny]
) -> Callable[[str], Tensor]:
    """The change a peer makes as SMALL has it, computed once."""
    cache: dict[str, Tensor] = {}

    def change(name: str) -> Tensor:
        if name not in cache:
            cache[name] = made(name)(crop, targets, surrogates)
        return cache[name]

    return change


def cosines(faces: Tensor, targets: Tensor, surrogates: list[Tiny]) -> Tensor:
    """(B,) mean cosine with the target's photos, one surrogate and photo after the other."""
    each = [F(faces) @ F(targets[i : i + 1])[0] for F in surrogates for i in range(len(targets))]
    return torch.stack(each).mean(0)


def nearest(faces: Tensor, targets: Tensor, surrogates: list[Tiny]) -> Tensor:
    """(B,) cosine with the nearest photo, which is what TIP-IM looks for."""
    return torch.stack([cosines(faces, photo[None], surrogates) for photo in targets]).max(0).values


def differing(x: Tensor, y: Tensor) -> float:
    """Share of values that differ: the sign of a gradient that is nothing but rounding may turn, and few are."""
    return float(((x - y).abs() > 1e-3).float().mean())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", PEERS)
def test_every_peer_keeps_its_promises(
    name: str, norm: str, made: Callable[..., Peer], crop: Tensor, targets: Tensor, surrogates: list[Tiny]
) -> None:
    eps = EPS if norm == "linf" else 8.0
    peer = made(name, norm=norm, eps=eps)
    change = peer(crop, targets, surrogates)
    assert change.shape == crop.shape and change.dtype == torch.float32 and not change.requires_grad
    size = change.abs().amax((1, 2, 3)) if norm == "linf" else change.flatten(1).norm(dim=1)
    assert (size <= eps * (1 + 1e-5)).all() and (size > 0.2 * eps).all()
    assert (crop + change).abs().max() <= 1 + 1e-6
    likeness = nearest if name == "tip-im" else cosines
    assert (likeness(crop + change, targets, surrogates) > likeness(crop, targets, surrogates) + 0.02).all()
    assert torch.equal(peer(crop, targets, surrogates), change)


@pytest.mark.parametrize("name", PEERS)
def test_no_face_depends_on_the_others(
    name: str, made: Callable[..., Peer], plain: Callable[[str], Tensor], crop: Tensor, targets: Tensor,
    surrogates: list[Tiny],
) -> None:  # fmt: skip
    alone = made(name)(crop[1:], targets, surrogates)
    assert differing(alone, plain(name)[1:]) < 2e-3


@pytest.mark.parametrize("name", ["pgd", "mi-fgsm", "tip-im", "gmaa-like"])
def test_a_step_is_a_share_of_the_budget(
    name: str, made: Callable[..., Peer], crop: Tensor, targets: Tensor, surrogates: list[Tiny]
) -> None:
    still = {"random_start": False} if name == "pgd" else {}
    change = made(name, norm="l2", eps=2.0, steps=1, step=0.25, **still)(0.5 * crop, targets, surrogates)
    torch.testing.assert_close(change.flatten(1).norm(dim=1), torch.full((2,), 0.5), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("name", "parameter"), [(name, p) for name, values in OTHER.items() for p in values])
def test_every_parameter_does_something(
    name: str, parameter: str, made: Callable[..., Peer], plain: Callable[[str], Tensor], crop: Tensor,
    targets: Tensor, surrogates: list[Tiny],
) -> None:  # fmt: skip
    changed = made(name, **{parameter: OTHER[name][parameter]})(crop, targets, surrogates)
    assert (changed - plain(name)).abs().max() > 1e-3


def test_no_parameter_is_left_out_above(made: Callable[..., Peer]) -> None:
    assert PEERS.keys() == SMALL.keys() == OTHER.keys()
    for name in PEERS:
        peer = made(name)
        names = {f.name for f in dataclasses.fields(peer)}  # type: ignore[arg-type]
        assert names - {"classifier", "generator", "editor"} == OTHER[name].keys()
        with pytest.raises(dataclasses.FrozenInstanceError):
            peer.eps = 1.0  # type: ignore[attr-defined]


def test_a_ball_projects_onto_itself() -> None:
    crop, change = pictures(2, 5), torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    for ball in (Ball(0.1), Ball(5.0, "l2")):
        once = ball.project(crop, change)
        torch.testing.assert_close(ball.project(crop, once), once)
        torch.testing.assert_close(ball.project(crop[1:], change[1:]), once[1:])  # a face's own budget
        start = ball.random(crop, torch.Generator().manual_seed(0))
        assert start.shape == (1, 3, 128, 128) and start.any()
        torch.testing.assert_close(ball.project(torch.zeros(1, 3, 128, 128), start), start)
    units = Ball(1.0, "l2").direction(change)
    torch.testing.assert_close(units.flatten(1).norm(dim=1), torch.ones(2))
    assert not Ball(1.0, "l2").direction(torch.zeros(1, 3, 4, 4)).any()  # no gradient, no step, no nan


def test_the_loss_is_the_mean_over_surrogates_and_photos(
    crop: Tensor, targets: Tensor, surrogates: list[Tiny]
) -> None:
    torch.testing.assert_close(
        dissimilarity(crop, embed(targets, surrogates), surrogates), 1 - cosines(crop, targets, surrogates)
    )


def test_pgd_reaches_the_target_and_without_steps_it_does_not(targets: Tensor, surrogates: list[Tiny]) -> None:
    faces = pictures(10, 6)
    clean = cosines(faces, targets, surrogates)
    ceiling = cosines(targets, targets, surrogates).mean()  # the photos' own likeness to one another
    threshold = clean + 0.5 * (ceiling - clean)
    assert (clean < threshold).all()

    def reached(steps: int) -> Tensor:
        change = PGD(steps=steps, random_start=False)(faces, targets, surrogates)
        return cosines(faces + change, targets, surrogates)

    assert (reached(10) > threshold).all()
    torch.testing.assert_close(reached(0), clean, rtol=0, atol=0)


@pytest.fixture(scope="module")
def real() -> tuple[list[Surrogate], list[float], Tensor]:
    """Two recognizers, their thresholds at FAR 0.01, and (8, 3, 128, 128) crops of as many people."""
    if not (SHARED / "recognizers" / "recognizers.json").is_file():
        pytest.skip("the recognizers and photos beside the checkout (../shared) are absent")
    names = ["mobilefacenet-ms1m", "mbf"]
    thresholds = [judge.thresholds["0.01"] for judge in load_folder(SHARED / "recognizers", names, "cpu")]
    paths = find_photos(SHARED / "data")[::1500]
    photos = [load_photo(path).pixels for path in paths]
    located = locate([path.name for path in paths], photos, Detector(device="cpu"))
    crops = to_network(np.stack([photo.crop for photo in located if photo is not None]))
    return open_surrogates(SHARED / "recognizers", names), thresholds, torch.from_numpy(crops)


@pytest.mark.parametrize("name", ["pgd", "tip-im"])
def test_real_white_boxes_see_the_target(name: str, real: tuple[list[Surrogate], list[float], Tensor]) -> None:
    """In more than 95 of 100 cases at FAR 0.01, within emask's budget; without steps as often as in clean faces."""
    surrogates, thresholds, crops = real
    assert len(crops) > 6

    def seen(steps: int) -> np.ndarray:
        few: dict[str, Any] = {"steps": steps, "step": 0.4, "eps": 8.9, "norm": "l2"}
        few |= {"random_start": False} if name == "pgd" else {}
        hits = []
        for face, target in zip(crops.split(1), crops.roll(1, 0).split(1), strict=True):
            square = target[:, :, MARGIN : MARGIN + INNER, MARGIN : MARGIN + INNER]
            change = PEERS[name](**few)(face, square, surrogates)
            for surrogate, threshold in zip(surrogates, thresholds, strict=True):
                hits.append(float((surrogate(face + change) * surrogate(target)).sum()) >= threshold)
        return np.array(hits)

    assert seen(6).mean() > 0.95
    assert seen(0).mean() < 0.1


def test_fgsm_is_one_step_of_pgd_without_a_random_start(
    crop: Tensor, targets: Tensor, surrogates: list[Tiny], plain: Callable[[str], Tensor]
) -> None:
    one = PGD(steps=1, step=1.0, random_start=False)(crop, targets, surrogates)
    assert torch.equal(FGSM()(crop, targets, surrogates), one)
    other = PGD(steps=1, step=1.0)(crop, targets, surrogates)
    assert differing(plain("fgsm"), other) > 0.1


@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_mi_fgsm_without_diversity_is_the_papers_iteration(
    mu: float, crop: Tensor, targets: Tensor, surrogates: list[Tiny]
) -> None:
    """mu = 0: plain iterative FGSM, written out; its twin is the same run with the other mu."""
    eps, alpha = 0.06, 0.02
    low, high = (crop - eps).clamp(min=-1), (crop + eps).clamp(max=1)
    x, g = crop, torch.zeros_like(crop)
    for _ in range(4):
        leaf = x.clone().requires_grad_(True)
        (1 - cosines(leaf, targets, surrogates)).sum().backward()
        assert leaf.grad is not None
        g = mu * g + leaf.grad / leaf.grad.abs().sum((1, 2, 3), keepdim=True) if mu else leaf.grad
        x = torch.minimum(torch.maximum(x - alpha * g.sign(), low), high)

    def run(momentum: float) -> Tensor:
        peer = MIFGSM(eps=eps, steps=4, step=alpha / eps, momentum=momentum, diversity=0.0, kernel=1)
        return crop + peer(crop, targets, surrogates)

    assert differing(run(mu), x) < 2e-3
    assert differing(run(1 - mu), x) > 0.02


def test_smoothing_is_a_convolution_with_a_gaussian() -> None:
    gradient = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    line = scipy.stats.norm.pdf(np.linspace(-3, 3, 5))
    kernel = np.outer(line, line) / np.outer(line, line).sum()
    expected = [[scipy.signal.convolve2d(plane, kernel, mode="same") for plane in face] for face in gradient.numpy()]
    np.testing.assert_allclose(smoothed(gradient, 5).numpy(), expected, atol=1e-6)
    assert torch.equal(smoothed(gradient, 1), gradient)
    with pytest.raises(ValueError, match="no middle"):
        MIFGSM(kernel=4)


def test_diverse_inputs_are_smaller_and_padded() -> None:
    white = torch.ones(2, 3, 100, 100)
    generator = torch.Generator().manual_seed(0)
    sides = set()
    for _ in range(20):
        seen = diverse(white, 1.0, 0.9, generator)
        assert seen.shape == white.shape and torch.equal(seen[0], seen[1])
        inside = seen[0, 0] > 0.99
        rows, columns = int(inside.any(1).sum()), int(inside.any(0).sum())
        assert rows == columns and 90 <= rows < 100 and int(inside.sum()) == rows * columns
        assert not seen[0, 0][~inside].any()
        sides.add(rows)
    assert len(sides) > 3
    assert diverse(white, 0.0, 0.9, generator) is white and diverse(white, 1.0, 1.0, generator) is white


def test_mmd_equals_its_definition() -> None:
    """Sums over pairs of points and Gaussians, in float64, without a tensor."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 4, generator=generator), 2 * torch.randn(2, 2, 4, generator=generator)

    def k(p: np.ndarray, q: np.ndarray) -> float:
        return sum(float(np.exp(-(((p - q) ** 2).sum()) / (2 * s))) for s in SIGMAS)

    for found, a, b in zip(mmd(x, y).tolist(), x.double().numpy(), y.double().numpy(), strict=True):
        expected = np.mean([k(p, q) for p in a for q in a]) + np.mean([k(p, q) for p in b for q in b])
        assert found == pytest.approx(expected - 2 * np.mean([k(p, q) for p in a for q in b]), abs=1e-4)
    assert (mmd(x, y) > 0.1).all()
    assert mmd(x, x.flip(1)).abs().max() < 1e-5  # a set has no order


def test_naturalness_holds_a_mask_back(crop: Tensor, targets: Tensor, surrogates: list[Tiny]) -> None:
    def length(gamma: float) -> Tensor:
        peer = TIPIM(steps=4, momentum=0.0, spread=0.0, copies=2, gamma=gamma)
        return peer(crop, targets, surrogates).flatten(1).norm(dim=1)

    assert (length(1e6) < 0.7 * length(0.0)).all()


def test_copies_move_a_face_and_keep_the_first() -> None:
    faces = pictures(2, 7)
    views = copies(3, torch.Generator().manual_seed(0))(faces)
    assert views.shape == (2, 3, 3 * 128 * 128)
    assert torch.equal(views[:, 0], faces.flatten(1))
    assert (views[:, 1:] - views[:, :1]).abs().mean((0, 2)).min() > 0.01
    alone = copies(3, torch.Generator().manual_seed(0))(faces[1:])
    torch.testing.assert_close(alone, views[1:])


def test_warped_is_black_outside_and_nothing_without_spread() -> None:
    white = torch.ones(2, 3, 32, 32)
    assert warped(white, 0.0, torch.Generator()) is white
    seen = warped(white, 0.8, torch.Generator().manual_seed(0))
    assert torch.equal(seen[0], seen[1]) and seen.min() == -1 and seen.max() > 0.99


def test_gain_is_largest_at_a_photo_of_the_target() -> None:
    owner, first, second = (torch.eye(3)[i : i + 1] for i in range(3))
    wanted = [torch.cat([first, second])]
    at_photo = float(gain([second], [owner], wanted))
    assert at_photo == pytest.approx(np.log(1 + np.exp(2.0 - 0.0)))  # D = 2 - 2 cos: 2 from the owner, 0 from the photo
    assert float(gain([owner], [owner], wanted)) == pytest.approx(np.log(1 + np.exp(0.0 - 2.0)))
    between = nn.functional.normalize(first + second)
    assert float(gain([owner], [owner], wanted)) < float(gain([between], [owner], wanted)) < at_photo


def test_each_face_goes_on_from_its_own_best_candidate() -> None:
    red, green, blue = (1.0, -0.2, -0.2), (-0.2, 1.0, -0.2), (-0.2, -0.2, 1.0)
    owner = painted(red, red)
    wanted = embed(painted(green, blue), [colour])
    candidates = torch.stack([painted(red, green), painted(blue, red)])  # by photo, then by face
    assert best_candidate(candidates, embed(owner, [colour]), wanted, [colour]).tolist() == [1, 0]


@pytest.mark.parametrize("reachable", [0, 1])
def test_tip_im_takes_the_photo_within_reach(reachable: int) -> None:
    """A grey face with a breath of red can be made green, never that blue; twin: with blue alone it goes elsewhere."""
    face = painted((0.02, 0.01, -0.05))
    photos = painted((0.01, 0.04, -0.05), (-0.9, -0.9, 0.9))
    gallery = photos if reachable == 0 else photos.flip(0)
    peer = TIPIM(steps=3, step=0.1, gamma=0.0, spread=0.0)
    both = peer(face, gallery, [colour])
    torch.testing.assert_close(both, peer(face, photos[:1], [colour]))
    assert (both - peer(face, photos[1:], [colour])).abs().max() > 0.01


def test_tip_im_chooses_for_each_face_by_itself() -> None:
    """What is within reach of one face is not of the other."""
    faces = painted((0.02, 0.01, -0.05), (-0.05, 0.01, 0.02))
    photos = painted((0.01, 0.04, -0.05), (-0.05, 0.04, 0.01))
    peer = TIPIM(steps=3, step=0.1, gamma=0.0, spread=0.0)
    both = peer(faces, photos, [colour])
    for number in range(2):
        own = slice(number, number + 1)
        torch.testing.assert_close(both[own], peer(faces[own], photos[own], [colour]))
    assert (both[0] - peer(faces[:1], photos[1:], [colour])[0]).abs().max() > 0.01


def test_attribute_features_are_what_the_last_layer_reads(classifier: Classifier, crop: Tensor) -> None:
    read: list[Tensor] = []
    *_, last = classifier.children()
    handle = last.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    with torch.no_grad():
        classifier(crop)
        handle.remove()
        torch.testing.assert_close(AttributeFeatures(classifier)(crop), nn.functional.normalize(read[0], dim=1))


def test_sibling_lets_attributes_lead_and_recognition_follow(
    crop: Tensor, targets: Tensor, surrogates: list[Tiny], classifier: Classifier
) -> None:
    """The first outer step, written out for one photo; and the second, where the roles are changed."""
    eps, alpha, inner, gamma, weight = 0.06, 0.02, 0.01, 0.3, 0.5
    photo = targets[:1]
    features = AttributeFeatures(classifier)
    tasks = [
        lambda x: 1 - (features(x) * features(photo).detach()).sum(1),
        lambda x: 1 - torch.stack([(F(x) * F(photo)).sum(1) for F in surrogates]).mean(0),
    ]

    def slope(task: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        leaf = x.detach().clone().requires_grad_(True)
        return torch.autograd.grad(task(leaf).sum(), [leaf])[0]

    def cut(x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, crop - eps), crop + eps).clamp(-1, 1)

    x, expected = crop, []
    for lead, follow, share in ((0, 1, 1 - gamma), (1, 0, gamma)):
        gradients = []
        for _ in range(2):
            x = cut(x - share * inner * slope(tasks[lead], x).sign())
            gradients.append(slope(tasks[follow], x))
        x = cut(x - share * alpha * (gradients[1] + weight * sum(gradients)).sign())
        expected.append(x)
    for steps, picture in enumerate(expected, 1):
        peer = SiblingAttack(
            classifier, eps=eps, steps=steps, inner_steps=2, step=alpha / eps, inner_step=inner / eps, gamma=gamma,
            stabilization=weight,
        )  # fmt: skip
        assert differing(crop + peer(crop, photo, surrogates), picture) < 2e-3
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_sibling_refuses_what_it_cannot_work_with(classifier: Classifier) -> None:
    with pytest.raises(ValueError, match="training mode"):
        SiblingAttack(Classifier(5, (4, 4)))
    with pytest.raises(ValueError, match="inner steps"):
        SiblingAttack(classifier, inner_steps=0)


def test_the_targets_states_are_photos_mirror_images_and_poses(targets: Tensor) -> None:
    states = TargetManifold(poses=2).states(targets, torch.Generator().manual_seed(0))
    assert len(states) == 2 * 2 * (1 + 2)
    assert torch.equal(states[:2], targets) and torch.equal(states[2:4], targets.flip(-1))
    for poses in (states[4:8], states[8:]):
        moved_by = (poses - states[:4]).abs().mean((1, 2, 3))
        other = (poses.roll(1, 0) - states[:4]).abs().mean((1, 2, 3))
        assert (moved_by > 0.005).all() and (moved_by < 0.6 * other).all()  # the same face, a little moved


def test_advfaces_asks_no_surrogate_and_sees_the_targets_inner_square(
    crop: Tensor, targets: Tensor
) -> None:
    torch.manual_seed(4)
    generator = PerturbationGenerator(4, 1).eval()
    nn.init.normal_(generator.to_change.weight, std=0.05)
    peer = AdvFaces(generator)
    squares = targets[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    torch.testing.assert_close(peer(crop, squares), peer(crop, targets))
    first = peer(crop, targets[:1])
    assert (first - peer(crop, targets[1:])).abs().max() > 1e-3  # the target matters
    elsewhere = targets.clone()
    elsewhere[..., :MARGIN] = 0.0
    torch.testing.assert_close(peer(crop, elsewhere), peer(crop, targets))


def test_untrained_advfaces_changes_nothing(crop: Tensor, targets: Tensor) -> None:
    """The twin of the one that reaches the target, above."""
    assert not AdvFaces(PerturbationGenerator(4, 1).eval())(crop, targets).any()


def test_semantic_adv_reaches_the_target_and_without_steps_it_does_not(
    editor: Editor, crop: Tensor, targets: Tensor, surrogates: list[Tiny]
) -> None:
    clean = cosines(crop, targets, surrogates)

    def gained(steps: int) -> Tensor:
        peer = SemanticAdv(editor, eps=8.0, norm="l2", steps=steps, rate=0.3, start=0.5, smoothness=0.01)
        return cosines(crop + peer(crop, targets, surrogates), targets, surrogates) - clean

    bent, edited = gained(10), gained(0)
    assert (bent > 0.05).all() and (bent > edited + 0.05).all()


@pytest.mark.parametrize("layer", range(4))
def test_semantic_adv_without_steps_is_the_edit_of_protect(
    layer: int, editor: Editor, crop: Tensor, targets: Tensor, surrogates: list[Tiny]
) -> None:
    """With alpha = 1 everywhere and a budget as large as one likes; the twin, alpha = 0, changes nothing."""
    labels = torch.zeros(2, len(ATTRIBUTES))
    edited = labels.clone()
    edited[:, ATTRIBUTES.index("Bangs")] = 1.0
    edit = (editor(crop, edited) - editor(crop, labels)) * feather_window(128)
    expected = (crop + edit).clamp(-1, 1) - crop
    # what the encoder gives D's later layers is the same with and without the edit, so any layer will do
    for start, wanted in ((1.0, expected), (0.0, torch.zeros_like(crop))):
        peer = SemanticAdv(editor, eps=1e3, norm="l2", layer=layer, steps=0, start=start)
        torch.testing.assert_close(peer(crop, targets, surrogates), wanted, rtol=1e-4, atol=1e-4)
    assert expected.abs().max() > 0.05


def test_decoding_goes_on_from_any_layer(editor: Editor, crop: Tensor) -> None:
    features = editor.encoder(crop)
    image, outputs = editor.decoder(features, torch.ones(2, len(ATTRIBUTES)))
    for layer in range(4):
        torch.testing.assert_close(decode_from(editor.decoder, layer, outputs[layer], features), image)


def test_variation_is_that_of_neighbours() -> None:
    alpha = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for found, a in zip(variation(alpha).tolist(), alpha.double().numpy(), strict=True):
        down = [(a[c, i + 1, j] - a[c, i, j]) ** 2 for c in range(3) for i in range(3) for j in range(5)]
        across = [(a[c, i, j + 1] - a[c, i, j]) ** 2 for c in range(3) for i in range(4) for j in range(4)]
        assert found == pytest.approx(2 * (np.mean(down) + np.mean(across)), rel=1e-4)
    assert not variation(torch.ones(1, 2, 3, 3)).any()


def test_semantic_adv_refuses_what_it_cannot_work_with(editor: Editor) -> None:
    with pytest.raises(ValueError, match="training mode"):
        SemanticAdv(Editor(NetConfig(widths=(4, 8, 8, 8))))
    with pytest.raises(ValueError, match="no attribute Smiling"):
        SemanticAdv(editor, attribute="Smiling")
    with pytest.raises(ValueError, match="no layer 4"):
        SemanticAdv(editor, layer=4)
