"""Photos as small aligned crops, to train on another machine: `python -m emask.train.pack --data DIR --out DIR`.

What comes out is a data folder of its own: the crops under the photos' names, the labels and the pairs beside them, and
a list of who is kept out of training, which the other machine could not tell again. It takes no face detector there,
and a few kilobytes a face.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from platformdirs import user_cache_path

from emask.errors import EmaskError, UsageError
from emask.face.align import CROP
from emask.images import write_bytes
from emask.paths import make_folder
from emask.train.data import PACKED, Crops, load_crops

QUALITY = 92


def pack(data: Path, crops: Crops, out: Path) -> int:
    """Write crops as a data folder.

    Args:
        data: the folder of photos they are of.
        crops: of `load_crops`.
        out: a folder that is not there, or empty.

    Returns:
        The bytes of all crops together.

    Raises:
        UsageError: the folder has something in it.
        EmaskError: it cannot be written.
    """
    make_folder(out, "--out")
    if any(out.iterdir()):
        raise UsageError(f"{out} is not empty", "name a new folder with --out")
    written = 0
    try:
        for name, pixels in zip(crops.names, crops.pixels, strict=True):
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            file = io.BytesIO()
            kind = {".png": "PNG", ".webp": "WEBP"}.get(path.suffix.lower(), "JPEG")
            options = {"subsampling": 0} if kind == "JPEG" else {}
            Image.fromarray(pixels).save(file, kind, quality=QUALITY, **options)
            path.write_bytes(file.getvalue())
            written += file.tell()
        for path in [*data.glob("*attr*.csv"), *data.glob("lfw_pairs.txt")]:
            shutil.copyfile(path, out / path.name)
        held_out = [Path(name).as_posix() for name, test in zip(crops.names, crops.test, strict=True) if test]
        # last, so that a folder that was left half done is none
        write_bytes(out / PACKED, json.dumps({"size": CROP, "held_out": held_out}).encode())
    except OSError as error:
        raise EmaskError(f"cannot write to {out}: {error.strerror or error}", "free some space") from error
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack a folder of photos."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of photos")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the crops")
    options = parser.parse_args(arguments)
    try:
        crops = load_crops(options.data, user_cache_path("emask") / "training")
        written = pack(options.data, crops, options.out)
    except EmaskError as error:
        print(error.line, file=sys.stderr)
        return error.exit_code
    print(f"{len(crops.names)} crops, {written / 2**20:.1f} MiB: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
