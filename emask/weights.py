"""Where the trained models and built-in targets are, and whether they are what the manifest says."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from emask.errors import ModelError, UsageError
from emask.paths import PHOTO_FORMATS, PHOTO_SUFFIXES, is_there
from emask.results import ModelStatus

KINDS = ("generator", "restorer", "recognizer")
# A second recognizer, which masks are refined through and faces never compared with; folders of models may lack it.
REFINER = "refiner"
MANIFEST = "manifest.json"
STRENGTHS = ("low", "medium", "high")
# Version of the graph signatures this code runs, the `emask.format` entry of a model file.
FORMAT = "1"
_REINSTALL = "reinstall emask, or point EMASK_MODELS_DIR at a folder with its models"


def models_dir() -> Path:
    """The folder of the shipped models: EMASK_MODELS_DIR, the wheel's own, or the checkout's `models/`."""
    override = os.environ.get("EMASK_MODELS_DIR")
    if override:
        return Path(override)
    package = Path(__file__).resolve().parent
    installed = package / "_models"
    return installed if installed.is_dir() else package.parent / "models"


def manifest() -> dict[str, Any]:
    """The parsed `manifest.json` of the shipped models.

    Raises:
        ModelError: when it is missing, damaged, or of a version this code does not know.
    """
    path = models_dir() / MANIFEST
    if not is_there(path, ModelError):
        raise ModelError(f"no models found: {path} is missing", _REINSTALL)
    return read_manifest(path, _REINSTALL)


def read_manifest(path: Path, hint: str) -> dict[str, Any]:
    """A parsed `manifest.json`.

    Args:
        hint: what to do about one that cannot be used.

    Raises:
        ModelError: it is damaged, or of a version this code does not know.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}", hint) from None
    if not isinstance(content, dict) or content.get("version") != 1 or not isinstance(content.get("models"), dict):
        raise ModelError(f"{path} is no manifest of version 1", hint)
    return content


def locate(name: str | Path, *, check: bool = True) -> Path:
    """The file of a model, given as a path or as the bare name of a shipped one ("restorer", "restorer.onnx").

    Args:
        name: a path, or a bare name. A file of that name in the working directory comes first, a folder does not.
        check: compare a shipped file with the manifest's sha256.

    Raises:
        ModelError: when there is no such model, it cannot be looked for, or a shipped one is damaged.
    """
    path = Path(name)
    there = is_there(path, ModelError)
    if there and path.is_file():
        return path
    shipped = manifest()["models"] if path.name == str(name) else {}
    for kind, entry in shipped.items():
        if str(name) in (entry.get("file"), str(entry.get("file", "")).removesuffix(".onnx")):
            return shipped_path(kind, check=check)
    if there:
        raise ModelError(f"{path} is a folder, not a model file", "name an .onnx file")
    raise ModelError(
        f"no such model: {name}",
        "name an .onnx file, or one that ships: " + ", ".join(str(e.get("file")) for e in shipped.values())
        if shipped
        else "name an .onnx file that exists, or a bare name of one that ships, such as restorer.onnx",
    )


def shipped_path(kind: str, *, check: bool = True) -> Path:
    """The shipped model of this kind.

    Raises:
        ModelError: when it is missing from the manifest or the folder, cannot be read, or its sha256 differs.
    """
    entry = manifest()["models"].get(kind)
    if not isinstance(entry, dict) or "file" not in entry:
        raise ModelError(f"the manifest lists no {kind}", _REINSTALL)
    path = models_dir() / entry["file"]
    if not path.is_file():
        raise ModelError(f"model file {path} is missing", _REINSTALL)
    if check and sha256(path) != entry.get("sha256"):
        raise ModelError(f"model file {path} is damaged: its sha256 is not the manifest's", _REINSTALL)
    return path


def is_public(restorer: Path) -> bool:
    """Whether a restorer is the one that the manifest calls public; what `emask export` writes is not called so.

    Raises:
        ModelError: the file cannot be read.
    """
    entry = manifest()["models"].get("restorer")
    return isinstance(entry, dict) and entry.get("public") is True and sha256(restorer) == entry.get("sha256")


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex; hashed once per process for each size and modification time.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        stat = path.stat()
        return _sha256(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}", "see who may read it") from None


@lru_cache(maxsize=32)
def _sha256(path: Path, size: int, mtime: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def kind_of(path: Path) -> str:
    """The kind written into a model file.

    Returns:
        "generator", "restorer" or "recognizer".

    Raises:
        ModelError: when the file cannot be read, is no ONNX file, was not made by emask, or is of another format.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # protobuf's own error types are no public interface of onnx
        raise ModelError(f"{path} is no ONNX model", "name a model file that emask export made") from None
    properties = {entry.key: entry.value for entry in model.metadata_props}
    kind = properties.get("emask.kind")
    if kind not in KINDS or not model.graph.node:
        raise ModelError(f"{path} is no emask model", "name a model file that emask export made")
    if properties.get("emask.format") != FORMAT:
        raise ModelError(
            f"{path} has model format {properties.get('emask.format')}, this emask runs format {FORMAT}",
            "export the model again with this version of emask",
        )
    return kind


def require_kind(path: Path, kind: str) -> Path:
    """The path itself, when the file is an emask model of this kind.

    Raises:
        ModelError: otherwise.
    """
    found = kind_of(path)
    if found != kind:
        raise ModelError(f"{path} is a {found}, not a {kind}", f"name a {kind}, such as the shipped {kind}.onnx")
    return path


def refiner_path() -> Path | None:
    """The shipped refiner, None where the manifest lists none.

    Raises:
        ModelError: it is listed, but missing or damaged.
    """
    return shipped_path(REFINER) if REFINER in manifest()["models"] else None


def target_names() -> list[str]:
    """Names of the built-in targets; empty when none ship."""
    names = manifest().get("targets", {}).get("names", [])
    return [str(name) for name in names]


def find_target(name: str | Path | None = None) -> Path:
    """The photo of a target.

    Args:
        name: a photo file, the bare name of a built-in target, or None for the default built-in one, whatever the
            working directory has of that name.

    Raises:
        UsageError: when there is no such file and no such built-in target, or both.
        ModelError: when a built-in target the manifest lists is missing.
    """
    if name is None:
        default = manifest().get("targets", {}).get("default")
        if not default:
            raise UsageError("no default target ships with these models", "name a photo: --target PHOTO")
        return built_in_target(str(default))
    path = Path(name)
    if _is_built_in(name):
        if path.is_file():
            raise _ambiguous(name)
        return built_in_target(str(name))  # as with models, no folder hides it: this wants one photo
    if is_there(path):
        if path.is_file():
            return path
        raise UsageError(f"target {path} is a folder", "name a photo with one face")
    if path.name != str(name) or path.suffix.lower() in PHOTO_SUFFIXES:
        raise UsageError(f"no such target file: {name}", "name a photo, or omit --target for the built-in one")
    raise UsageError(f"no such target: {name}", "built-in targets: " + (", ".join(target_names()) or "none"))


def built_in_target(name: str) -> Path:
    """The photo of a target that ships.

    Raises:
        ModelError: it is missing.
    """
    for suffix in PHOTO_FORMATS:
        candidate = models_dir() / "targets" / f"{name}{suffix}"
        if os.path.isfile(candidate):
            return candidate
    raise ModelError(f"built-in target {name} is missing from {models_dir() / 'targets'}", _REINSTALL)


def _is_built_in(name: str | Path) -> bool:
    # a photo's name is none, and needs no manifest
    bare = Path(name).name == str(name) and Path(name).suffix.lower() not in PHOTO_SUFFIXES
    return bare and str(name) in target_names()


def _ambiguous(name: str | Path) -> UsageError:
    return UsageError(
        f"target {name} is a built-in one, and the working directory has that name too",
        f"write ./{name} for what is here; name the built-in one from another folder",
    )


def find_targets(names: Sequence[str | Path] = ()) -> dict[Path, bool]:
    """The photos of one target, in order.

    Args:
        names: each as for `find_target`, or a folder of photos, in which folders are left out; none of them for the
            default target.

    Returns:
        Each photo once, and whether it was named by itself, not as one of a folder.

    Raises:
        UsageError, ModelError: as `find_target`; an empty name, a built-in target's name that a folder has as well, a
            folder that cannot be read or has no photos.
    """
    if not names:
        return {find_target(): True}
    found: dict[Path, bool] = {}
    for name in names:
        if not str(name):
            raise UsageError("--target is empty", "name a photo, a folder, or a built-in target")
        folder = Path(name)
        if not os.path.isdir(folder):
            found[find_target(name)] = True
            continue
        if _is_built_in(name):
            raise _ambiguous(name)
        hint = "name one with photos of one person"
        try:
            inside = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
        except OSError as error:
            raise UsageError(f"cannot read the target's folder {folder}: {error.strerror or error}", hint) from None
        inside = [path for path in inside if path.suffix.lower() in PHOTO_SUFFIXES]
        if not inside:
            raise UsageError(f"no photos in the target's folder {folder}", hint)
        for path in inside:
            found.setdefault(path, False)
    return found


def strength(level: str) -> tuple[float, float]:
    """(w, eps) of a strength level: information injection weight in 0..1, L2 budget over the crop in [-1, 1] units.

    Raises:
        UsageError: for a level other than low, medium, high.
        ModelError: when the manifest has no figures for it.
    """
    if level not in STRENGTHS:
        raise UsageError(f"no such strength: {level}", "choose low, medium or high")
    try:
        entry = manifest()["models"]["generator"]["strengths"][level]
        return float(entry["w"]), float(entry["eps"])
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"the manifest has no figures for strength {level}", _REINSTALL) from None


def refinement(level: str) -> int:
    """Gradient steps by which masks of a strength level are refined: the manifest's, 0 where it says nothing."""
    try:
        return int(manifest()["models"]["generator"]["strengths"][level].get("refine", 0))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ModelError(f"the manifest has no figures for strength {level}", _REINSTALL) from None


def thresholds() -> dict[str, float]:
    """Cosine thresholds of the shipped recognizer by false accept rate: "0.1", "0.01", "0.001".

    Raises:
        ModelError: when the manifest has none.
    """
    try:
        entries = manifest()["models"]["recognizer"]["thresholds"]
        return {rate: float(entries[rate]) for rate in ("0.1", "0.01", "0.001")}
    except (KeyError, TypeError, ValueError):
        raise ModelError("the manifest has no thresholds for the recognizer", _REINSTALL) from None


def status() -> list[ModelStatus]:
    """Every model of the manifest and whether its file is there and unchanged.

    Raises:
        ModelError: when there is no readable manifest, or a model cannot be read.
    """
    entries = []
    for kind, entry in manifest()["models"].items():
        path = models_dir() / str(entry.get("file", f"{kind}.onnx"))
        there = path.is_file()
        same = there and sha256(path) == entry.get("sha256")
        message = "" if same else ("damaged" if there else "missing")
        size = path.stat().st_size if there else 0
        kind = "recognizer" if kind == REFINER else kind
        entries.append(ModelStatus(path.stem, kind, str(path), size, sha256_ok=same, message=message))
    return entries
