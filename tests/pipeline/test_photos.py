"""Photos through protect, erase, verify and the batch, with tiny models and the real detector.

Not tested here: how well the shipped models protect or restore.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emask.attributes import choose, labels
from emask.engine import Engine, ShippedRecognizer, open_engine, unit
from emask.errors import EmaskError, ModelError, NoFaceError, UsageError
from emask.face.detect import Detector, Face
from emask.images import Photo, load_photo
from emask.paths import Job, plan
from emask.pipeline.batch import Protection, Writing, run_batch
from emask.pipeline.erase import erase_photos
from emask.pipeline.protect import (
    ChangedPhoto,
    choose_faces,
    cut,
    match_faces,
    measure_protection,
    protect_photos,
    psnr,
)
from emask.pipeline.target import read_target, refuse_strangers, target_crop
from emask.pipeline.verify import verify_photos
from emask.results import FaceProtection, FileResult, RunResult

THRESHOLDS = {"0.1": 0.2, "0.01": 0.4, "0.001": 0.6}


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(device="cpu")


@pytest.fixture(scope="module")
def engine(tiny_models: Path) -> Engine:
    names = ("generator", "restorer", "recognizer")
    return open_engine(*(tiny_models / f"{name}.onnx" for name in names), device="cpu")


@pytest.fixture(scope="module")
def recognizer(engine: Engine) -> ShippedRecognizer:
    return ShippedRecognizer(engine, THRESHOLDS)


def photo_of(pixels: np.ndarray, folder: Path, mode: str = "RGB", name: str = "p.png") -> Photo:
    Image.fromarray(pixels).convert(mode).save(folder / name)
    return load_photo(folder / name)


TARGET = np.full(256, 1 / 16, np.float32)


def test_every_face_is_changed_and_the_rest_is_bit_identical(
    two_faces: np.ndarray, scene: np.ndarray, engine: Engine, detector: Detector, tmp_path: Path
) -> None:
    pair, empty = photo_of(two_faces, tmp_path), photo_of(scene, tmp_path, name="scene.png")
    changed, untouched = protect_photos([pair, empty], TARGET, engine=engine, detector=detector, w=0.3, eps=20.0)
    assert len(changed.faces) == 2 and not untouched.faces
    np.testing.assert_array_equal(untouched.pixels, empty.pixels)
    transforms, _ = cut(pair.pixels, changed.faces)
    rows, columns = np.mgrid[: two_faces.shape[0], : two_faces.shape[1]]
    places = np.stack([columns.ravel(), rows.ravel()], 1)
    outside = np.ones(len(places), bool)
    for transform in transforms:
        moved = transform.apply(places)
        within = ((moved > -1) & (moved < 128)).all(1)
        outside &= ~within
        assert (changed.pixels.reshape(-1, 3)[within] != two_faces.reshape(-1, 3)[within]).mean() > 0.2
    np.testing.assert_array_equal(changed.pixels.reshape(-1, 3)[outside], two_faces.reshape(-1, 3)[outside])


def test_largest_face_only(two_faces: np.ndarray, engine: Engine, detector: Detector, tmp_path: Path) -> None:
    photo = photo_of(two_faces, tmp_path)
    (one,) = protect_photos([photo], TARGET, engine=engine, detector=detector, w=0.3, eps=20.0, faces="largest")
    assert len(one.faces) == 1
    assert [len(choose_faces("abc", which)) for which in ("all", "largest", "2", "9")] == [3, 1, 2, 3]  # type: ignore[arg-type]
    for wrong in ("0", "-1", "few", ""):
        with pytest.raises(UsageError):
            choose_faces([], wrong)


def test_grey_stays_grey(face: np.ndarray, engine: Engine, detector: Detector, tmp_path: Path) -> None:
    photo = photo_of(face, tmp_path, "L")
    (changed,) = protect_photos([photo], TARGET, engine=engine, detector=detector, w=0.3, eps=20.0)
    assert (changed.pixels != photo.pixels).any()
    assert (changed.pixels == changed.pixels[..., :1]).all()


def test_no_strength_changes_nothing(face: np.ndarray, engine: Engine, detector: Detector, tmp_path: Path) -> None:
    photo = photo_of(face, tmp_path)
    for w, eps in ((1.0, 20.0), (0.2, 0.0)):
        (same,) = protect_photos([photo], TARGET, engine=engine, detector=detector, w=w, eps=eps)
        np.testing.assert_array_equal(same.pixels, photo.pixels)


def test_an_attribute_changes_the_look_even_without_a_mask_and_nothing_outside_the_face(
    two_faces: np.ndarray, engine: Engine, detector: Detector, tmp_path: Path
) -> None:
    photo = photo_of(two_faces, tmp_path)

    def pixels(*names: str, eps: float = 0.0, given: bool = True) -> np.ndarray:
        b = labels(choose(names)) if given else None
        (changed,) = protect_photos([photo], TARGET, engine=engine, detector=detector, w=0.3, eps=eps, b=b)
        assert len(changed.faces) == 2
        return changed.pixels

    np.testing.assert_array_equal(pixels(), photo.pixels)  # zeros are "as it is"
    np.testing.assert_array_equal(pixels(eps=20.0), pixels(eps=20.0, given=False))
    glasses, none, bangs = pixels("eyeglasses"), pixels("no-eyeglasses"), pixels("bangs")
    assert (glasses != photo.pixels).any() and (glasses != none).any() and (glasses != bangs).any()
    assert (pixels("eyeglasses", eps=20.0) != pixels(eps=20.0)).any()
    # the tiny generator's crops end with a row of zeros: what is outside them is the photo's own
    outside = np.ones(two_faces.shape[:2], bool)
    rows, columns = np.mgrid[: two_faces.shape[0], : two_faces.shape[1]]
    for transform in cut(photo.pixels, detector.detect([photo.pixels])[0])[0]:
        moved = transform.apply(np.stack([columns.ravel(), rows.ravel()], 1))
        outside &= ~((moved > -1) & (moved < 128)).all(1).reshape(outside.shape)
    assert outside.any() and not outside.all()
    np.testing.assert_array_equal(glasses[outside], photo.pixels[outside])


def test_erasing_brings_the_pixels_back_nearer(
    face: np.ndarray, engine: Engine, detector: Detector, tmp_path: Path
) -> None:
    photo = photo_of(face, tmp_path)
    (masked,) = protect_photos([photo], TARGET, engine=engine, detector=detector, w=0.3, eps=20.0)
    (restored,) = erase_photos([photo_of(masked.pixels, tmp_path)], engine=engine, detector=detector)
    assert psnr(restored.pixels, face) > psnr(masked.pixels, face) + 3


def test_measuring_is_about_the_written_file(
    face: np.ndarray,
    scene: np.ndarray,
    engine: Engine,
    detector: Detector,
    recognizer: ShippedRecognizer,
    tmp_path: Path,
) -> None:
    photo = photo_of(face, tmp_path)
    (changed,) = protect_photos([photo], TARGET, engine=engine, detector=detector, w=0.3, eps=20.0)
    target = recognizer.embed(changed.crops)[0]
    (same,) = measure_protection(photo, changed, photo, changed.faces, target, recognizer)
    assert same.source_after == pytest.approx(1, abs=1e-5) and same.psnr == np.inf
    (gone,) = measure_protection(photo, changed, photo, [], target, recognizer)
    assert gone.source_after is None and "no face is found" in gone.verdict
    assert match_faces(changed.faces, changed.faces) == list(changed.faces)


@pytest.mark.parametrize(
    ("target", "source", "said"),
    [
        (0.5, 0.1, "taken for the target, no longer for its owner"),
        (0.5, 0.5, "but still for its owner"),
        (0.1, 0.1, "nor for the target"),
        (0.1, 0.5, "too weak"),
    ],
)
def test_verdicts(target: float, source: float, said: str) -> None:
    assert said in FaceProtection((0, 0, 1, 1), 0.0, target, source, 0.4, 30.0).verdict


def test_the_target_shows_one_person(
    face: np.ndarray, two_faces: np.ndarray, scene: np.ndarray, detector: Detector, tmp_path: Path
) -> None:
    assert target_crop(photo_of(face, tmp_path), detector).shape == (1, 128, 128, 3)
    with pytest.raises(UsageError, match="2 faces"):
        target_crop(photo_of(two_faces, tmp_path), detector)
    with pytest.raises(NoFaceError):
        target_crop(photo_of(scene, tmp_path), detector)


def test_a_target_by_several_photos(
    face: np.ndarray, two_faces: np.ndarray, detector: Detector, tmp_path: Path
) -> None:
    """What cannot be used is left out where it only lay in a folder, and refused where it was named."""
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    Image.fromarray(face).save(one)
    Image.fromarray(two_faces).save(two)
    given = read_target({one: True, two: False}, detector)
    assert given.used == [one] and given.crops.shape == (1, 128, 128, 3) and "2 faces" in given.left_out[two]
    with pytest.raises(UsageError, match="2 faces"):
        read_target({one: False, two: True}, detector)
    with pytest.raises(NoFaceError, match="no photo of the target"):
        read_target({two: False}, detector)


def test_photos_of_different_people_are_no_target() -> None:
    files = [Path("a"), Path("b"), Path("c")]
    alike = unit(np.array([[1.0, 0.1, 0], [1, 0, 0.1], [1, -0.1, 0]]))
    refuse_strangers(alike, files, 0.3)
    refuse_strangers(alike[:1], files[:1], 0.3)
    with pytest.raises(UsageError, match="b is unlike the others"):
        refuse_strangers(np.stack([alike[0], np.array([0, 1.0, 0]), alike[2]]), files, 0.3)


def test_verify(face: np.ndarray, detector: Detector, recognizer: ShippedRecognizer, tmp_path: Path) -> None:
    photo = photo_of(face, tmp_path)
    result = verify_photos(photo, photo, [recognizer, recognizer], detector=detector)
    assert [c.cosine for c in result.comparisons] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert result.comparisons[0].verdict == "same person" and "same pixels" in result.notes[0]
    weaker = verify_photos(photo, photo, [recognizer], detector=detector, after="jpeg:20,resize:160,blur:1")
    assert weaker.comparisons[0].cosine < 1 - 1e-5 and not weaker.notes


def test_a_batch_keeps_its_order_in_small_chunks(
    face: np.ndarray,
    scene: np.ndarray,
    engine: Engine,
    detector: Detector,
    recognizer: ShippedRecognizer,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        Image.fromarray(scene if number == 2 else face).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"broken")
    jobs: list[Job] = plan([str(folder)], str(tmp_path / "out"), "protected")
    work = Protection(engine, detector, recognizer, TARGET, w=0.3, eps=20.0)
    results: list[FileResult] = []
    for result in run_batch(jobs, work, Writing(), chunk=2, chunk_pixels=face.shape[0] * face.shape[1]):
        results.append(result)
        if result.status == "done":
            assert Path(str(result.output)).is_file()
    assert [result.source for result in results] == [str(job.source) for job in jobs]
    assert [result.status for result in results] == ["done", "failed", "no-face", "done", "done"]
    run = RunResult("protect", tuple(results), engine.name, 1.0)
    assert run.exit_code == 1 and run.to_dict()["summary"]["done"] == 3
    np.testing.assert_array_equal(  # batching does not change a photo's result
        np.asarray(Image.open(tmp_path / "out/0.png")), np.asarray(Image.open(tmp_path / "out/4.png"))
    )


class Faltering:
    """A work that changes and finds nothing but a face in the corner, and fails as it is told."""

    def __init__(self) -> None:
        self.detector = self
        self.changing = self.detecting = self.measuring = lambda photos: None  # each is handed the photos' pixels

    def change(self, photos: list[Photo]) -> list[ChangedPhoto]:
        self.changing([photo.pixels for photo in photos])
        return [ChangedPhoto(photo.pixels, (CORNER,), np.zeros((1, 128, 128, 3), np.uint8)) for photo in photos]

    def detect(self, photos: list[np.ndarray]) -> list[list[Face]]:
        self.detecting(photos)
        return [[CORNER] for _ in photos]

    def measure(self, photo: Photo, *rest: object) -> tuple[FaceProtection, ...]:
        self.measuring([photo.pixels])
        return ()


CORNER = Face(np.zeros(4, np.float32), np.zeros((5, 2), np.float32), 1.0)


@pytest.mark.parametrize("step", ["changing", "detecting", "measuring"])
@pytest.mark.parametrize("error", [MemoryError(), EmaskError("out of memory", "smaller"), EmaskError("the GPU failed")])
def test_memory_that_runs_out_costs_one_photo(tmp_path: Path, step: str, error: Exception) -> None:
    """The twins: what fails for several together is done one by one; a broken model ends the run."""
    (tmp_path / "in").mkdir()
    for number, width in enumerate((40, 60, 40)):
        Image.new("RGB", (width, 40)).save(tmp_path / f"in/{number}.png")
    work = Faltering()

    def run(fail: Callable[[list[np.ndarray]], bool], name: str, error: Exception = error) -> list[FileResult]:
        def falter(photos: list[np.ndarray]) -> None:
            if fail(photos):
                raise error

        setattr(work, step, falter)
        return list(run_batch(plan([str(tmp_path / "in")], str(tmp_path / name), "protected"), work, Writing()))

    together = run(lambda photos: len(photos) > 1, "together")
    assert [file.status for file in together] == ["done"] * 3
    large = run(lambda photos: any(pixels.shape[1] == 60 for pixels in photos), "large")
    assert [file.status for file in large] == ["done", "failed", "done"]
    # what was written before it failed stays, and is told of
    there, failed = tmp_path / "large/1.png", large[1]
    assert there.exists() == (step != "changing") == (failed.output == str(there)) == ("not measured" in failed.message)
    assert ("out of memory" in failed.message or "the GPU failed" in failed.message) and failed.exit_code == 1
    every = run(lambda photos: True, "every")
    assert [file.status for file in every] == ["failed"] * 3
    assert RunResult("protect", tuple(every), "", 1.0).exit_code == 1
    with pytest.raises(ModelError):
        run(lambda photos: True, "broken", ModelError("broken"))
