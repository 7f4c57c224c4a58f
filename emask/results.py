"""What the commands found out, as plain values. Nothing here prints; `to_dict` is what `--json` shows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

# Version of the `--json` documents. A field may be added under the same number; a change of meaning raises it.
JSON_VERSION = 1

Status = Literal["done", "no-face", "skipped", "failed"]


def _plain(value: Any) -> Any:
    """JSON-ready: dataclasses to dicts, tuples to lists, floats rounded; infinities and NaN to null."""
    if is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        for name in ("verdict", "ok"):
            if isinstance(getattr(type(value), name, None), property):
                plain[name] = getattr(value, name)
        return plain
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


@dataclass(frozen=True)
class FaceProtection:
    """One face of a protected photo, measured on the written file.

    Attributes:
        box: left, top, right, bottom in pixels of the upright photo.
        target_before: cosine of the unprotected face and the target.
        target_after: cosine of the written face and the target; None when no face is found there any more.
        source_after: cosine of the written face and the same face unprotected; None as above.
        threshold: cosine above which the recognizer says "same person" at a false accept rate of 0.01.
        psnr: of the face's box in the written file against the original, in dB; inf when identical.
    """

    box: tuple[int, int, int, int]
    target_before: float
    target_after: float | None
    source_after: float | None
    threshold: float
    psnr: float

    @property
    def verdict(self) -> str:
        """Plain words for the numbers."""
        if self.target_after is None or self.source_after is None:
            return "no face is found here any more in the written file"
        target, owner = self.target_after >= self.threshold, self.source_after >= self.threshold
        if target and not owner:
            return "taken for the target, no longer for its owner"
        if target:
            return "taken for the target, but still for its owner too"
        if not owner:
            return "no longer taken for its owner, nor for the target"
        return "still taken for its owner: the mask is too weak"


@dataclass(frozen=True)
class FaceErasure:
    """One face of a photo whose mask was erased, measured on the written file.

    Attributes:
        box: left, top, right, bottom in pixels of the upright photo.
        protected_restored: cosine of the face before and after erasing (low: much was undone); None when no face is
            found there any more.
        reference_before, reference_after: cosine with the reference photo of the owner before and after erasing;
            None without a reference.
        threshold: cosine above which the recognizer says "same person" at a false accept rate of 0.01.
    """

    box: tuple[int, int, int, int]
    protected_restored: float | None
    reference_before: float | None
    reference_after: float | None
    threshold: float

    @property
    def verdict(self) -> str:
        """Plain words for the numbers."""
        if self.protected_restored is None:
            return "no face is found here any more in the written file"
        if self.reference_after is not None:
            return "matches the reference" if self.reference_after >= self.threshold else "does not match the reference"
        # how far erasing moves a face depends on how far the mask had moved it: only a reference can judge it
        changed = self.protected_restored < self.threshold
        moved = "identity changed" if changed else "identity moved, within the threshold"
        return f"{moved}; --reference tells whether it is the owner again"


@dataclass(frozen=True)
class FileResult:
    """What became of one input.

    Attributes:
        source: the input as given ("-" for standard input).
        output: the file written ("-" for standard output), or None.
        status: "done", "no-face" (left out), "skipped" (done before, `--resume`) or "failed".
        message, hint: one line each for what is not done; otherwise "".
        exit_code: exit code of this failure, were it the only input.
        width, height: of the upright photo in pixels; 0 when it was not read.
        faces: one entry per face that was changed.
    """

    source: str
    output: str | None = None
    status: Status = "done"
    message: str = ""
    hint: str = ""
    exit_code: int = 0
    width: int = 0
    height: int = 0
    faces: tuple[FaceProtection | FaceErasure, ...] = ()


@dataclass(frozen=True)
class RunResult:
    """What a whole run did.

    Attributes:
        command: "protect" or "erase".
        files: one entry per input, in input order.
        engine: name of the engine that ran.
        seconds: wall-clock time from the first photo to the last.
        details: settings worth recording (strength, target, key, recognizer).
    """

    command: str
    files: tuple[FileResult, ...]
    engine: str
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)

    def count(self, status: Status) -> int:
        """Number of inputs with this status."""
        return sum(file.status == status for file in self.files)

    @property
    def seconds_per_photo(self) -> float:
        """Wall-clock seconds per photo written; 0 when none was."""
        done = self.count("done")
        return self.seconds / done if done else 0.0

    @property
    def exit_code(self) -> int:
        """0 done, 1 some failed (a lone input: its own code), 3 nothing done for lack of a face."""
        failed = [file for file in self.files if file.status == "failed"]
        if failed:
            return failed[0].exit_code if len(self.files) == 1 else 1
        nothing_done = not self.count("done") and not self.count("skipped")
        return 3 if nothing_done and self.count("no-face") else 0

    def to_dict(self) -> dict[str, Any]:
        """The `--json` document."""
        summary = {
            "done": self.count("done"),
            "no_face": self.count("no-face"),
            "skipped": self.count("skipped"),
            "failed": self.count("failed"),
            "faces": sum(len(file.faces) for file in self.files),
            "engine": self.engine,
            "seconds": round(self.seconds, 3),
            "seconds_per_photo": round(self.seconds_per_photo, 3),
            "exit_code": self.exit_code,
            **_plain(self.details),
        }
        return {
            "version": JSON_VERSION,
            "command": self.command,
            "files": [_plain(file) for file in self.files],
            "summary": summary,
        }


@dataclass(frozen=True)
class Comparison:
    """Two faces under one recognizer.

    Attributes:
        recognizer: its name.
        cosine: similarity of the two faces, -1..1.
        thresholds: false accept rate ("0.1", "0.01", "0.001") to cosine.
        matches: false accept rate to whether the cosine reaches that threshold.
    """

    recognizer: str
    cosine: float
    thresholds: dict[str, float]
    matches: dict[str, bool]

    @property
    def verdict(self) -> str:
        """Plain words, at a false accept rate of 0.01."""
        if "0.01" not in self.matches:
            return "no threshold is known"
        return "same person" if self.matches["0.01"] else "different people"


@dataclass(frozen=True)
class VerifyResult:
    """`emask verify`: the largest faces of two photos under one or more recognizers.

    Attributes:
        a, b: the photos as given.
        after: operations applied to `a` first, as written on the command line.
        faces_a, faces_b: number of faces found in each.
        comparisons: one per recognizer.
        notes: reasons to doubt the numbers.
    """

    a: str
    b: str
    after: str
    faces_a: int
    faces_b: int
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The `--json` document."""
        return {
            "version": JSON_VERSION,
            "command": "verify",
            "files": [{"source": self.a, "faces": self.faces_a}, {"source": self.b, "faces": self.faces_b}],
            "comparisons": [_plain(comparison) for comparison in self.comparisons],
            "summary": {"after": self.after, "notes": list(self.notes), "exit_code": 0},
        }


@dataclass(frozen=True)
class ModelStatus:
    """One shipped model.

    Attributes:
        name, kind, file: its name, "generator" | "restorer" | "recognizer", and path.
        size: in bytes; 0 when the file is missing.
        sha256_ok: whether the file is the one the manifest names.
        runs: whether a forward pass gave finite numbers of the right shape; None when it was not tried.
        message: what is wrong, or "".
    """

    name: str
    kind: str
    file: str
    size: int
    sha256_ok: bool
    runs: bool | None = None
    message: str = ""

    @property
    def ok(self) -> bool:
        """Nothing wrong was seen."""
        return self.sha256_ok and self.runs is not False

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready entry."""
        return dict(_plain(self))
