"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Strength(str, Enum):
    """How strong the mask is; the figures are in the models' manifest."""

    low = "low"
    medium = "medium"
    high = "high"


class Metadata(str, Enum):
    """What happens to EXIF and other metadata."""

    STRIP = "strip"
    KEEP = "keep"


class Device(str, Enum):
    """Where the networks run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATHS...",
        help="Photos, folders (searched recursively), or - for one photo on standard input.",
        show_default=False,
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="OUT",
        help="Folder for the results; a file for a single photo; - for standard output.",
        show_default=False,
    ),
]
Faces = Annotated[
    str, typer.Option("--faces", metavar="all|largest|N", help="Which faces: all, the largest, or the N largest.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace results that are there already. Never a photo of this run.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Skip photos whose result is there already.")]
MetadataPolicy = Annotated[
    Metadata,
    typer.Option(
        "--metadata",
        help="strip drops location, serial numbers and names; keep keeps them. Orientation is applied either way.",
    ),
]
Refine = Annotated[
    int | None,
    typer.Option(
        "--refine",
        metavar="STEPS",
        min=0,
        max=500,
        help="Gradient steps that fit the mask to each face. Default: what the strength says.",
        show_default=False,
    ),
]
Classifier = Annotated[
    Path | None,
    typer.Option(
        "--classifier",
        metavar="FILE",
        help="For --method sibling: the stage1.pt of a run, for its attribute classifier.",
        show_default=False,
    ),
]
AdvFacesFile = Annotated[
    Path | None,
    typer.Option(
        "--advfaces",
        metavar="FILE",
        help="For --method advfaces: what python -m emask.bench.advfaces trained.",
        show_default=False,
    ),
]
Quality = Annotated[int, typer.Option("--quality", min=1, max=100, help="JPEG and lossy WebP quality.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else.")]
DeviceChoice = Annotated[
    Device, typer.Option("--device", help="Where to run: auto takes a CUDA GPU when one really works.")
]
