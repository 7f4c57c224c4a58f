"""Trained networks to ONNX files with a manifest; refuses unless ONNX Runtime and torch agree."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emask.errors import EmaskError, ModelError
from emask.face.align import INNER
from emask.nets.blocks import fold_norms
from emask.nets.generator import ATTRIBUTES, Editor, Generator, NetConfig
from emask.nets.recognizer import COMPACT, EMBEDDING, Form, Recognizer
from emask.nets.restorer import Restorer
from emask.paths import make_folder
from emask.train.checkpoint import load
from emask.weights import FORMAT, MANIFEST, REFINER, read_manifest, sha256

OPSET = 17
COMMANDS = "commands.txt"  # in a run folder: how it was trained, a line a command
# Largest difference between torch and ONNX Runtime that an export may show, in the outputs' own units.
TOLERANCE = 1e-4
IMAGE_RANGE = "RGB in [-1, 1]"


def editor_of(state: dict[str, Any]) -> Editor:
    """An untrained editor of a checkpoint's sizes."""
    return Editor(NetConfig.from_dict(state["config"]))


def editor_from(state: dict[str, Any]) -> Editor:
    """E and D of a stage-1 checkpoint in evaluation mode; of one of stage 2 or 3 with folded norms."""
    editor = editor_of(state).eval()
    if "editor" in state:
        editor.load_state_dict(state["editor"])
        return editor
    fold_norms(editor)
    parts = ("encoder.", "decoder.")
    editor.load_state_dict({name: value for name, value in state["generator"].items() if name.startswith(parts)})
    return editor


def generator_from(state: dict[str, Any]) -> Generator:
    """The generator of a stage-2 or stage-3 checkpoint, in evaluation mode."""
    net = Generator(editor_of(state))
    net.load_state_dict(state["generator"])
    return net.eval()


def restorer_from(state: dict[str, Any]) -> Restorer:
    """The restorer of a stage-2 or stage-3 checkpoint, in evaluation mode."""
    net = Restorer(editor_of(state))
    net.load_state_dict(state["restorer"])
    return net.eval()


def recognizer_from(state: dict[str, Any]) -> Recognizer:
    """The recognizer of a distillation checkpoint, in evaluation mode."""
    net = Recognizer(Form.from_dict(state["form"]) if "form" in state else COMPACT)
    net.load_state_dict(state["student"])
    return net.eval()


def checkpoint_of(generator: Path, restorer: Path) -> dict[str, Any]:
    """A checkpoint that training can go on from, read off exported graphs: their constants carry the weights' names.

    Raises:
        ModelError: when a graph lacks a weight, as one that another version exported may.
    """
    import onnx
    from onnx import numpy_helper

    def weights(model: onnx.ModelProto) -> dict[str, Tensor]:
        found = {c.name: torch.from_numpy(numpy_helper.to_array(c).copy()) for c in model.graph.initializer}
        for node in model.graph.node:  # of equal constants an export keeps one
            if node.op_type == "Identity" and node.input[0] in found:
                found[node.output[0]] = found[node.input[0]]
        return found

    def read(path: Path) -> onnx.ModelProto:
        try:
            return onnx.load(str(path))
        except Exception as error:  # the reader raises many classes of its own
            raise ModelError(f"{path} is no ONNX model, or damaged", "export it again, or train stage 2") from error

    first, second = read(generator), read(restorer)
    properties = {entry.key: entry.value for entry in first.metadata_props}
    if "emask.net" not in properties or "emask.fusion" not in properties:
        raise ModelError(f"{generator} does not say how large its networks are", "export it again, or train stage 2")
    state: dict[str, Any] = {"config": json.loads(properties["emask.net"])}
    found = {"generator": weights(first), "restorer": weights(second)}
    found["generator"]["fusion"] = torch.tensor(json.loads(properties["emask.fusion"]))
    for kind, net in (("generator", Generator(editor_of(state))), ("restorer", Restorer(editor_of(state)))):
        missing = [name for name in net.state_dict() if name not in found[kind]]
        if missing:
            raise ModelError(f"the {kind} lacks {missing[0]}", "export it again, or train stage 2")
        state[kind] = {name: found[kind][name] for name in net.state_dict()}
    return state


def _random(batch: int, *shape: int) -> Tensor:
    return torch.rand(batch, *shape) * 2 - 1


def example_inputs(kind: str, batch: int, size: int, attributes: int = len(ATTRIBUTES)) -> dict[str, Tensor]:
    """Random inputs of a graph, in range, by name."""
    if kind == "recognizer":
        return {"crop": _random(batch, 3, INNER, INNER)}
    inputs = {"crop": _random(batch, 3, size, size)}
    if kind == "generator":
        inputs |= {
            "target": nn.functional.normalize(_random(batch, EMBEDDING), dim=1),
            "a": _random(batch, attributes),
            "b": _random(batch, attributes),
            "w": torch.rand(batch),
            "eps": torch.rand(batch) * 20,
        }
    return inputs


_RANGES = {
    "crop": IMAGE_RANGE, "target": "unit length", "a": "[-1, 1], 0 unknown", "b": "[-1, 1], as a to keep the look",
    "w": "[0, 1], 1 makes no mask", "eps": ">= 0, L2 norm over a crop in [-1, 1] units", "embedding": "unit length",
    "change": "crop + change lies in [-1, 1]",
}  # fmt: skip


def to_onnx(
    net: nn.Module,
    kind: str,
    path: Path,
    size: int,
    attributes: int = len(ATTRIBUTES),
    metadata: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Write one network as an ONNX file with a dynamic batch and check it against torch at batches 1 and 3.

    Args:
        net: in evaluation mode, on the CPU.
        kind: "generator", "restorer" or "recognizer".
        path: appears whole or not at all.
        size: side of the crop in pixels.
        metadata: further entries of the file's metadata.

    Returns:
        The manifest's entry: file, sha256, bytes, inputs, outputs.

    Raises:
        ModelError: when ONNX Runtime and torch differ by more than TOLERANCE; nothing is written then.
    """
    import onnx

    net = copy.deepcopy(net).float().eval().to(memory_format=torch.contiguous_format)
    inputs = example_inputs(kind, 2, size, attributes)
    output = "embedding" if kind == "recognizer" else "change"
    with tempfile.TemporaryDirectory(prefix=".emask-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        torch.onnx.export(
            net,
            tuple(inputs.values()),
            str(temporary),
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={key: {0: "batch"} for key in [*inputs, output]},
            opset_version=OPSET,
            dynamo=False,
        )
        model = onnx.load(str(temporary))
        onnx.checker.check_model(model)
        for key, value in {"emask.kind": kind, "emask.format": FORMAT, **(metadata or {})}.items():
            entry = model.metadata_props.add()
            entry.key, entry.value = key, value
        onnx.save(model, str(temporary))
        difference = _difference(net, kind, temporary, size, attributes)
        if not difference <= TOLERANCE:
            raise ModelError(
                f"{kind}: ONNX Runtime and torch differ by {difference:.2g}, more than {TOLERANCE:g}",
                "nothing was exported; report this with the versions of torch and onnxruntime",
            )
        temporary.replace(path)

    def describe(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
        return {"name": name, "shape": ["batch", *shape[1:]], "dtype": "float32", "range": _RANGES[name]}

    numbers = net.form.embedding if isinstance(net, Recognizer) else EMBEDDING
    out_shape = (1, numbers) if kind == "recognizer" else (1, 3, size, size)
    return {
        "file": path.name,
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "inputs": [describe(key, tuple(value.shape)) for key, value in inputs.items()],
        "outputs": [describe(output, out_shape)],
        "agreement": f"ONNX Runtime and torch differ by at most {difference:.1e} on random inputs",
    }


def _difference(net: nn.Module, kind: str, path: Path, size: int, attributes: int) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (1, 3):
        inputs = example_inputs(kind, batch, size, attributes)
        with torch.no_grad():
            ours = net(*inputs.values()).numpy()
        theirs = session.run(None, {key: value.numpy() for key, value in inputs.items()})[0]
        worst = max(worst, float(np.abs(ours - theirs).max()))
    return worst


def _put(content: dict[str, Any], entries: dict[str, dict[str, Any]]) -> None:
    """Add or replace models of a manifest; what else it says of one (figures) stays where the file is the same.

    Args:
        entries: by kind, from `to_onnx`, with anything to add.
    """
    models = content["models"]
    for kind, entry in entries.items():
        before = models.get(kind, {})
        if before.get("sha256") != entry["sha256"]:  # figures are of the file; strengths are settings
            before = {name: before[name] for name in before.keys() & {"strengths"}}
        models[kind] = {**before, **entry}


def export_run(run: Path, folder: Path, strengths: dict[str, dict[str, float]] | None = None) -> list[str]:
    """Export all that a run folder holds: generator and restorer of its last stage, its recognizer and its refiner.

    Args:
        run: folder with `recognizer.pt`, `refiner.pt`, `stage2.pt`, `stage3.pt`; what is missing is left as it is in
            `folder`.
        folder: where the ONNX files and `manifest.json` go; all of them, or none.
        strengths: (w, eps) of the strengths low, medium and high, for the generator's entry.

    Returns:
        The kinds exported.

    Raises:
        ModelError: when the run holds nothing to export, ONNX and torch differ, or the folder's manifest is damaged.
        TrainingError: a checkpoint is damaged.
        EmaskError: the folder cannot be written.
    """
    distilled = [name for name in ("recognizer", REFINER) if (run / f"{name}.pt").exists()]
    last = next((run / f"stage{n}.pt" for n in (3, 2) if (run / f"stage{n}.pt").exists()), None)
    if last is None and not distilled:
        raise ModelError(f"{run} holds no trained weights", "run emask train first, or name another run folder")
    make_folder(folder)
    content: dict[str, Any] = {"version": 1, "models": {}}
    if (folder / MANIFEST).exists():
        content = read_manifest(folder / MANIFEST, "mend or remove it, or name another folder with -o")
    try:
        with tempfile.TemporaryDirectory(prefix=".emask-", dir=folder) as name:
            made = Path(name)
            entries = _convert(run, distilled, last, made)
            if strengths and "generator" in entries:
                entries["generator"]["strengths"] = strengths
            _put(content, entries)
            targets = sorted(p.stem for p in (folder / "targets").glob("*.jpg"))
            if targets:
                content["targets"] = {"default": targets[0], "names": targets}
            (made / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            for file in [*(entry["file"] for entry in entries.values()), MANIFEST]:
                (made / file).replace(folder / file)
    except OSError as error:
        hint = "free some space, or name another folder with -o"
        raise EmaskError(f"cannot write to {folder}: {error.strerror or error}", hint) from error
    return list(entries)


def _convert(run: Path, distilled: list[str], last: Path | None, folder: Path) -> dict[str, dict[str, Any]]:
    """Write a run's networks as ONNX files; their entries in the manifest, by kind.

    Args:
        distilled: names of recognizers to take.
        last: checkpoint of generator and restorer, or None.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name in distilled:
        state = load(run / f"{name}.pt", "")
        entry = to_onnx(recognizer_from(state), "recognizer", folder / f"{name}.onnx", INNER)
        entries[name] = {**entry, "training": f"emask train --stage {name}"}
    if last is not None:
        state = load(last, "")
        generator, restorer = generator_from(state), restorer_from(state)
        size, attributes = generator.config.size, generator.config.attributes
        noted = run / COMMANDS
        made_by = "; ".join(noted.read_text(encoding="utf-8").split("\n")[:-1]) if noted.exists() else "emask train"
        # what `checkpoint_of` cannot read off the graph, where it has become a part of other constants
        more = {"emask.net": json.dumps(state["config"]), "emask.fusion": json.dumps(generator.fusion.tolist())}
        entry = to_onnx(generator, "generator", folder / "generator.onnx", size, attributes, more)
        entries["generator"] = {**entry, "training": made_by, "attributes": list(ATTRIBUTES)}
        entry = to_onnx(restorer, "restorer", folder / "restorer.onnx", size, attributes)
        entries["restorer"] = {**entry, "training": made_by}
    return entries
