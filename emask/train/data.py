"""Training photos as a packed cache of aligned crops, split by person.

A data folder holds photos in any depth. A folder `lfw/NAME/NAME_0001.jpg` with one sub-folder a person gives people
with several photos; photos that lie flat in a folder each count as a person of their own. If the folder holds
`lfw_pairs.txt` (the ten folds of the standard LFW pairs, whose people do not overlap), the people of the last two
folds are kept out of all training: recognizer, generator, restorer and built-in targets are measured on them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emask.errors import ImageError, TrainingError
from emask.face.align import CROP, align, estimate
from emask.face.detect import Detector, main_face
from emask.images import load_photo
from emask.paths import PHOTO_SUFFIXES

# Folds of lfw_pairs.txt (1-based) whose people no training sees.
TEST_FOLDS = (9, 10)
# Of photos without a person folder (FFHQ), every tenth is kept out of training.
FLAT_TEST_EVERY = 10
# In a folder of crops that are aligned already.
PACKED = "packed.json"


@dataclass(frozen=True)
class Crops:
    """A packed set of aligned crops.

    Attributes:
        pixels: (N, S, S, 3) uint8 RGB; a memory map.
        people: (N,) int64, the person of each crop, 0..P-1.
        names: N photo paths relative to the data folder.
        test: (N,) bool, True for people no training may see.
    """

    pixels: np.ndarray
    people: np.ndarray
    names: list[str]
    test: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def by_person(self, indices: np.ndarray) -> dict[int, np.ndarray]:
        """Group crop indices by person."""
        if not len(indices):
            return {}
        order = indices[np.argsort(self.people[indices], kind="stable")]
        keys, starts = np.unique(self.people[order], return_index=True)
        return dict(zip(keys.tolist(), np.split(order, starts[1:]), strict=True))


def pairs_people(pairs_file: Path, folds: tuple[int, ...] = TEST_FOLDS) -> set[str]:
    """People named in the given folds (1-based) of the standard LFW pairs file."""
    return {name for first, second, _ in read_pairs(pairs_file, folds) for name in (first[0], second[0])}


def read_pairs(
    pairs_file: Path, folds: tuple[int, ...]
) -> list[tuple[tuple[str, int], tuple[str, int], int]]:
    """Read the standard LFW pairs: ((name, number), (name, number), fold); a name repeated means the same person."""
    lines = pairs_file.read_text(encoding="utf-8").splitlines()
    n_folds, half = (int(value) for value in lines[0].split())
    rows = [line.split("\t") for line in lines[1:] if line.strip()]
    if len(rows) != n_folds * half * 2:
        raise TrainingError(f"{pairs_file}: {len(rows)} pairs where its first line promises {n_folds * half * 2}")
    pairs = []
    for index, row in enumerate(rows):
        fold = index // (2 * half) + 1
        if fold in folds:
            second = (row[0], int(row[2])) if len(row) == 3 else (row[2], int(row[3]))
            pairs.append(((row[0], int(row[1])), second, fold))
    return pairs


def find_photos(data: Path) -> list[Path]:
    """All photos below a folder, sorted."""
    return sorted(p for p in data.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES and p.is_file())


def split(data: Path, photos: list[Path]) -> tuple[list[str], list[bool]]:
    """The person and the test flag of each photo. A person is a folder that holds only that person's photos."""
    packed = is_packed(data)  # photos that are kept out are not among these, so that counting would choose others
    pairs = data / "lfw_pairs.txt"
    held_out = pairs_people(pairs) if pairs.exists() else set()
    people, test = [], []
    flat_seen = 0
    for photo in photos:
        if photo.stem.startswith(photo.parent.name + "_"):
            people.append(photo.parent.name)
            test.append(photo.parent.name in held_out)
        else:
            people.append(str(photo.relative_to(data)))
            test.append(not packed and flat_seen % FLAT_TEST_EVERY == 0)
            flat_seen += 1
    return people, test


def tell(line: str) -> None:
    """A line on standard error."""
    print(line, file=sys.stderr, flush=True)


def read_photos(photos: Sequence[Path], say: Callable[[str], object] = tell) -> list[np.ndarray | None]:
    """(H, W, 3) uint8 RGB of each photo, upright; None for one that cannot be read, of which `say` is told."""
    read: list[np.ndarray | None] = []
    for photo in photos:
        try:
            read.append(load_photo(photo).pixels)
        except ImageError as error:
            say(f"left out: {error.message}")
            read.append(None)
    return read


def load_crops(
    data: Path, cache: Path, progress: Callable[[int, int], None] | None = None, device: str = "auto"
) -> Crops:
    """The packed crops of a data folder, made on first use and kept in `cache`.

    Photos that cannot be read are left out, and named on standard error every time.

    Args:
        data: folder of photos.
        cache: folder for the packed file; its name carries a fingerprint of the photo list and the crop size.
        progress: called with (photos done, photos).
        device: where faces are looked for, "auto", "cuda" or "cpu".

    Raises:
        TrainingError: when the folder holds no photo, or no photo a face.
    """
    photos = find_photos(data)
    if not photos:
        raise TrainingError(f"no photos in {data}", "give a folder of .jpg, .png or .webp files with --data")
    listing = "\n".join(f"{p.relative_to(data)} {p.stat().st_size}" for p in photos)
    packed = is_packed(data)
    kind = f"{PACKED}\n" if packed else ""
    stem = hashlib.sha256(f"{CROP}\n{kind}{listing}".encode()).hexdigest()[:16]
    pixels_file, index_file = cache / f"{stem}.npy", cache / f"{stem}.json"
    if not index_file.exists():
        find = _aligned_before if packed else _aligned(Detector(device))
        _pack(data, photos, pixels_file, index_file, progress, find)
    index = json.loads(index_file.read_text(encoding="utf-8"))
    for line in index.get("left_out", []):  # an older version kept none
        tell(line)
    if not index["names"]:
        raise TrainingError(f"no face found in the {len(photos)} photos of {data}")
    # not kept beside the crops: who is held out follows the pairs file as it is now
    people, test = split(data, photos)
    place = {str(photo.relative_to(data)): number for number, photo in enumerate(photos)}
    rows = [place[name] for name in index["names"]]
    return Crops(
        pixels=np.load(pixels_file, mmap_mode="r"),
        people=np.unique([people[row] for row in rows], return_inverse=True)[1].astype(np.int64),
        names=index["names"],
        test=np.array([test[row] for row in rows], bool),
    )


def is_packed(data: Path) -> bool:
    """Whether a folder's pictures are aligned crops already, all of people that training may see (`emask.train.pack`).

    Raises:
        TrainingError: what says so is damaged, or the crops are of another size than this version's.
    """
    try:
        size = json.loads((data / PACKED).read_text(encoding="utf-8"))["size"]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{data / PACKED} is damaged", "pack the photos again") from error
    if size != CROP:
        raise TrainingError(f"{data} holds crops of {size} pixels, not {CROP}", "pack the photos again")
    return True


def _aligned(detector: Detector) -> Callable[[Sequence[np.ndarray]], list[np.ndarray | None]]:
    def crops(images: Sequence[np.ndarray]) -> list[np.ndarray | None]:
        faces = [main_face(found, image.shape) for image, found in zip(images, detector.detect(images), strict=True)]
        return [
            None if face is None else align(image, estimate(face.points))
            for image, face in zip(images, faces, strict=True)
        ]

    return crops


def _aligned_before(images: Sequence[np.ndarray]) -> list[np.ndarray | None]:
    return [image if image.shape == (CROP, CROP, 3) else None for image in images]


def _pack(
    data: Path, photos: list[Path], pixels_file: Path, index_file: Path,
    progress: Callable[[int, int], None] | None, find: Callable[[Sequence[np.ndarray]], list[np.ndarray | None]],
) -> None:  # fmt: skip
    pixels_file.parent.mkdir(parents=True, exist_ok=True)
    crops, kept = [], []
    left_out: list[str] = []
    step = 64
    for start in range(0, len(photos), step):
        images = enumerate(read_photos(photos[start : start + step], left_out.append), start)
        readable = [(number, image) for number, image in images if image is not None]
        found = find([image for _, image in readable])
        for (number, _), crop in zip(readable, found, strict=True):
            if crop is not None:
                crops.append(crop)
                kept.append(number)
        if progress:
            progress(min(start + step, len(photos)), len(photos))
    partial = pixels_file.with_suffix(".partial.npy")
    np.save(partial, np.stack(crops) if crops else np.zeros((0, CROP, CROP, 3), np.uint8))
    partial.replace(pixels_file)
    index = {
        "names": [str(photos[i].relative_to(data)) for i in kept],
        "left_out": left_out,
    }
    partial = index_file.with_suffix(".partial")
    partial.write_text(json.dumps(index), encoding="utf-8")
    partial.replace(index_file)
