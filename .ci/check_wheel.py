"""Fail unless a built wheel holds every file of models/ and no training run or cache.

    python .ci/check_wheel.py WHEEL
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path


def main(wheel: str) -> int:
    models = Path(__file__).resolve().parents[1] / "models"
    wanted = {f"emask/_models/{p.relative_to(models).as_posix()}": p for p in models.rglob("*") if p.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    wrong = [name for name, path in wanted.items() if sizes.get(name) != path.stat().st_size]
    own = ("emask/", "emask-")
    strange = [name for name in sizes if name.endswith((".pt", ".partial", ".pyc")) or not name.startswith(own)]
    for name in sorted(sizes):
        if name.startswith("emask/_models/"):
            print(f"{sizes[name]:>10}  {name}")
    if not wanted:
        print("error: models/ is empty", file=sys.stderr)
    for name in wrong:
        print(f"error: {name} is missing from the wheel, or of another size", file=sys.stderr)
    for name in strange:
        print(f"error: {name} has no place in the wheel", file=sys.stderr)
    return 1 if wrong or strange or not wanted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
