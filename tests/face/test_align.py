"""Alignment and paste-back: transforms against scikit-image, what must stay untouched, what must come back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.transform import SimilarityTransform

from emask.face.align import CROP, FEATHER, TEMPLATE, Similarity, align, estimate, feather, paste_change

angles = st.floats(-0.6, 0.6)
# crop pixels per photo pixel: faces of about 30 to 500 pixels
scales = st.floats(0.25, 3.0)
shifts = st.floats(-40, 40)
seeds = st.integers(0, 2**16)


def make_transform(scale: float, angle: float, dx: float, dy: float, height: int = 160, width: int = 200) -> Similarity:
    """A transform that puts the middle of the photo, shifted, into the middle of the crop."""
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[a, -b], [b, a]])
    centre = np.array([width / 2 + dx, height / 2 + dy])
    return Similarity(np.hstack([linear, (np.array([CROP / 2, CROP / 2]) - linear @ centre)[:, None]]))


def smooth(seed: int, height: int, width: int, low: int = 0, high: int = 255) -> np.ndarray:
    """A smooth colour picture, (height, width, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(low, high + 1, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).clip(low, high)


@given(scales, st.floats(-3, 3), shifts, shifts)
def test_estimate_recovers_a_similarity(scale: float, angle: float, dx: float, dy: float) -> None:
    wanted = make_transform(scale, angle, dx, dy)
    points = wanted.inverse().apply(TEMPLATE)
    np.testing.assert_allclose(estimate(points).matrix, wanted.matrix, atol=1e-6)
    assert estimate(points).scale == pytest.approx(scale)


@given(seeds)
def test_estimate_is_the_least_squares_one(seed: int) -> None:
    points = TEMPLATE * 1.7 + np.random.default_rng(seed).normal(0, 4, TEMPLATE.shape)
    reference = SimilarityTransform.from_estimate(points, TEMPLATE)
    np.testing.assert_allclose(estimate(points).matrix, reference.params[:2], atol=1e-8)


def test_estimate_refuses_coinciding_points() -> None:
    with pytest.raises(ValueError, match="coincide"):
        estimate(np.full((5, 2), 7.0))


@given(scales, angles, shifts, shifts, seeds)
def test_inverse_round_trip(scale: float, angle: float, dx: float, dy: float, seed: int) -> None:
    transform = make_transform(scale, angle, dx, dy)
    points = np.random.default_rng(seed).uniform(-500, 500, (20, 2))
    np.testing.assert_allclose(transform.inverse().apply(transform.apply(points)), points, atol=1e-7)
    np.testing.assert_allclose(transform.inverse().inverse().matrix, transform.matrix, atol=1e-8)


def test_feather_is_one_inside_and_zero_on_the_border() -> None:
    weight = feather()
    assert weight[FEATHER:-FEATHER, FEATHER:-FEATHER].min() == 1.0
    assert not weight[[0, -1]].any() and not weight[:, [0, -1]].any()
    assert (np.diff(weight[CROP // 2, : CROP // 2]) >= 0).all()


@settings(max_examples=25, deadline=None)
@given(scales, angles, shifts, shifts, seeds)
def test_no_change_leaves_the_photo_bit_identical(scale: float, angle: float, dx: float, dy: float, seed: int) -> None:
    photo = np.random.default_rng(seed).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    before = photo.copy()
    result = paste_change(photo, np.zeros((CROP, CROP, 3), np.float32), make_transform(scale, angle, dx, dy))
    assert np.array_equal(result, photo) and result is not photo
    assert np.array_equal(photo, before)


@settings(max_examples=25, deadline=None)
@given(scales, angles, st.floats(-150, 150), st.floats(-150, 150), seeds)
def test_pixels_outside_the_crop_stay(scale: float, angle: float, dx: float, dy: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    photo = rng.integers(0, 256, (160, 200, 3), dtype=np.uint8)
    transform = make_transform(scale, angle, dx, dy)
    change = rng.uniform(-255, 255, (CROP, CROP, 3)).astype(np.float32) * feather()[..., None]
    result = paste_change(photo, change, transform)
    y, x = np.mgrid[0:160, 0:200]
    where = transform.apply(np.stack([x.ravel(), y.ravel()], 1).astype(float)).reshape(160, 200, 2)
    # bicubic reaches two crop pixels beyond the border; averaging for small faces half a photo pixel more
    reach = 2.0 + max(0.0, transform.scale)
    outside = ((where < -reach) | (where > CROP - 1 + reach)).any(-1)
    assert np.array_equal(result[outside], photo[outside])


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.8, 1.0, 1.2, 2.0])
def test_paste_then_align_recovers_the_change(scale: float) -> None:
    side = int(np.ceil(CROP / scale * 1.6))
    photo = smooth(0, side, side, 90, 165)  # far from clipping
    transform = make_transform(scale, 0.2, 1.3, -2.1, side, side)
    wave = smooth(1, CROP, CROP).astype(np.float32)
    change = (wave - 127.5) / 127.5 * 40 * feather()[..., None]
    recovered = align(paste_change(photo, change, transform), transform).astype(np.float32) - align(photo, transform)
    inner = slice(FEATHER, -FEATHER)
    error = (recovered - change)[inner, inner]
    # a shift of half a pixel anywhere in the chain would leave a mean, and more than this spread
    assert np.abs(error).mean() < 0.9 and abs(error.mean()) < 0.1


@pytest.mark.parametrize("shift", [0.5, 1.0])
def test_the_recovery_test_notices_a_shift(shift: float) -> None:
    photo = smooth(0, 205, 205, 90, 165)
    transform = make_transform(1.0, 0.2, 1.3, -2.1, 205, 205)
    wave = np.random.default_rng(3).uniform(0, 255, (16, 16, 3)).astype(np.uint8)
    wave = np.asarray(Image.fromarray(wave).resize((CROP, CROP), Image.Resampling.BICUBIC))
    change = (wave.astype(np.float32) - 127.5) / 127.5 * 40 * feather()[..., None]
    moved = Similarity(transform.matrix + np.array([[0, 0, shift], [0, 0, 0]]))
    inner = slice(FEATHER, -FEATHER)

    def error(used: Similarity) -> float:
        recovered = align(paste_change(photo, change, used), transform).astype(np.float32) - align(photo, transform)
        return float(np.abs((recovered - change)[inner, inner]).mean())

    assert error(moved) > 1.5 * error(transform)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_an_enlarged_photo_gives_the_same_crop(factor: int) -> None:
    photo = smooth(4, 160, 200)
    transform = make_transform(1.0, 0.1, 3.0, -4.0)
    large = np.asarray(Image.fromarray(photo).resize((200 * factor, 160 * factor), Image.Resampling.BICUBIC))
    # pixel centre p of the photo lies at factor * p + (factor - 1) / 2 in the large one
    to_small = np.array(
        [[1 / factor, 0, -(factor - 1) / 2 / factor], [0, 1 / factor, -(factor - 1) / 2 / factor], [0, 0, 1]]
    )
    enlarged = Similarity(transform.matrix @ to_small)
    difference = align(large, enlarged).astype(float) - align(photo, transform)
    assert np.abs(difference).mean() < 0.6 and np.abs(difference).max() < 6


def test_a_face_at_the_edge_repeats_border_pixels() -> None:
    photo = np.full((60, 60, 3), 77, np.uint8)
    crop = align(photo, make_transform(1.0, 0.3, -30, -30, 60, 60))
    assert crop.shape == (CROP, CROP, 3) and (crop == 77).all()


def test_a_crop_wholly_outside_changes_nothing() -> None:
    photo = np.full((60, 60, 3), 77, np.uint8)
    change = np.full((CROP, CROP, 3), 50, np.float32) * feather()[..., None]
    assert np.array_equal(paste_change(photo, change, make_transform(1.0, 0, 500, 0, 60, 60)), photo)
