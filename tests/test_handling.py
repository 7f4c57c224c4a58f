"""What happens to photos on their way: sizes, determinism, the codecs' own doing, and that each does something."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from emask.errors import UsageError
from emask.handling import ALL, NAMED, OPERATIONS, choose, parse

# an operation of each kind, at a strength that shows
STRONG = {
    "jpeg": 50, "webp": 50, "resize": 40, "scale": 50, "shrink": 50, "rotate": 10, "crop": 80, "blur": 1, "median": 3,
    "noise": 5, "brightness": 120,
}  # fmt: skip


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """(60, 80, 3) smooth, with noise."""
    rng = np.random.default_rng(0)
    waves = np.kron(rng.integers(40, 200, (6, 8, 3)), np.ones((10, 10, 1)))
    return np.clip(waves + rng.normal(0, 6, waves.shape), 0, 255).astype(np.uint8)


def through(photo: np.ndarray, kind: str, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, kind, quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


def test_an_example_of_every_kind() -> None:
    assert STRONG.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("text", [*(f"{name}:{value}" for name, value in STRONG.items()), *ALL])
def test_each_gives_a_picture_and_the_same_one_again(text: str, photo: np.ndarray) -> None:
    before = photo.copy()
    out = parse(text)(photo, 3)
    assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3
    assert np.array_equal(out, parse(text)(photo, 3)) and np.array_equal(photo, before)
    assert out.shape != photo.shape or not np.array_equal(out, photo)
    assert abs(out.mean() - photo.mean()) < 40  # still that picture


@pytest.mark.parametrize(
    ("text", "shape"),
    [("crop:90", (54, 72)), ("scale:85", (51, 68)), ("shrink:50", (60, 80)), ("resize:40", (30, 40)),
     ("resize:80", (60, 80)), ("resize:4000", (60, 80)), ("rotate:90", (80, 60)), ("screenshot", (51, 68))],
)  # fmt: skip
def test_sizes(text: str, shape: tuple[int, int], photo: np.ndarray) -> None:
    assert parse(text)(photo).shape == (*shape, 3)


@pytest.mark.parametrize("text", ["scale:100", "shrink:100", "rotate:0", "crop:100", "blur:0", "median:1", "noise:0",
                                  "brightness:100", "resize:4000", ""])  # fmt: skip
def test_at_strength_zero_nothing_happens(text: str, photo: np.ndarray) -> None:
    np.testing.assert_array_equal(parse(text)(photo), photo)


def test_the_crop_keeps_the_middle() -> None:
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[5:95, 10:190] = 255
    assert parse("crop:90")(picture).min() == 255


def test_a_crop_leaves_a_pixel() -> None:
    assert parse("crop:1")(np.zeros((100, 40, 3), np.uint8)).shape[2] == 3
    assert min(parse("crop:1,jpeg:90")(np.zeros((100, 40, 3), np.uint8)).shape[:2]) > 0


def test_what_a_codec_cannot_hold_is_said() -> None:
    with pytest.raises(UsageError) as caught:
        parse("webp:80")(np.zeros((2, 16_400, 3), np.uint8))
    assert "webp:80" in caught.value.message and "16400 x 2" in caught.value.message and "resize" in caught.value.hint


def test_a_codec_is_the_codec(photo: np.ndarray) -> None:
    np.testing.assert_array_equal(parse("jpeg:75")(photo), through(photo, "JPEG", 75))
    np.testing.assert_array_equal(parse("webp:80")(photo), through(photo, "WEBP", 80))
    errors = [np.abs(parse(text)(photo).astype(int) - photo).mean() for text in ("jpeg:75", "jpeg:50")]
    assert 0 < errors[0] < errors[1]


def test_operations_follow_one_another(photo: np.ndarray) -> None:
    np.testing.assert_array_equal(parse("chain")(photo), through(through(photo, "JPEG", 85), "JPEG", 75))
    np.testing.assert_array_equal(parse("crop:50, twitter")(photo), through(parse("crop:50")(photo), "JPEG", 85))
    assert parse("crop:50,twitter").what == "crop:50,resize:4096,jpeg:85"


def test_even_and_odd_photos_turn_either_way() -> None:
    picture = np.zeros((101, 101, 3), np.uint8)
    picture[:, 50:] = 255  # a vertical edge: its upper end moves left when turned counter-clockwise
    edges = []
    for number in (0, 1):
        out = parse("rotate:10")(picture, number)
        row = out[out.shape[0] // 2 - 35, :, 0]
        edges.append(int(np.argmax(row > 128)) - out.shape[1] / 2)
    assert edges[0] == pytest.approx(-35 * np.tan(np.pi / 18), abs=2)
    assert edges[1] == pytest.approx(35 * np.tan(np.pi / 18), abs=2)


def test_noise_is_that_strong_and_another_for_each_photo() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    one, two = (parse("noise:5")(grey, number).astype(float) - 128 for number in (0, 1))
    assert one.std() == pytest.approx(5, rel=0.05) and abs(one.mean()) < 0.2
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.05


def test_shrinking_loses_what_is_fine() -> None:
    fine = np.indices((64, 64)).sum(0) % 2 * 255  # a chessboard of single pixels
    assert parse("shrink:50")(np.repeat(fine[..., None], 3, 2).astype(np.uint8)).std() < 20


def test_choosing() -> None:
    assert [handling.name for handling in choose(["whatsapp", "jpeg:75", "whatsapp"], "--x")] == ["whatsapp", "jpeg:75"]
    assert [handling.name for handling in choose(["all"], "--x")] == list(ALL) and choose([], "--x") == []
    assert set(NAMED) <= set(ALL)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [("jpg:76", "does not know 'jpg:76'", "jpeg"), ("jpeg", "needs a number", "quality"),
     ("jpeg:0", "out of range: 1 to 100", "quality"), ("jpeg:75.5", "out of range", "quality"),
     ("blur:nan", "out of range", "Gaussian"), ("blur:inf", "out of range", "Gaussian")],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(text: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "--handling")
    assert said in caught.value.message and caught.value.message.startswith("--handling") and hint in caught.value.hint
