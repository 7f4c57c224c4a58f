"""Synthetic people: morphs of at least eight faces, for built-in targets and for example photos.

A morph averages the faces of a group of people who look roughly alike. Each photo is first brought to one 256-pixel
portrait by the 5-point similarity transform; then every face is registered to the group's mean by a smooth optical
flow, so that eyes, mouth and jaw fall on each other and the average stays sharp. Photo A of a synthetic person is made
from the first photos of the group, photo B from their second photos.

    python -m emask.train.synthetic --data DIR --recognizers DIR --out DIR --people 8 --seed 0
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from emask.errors import TrainingError, as_program
from emask.face.align import CROP, TEMPLATE_112, align, estimate
from emask.train.data import find_photos, read_photos, split

if TYPE_CHECKING:
    from emask.recognize import Recognizer

# Side of a portrait in pixels.
PORTRAIT = 256
# The 5-point template in the portrait: the 112-pixel one enlarged, the face a little above the middle.
_SCALE = 1.3
TEMPLATE_PORTRAIT = (TEMPLATE_112 - (56.0, 72.0)) * _SCALE + (128.0, 134.0)
# Fewest people in a morph: fewer would leave one person recognizable.
MIN_GROUP = 8
# Cosine from which on a recognizer is taken to see a contributor in a morph.
LIMIT = 0.27
# Side, in pixels, at which the optical flow is computed.
FLOW_SIZE = 128
# Attributes that must agree for an average to look natural, with their weights in the distance of two people.
ATTRIBUTES = {
    "Male": 4.0, "Young": 2.0, "Bald": 1.5, "Gray_Hair": 1.5, "Black_Hair": 1.2, "Blond_Hair": 1.2, "Mustache": 1.5,
    "Goatee": 1.5, "No_Beard": 2.0, "Eyeglasses": 3.0, "Wearing_Hat": 3.0, "Mouth_Slightly_Open": 1.0, "Smiling": 1.0,
    "Narrow_Eyes": 0.5, "Pale_Skin": 1.0, "Chubby": 1.0, "Bangs": 1.0, "Receding_Hairline": 0.7,
}  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One person who may join a morph: two portraits.

    Attributes:
        person: the name in the data folder.
        portraits: two (256, 256, 3) uint8 RGB portraits.
        crops: two (128, 128, 3) uint8 RGB aligned crops, for measuring.
        attributes: (A,) float64 in the order of ATTRIBUTES, mean of the two photos; 0.5 where unknown.
        tone: (3,) float64, mean colour of the middle of the face, 0..1.
    """

    person: str
    portraits: tuple[np.ndarray, np.ndarray]
    crops: tuple[np.ndarray, np.ndarray]
    attributes: np.ndarray
    tone: np.ndarray

    @property
    def male(self) -> float:
        """Probability that the person is a man."""
        return float(self.attributes[list(ATTRIBUTES).index("Male")])


def yaw(points: np.ndarray) -> float:
    """How far a face is turned: offset of the nose from the middle of eyes and mouth, in eye distances."""
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    across = points[1] - points[0]
    distance = float(np.hypot(*across)) + 1e-9
    return float((points[2] - (eyes + mouth) / 2) @ across) / distance**2


def read_attributes(data: Path) -> dict[str, np.ndarray]:
    """Attribute probabilities by photo file name from `lfw_attributes.csv`; empty when there is no such file."""
    path = data / "lfw_attributes.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {r["name"]: np.array([float(r[a]) for a in ATTRIBUTES]) for r in csv.DictReader(file)}


def find_members(
    data: Path,
    test_people: bool,
    limit: int,
    seed: int,
    max_yaw: float = 0.09,
    progress: Callable[[int, int], None] | None = None,
) -> list[Member]:
    """Look up to `limit` people with two usable (frontal, bare-headed, without glasses) photos each.

    Args:
        data: folder of photos, as for `emask.train.data.load_crops`.
        test_people: take the people kept out of training instead of the others.
        limit: most people to look at.
        seed: order in which people are looked at.
        max_yaw: how far a usable face may be turned, in the units of `yaw`.
        progress: called with (people done, people).

    Raises:
        TrainingError: when fewer than MIN_GROUP people are usable.
    """
    from emask.face.detect import Detector

    photos = find_photos(data)
    people, test = split(data, photos)
    table = read_attributes(data)
    by_person: dict[str, list[Path]] = {}
    for photo, person, held_out in zip(photos, people, test, strict=True):
        if held_out != test_people:
            continue
        row = table.get(photo.name)
        if row is not None:
            values = dict(zip(ATTRIBUTES, row, strict=True))
            if values["Eyeglasses"] > 0.3 or values["Wearing_Hat"] > 0.4:
                continue
        by_person.setdefault(person, []).append(photo)
    names = sorted(name for name, own in by_person.items() if len(own) >= 2)
    order = np.random.default_rng(seed).permutation(len(names))[:limit]
    detector = Detector(device="cpu")
    members: list[Member] = []
    for done, index in enumerate(order, 1):
        own = by_person[names[index]][:4]
        readable = [(path, pixels) for path, pixels in zip(own, read_photos(own), strict=True) if pixels is not None]
        found = detector.detect([pixels for _, pixels in readable])
        usable = []
        for (path, pixels), faces in zip(readable, found, strict=True):
            if faces:
                points = faces[0].points.astype(np.float64)
                residual = float(np.abs(estimate(points, TEMPLATE_PORTRAIT).apply(points) - TEMPLATE_PORTRAIT).max())
                if abs(yaw(points)) < max_yaw and residual < 9.0 and faces[0].probability > 0.98:
                    usable.append((abs(yaw(points)), path, pixels, points))
        if progress:
            progress(done, len(order))
        if len(usable) < 2:
            continue
        best = sorted(usable, key=lambda u: u[0])[:2]
        portraits = tuple(align(u[2], estimate(u[3], TEMPLATE_PORTRAIT), PORTRAIT) for u in best)
        crops = tuple(align(u[2], estimate(u[3]), CROP) for u in best)
        rows = [table[u[1].name] for u in best if u[1].name in table]
        attributes = np.mean(rows, 0) if rows else np.full(len(ATTRIBUTES), 0.5)
        tone = np.mean([p[110:190, 90:166].reshape(-1, 3).mean(0) for p in portraits], 0) / 255.0
        members.append(Member(names[index], (portraits[0], portraits[1]), (crops[0], crops[1]), attributes, tone))
    if len(members) < MIN_GROUP:
        raise TrainingError(
            f"{data}: only {len(members)} people with two frontal photos", f"a morph needs at least {MIN_GROUP}"
        )
    return members


def choose_groups(
    members: Sequence[Member], people: int, size: int, seed: int, women: int | None = None, extra: bool = False
) -> list[list[Member]]:
    """Disjoint groups of people who look roughly alike: a seed person and those nearest by attributes and skin tone.

    Args:
        members: candidates.
        people: groups wanted.
        size: people in a group, at least MIN_GROUP.
        seed: decides the seed persons.
        women: how many groups to take from women; half by default. They come first.
        extra: one more group of women and one of men at the end, where enough people are left.

    Raises:
        TrainingError: when there are too few candidates.
        ValueError: when size is below MIN_GROUP.
    """
    if size < MIN_GROUP:
        raise ValueError(f"a morph needs at least {MIN_GROUP} people, not {size}")
    women = people // 2 if women is None else women
    rng = np.random.default_rng(seed)
    weights = np.array(list(ATTRIBUTES.values()))
    known = any(abs(m.male - 0.5) > 0.3 for m in members)
    groups: list[list[Member]] = []
    free = list(range(len(members)))
    of_women = [True] * women + [False] * (people - women) + [True, False] * extra
    for number, woman in enumerate(of_women):
        pool = [i for i in free if not known or (members[i].male < 0.2 if woman else members[i].male > 0.8)]
        if len(pool) < size and number >= people:
            groups.append([])
            continue
        if len(pool) < size:
            raise TrainingError(
                f"{len(groups)} synthetic people made of {size} each leave too few candidates for {people}",
                "look at more people (--candidates) or ask for fewer",
            )
        features = np.stack([np.concatenate([members[i].attributes * weights, members[i].tone * 8.0]) for i in pool])
        distance = np.linalg.norm(features[:, None] - features[None], axis=2)
        # a few random seed persons are tried and the most compact group is taken
        tries = rng.choice(len(pool), min(6, len(pool)), replace=False)
        spread = [np.sort(distance[t])[:size].sum() for t in tries]
        nearest = np.argsort(distance[tries[int(np.argmin(spread))]], kind="stable")[:size]
        chosen = [pool[j] for j in nearest]
        groups.append([members[i] for i in chosen])
        free = [i for i in free if i not in set(chosen)]
    return groups


def _warp(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    from scipy.ndimage import map_coordinates

    return np.stack(
        [map_coordinates(image[..., c], [rows, columns], order=3, mode="nearest") for c in range(image.shape[2])], -1
    )


def _structure(image: np.ndarray) -> np.ndarray:
    """Grey values without the slow part of the lighting, unit spread: what the flow compares."""
    from scipy.ndimage import gaussian_filter

    grey = image.mean(-1)
    grey = grey - gaussian_filter(grey, image.shape[0] / 10)
    return grey / (grey.std() + 1e-6)


def morph(portraits: Sequence[np.ndarray], weights: np.ndarray, rounds: int = 3) -> np.ndarray:
    """Average portraits after registering each to the group's mean shape.

    Args:
        portraits: at least MIN_GROUP (S, S, 3) uint8 RGB.
        weights: (len(portraits),) positive; normalised here.
        rounds: registrations to the mean, each sharper than the one before.

    Returns:
        (S, S, 3) uint8 RGB.

    Raises:
        ValueError: when there are fewer than MIN_GROUP portraits.
    """
    from scipy.ndimage import gaussian_filter, zoom
    from skimage.registration import optical_flow_tvl1

    if len(portraits) < MIN_GROUP:
        raise ValueError(f"a morph needs at least {MIN_GROUP} portraits, not {len(portraits)}")
    weights = np.asarray(weights, np.float64) / np.sum(weights)
    images = np.stack([np.asarray(p, np.float64) / 255.0 for p in portraits])
    # every face also enters mirrored: light from one side and a slight turn of the head average out
    images = np.concatenate([images, images[:, :, ::-1]])
    weights = np.concatenate([weights, weights]) / 2
    side = images.shape[1]
    # one brightness and contrast for all, taken from the middle of the faces
    middle = images[:, side // 3 : side * 3 // 4, side // 3 : side * 2 // 3]
    mean, spread = middle.mean((1, 2), keepdims=True), middle.std((1, 2), keepdims=True)
    images = (images - mean) / spread * np.tensordot(weights, spread, 1) + np.tensordot(weights, mean, 1)
    factor = side / FLOW_SIZE
    small = np.stack([zoom(gaussian_filter(i, (factor / 2, factor / 2, 0)), (1 / factor, 1 / factor, 1), order=1)
                      for i in images])  # fmt: skip
    rows, columns = np.mgrid[0:FLOW_SIZE, 0:FLOW_SIZE].astype(np.float64)
    flows = np.zeros((len(images), 2, FLOW_SIZE, FLOW_SIZE))
    warped = small
    for step in range(rounds):
        reference = _structure(np.tensordot(weights, warped, 1))
        for index, image in enumerate(small):
            flow = np.stack(
                optical_flow_tvl1(reference, _structure(image), attachment=6, tightness=0.3, num_warp=3, num_iter=8)
            )
            flows[index] = [gaussian_filter(np.clip(f, -8, 8), 6.5 - step) for f in flow]
        flows -= np.tensordot(weights, flows, 1)  # the mean shape stays where it is
        warped = np.stack([_warp(i, rows + f[0], columns + f[1]) for i, f in zip(small, flows, strict=True)])
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float64)
    registered = np.empty_like(images)
    for index, (image, flow) in enumerate(zip(images, flows, strict=True)):
        shift = [zoom(f, factor, order=1) * factor for f in flow]
        registered[index] = _warp(image, rows + shift[0], columns + shift[1])
    return _finish(_robust_mean(registered, weights))


def _robust_mean(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of (N, S, S, 3) in which a pixel counts less the farther it lies from the median of the group.

    Microphones, stray hair and failed registrations touch one or two faces of a group only.
    """
    distance = np.abs(images - np.median(images, 0)).mean(-1, keepdims=True)
    scale = np.median(distance, 0) + 0.01
    pixel_weights = weights[:, None, None, None] / (1.0 + (distance / scale) ** 2)
    return np.asarray((images * pixel_weights).sum(0) / pixel_weights.sum(0))


def _finish(image: np.ndarray) -> np.ndarray:
    """Sharpen mildly and let the smeared surroundings fade into a soft backdrop."""
    from scipy.ndimage import gaussian_filter

    sharp = image + 0.9 * (image - gaussian_filter(image, (1.6, 1.6, 0)))
    side = image.shape[0]
    y, x = np.mgrid[0:side, 0:side] / side
    radius = np.hypot((x - 0.5) / 0.40, (y - 0.5) / 0.54)
    inside = np.clip((1.06 - radius) / 0.30, 0, 1)[..., None]
    inside = inside * inside * (3 - 2 * inside)
    backdrop = gaussian_filter(image, (side / 9, side / 9, 0))
    mixed = inside * sharp + (1 - inside) * backdrop
    return np.rint(np.clip(mixed, 0, 1) * 255).astype(np.uint8)


def make_person(
    group: Sequence[Member],
    seed: int,
    recognizers: Sequence[Recognizer] = (),
    limit: float = LIMIT,
    spares: Sequence[Member] = (),
) -> tuple[tuple[np.ndarray, np.ndarray], list[Member]]:
    """Photos A and B of one synthetic person.

    Args:
        group: contributors.
        seed: varies the weights slightly.
        recognizers: when given, a contributor whom one of them sees too clearly in A or B makes way for a spare one,
            or is left out when there is none and more than MIN_GROUP remain, and the morph is made again.
        limit: the cosine from which on a contributor is seen too clearly.
        spares: who takes the place of a contributor, first come first.

    Returns:
        ((A, B), each (256, 256, 3) uint8 RGB; the people who contributed).
    """
    members, waiting = list(group), list(spares)
    while True:
        weights = 1.0 + 0.15 * np.random.default_rng(seed).uniform(-1, 1, len(members))
        photos = (morph([m.portraits[0] for m in members], weights), morph([m.portraits[1] for m in members], weights))
        if not recognizers or (len(members) == MIN_GROUP and not waiting):
            return photos, members
        closest = np.max([likeness(photos, members, r)[1] for r in recognizers], axis=0)
        if closest.max() <= limit:
            return photos, members
        # the average shows fewer people more clearly: replacing comes before leaving out
        for index in np.argsort(-closest):
            if closest[index] <= limit:
                break
            if waiting:
                members[index] = waiting.pop(0)
            elif len(members) > MIN_GROUP:
                del members[index]
                break  # indices have moved; the next round looks again


def likeness(
    photos: tuple[np.ndarray, np.ndarray], group: Sequence[Member], recognizer: Recognizer
) -> tuple[float, np.ndarray]:
    """Cosine of A with B, and for each contributor (G,) the largest cosine of A or B with either of their photos.

    Raises:
        TrainingError: when no face is found in A or B.
    """
    from emask.face.detect import Detector

    crops = []
    for photo, faces in zip(photos, Detector(device="cpu").detect(list(photos)), strict=True):
        if not faces:
            raise TrainingError("no face found in a synthetic person's photo")
        crops.append(align(photo, estimate(faces[0].points)))
    own = recognizer.embed(np.stack(crops))
    others = recognizer.embed(np.concatenate([np.stack(m.crops) for m in group]))
    return float(own[0] @ own[1]), (own @ others.T).reshape(2, len(group), 2).max((0, 2))


@as_program
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m emask.train.synthetic`."""
    parser = argparse.ArgumentParser(prog="python -m emask.train.synthetic", description="Make synthetic people.")
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, people in sub-folders")
    parser.add_argument("--out", type=Path, required=True, help="folder for NAME_1.jpg and NAME_2.jpg")
    parser.add_argument("--people", type=int, default=8, help="synthetic people to make; the first half are women")
    parser.add_argument("--group", type=int, default=16, help=f"contributors to each, at least {MIN_GROUP}")
    parser.add_argument("--spares", type=int, default=8, help="people who wait to replace contributors seen too well")
    parser.add_argument("--candidates", type=int, default=1500, help="people looked at for contributors")
    parser.add_argument("--max-yaw", type=float, default=0.09, help="how far a face may be turned (nose offset)")
    parser.add_argument("--names", nargs="*", default=None, help="file names to use instead of person1, person2, ...")
    parser.add_argument("--test-people", action="store_true", help="use the people kept out of training")
    parser.add_argument("--recognizers", type=Path, default=None, help="folder with recognizers.json, to screen with")
    parser.add_argument("--fold", default="A", help="which recognizers screen; judges of the bench must not")
    parser.add_argument("--limit", type=float, default=LIMIT, help="cosine from which on a contributor is left out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    names = options.names or [f"person{i + 1}" for i in range(options.people)]
    if len(names) != options.people or options.group < MIN_GROUP:
        parser.error(f"give one name a person, and a --group of at least {MIN_GROUP}")
    members = find_members(options.data, options.test_people, options.candidates, options.seed, options.max_yaw)
    size = options.group + options.spares
    groups = choose_groups(members, options.people, size, options.seed, extra=bool(options.recognizers))
    recognizers = []
    if options.recognizers is not None:
        from emask.recognize import load_folder

        recognizers = [r for r in load_folder(options.recognizers) if r.card.fold == options.fold]
    options.out.mkdir(parents=True, exist_ok=True)
    women = options.people // 2
    for number, name in enumerate(names):
        # when a contributor stays too clear to the end, the sex's further group takes the place
        for attempt in (number, options.people + int(number >= women)):
            group = groups[attempt]
            groups[attempt] = []
            if not group:
                raise TrainingError(f"no group left for {name}", "raise --limit or --candidates, or change --seed")
            first, spares = group[: options.group], group[options.group :]
            pair, contributors = make_person(first, options.seed + attempt, recognizers, options.limit, spares)
            seen = [likeness(pair, contributors, recognizer) for recognizer in recognizers]
            if all(closest.max() <= options.limit for _, closest in seen):
                break
        for suffix, photo in zip((1, 2), pair, strict=True):
            Image.fromarray(photo).save(options.out / f"{name}_{suffix}.jpg", quality=92)
        parts = [
            f"{recognizer.name} A-B {same:.2f}, closest contributor {closest.max():.2f}"
            f" (FAR 0.01 {recognizer.thresholds.get('0.01', float('nan')):.2f})"
            for recognizer, (same, closest) in zip(recognizers, seen, strict=True)
        ]
        print(f"{name}: {len(contributors)} contributors" + "".join(f"; {part}" for part in parts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
