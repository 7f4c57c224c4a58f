"""What is done of a benchmark, kept in a folder a target at a time, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emask.errors import UsageError
from emask.images import write_files

PARTS = ".parts"  # in the output folder, until the run is through
COSINES = "similarities.npz"  # beside a bench.json
COST = ".cost.json"  # of a turn that was measured to its end; no target goes by that name


def kept_in(output: Path, resume: bool) -> Path:
    """Where a run into this folder keeps what is done.

    Raises:
        UsageError: an interrupted run is there, and nobody said to go on with it.
    """
    kept = output / PARTS
    if kept.exists() and not resume:
        raise UsageError(f"{output} holds an interrupted run", "go on with it: --resume; or name another folder")
    return kept


def versions() -> dict[str, str]:
    """Of Python and of the packages that figures depend on, and whether the CPU has bfloat16, which refining uses."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from emask.engine.refine import bfloat16_is_fast

    found = {"python": platform.python_version(), "bfloat16": "in hardware" if bfloat16_is_fast() else "none"}
    for name in ("emask", "numpy", "torch", "onnxruntime-gpu", "onnxruntime", "facenet-pytorch", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_cosines(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a similarities.npz by name; None where it is not there, damaged or no such file."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error):
        return None


def cosines_file(cosines: Mapping[str, np.ndarray]) -> bytes:
    """What `read_cosines` reads."""
    content = io.BytesIO()
    np.savez_compressed(content, **cosines)  # type: ignore[arg-type]
    return content.getvalue()


class KeptParts:
    """`emask.bench.protocol.Parts` in files.

    Args:
        folder: made when the first part is done.
        run: all that figures depend on, as JSON: settings, hashes of weights, photos and judges, versions. Parts of a
            run that differs in anything are not taken.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        text = json.dumps(run, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.taken: list[str] = []
        self.put_any = False

    def get(self, label: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Figures and cosines of a target; None where they are not done, or their files are damaged."""
        try:
            figures = json.loads((self.folder / f"{label}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        cosines = read_cosines(self.folder / f"{label}.npz")
        if cosines is None:
            return None
        self.taken.append(label)
        return figures, cosines

    def put(self, label: str, figures: dict[str, Any], cosines: dict[str, np.ndarray]) -> None:
        """Keep them; the figures come last, so that a part is there or not.

        Raises:
            ImageError: they cannot be written.
        """
        content = json.dumps(figures).encode() + b"\n"
        write_files(self.folder, {f"{label}.npz": cosines_file(cosines), f"{label}.json": content})
        self.put_any = True

    def cost(self, spent: dict[str, Any]) -> dict[str, Any]:
        """What it all cost: `spent` now, or where every part was taken, what was kept when they were done.

        Call it once, at the end. Of a run that was interrupted within, what is known is the rest's.
        """
        if self.taken and not self.put_any:
            try:
                kept = json.loads((self.folder / COST).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                kept = None
            return kept if isinstance(kept, dict) else spent
        write_files(self.folder, {COST: json.dumps(spent).encode() + b"\n"})
        return spent
