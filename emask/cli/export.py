"""`emask export`: a run's weights as ONNX files with a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emask.errors import UsageError
from emask.weights import MANIFEST, read_manifest

# Information injection w, budget eps (L2 over a 128-pixel crop in [-1, 1] units) and gradient steps on the photo
# (emask/engine/refine.py) of each --strength.
STRENGTHS = {
    "low": {"w": 0.0, "eps": 5.6, "refine": 16},  # 38 dB over the crop
    "medium": {"w": 0.0, "eps": 8.9, "refine": 16},  # 34 dB
    "high": {"w": 0.0, "eps": 13.0, "refine": 16},  # 31 dB
}


def export(
    run: Annotated[Path, typer.Argument(help="A run folder of emask train.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the ONNX files [default: RUN/models].")
    ] = None,
) -> None:
    """Export generator, restorer, recognizer and refiner to ONNX, with a manifest.

    Refuses unless ONNX and torch agree.
    """
    from emask.train.export import export_run

    if not run.is_dir():
        raise UsageError(f"no run folder {run}", "name the folder that emask train --run wrote")
    folder = output or run / "models"
    for kind in export_run(run, folder, STRENGTHS):
        typer.echo(f"{folder / kind}.onnx")
    recognizer = read_manifest(folder / MANIFEST, "export again")["models"].get("recognizer")
    if recognizer is not None and "thresholds" not in recognizer:
        command = f"EMASK_MODELS_DIR={folder} python -m emask.bench.recognizer --data DIR --write"
        typer.echo(f"the recognizer has no thresholds yet, which protect needs: {command}", err=True)
