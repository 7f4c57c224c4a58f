"""Every distortion: shape, range, gradient, identity at strength zero, what moves with it; and the pool's draw."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import median_filter
from torch import Tensor

from emask.errors import UsageError
from emask.train.draws import Draws
from emask.train.noise import (
    CHROMINANCE,
    CODECS,
    LUMINANCE,
    POOL,
    Distortion,
    Redetection,
    _quantisation,
    approximate_jpeg,
    choose_pool,
    distort,
)

PEOPLE = Path(__file__).parents[1] / "data" / "people"
MOVING = {"brightness", "contrast", "misalignment", "rotation", "crop", "redetection"}


def images(batch: int = 2) -> Tensor:
    """Smooth (batch, 3, 32, 32) pictures in [-0.8, 0.8]."""
    torch.manual_seed(0)
    coarse = torch.rand(batch, 3, 6, 6) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")


each = pytest.mark.parametrize("distortion", [*POOL.values(), Redetection()], ids=lambda d: d.name)


def test_names() -> None:
    assert list(POOL) == [
        "jpeg", "jpeg-codec", "webp", "resize", "noise", "blur", "median",
        "brightness", "contrast", "misalignment", "rotation", "crop",
    ]  # fmt: skip
    assert all(name == distortion.name for name, distortion in POOL.items())


@each
def test_strength_zero_is_the_identity(distortion: Distortion) -> None:
    x, y = images(), images()
    first, second = distortion([x, y], 0.0, Draws(3))
    assert first is x and second is y


@each
def test_shape_range_and_effect(distortion: Distortion) -> None:
    x = images()
    y = distortion([x], 1.0, Draws(3))[0]
    assert y.shape == x.shape and y.dtype == x.dtype
    assert y.abs().max() <= 1 + 1e-5
    assert (y - x).abs().mean() > 1e-3


@each
def test_range_holds_for_black_and_white(distortion: Distortion) -> None:
    x = torch.cat([torch.ones(1, 3, 32, 32), -torch.ones(1, 3, 32, 32)])
    assert distortion([x], 1.0, Draws(3))[0].abs().max() <= 1 + 1e-5


@each
def test_the_images_given_are_left_as_they_were(distortion: Distortion) -> None:
    x = images()
    distortion([x, x], 1.0, Draws(3))
    assert torch.equal(x, images())


@each
def test_gradient_reaches_the_image(distortion: Distortion) -> None:
    x = images().requires_grad_(True)
    distortion([x], 0.7, Draws(3))[0].sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad.abs() > 0).float().mean() > 0.5


@each
def test_second_derivative_exists(distortion: Distortion) -> None:
    # a look-ahead step differentiates a gradient that went through the pool
    w = torch.ones((), requires_grad=True)
    loss = distortion([w * images()], 0.7, Draws(3))[0].pow(3).sum()
    (grad,) = torch.autograd.grad(loss, w, create_graph=True)
    (second,) = torch.autograd.grad(grad, w)
    assert second.isfinite() and second != 0


@each
def test_same_seed_same_result(distortion: Distortion) -> None:
    x = images()
    assert torch.equal(distortion([x], 0.6, Draws(3))[0], distortion([x], 0.6, Draws(3))[0])


@each
def test_references_move_only_with_geometry_and_light(distortion: Distortion) -> None:
    x = images()
    degraded, other = distortion([x, x.clone()], 0.8, Draws(3))
    if distortion.name in MOVING:
        assert torch.equal(degraded, other)
        assert not torch.equal(other, x)
    else:
        assert torch.equal(other, x)


@each
def test_stronger_is_worse(distortion: Distortion) -> None:
    x = images()
    changes = [float((distortion([x], s, Draws(3))[0] - x).abs().mean()) for s in (0.0, 0.3, 0.6, 1.0)]
    assert changes == sorted(changes) and changes[2] < changes[3]


@each
def test_samples_are_drawn_apart(distortion: Distortion) -> None:
    if distortion.name not in MOVING | {"noise"}:
        pytest.skip("draws nothing per sample")
    x = images()[:1].expand(2, -1, -1, -1)
    y = distortion([x], 1.0, Draws(3))[0]
    assert not torch.equal(y[0], y[1])


@each
def test_two_processes_see_what_one_sees(distortion: Distortion) -> None:
    x = images(4)
    whole = distortion([x, x], 0.7, Draws(5))
    halves = [distortion([x[r * 2 : r * 2 + 2]] * 2, 0.7, Draws(5, rank=r, world=2)) for r in range(2)]
    for one, first, second in zip(whole, *halves, strict=True):
        torch.testing.assert_close(torch.cat([first, second]), one, rtol=0, atol=1e-6)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]."""
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def photos() -> Tensor:
    """(2, 3, 120, 104) 8-bit photos of faces in [-1, 1]; 104 is no multiple of 16, and neither is 120."""
    files = sorted(PEOPLE.glob("*.jpg"))[::2][:2]
    arrays = [np.asarray(Image.open(file).convert("RGB").resize((104, 120))) for file in files]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def through_pillow(x: Tensor, format: str, quality: int) -> Tensor:
    out = []
    for image in ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format, quality=quality)
        out.append(np.array(Image.open(buffer)))
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize("quality", [10, 40, 75, 95])
def test_quantisation_tables_are_libjpegs(quality: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", quality=quality)
    tables = Image.open(buffer).quantization  # type: ignore[attr-defined]
    for table, wanted in zip((LUMINANCE, CHROMINANCE), (tables[0], tables[1]), strict=True):
        assert _quantisation(table, quality).flatten().tolist() == list(wanted)


# Measured, in dB against Pillow's codec: the original 42.4, 38.9, 36.3; the approximation 48.3, 47.1, 46.3; with
# exact rounding 49.8, 47.9, 48.5. What is left are coefficients that fall half way between two steps.
@pytest.mark.parametrize("quality", [90, 70, 40])
def test_jpeg_approximates_the_real_codec(quality: int) -> None:
    x = photos()
    real = through_pillow(x, "JPEG", quality)
    soft = psnr(approximate_jpeg(x, quality), real)
    exact = psnr(approximate_jpeg(x, quality, exact=True), real)
    assert soft > 45 and soft > psnr(x, real) + 5
    assert exact > 47 and exact > soft


@pytest.mark.parametrize("quality", [90, 40])
def test_jpeg_of_a_grey_photo_is_nearly_the_real_codec(quality: int) -> None:
    x = photos()[:, :1].expand(-1, 3, -1, -1)  # without chroma, 55 dB and more were measured
    assert psnr(approximate_jpeg(x, quality, exact=True), through_pillow(x, "JPEG", quality)) > 53


def test_jpeg_strength_is_the_quality() -> None:
    x = photos()
    assert torch.equal(POOL["jpeg"]([x], 1.0, Draws(0))[0], approximate_jpeg(x, 40))
    assert torch.equal(POOL["jpeg"]([x], 1e-6, Draws(0))[0], approximate_jpeg(x, 95))


@pytest.mark.parametrize("name, format", [("jpeg-codec", "JPEG"), ("webp", "WEBP")])
def test_codecs_are_pillows_and_straight_through(name: str, format: str) -> None:
    x = photos().requires_grad_(True)
    y = POOL[name]([x], 1.0, Draws(0))[0]
    torch.testing.assert_close(y, through_pillow(x.detach(), format, 40), rtol=0, atol=1e-6)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones_like(x))


def test_median_agrees_with_scipy() -> None:
    x = torch.rand(1, 3, 9, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    wanted = median_filter(x.numpy(), size=(1, 1, 3, 3), mode="nearest")
    assert torch.equal(POOL["median"]([x], 1.0, Draws(0))[0], torch.from_numpy(wanted))
    half = POOL["median"]([x], 0.5, Draws(0))[0]
    torch.testing.assert_close(half, (x + torch.from_numpy(wanted)) / 2)


def test_median_has_torchs_gradient() -> None:
    x = torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    windows = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2)
    weights = torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(2))
    (wanted,) = torch.autograd.grad((weights * windows.median(-1).values).sum(), x)
    (got,) = torch.autograd.grad((weights * POOL["median"]([x], 1.0, Draws(0))[0]).sum(), x)
    # at the border a pixel stands in a window twice or more, and its gradients are added either way
    torch.testing.assert_close(got, wanted)


def test_rotation_turns_about_the_middle_only() -> None:
    # a centred disc does not change when it is turned; misalignment also shifts and scales it
    ramp = (torch.arange(64.0) + 0.5) / 32 - 1
    disc = (-4 * (ramp.view(-1, 1).square() + ramp.square())).exp().expand(1, 3, 64, 64)
    inner = (..., slice(8, 56), slice(8, 56))
    turned = POOL["rotation"]([disc], 1.0, Draws(4))[0]
    moved = POOL["misalignment"]([disc], 1.0, Draws(4))[0]
    assert (turned - disc)[inner].abs().max() < 2e-3
    assert (moved - disc)[inner].abs().max() > 2e-2


def test_rotation_reaches_ten_degrees_and_no_more() -> None:
    # x is the column: after a turn by t it is x cos t - y sin t, whose slope along y is -sin t
    ramp = ((torch.arange(64.0) + 0.5) / 32 - 1).expand(400, 3, 64, 64)
    turned = POOL["rotation"]([ramp], 1.0, Draws(4))[0][:, 0]
    degrees = torch.asin((turned[:, 40, 32] - turned[:, 24, 32]) / (16 / 32)).rad2deg()
    assert 9.7 < degrees.max() < 10.01
    assert -10.01 < degrees.min() < -9.7


def test_redetection_moves_faces_as_far_as_it_says() -> None:
    """On two ramps: what the middle reads is the shift, what the borders read beside it rotation and scale."""
    side, count = 128, 400
    ramp = (torch.arange(side) - (side - 1) / 2) / side
    right = ramp.expand(side, side).expand(count, 1, -1, -1)
    x = torch.cat([right, right.transpose(2, 3), right], 1)
    y = Redetection()([x], 1.0, Draws(4))[0][:, :2] * side  # (count, 2, S, S): where each pixel comes from
    middle = y[:, :, side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1].mean((2, 3))
    assert middle.std(0).tolist() == pytest.approx([0.55, 0.55], rel=0.15)
    assert middle.mean(0).abs().max() < 0.1
    along = y[:, :, side // 2, 96] - y[:, :, side // 2, 32]
    assert torch.atan2(along[:, 1], along[:, 0]).rad2deg().std() == pytest.approx(1.1, rel=0.15)
    assert (along.norm(dim=1) / 64).log().std() == pytest.approx(0.017, rel=0.15)


def test_crop_repeats_the_pixels_at_the_cut() -> None:
    x = torch.rand(50, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    y = POOL["crop"]([x], 1.0, Draws(4))[0]
    assert torch.equal(y[..., 6:-6, 6:-6], x[..., 6:-6, 6:-6])  # 15% of 40 pixels
    for side in (lambda t: t, lambda t: t.flip(3), lambda t: t.transpose(2, 3), lambda t: t.transpose(2, 3).flip(3)):
        edge = side(y)
        cuts = [int((row == row[0]).long().cumprod(0).sum()) - 1 for row in edge[:, 0, 20]]
        assert max(cuts) == 6 and min(cuts) == 0


@pytest.mark.parametrize("name, gain, shift", [("brightness", 1.0, 0.25), ("contrast", 1.25, 0.0)])
def test_light_reaches_its_limits(name: str, gain: float, shift: float) -> None:
    x = torch.full((500, 3, 2, 2), 0.4)
    y = POOL[name]([x], 1.0, Draws(4))[0][:, 0, 0, 0]
    assert 0.99 * (0.4 * gain + shift) < y.max() <= 0.4 * gain + shift + 1e-6
    assert y.mean() == pytest.approx(0.4, abs=0.03)


def test_choose_pool() -> None:
    assert choose_pool(["none"]) == ()
    assert choose_pool(["all"]) == tuple(POOL.values())
    assert [d.name for d in choose_pool(["blur", "jpeg", "blur"])] == ["jpeg", "blur"]


@pytest.mark.parametrize("names", [["jpg", "blur"], ["none", "jpg"]])
def test_unknown_names(names: list[str]) -> None:
    with pytest.raises(UsageError, match="jpg") as caught:
        choose_pool(names)
    assert "blur" not in caught.value.message
    assert all(name in caught.value.hint for name in POOL)


def test_an_empty_pool_draws_nothing() -> None:
    x, draws = images(), Draws(3)
    before = draws.state()
    assert distort([x], draws, ())[0] is x
    assert torch.equal(draws.state(), before)


@dataclass(frozen=True)
class Recorder:
    """Changes nothing; remembers that it was called."""

    name: str
    calls: list[tuple[str, float]] = field(compare=False)

    def __call__(self, images: Sequence[Tensor], strength: float, draws: Draws) -> list[Tensor]:
        self.calls.append((self.name, strength))
        return list(images)


def record(names: Sequence[str], times: int) -> list[list[tuple[str, float]]]:
    """What `distort` applies, at which strength, in each of some calls."""
    calls: list[tuple[str, float]] = []
    pool = [Recorder(name, calls) for name in names]
    draws, out = Draws(7), []
    for _ in range(times):
        distort([torch.zeros(1, 3, 2, 2)], draws, pool)
        out.append(list(calls))
        calls.clear()
    return out


def test_the_whole_pool_applies_about_two_with_the_codec_last() -> None:
    order = list(reversed(POOL))
    runs = record(list(POOL), 2000)
    assert sum(map(len, runs)) / len(runs) == pytest.approx(2, abs=0.1)
    seen = {name: sum(name in dict(run) for run in runs) / len(runs) for name in POOL}
    assert all(seen[name] == pytest.approx(1 / 6, abs=0.03) for name in POOL)
    for run in runs:
        names = [name for name, _ in run]
        assert sum(name in CODECS for name in names) <= 1
        assert names == sorted(names, key=order.index)
    strengths = torch.tensor([strength for run in runs for _, strength in run])
    assert strengths.mean() == pytest.approx(1 / 3, abs=0.03)  # of the square of a uniform number


def test_a_small_pool_applies_each_with_one_in_three() -> None:
    runs = record(["webp", "blur", "crop"], 1500)
    seen = {name: sum(name in dict(run) for run in runs) / len(runs) for name in ("webp", "blur", "crop")}
    assert seen == {name: pytest.approx(p, abs=0.04) for name, p in (("webp", 1 / 2), ("blur", 1 / 3), ("crop", 1 / 3))}


def test_pool_draws_are_seeded_and_vary() -> None:
    x = images()
    assert torch.equal(distort([x], Draws(3))[0], distort([x], Draws(3))[0])
    draws = Draws(3)
    assert len({float(distort([x], draws)[0].sum()) for _ in range(16)}) > 4


def test_two_processes_share_a_batch() -> None:
    x = images(4)
    one, ranks = Draws(9), [Draws(9, rank=r, world=2) for r in range(2)]
    for _ in range(6):
        whole = distort([x, x], one)
        halves = [distort([x[r * 2 : r * 2 + 2]] * 2, ranks[r]) for r in range(2)]
        for a, first, second in zip(whole, *halves, strict=True):
            # a codec may round a last digit the other way, and then a whole level differs
            torch.testing.assert_close(torch.cat([first, second]), a, rtol=0, atol=0.02)


def test_half_precision_around_it_changes_nothing() -> None:
    x = images()
    pool = choose_pool(["jpeg", "blur", "misalignment"])
    for seed in range(6):
        plain = distort([x], Draws(seed), pool)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(distort([x], Draws(seed), pool)[0], plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each
def test_on_a_gpu_as_on_the_cpu(distortion: Distortion) -> None:
    x = images()
    y = distortion([x.cuda(), x.cuda()], 0.8, Draws(3))
    wanted = distortion([x, x], 0.8, Draws(3))
    for a, b in zip(y, wanted, strict=True):
        assert a.is_cuda
        if distortion.name == "noise" and a is y[0]:  # drawn there, so other numbers of the same kind
            assert (a.cpu() - x).std().item() == pytest.approx((b - x).std().item(), rel=0.1)
        else:
            assert (a.cpu() - b).abs().mean() < 1e-3
