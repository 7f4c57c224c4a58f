"""A picture of four rows: original, protected, change x10, restored; a column a photo.

    python -m emask.bench.pictures docs/examples/*.jpg -o docs/pictures/four-rows.png [--strength medium]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from emask import weights
from emask.drawing import encode_png
from emask.engine import Engine, inner_square, masking_engine, to_grey_levels, to_network
from emask.errors import NoFaceError
from emask.face.align import align, estimate, paste_change
from emask.face.detect import Detector
from emask.handling import Operation
from emask.images import load_photo, write_bytes
from emask.pipeline.target import target_crop

TILE = 256  # pixels, side of a face in the picture
ROWS = ("original", "protected", "change x10", "restored")


def four_tiles(
    photo: np.ndarray, engine: Engine, target: np.ndarray, w: float, eps: float, detector: Detector, quality: int
) -> list[np.ndarray]:
    """The largest face of a photo, four times, each (TILE, TILE, 3) uint8: original, protected, change, restored.

    The protected photo goes through a JPEG file and is searched again before it is restored.

    Args:
        photo: (H, W, 3) uint8 RGB.
        target: (256,) embedding.

    Raises:
        NoFaceError: before or after protecting.
    """

    def transform_of(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        faces = detector.detect([pixels])[0]
        if not faces:
            raise NoFaceError("no face found")
        return faces[0].points, faces[0].box

    points, box = transform_of(photo)
    transform = estimate(points)
    crop = to_network(align(photo, transform)[None])
    change = to_grey_levels(engine.protect(crop, target, w=w, eps=eps))[0]
    protected = Operation("jpeg", quality)(paste_change(photo, change, transform))
    again = estimate(transform_of(protected)[0])
    back = to_grey_levels(engine.erase(to_network(align(protected, again)[None])))[0]
    restored = paste_change(protected, back, again)
    difference = np.clip(128 + 10 * (protected.astype(np.float32) - photo), 0, 255).astype(np.uint8)
    middle, half = (box[:2] + box[2:]) / 2, 0.62 * float(max(box[2] - box[0], box[3] - box[1]))
    left, top, right, bottom = (float(v) for v in (*(middle - half), *(middle + half)))
    return [
        np.asarray(Image.fromarray(p).crop((left, top, right, bottom)).resize((TILE, TILE), Image.Resampling.LANCZOS))
        for p in (photo, protected, difference, restored)
    ]


def compose(columns: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Columns of four tiles to one picture with the rows' names on the left."""
    label = 90
    picture = Image.new("RGB", (label + TILE * len(columns), TILE * len(ROWS)), "white")
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(ROWS):
        draw.text((8, TILE * row + TILE // 2), name, fill="black")
        for column, tiles in enumerate(columns):
            picture.paste(Image.fromarray(tiles[row]), (label + TILE * column, TILE * row))
    return picture


def main() -> None:
    """Read photos, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--strength", default="medium")
    parser.add_argument("--refine", type=int, help="gradient steps; what the strength says if left out")
    parser.add_argument("--target", help="a built-in target; the default one if left out")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality of the protected photos")
    arguments = parser.parse_args()
    steps = weights.refinement(arguments.strength) if arguments.refine is None else arguments.refine
    engine = masking_engine(steps)
    detector = Detector()
    portrait = target_crop(load_photo(weights.find_target(arguments.target)), detector)
    target = engine.embed_target(inner_square(to_network(portrait)))[0]
    w, eps = weights.strength(arguments.strength)
    columns = [
        four_tiles(np.asarray(Image.open(p).convert("RGB")), engine, target, w, eps, detector, arguments.quality)
        for p in arguments.photos
    ]
    write_bytes(arguments.output, encode_png(compose(columns)), force=True)


if __name__ == "__main__":
    main()
