"""Many photos, a few at a time: read, change, write one by one, measure what was written."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from emask.errors import EmaskError, ImageError, ModelError, NoFaceError, UsageError, device_failure
from emask.images import QUALITY, Metadata, Photo, encode_photo, load_photo, write_bytes
from emask.paths import PHOTO_FORMATS, Job
from emask.pipeline.protect import ChangedPhoto, FaceRecognizer, choose_faces, measure_protection, protect_photos
from emask.results import FaceErasure, FaceProtection, FileResult

if TYPE_CHECKING:
    import numpy as np

    from emask.engine import Engine
    from emask.face.detect import Detector, Face

# Most photos held in memory together, and most of their pixels: 96 megapixels take 300 MB, and as much again changed.
CHUNK = 16
CHUNK_PIXELS = 96_000_000

S = TypeVar("S")
T = TypeVar("T")


class Work(Protocol):
    """What is done to each photo of a batch."""

    detector: Detector

    def change(self, photos: Sequence[Photo]) -> list[ChangedPhoto]:
        """Change the faces of some photos together."""
        ...

    def measure(
        self, photo: Photo, changed: ChangedPhoto, written: Photo, found: Sequence[Face]
    ) -> tuple[FaceProtection | FaceErasure, ...]:
        """Judge one written photo."""
        ...


@dataclass
class Protection:
    """`Work` that masks faces.

    Attributes:
        recognizer: the engine's own, which conditions the generator and measures what was written.
        target: (D,) unit embedding of the target by it, or the mean of several photos' (not of unit length): what is
            told is then the mean of the cosines.
        w, eps, faces, b: as for `protect_photos`.
        aim: (D',) the target by `Engine.embed_person`, which masks are made for; None takes `target`.
    """

    engine: Engine
    detector: Detector
    recognizer: FaceRecognizer
    target: np.ndarray
    w: float
    eps: float
    faces: str = "all"
    b: np.ndarray | None = None
    aim: np.ndarray | None = None

    def __post_init__(self) -> None:
        choose_faces((), self.faces)

    def change(self, photos: Sequence[Photo]) -> list[ChangedPhoto]:
        """Mask the faces of some photos together."""
        return protect_photos(
            photos,
            self.target if self.aim is None else self.aim,
            engine=self.engine,
            detector=self.detector,
            w=self.w,
            eps=self.eps,
            faces=self.faces,
            b=self.b,
        )

    def measure(
        self, photo: Photo, changed: ChangedPhoto, written: Photo, found: Sequence[Face]
    ) -> tuple[FaceProtection, ...]:
        """See `measure_protection`."""
        return measure_protection(photo, changed, written, found, self.target, self.recognizer)


@dataclass
class Erasure:
    """`Work` that takes masks off.

    Attributes:
        reference: (D,) unit embedding of the owner by `recognizer`, or None.
        faces: as for `erase_photos`.
    """

    engine: Engine
    detector: Detector
    recognizer: FaceRecognizer
    reference: np.ndarray | None = None
    faces: str = "all"

    def __post_init__(self) -> None:
        choose_faces((), self.faces)

    def change(self, photos: Sequence[Photo]) -> list[ChangedPhoto]:
        """Erase the masks of some photos together."""
        from emask.pipeline.erase import erase_photos

        return erase_photos(photos, engine=self.engine, detector=self.detector, faces=self.faces)

    def measure(
        self, photo: Photo, changed: ChangedPhoto, written: Photo, found: Sequence[Face]
    ) -> tuple[FaceErasure, ...]:
        """See `measure_erasure`."""
        from emask.pipeline.erase import measure_erasure

        return measure_erasure(changed, written, found, self.recognizer, self.reference)


@dataclass(frozen=True)
class Writing:
    """How results are written.

    Attributes:
        metadata: "strip" or "keep", as for `load_photo`.
        quality: of JPEG and lossy WebP, 1..100.
        force: replace outputs that are there already.
        resume: skip photos whose output is there already.
        read_input, write_output: standard input and output as functions, used for jobs without a file.
    """

    metadata: Metadata = "strip"
    quality: int = QUALITY
    force: bool = False
    resume: bool = False
    read_input: Callable[[], bytes] | None = None
    write_output: Callable[[bytes], None] | None = None


@dataclass
class _Chunk:
    jobs: list[Job] = field(default_factory=list)
    photos: list[Photo] = field(default_factory=list)
    pixels: int = 0


def run_batch(
    jobs: Sequence[Job],
    work: Work,
    writing: Writing,
    *,
    chunk: int = CHUNK,
    chunk_pixels: int = CHUNK_PIXELS,
) -> Iterator[FileResult]:
    """Work through the jobs, a few photos at a time: their faces share batches, then each is written.

    A photo that fails is reported and the others go on; a model that fails ends the run. Where memory runs out or the
    GPU fails, photos are tried one by one.

    Args:
        chunk: most photos in memory together.
        chunk_pixels: most pixels of them together (one photo may have more).

    Yields:
        One result per job, in the order of the jobs.

    Raises:
        ModelError: the model cannot be run.
    """
    held = _Chunk()
    order: list[FileResult | None] = []  # one per job since the last flush; None for those in the chunk
    for job in jobs:
        early = _settled(job, writing)
        photo: Photo | None = None
        if early is None:
            try:
                photo = _load(job, writing)
            except (EmaskError, MemoryError) as error:
                early = _failure(job, _afresh(error))
        if early is not None:
            order.append(early)
        else:
            assert photo is not None
            size = photo.pixels.shape[0] * photo.pixels.shape[1]
            if held.jobs and held.pixels + size > chunk_pixels:
                yield from _flush(held, order, work, writing)
                held, order = _Chunk(), []
            held.jobs.append(job)
            held.photos.append(photo)
            held.pixels += size
            order.append(None)
        if len(held.jobs) >= chunk or (not held.jobs and order):
            yield from _flush(held, order, work, writing)
            held, order = _Chunk(), []
    yield from _flush(held, order, work, writing)


def _flush(
    held: _Chunk, order: list[FileResult | None], work: Work, writing: Writing
) -> Iterator[FileResult]:
    finished = iter(_finish(held, work, writing))
    for early in order:
        yield early if early is not None else next(finished)


def _settled(job: Job, writing: Writing) -> FileResult | None:
    """The result of a job whose output is there already, or None."""
    if job.output is None or writing.force or not (job.output.exists() or job.output.is_symlink()):
        return None
    if writing.resume:
        return FileResult(job.source_name, job.output_name, "skipped", "done before")
    return _failure(
        job, ImageError(f"{job.output} exists already", "use --force to replace it, or --resume to skip what is done")
    )


def _load(job: Job, writing: Writing) -> Photo:
    if job.source is None:
        if writing.read_input is None:
            raise UsageError("there is no standard input to read from")
        photo = load_photo(writing.read_input(), metadata=writing.metadata, name="standard input")
    else:
        photo = load_photo(job.source, metadata=writing.metadata)
    if job.explicit and job.output is not None:
        wanted = PHOTO_FORMATS.get(job.output.suffix.lower())
        if wanted not in (None, photo.format):
            raise UsageError(
                f"{photo.name} is a {photo.format} picture and keeps its format, but {job.output} ends otherwise",
                f"give the output the ending of a {photo.format} file",
            )
    return photo


def _failure(job: Job, error: EmaskError) -> FileResult:
    return FileResult(
        job.source_name, None, "failed", error.message, error.hint, exit_code=error.exit_code
    )


def _finish(held: _Chunk, work: Work, writing: Writing) -> list[FileResult]:
    """Change, write and measure the photos of one chunk."""
    if not held.jobs:
        return []
    changed = _each(held.photos, work.change)
    results: list[FileResult | None] = []
    written: list[Photo | None] = []
    for job, photo, change in zip(held.jobs, held.photos, changed, strict=True):
        copy: Photo | None = None
        result: FileResult | None = None
        if isinstance(change, EmaskError):
            result = _failure(job, change)
        elif not change.faces:
            error = NoFaceError(f"no face found in {photo.name}; left out", "nothing was written for it")
            result = FileResult(
                job.source_name, None, "no-face", error.message, error.hint, exit_code=error.exit_code,
                width=photo.pixels.shape[1], height=photo.pixels.shape[0],
            )  # fmt: skip
        else:
            try:
                copy = _write(job, photo, change, writing)
            except (EmaskError, MemoryError) as error:
                result = _failure(job, _afresh(error))
        results.append(result)
        written.append(copy)
    # what was written is decoded again and searched afresh, so that the report is about the file and not the intention
    found = iter(_each([copy.pixels for copy in written if copy is not None], work.detector.detect))
    finished: list[FileResult] = []
    for job, photo, change, copy, result in zip(held.jobs, held.photos, changed, written, results, strict=True):
        if copy is not None:
            assert not isinstance(change, EmaskError)
            result = _measured(job, photo, change, copy, next(found), work)
        assert result is not None
        finished.append(result)
    return finished


def _measured(
    job: Job, photo: Photo, change: ChangedPhoto, copy: Photo, found: Sequence[Face] | EmaskError, work: Work
) -> FileResult:
    """The result of a photo that was written; a failure where it cannot be told what it shows."""
    if isinstance(found, EmaskError):
        faces: tuple[FaceProtection | FaceErasure, ...] | EmaskError = found
    else:
        (faces,) = _each([found], lambda one: [work.measure(photo, change, copy, one[0])])
    height, width = photo.pixels.shape[:2]
    if isinstance(faces, EmaskError):
        message = f"{job.output_name} was written, but not measured: {faces.message}"
        return FileResult(
            job.source_name, job.output_name, "failed", message, faces.hint, faces.exit_code, width, height
        )
    return FileResult(job.source_name, job.output_name, "done", width=width, height=height, faces=faces)


def _each(items: Sequence[S], run: Callable[[Sequence[S]], Sequence[T]]) -> list[T | EmaskError]:
    """What `run` makes of the items: of all together or, where memory runs out or the GPU fails, of one at a time.

    Returns:
        One entry per item, in order; in the place of one that fails even by itself, the error.

    Raises:
        ModelError: the model cannot be run, whatever the photo.
    """
    try:
        return list(run(items))
    except ModelError:
        raise
    except (EmaskError, MemoryError) as error:
        failure = _afresh(error)
    if len(items) > 1:
        gc.collect()  # the error's traceback, which may be in a circle with it, holds on to what filled the memory
    return [failure] if len(items) == 1 else [one for item in items for one in _each([item], run)]


def _afresh(error: EmaskError | MemoryError) -> EmaskError:
    """The same error for the report, without the traceback, which holds on to whole photos."""
    told = error if isinstance(error, EmaskError) else device_failure(error)
    assert told is not None
    again = EmaskError(told.message, told.hint)
    again.exit_code = told.exit_code
    return again


def _write(job: Job, photo: Photo, change: ChangedPhoto, writing: Writing) -> Photo:
    """Write one photo and decode it again from where it was written."""
    data = encode_photo(photo, change.pixels, quality=writing.quality)
    if job.output is None:
        if writing.write_output is None:
            raise UsageError("there is no standard output to write to")
        writing.write_output(data)
        return load_photo(data, name="standard output")
    write_bytes(Path(job.output), data, force=writing.force)
    return load_photo(job.output)


def timed(results: Iterator[FileResult], seen: Callable[[FileResult], None]) -> tuple[tuple[FileResult, ...], float]:
    """Exhaust a batch: hand each result to `seen` as it comes; all results and the seconds they took."""
    start = time.perf_counter()
    collected = []
    for result in results:
        seen(result)
        collected.append(result)
    return tuple(collected), time.perf_counter() - start
