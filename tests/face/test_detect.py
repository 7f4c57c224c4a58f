"""Detection on a public-domain photo (NASA's portrait of Eileen Collins, from scikit-image)."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage import data

from emask.engine.device import note_once
from emask.errors import EmaskError
from emask.face.detect import Detector


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(device="cpu")


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return np.asarray(data.astronaut())


def test_one_face_with_points_in_their_order(detector: Detector, astronaut: np.ndarray) -> None:
    (faces,) = detector.detect([astronaut])
    assert len(faces) == 1
    left_eye, right_eye, nose, left_mouth, right_mouth = faces[0].points
    assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    left, top, right, bottom = faces[0].box
    assert ((faces[0].points >= (left, top)) & (faces[0].points <= (right, bottom))).all()
    assert 80 < faces[0].size < 200


def test_pictures_without_a_face(detector: Detector) -> None:
    blank = np.full((200, 300, 3), 128, np.uint8)
    tiny = np.zeros((10, 10, 3), np.uint8)
    assert detector.detect([blank, tiny, np.asarray(data.coffee())[:200, :200]]) == [[], [], []]
    assert detector.detect([]) == []


def test_a_batch_gives_what_single_photos_give(detector: Detector, astronaut: np.ndarray) -> None:
    blank = np.full_like(astronaut, 90)
    other = np.roll(astronaut, 40, axis=1)
    batch = detector.detect([astronaut, blank, other, astronaut[:400, :400]])
    assert [len(f) for f in batch] == [1, 0, 1, 1]
    for photo, faces in zip((astronaut, other), (batch[0], batch[2]), strict=True):
        np.testing.assert_allclose(faces[0].points, detector.detect([photo])[0][0].points, atol=0.5)


def test_points_of_an_enlarged_photo(detector: Detector, astronaut: np.ndarray) -> None:
    small = astronaut[:320, 60:380]
    large = np.asarray(Image.fromarray(small).resize((1280, 1280), Image.Resampling.BICUBIC))
    bounded = Detector(device="cpu", detection_size=320)
    (faces,), (expected,) = bounded.detect([large]), detector.detect([small])
    # searched at a quarter of its size; two pixels of the small photo
    np.testing.assert_allclose(faces[0].points / 4, expected[0].points, atol=2.0)


def test_faces_come_largest_first(detector: Detector, astronaut: np.ndarray) -> None:
    head = astronaut[:240, 120:360]
    canvas = np.full((300, 460, 3), 100, np.uint8)
    canvas[30:150, 20:140] = np.asarray(Image.fromarray(head).resize((120, 120), Image.Resampling.LANCZOS))
    canvas[30:270, 200:440] = head
    (faces,) = detector.detect([canvas])
    assert len(faces) == 2
    assert faces[0].size > faces[1].size and faces[0].points[0, 0] > 200


@pytest.mark.parametrize("said, hint", [
    ("CUDA out of memory. Tried to allocate 2.00 GiB", "smaller photos"),
    ("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory", "smaller photos"),
    ("CUDA error: an illegal memory access was encountered", "--device cpu"),
])  # fmt: skip
def test_a_machine_that_fails_is_no_photo_without_a_face(
    astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch, said: str, hint: str
) -> None:
    """The twin: facenet-pytorch's own error of a stage without candidates is one."""
    found = Detector(device="cpu")

    def failing(error: Exception) -> None:
        def detect(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(found._mtcnn, "detect", detect)

    failing(RuntimeError(said))
    with pytest.raises(EmaskError) as caught:
        found.detect([astronaut, astronaut])
    assert hint in caught.value.hint
    failing(RuntimeError("torch.cat(): expected a non-empty list of Tensors"))
    assert found.detect([astronaut, astronaut]) == [[], []]


def test_a_gpu_that_cannot_be_used_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.ones", fail)
    note_once.cache_clear()
    assert Detector().device == "cpu" and "no kernel image" in capsys.readouterr().err
    with pytest.raises(EmaskError, match="the GPU failed"):
        Detector(device="cuda")


def test_cuda_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(EmaskError, match="CUDA was asked for"):
        Detector(device="cuda")
    assert Detector().device == "cpu"
