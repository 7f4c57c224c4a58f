"""The photo protocol: protect full photos, save them as JPEG, read them back, find and align the faces afresh, score.

Every figure comes from a decoded file on disk. A face that is not found again counts against the mask: neither
impersonation nor dodging nor re-verification succeeded. Beside each protected rate stands the clean one, measured on
the unprotected photo saved through the same JPEG.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from emask.bench.identification import RANKS, identify
from emask.bench.metrics import accepted, psnr, rate, rejected, ssim
from emask.engine import inner_square, to_network
from emask.errors import UsageError
from emask.face.align import CROP, Similarity, align, estimate, paste_change
from emask.face.detect import Detector, main_face
from emask.handling import Handling
from emask.images import load_photo
from emask.recognize import FALSE_ACCEPT_RATES, Recognizer, calibrate, rate_key, similarity, true_accept_rate

# (crops (B, 3, 128, 128) float32 in [-1, 1], target embeddings (B, D)) -> change (B, 3, 128, 128)
Protect = Callable[[np.ndarray, np.ndarray], np.ndarray]
# crops (B, 3, 128, 128) -> change (B, 3, 128, 128)
Erase = Callable[[np.ndarray], np.ndarray]
# inner squares (N, 3, 112, 112) float32 in [-1, 1] of one person's photos -> (D,): what a mask is to know of a target
Embed = Callable[[np.ndarray], np.ndarray]
Progress = Callable[[str, int, int], None]

FARS = FALSE_ACCEPT_RATES
Cosines = dict[str, np.ndarray]
UNSEEN = "unseen"  # the folder of the files that are made for unseen targets


@dataclass(frozen=True)
class Method:
    """What is measured: a way to protect, a way to erase, and the embedding it takes targets by.

    `erase` may be None; erasing is then not measured.
    """

    protect: Protect
    erase: Erase | None
    embed: Embed


@dataclass(frozen=True)
class Located:
    """A photo and its main face.

    Attributes:
        name: how the photo is called in the report.
        pixels: (H, W, 3) uint8 RGB.
        transform: from photo to crop.
        crop: (128, 128, 3) uint8 RGB.
    """

    name: str
    pixels: np.ndarray
    transform: Similarity
    crop: np.ndarray

    def fingerprint(self) -> str:
        """A hash of the crop."""
        return hashlib.sha256(self.crop.tobytes()).hexdigest()


@dataclass(frozen=True)
class Source:
    """A photo's owner: the photo to protect and another photo of the same person, where there is one."""

    person: str
    photo: Located
    other: Located | None


@dataclass(frozen=True)
class Target:
    """A person to be seen instead.

    Attributes:
        given: a photo that masks are made by.
        other: one that they know nothing of, where there is one.
        more: further photos that they are made by.
    """

    name: str
    given: Located
    other: Located | None = None
    more: tuple[Located, ...] = ()


@dataclass
class Selection:
    """What a run works on.

    Attributes:
        sources: whose photos are protected.
        unseen: targets that no training saw.
        calibration_crops: (N, 128, 128, 3) uint8, what thresholds are calibrated on.
        calibration_people: (N,) who is on each, a position in `calibration_names`.
        calibration_names: these people.
        skipped: photos in which no face was found, or that cannot be read.
    """

    sources: list[Source]
    unseen: list[Target]
    calibration_crops: np.ndarray
    calibration_people: np.ndarray
    calibration_names: list[str]
    skipped: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """A hash of the calibration crops: all faces that photos to protect are chosen from."""
        return hashlib.sha256(np.ascontiguousarray(self.calibration_crops).data).hexdigest()


class Parts(Protocol):
    """Keeps what is done of a run, so that one that was interrupted goes on; see `emask.bench.resume`."""

    def get(self, label: str) -> tuple[dict[str, Any], Cosines] | None:
        """Figures and cosines of a target, None where they are not done."""
        ...

    def put(self, label: str, figures: dict[str, Any], cosines: Cosines) -> None:
        """Keep them."""
        ...


def locate(
    names: Sequence[str], photos: Sequence[np.ndarray], detector: Detector, tick: Callable[[int], None] | None = None
) -> list[Located | None]:
    """Find and align the main face of each photo; None where there is none."""
    result: list[Located | None] = []
    step = 64
    for start in range(0, len(photos), step):
        chunk = photos[start : start + step]
        for name, pixels, faces in zip(names[start : start + step], chunk, detector.detect(chunk), strict=True):
            face = main_face(faces, pixels.shape)
            if face is None:
                result.append(None)
                continue
            transform = estimate(face.points)
            result.append(Located(name, pixels, transform, align(pixels, transform)))
        if tick:
            tick(min(start + step, len(photos)))
    return result


def select(
    data: Path, faces: int, unseen_targets: int, seed: int, detector: Detector, progress: Progress | None = None,
    below: str | None = None, target_photos: int = 1, target_min_photos: int | None = None,
) -> Selection:  # fmt: skip
    """Choose sources and unseen targets among the people kept out of all training.

    Every person with two photos gives one to protect and one never touched; when more are wanted than there are such
    people, those with further photos give another one, and so on. Photos that cannot be read are left out, and named
    on standard error.

    Args:
        data: folder of photos with `lfw_pairs.txt`, whose last folds name the people kept out.
        faces: sources wanted; fewer are taken when there are fewer.
        unseen_targets: people who serve as targets only.
        seed: decides who is taken.
        below: sources are only the photos below this folder of `data`, and may be their owners' only ones.
        target_photos: photos of each unseen target that masks are made by.
        target_min_photos: photos that an unseen target has at least; by default those given and another one.

    Raises:
        UsageError: when fewer than one source remains, or too few people have so many photos.
    """
    from emask.train.data import find_photos, read_photos, split

    photos = find_photos(data)
    people, test = split(data, photos)
    kept = [(photo, person) for photo, person, held_out in zip(photos, people, test, strict=True) if held_out]
    read = read_photos([photo for photo, _ in kept])
    unreadable = [photo for (photo, _), pixels in zip(kept, read, strict=True) if pixels is None]
    kept = [one for one, pixels in zip(kept, read, strict=True) if pixels is not None]
    names = [photo.relative_to(data).as_posix() for photo, _ in kept]
    tick = (
        (lambda done: progress("finding the faces of people kept out of training", done, len(kept)))
        if progress
        else None
    )
    located = locate(names, [pixels for pixels in read if pixels is not None], detector, tick)
    by_person: dict[str, list[Located]] = {}
    crops, owners = [], []
    for (_, person), found in zip(kept, located, strict=True):
        if found is not None:
            by_person.setdefault(person, []).append(found)
            crops.append(found.crop)
            owners.append(person)
    pairs = sorted(person for person, own in by_person.items() if len(own) >= 2)
    order = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]
    if len(order) <= unseen_targets:
        raise UsageError(
            f"{data}: {len(order)} people kept out of training have two photos; {unseen_targets} targets leave none",
            "the folder must hold lfw_pairs.txt and the photos of its last two folds",
        )
    least = max(target_photos + 1, target_min_photos or 0)
    eligible = [person for person in order if len(by_person[person]) >= least]
    if len(eligible) < unseen_targets:
        raise UsageError(
            f"{data}: {len(eligible)} people kept out of training have {least} photos, fewer than {unseen_targets}",
            "ask for fewer --target-photos or --target-min-photos, or fewer --unseen-targets",
        )
    chosen = set(eligible[:unseen_targets])
    targets = [
        Target(p, by_person[p][0], by_person[p][1], tuple(by_person[p][2 : target_photos + 1]))
        for p in eligible[:unseen_targets]
    ]
    if below is None:
        sources = _rounds([person for person in order if person not in chosen], by_person)
    else:
        start = below.strip("/") + "/"
        inside = sorted(p for p, own in by_person.items() if any(one.name.startswith(start) for one in own))
        inside = [inside[i] for i in np.random.default_rng(seed).permutation(len(inside)) if inside[i] not in chosen]
        sources = []
        for person in inside:
            photo = next(one for one in by_person[person] if one.name.startswith(start))
            sources.append(Source(person, photo, next((one for one in by_person[person] if one is not photo), None)))
        if not sources:
            raise UsageError(f"{data / below}: no photo with a face of somebody kept out of training", "see --sources")
    sources = sources[:faces]
    everyone, index = np.unique(owners, return_inverse=True)
    return Selection(
        sources,
        targets,
        np.stack(crops),
        index,
        everyone.tolist(),
        [name for name, found in zip(names, located, strict=True) if found is None]
        + [photo.relative_to(data).as_posix() for photo in unreadable],
    )


def _rounds(people: Sequence[str], by_person: dict[str, list[Located]]) -> list[Source]:
    """A source of everybody, then another one of those with a further photo, and so on."""
    sources = [Source(person, by_person[person][0], by_person[person][1]) for person in people]
    for place in range(2, max((len(by_person[person]) for person in people), default=0)):
        more = [person for person in people if len(by_person[person]) > place]
        sources += [Source(person, by_person[person][place], by_person[person][1]) for person in more]
    return sources


def paste(photo: Located, change: np.ndarray) -> np.ndarray:
    """Add a change (3, 128, 128), in units of [-1, 1] pixels, to the photo: (H, W, 3) uint8."""
    return paste_change(photo.pixels, change.transpose(1, 2, 0) * 127.5, photo.transform)


def through_disk(pictures: Sequence[np.ndarray], folder: Path, quality: int) -> list[np.ndarray]:
    """Save each picture as JPEG (4:2:0) and decode the files again."""
    folder.mkdir(parents=True, exist_ok=True)
    decoded = []
    for index, picture in enumerate(pictures):
        path = folder / f"{index:05d}.jpg"
        Image.fromarray(picture).save(path, quality=quality)
        decoded.append(load_photo(path).pixels)
    return decoded


def face_region(photo: Located) -> tuple[slice, slice]:
    """The part of the photo that the crop's corners span, as (rows, columns)."""
    last = CROP - 1.0
    corners = photo.transform.inverse().apply(np.array([[0, 0], [last, 0], [0, last], [last, last]]))
    height, width = photo.pixels.shape[:2]
    left, top = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, (width, height))
    return slice(int(top), int(bottom)), slice(int(left), int(right))


def embed_located(recognizer: Recognizer, located: Sequence[Located | None]) -> np.ndarray:
    """(N, D) embeddings; a row of nan where no face was found."""
    found = [i for i, photo in enumerate(located) if photo is not None]
    if not found:
        return np.full((len(located), 1), np.nan)
    embeddings = recognizer.embed(np.stack([photo.crop for photo in located if photo is not None]))
    result = np.full((len(located), embeddings.shape[1]), np.nan)
    result[found] = embeddings
    return result


def _quality(originals: Sequence[Located], pictures: Sequence[np.ndarray], with_ssim: bool = True) -> dict[str, Any]:
    """Of the face regions: PSNR in dB, L1 and MSE of pixels in 0..1, SSIM; means over the photos."""
    decibels, structure, squared, absolute = [], [], [], []
    for photo, picture in zip(originals, pictures, strict=True):
        region = face_region(photo)
        decibels.append(psnr(photo.pixels[region], picture[region]))
        difference = photo.pixels[region].astype(np.float64) - picture[region]
        squared.append(np.square(difference).mean() / 255**2)
        absolute.append(np.abs(difference).mean() / 255)
        if with_ssim:
            structure.append(ssim(photo.pixels[region], picture[region]))
    result: dict[str, Any] = {
        "psnr_mean": round(float(np.mean(decibels)), 2), "psnr_min": round(float(np.min(decibels)), 2),
        "l1_mean": round(float(np.mean(absolute)), 5), "mse_mean": round(float(np.mean(squared)), 6),
    }  # fmt: skip
    if with_ssim and not np.isnan(structure).any():
        result["ssim_mean"] = round(float(np.mean(structure)), 4)
    return result


Rates = dict[str, Any]


def score_protection(
    thresholds: dict[str, float],
    protected: np.ndarray,
    clean: np.ndarray,
    original: np.ndarray,
    other: np.ndarray | None,
    target_given: np.ndarray,
    target_other: np.ndarray | None,
) -> dict[str, Rates]:
    """Impersonation and dodging of one recognizer, the clean rate beside each.

    Args:
        thresholds: by false accept rate.
        protected, clean: (N, D) embeddings of the saved protected and the saved unprotected photos; nan = no face.
        original: (N, D) of the source photos themselves ("same photo").
        other: (N, D) of another photo of each source; None where some have none.
        target_given, target_other: (N, D) or (1, D) of the target's photo given to the generator, and of another one.

    Returns:
        name of the figure -> false accept rate -> rate; names ending in "_clean" are the clean photos'.
    """
    result: dict[str, Rates] = {}

    def enter(name: str, test: Callable[[np.ndarray, np.ndarray, float], np.ndarray], against: np.ndarray) -> None:
        result[name] = {key: rate(test(protected, against, t)).to_json() for key, t in thresholds.items()}
        result[name + "_clean"] = {key: rate(test(clean, against, t)).to_json() for key, t in thresholds.items()}

    enter("impersonation_given", accepted, target_given)
    if target_other is not None:
        enter("impersonation_other", accepted, target_other)
    if other is not None:
        enter("dodging_other", rejected, other)
    enter("dodging_same", rejected, original)
    return result


def score_erasing(
    thresholds: dict[str, float],
    restored: np.ndarray,
    protected: np.ndarray,
    clean: np.ndarray,
    original: np.ndarray,
    other: np.ndarray | None,
    target_given: np.ndarray,
) -> dict[str, Rates]:
    """Re-verification of restored photos and the paper's erasure rate of one recognizer; arguments as above.

    "reverified_other" is the share of restored photos accepted as the owner by another photo of theirs, beside it
    the protected and the clean photos' shares; "erased" the share not accepted as the target.
    """
    result: dict[str, Rates] = {}
    for name, against in (("reverified_other", other), ("reverified_same", original)):
        if against is None:
            continue
        for suffix, embeddings in (("", restored), ("_protected", protected), ("_clean", clean)):
            result[name + suffix] = {k: rate(accepted(embeddings, against, t)).to_json() for k, t in thresholds.items()}
    for suffix, embeddings in (("", restored), ("_protected", protected), ("_clean", clean)):
        result["erased" + suffix] = {
            k: rate(rejected(embeddings, target_given, t)).to_json() for k, t in thresholds.items()
        }
    return result


@dataclass(frozen=True)
class Ground:
    """What is the same for every method and every mask: the judges' thresholds, and what they say of clean photos.

    Attributes:
        thresholds: by judge and false accept rate; accept: the true accept rates there.
        fixed: by judge, (N, D) embeddings of the sources: "clean" as read from their files, "original", and "other",
            the owners' other photos, rows of nan for those who have none.
        calibration: by judge, (M, D) embeddings of the calibration crops.
        clean_files: the sources through JPEG; clean_found: their faces, detected afresh.
    """

    thresholds: dict[str, dict[str, float]]
    accept: dict[str, dict[str, float]]
    fixed: dict[str, dict[str, np.ndarray]]
    calibration: dict[str, np.ndarray]
    clean_files: list[np.ndarray]
    clean_found: list[Located | None]

    def first(self, count: int) -> Ground:
        """The same of the first `count` sources alone, of all where there are fewer."""
        fixed = {judge: {kind: rows[:count] for kind, rows in known.items()} for judge, known in self.fixed.items()}
        return replace(
            self, fixed=fixed, clean_files=self.clean_files[:count], clean_found=self.clean_found[:count]
        )


def survey(
    selection: Selection,
    recognizers: Sequence[Recognizer],
    folder: Path,
    detector: Detector,
    quality: int = 90,
    fars: Sequence[float] = FARS,
    progress: Progress | None = None,
) -> Ground:
    """Calibrate the judges and have them look at the clean photos; arguments and errors as for `run`."""
    sources = selection.sources
    originals = [s.photo for s in sources]
    thresholds: dict[str, dict[str, float]] = {}
    accept: dict[str, dict[str, float]] = {}
    fixed: dict[str, dict[str, np.ndarray]] = {}
    calibration: dict[str, np.ndarray] = {}
    clean_files = through_disk([p.pixels for p in originals], folder / "clean", quality)
    clean_found = locate([p.name for p in originals], clean_files, detector)
    for number, recognizer in enumerate(recognizers):
        if progress:
            progress("calibrating recognizers", number, len(recognizers))
        embeddings = recognizer.embed(selection.calibration_crops)
        try:
            thresholds[recognizer.name] = calibrate(embeddings, selection.calibration_people, fars)
        except ValueError as error:
            raise UsageError(str(error), "the folder must hold more people that are kept out of training") from error
        accept[recognizer.name] = {
            key: true_accept_rate(embeddings, selection.calibration_people, value)
            for key, value in thresholds[recognizer.name].items()
        }
        fixed[recognizer.name] = {
            "clean": embed_located(recognizer, clean_found),
            "original": embed_located(recognizer, originals),
            "other": embed_located(recognizer, [s.other for s in sources]),
        }
        calibration[recognizer.name] = embeddings
    return Ground(thresholds, accept, fixed, calibration, clean_files, clean_found)


def run(
    method: Method,
    selection: Selection,
    builtin: Sequence[Target],
    recognizers: Sequence[Recognizer],
    folder: Path,
    detector: Detector,
    quality: int = 90,
    default_target: str | None = None,
    fars: Sequence[float] = FARS,
    handlings: Sequence[Handling] = (),
    progress: Progress | None = None,
    similarities: dict[str, np.ndarray] | None = None,
    parts: Parts | None = None,
    ground: Ground | None = None,
) -> dict[str, Any]:
    """Measure one method.

    Args:
        method: what is measured.
        selection: sources, unseen targets, calibration crops.
        builtin: targets that every source is protected with.
        recognizers: the judges; none of them may have been used in training.
        folder: where the JPEG files go; they are left there.
        detector: finds the faces in the saved files.
        quality: JPEG quality.
        default_target: the built-in target that erasing is measured for; the first one by default.
        fars: false accept rates.
        handlings: what happens to the files of unseen targets (of the default one where there are none) before they
            are read: each is measured by itself.
        progress: called with (what, done, all).
        similarities: gets the cosines behind the rates, (N,) float32 with nan for lost faces, as
            "TARGET/RECOGNIZER/PHOTO-AGAINST": clean, protected and restored photos against the target's photo given and
            another one (given, target) and against the owner's same and another one (same, owner).
        parts: where the figures of each target are kept as they are done, and taken from if they are there.
        ground: by `survey` of the same selection, judges, quality and rates, or of more sources and then
            `Ground.first`; None makes it.

    Returns:
        A JSON document: "thresholds", "targets" (a built-in target each), "unseen", "erasing",
        "handling", "identification", "summary".

    Raises:
        UsageError: when there are too few pairs of different people to calibrate on.
    """
    sources = selection.sources
    originals = [s.photo for s in sources]
    units = to_network(np.stack([p.crop for p in originals]))
    target_embedding = {
        t.name: method.embed(inner_square(to_network(np.stack([p.crop for p in (t.given, *t.more)]))))
        for t in [*builtin, *selection.unseen]
    }
    default_target = default_target or (builtin[0].name if builtin else None)
    handled = UNSEEN if selection.unseen else default_target
    ground = ground or survey(selection, recognizers, folder, detector, quality, fars, progress)
    thresholds, accept, calibration = ground.thresholds, ground.accept, ground.calibration
    pairs = all(s.other is not None for s in sources)  # or else nothing is said about other photos of the owners
    fixed: dict[str, dict[str, Any]] = {
        judge: {**known, "other": known["other"] if pairs else None} for judge, known in ground.fixed.items()
    }
    clean_files, clean_found = ground.clean_files, ground.clean_found

    def against(recognizer: Recognizer, photos: Sequence[Located]) -> np.ndarray:
        """(N, D) of the target of each source; one embedding for each distinct photo."""
        distinct = list({id(p): p for p in photos}.values())
        embeddings = embed_located(recognizer, distinct)
        row = {id(p): i for i, p in enumerate(distinct)}
        return np.asarray(embeddings[[row[id(p)] for p in photos]])

    def search(assigned: list[Target], protected: dict[str, np.ndarray], restored: dict[str, np.ndarray] | None) -> Any:
        """Identification by each recognizer: the gallery has others' photos as distractors."""
        in_probes = {s.person for s in sources} | {t.name for t in assigned}
        distinct = list({t.name: t for t in assigned}.values())
        distractor = np.array([selection.calibration_names[i] not in in_probes for i in selection.calibration_people])
        # somebody may own several of the protected photos
        first = list({s.person: row for row, s in reversed(list(enumerate(sources)))}.items())[::-1]
        people = [person for person, _ in first] + [t.name for t in distinct]
        people += [selection.calibration_names[i] for i in selection.calibration_people[distractor]]
        ranks = [k for k in RANKS if k < len(set(people))]
        found = {}
        for r in recognizers:
            targets = embed_located(r, [t.other for t in distinct])
            owners = fixed[r.name]["other"][[row for _, row in first]]
            gallery = np.concatenate([owners, targets, calibration[r.name][distractor]])
            found[r.name] = identify(
                fixed[r.name]["clean"], protected[r.name], [s.person for s in sources], [t.name for t in assigned],
                gallery, people, None if restored is None else restored[r.name], ranks,
            )  # fmt: skip
        return found

    def cosines(label: str, photo: str, judge: Recognizer, embeddings: np.ndarray, assigned: list[Target]) -> Cosines:
        """Those of one kind of photo."""
        known = fixed[judge.name]
        wanted = {"given": against(judge, [t.given for t in assigned]), "same": known["original"]}
        others = [t.other for t in assigned if t.other is not None]
        if len(others) == len(assigned):
            wanted["target"] = against(judge, others)
        if pairs:
            wanted["owner"] = known["other"]
        return {
            f"{label}/{judge.name}/{photo}-{name}": similarity(embeddings, other).astype(np.float32)
            for name, other in wanted.items()
        }

    def take_off(files: Sequence[np.ndarray], found: Sequence[Located | None], place: Path) -> list[np.ndarray]:
        """The restored photos as decoded from their own files; those without a face as they are."""
        restored = list(files)
        ready = [(i, f) for i, f in enumerate(found) if f is not None]
        if ready and method.erase is not None:
            back = method.erase(to_network(np.stack([f.crop for _, f in ready])))
            for (index, photo), delta in zip(ready, back, strict=True):
                restored[index] = paste(photo, delta)
        return through_disk(restored, place, quality)

    def handle(handling: Handling, assigned: list[Target], files: Sequence[np.ndarray], place: Path) -> dict[str, Any]:
        """The same figures for protected and clean files that something has happened to."""
        protected, clean = ([handling(f, i) for i, f in enumerate(group)] for group in (files, clean_files))
        names = [p.name for p in originals]
        found, found_clean = (locate(names, group, detector) for group in (protected, clean))
        result: dict[str, Any] = {
            "what": handling.what, "not_found": sum(f is None for f in found),
            "not_found_clean": sum(f is None for f in found_clean),
        }  # fmt: skip
        restored = take_off(protected, found, place) if method.erase is not None else None
        found_restored = locate(names, restored, detector) if restored is not None else []
        if all(a.shape == p.pixels.shape for a, p in zip(protected, originals, strict=True)):
            result["clean"] = _quality(originals, clean, with_ssim=False)
            if restored is not None:
                result["restored"] = _quality(originals, restored, with_ssim=False)
        result["recognizers"] = {}
        for r in recognizers:
            others = [t.other for t in assigned if t.other is not None]
            known = {**fixed[r.name], "clean": embed_located(r, found_clean)}
            embedded, given = embed_located(r, found), against(r, [t.given for t in assigned])
            figures = score_protection(
                thresholds[r.name], embedded, **known, target_given=given,
                target_other=against(r, others) if len(others) == len(assigned) else None,
            )  # fmt: skip
            if restored is not None:
                figures |= score_erasing(
                    thresholds[r.name], embed_located(r, found_restored), embedded, **known, target_given=given
                )
            result["recognizers"][r.name] = figures
        return result

    def measure(label: str, assigned: list[Target], erase: bool) -> tuple[dict[str, Any], Cosines]:
        """Figures of a target, or of the unseen ones: "protection", and where there are such "erasing", "handling",
        "identification"; and their cosines."""
        result: dict[str, Any] = {}
        noted: Cosines = {}
        change = method.protect(units, np.stack([target_embedding[t.name] for t in assigned]))
        pasted = [paste(p, c) for p, c in zip(originals, change, strict=True)]
        files = through_disk(pasted, folder / label / "protected", quality)
        found = locate([p.name for p in originals], files, detector)
        with_other = all(t.other is not None for t in assigned)
        embedded = {r.name: embed_located(r, found) for r in recognizers}
        given = {r.name: against(r, [t.given for t in assigned]) for r in recognizers}
        protection: dict[str, Any] = {
            "not_found": sum(f is None for f in found),
            "before_jpeg": _quality(originals, pasted),
            "after_jpeg": _quality(originals, files),
            "recognizers": {},
        }
        for r in recognizers:
            target_other = against(r, [t.other for t in assigned if t.other is not None]) if with_other else None
            protection["recognizers"][r.name] = score_protection(
                thresholds[r.name],
                embedded[r.name],
                **fixed[r.name],
                target_given=given[r.name],
                target_other=target_other,
            )
            noted |= cosines(label, "protected", r, embedded[r.name], assigned)
            noted |= cosines(label, "clean", r, fixed[r.name]["clean"], assigned)
        result["protection"] = protection
        if label == handled:
            result["handling"] = {}
            for number, handling in enumerate(handlings):
                if progress:
                    progress("handling the files", number, len(handlings))
                result["handling"][handling.name] = handle(handling, assigned, files, folder / label / handling.name)
        again = None
        if erase and method.erase is not None:
            restored_files = take_off(files, found, folder / label / "restored")
            restored_found = locate([p.name for p in originals], restored_files, detector)
            again = {r.name: embed_located(r, restored_found) for r in recognizers}
            result["erasing"] = {
                "not_found": sum(f is None for f in restored_found),
                "protected": protection["after_jpeg"],
                "restored": _quality(originals, restored_files),
                "recognizers": {
                    r.name: score_erasing(
                        thresholds[r.name], again[r.name], embedded[r.name], **fixed[r.name],
                        target_given=given[r.name],
                    )
                    for r in recognizers
                },
            }  # fmt: skip
            for r in recognizers:
                noted |= cosines(label, "restored", r, again[r.name], assigned)
        if label == UNSEEN and with_other and pairs:
            result["identification"] = search(assigned, embedded, again)
        return result, noted

    def done(label: str, assigned: list[Target], erase: bool) -> dict[str, Any]:
        """The same, from an earlier run where it is kept."""
        kept = None if parts is None else parts.get(label)
        if kept is None:
            kept = measure(label, assigned, erase)
            if parts is not None:
                parts.put(label, *kept)
        result, noted = kept
        if similarities is not None:
            similarities.update(noted)
        return result

    erasing: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    handling: dict[str, Any] = {}
    identification: dict[str, Any] = {}
    for number, target in enumerate(builtin):
        if progress:
            progress("protecting with built-in targets", number, len(builtin))
        is_default = target.name == default_target
        result = done(target.name, [target] * len(sources), is_default)
        targets[target.name] = result["protection"]
        handling |= result.get("handling", {})
        if "erasing" in result:
            erasing["default target"] = result["erasing"]
    unseen: dict[str, Any] | None = None
    if selection.unseen:
        if progress:
            progress("protecting with unseen targets", 0, 1)
        assigned = [selection.unseen[i % len(selection.unseen)] for i in range(len(sources))]
        result = done(UNSEEN, assigned, True)
        unseen = result["protection"]
        handling |= result.get("handling", {})
        identification = result.get("identification", {})
        if "erasing" in result:
            erasing["unseen targets"] = result["erasing"]
    impostors = _impostor_pairs(selection.calibration_people)
    return {
        "faces": len(sources),
        "photos": [
            {"person": s.person, "source": s.photo.name, "other": s.other.name if s.other else None} for s in sources
        ],
        "unseen_targets": [
            {
                "name": t.name, "given": t.given.name, "other": t.other.name if t.other else None,
                "more": [photo.name for photo in t.more],
            }  # fmt: skip
            for t in selection.unseen
        ],
        "calibration": {
            "photos": len(selection.calibration_people),
            "people": int(len(np.unique(selection.calibration_people))),
            "impostor_pairs": impostors,
            "photos_without_face": len(selection.skipped),
        },
        "thresholds": {n: {k: round(v, 4) for k, v in t.items()} for n, t in thresholds.items()},
        "true_accept": {n: {k: round(v, 4) for k, v in t.items()} for n, t in accept.items()},
        "clean": {
            "not_found": sum(f is None for f in clean_found),
            "after_jpeg": _quality(originals, clean_files),
        },
        "default_target": default_target,
        "targets": targets,
        "unseen": unseen,
        "erasing": erasing,
        "handling": handling,
        "identification": identification,
        "summary": summarize(targets, [r.name for r in recognizers], [rate_key(f) for f in fars]),
    }


def _impostor_pairs(people: np.ndarray) -> int:
    n = len(people)
    own = np.unique(people, return_counts=True)[1].astype(np.int64)
    return int(n * (n - 1) // 2 - (own * (own - 1) // 2).sum())


def summarize(targets: dict[str, Any], recognizers: Sequence[str], fars: Sequence[str]) -> dict[str, Any]:
    """For each rate and recognizer: mean, least and share of built-in targets with at least 90% impersonation."""
    result: dict[str, Any] = {}
    for far in fars:
        row: dict[str, Any] = {}
        for name in recognizers:
            values = [t["recognizers"][name]["impersonation_given"][far]["value"] for t in targets.values()]
            if values:
                row[name] = {
                    "mean": round(float(np.mean(values)), 4), "min": min(values), "max": max(values),
                    "targets_at_90": sum(v >= 0.9 for v in values), "targets": len(values),
                }  # fmt: skip
        everyone = [v["mean"] for v in row.values()]
        if everyone:
            row["all recognizers"] = {"mean": round(float(np.mean(everyone)), 4)}
        result[far] = row
    return result
