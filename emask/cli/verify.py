"""`emask verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emask.cli import options
from emask.cli.console import reporting, show_json, verify_lines

if TYPE_CHECKING:
    from emask.pipeline.protect import FaceRecognizer


def verify(
    a: Annotated[str, typer.Argument(metavar="A", help="A photo.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="The photo it is compared with.", show_default=False)],
    recognizer: Annotated[
        list[str] | None,
        typer.Option(
            "--recognizer",
            metavar="NAME|FILE",
            help="A recognizer: a name or an ONNX file with its card; repeat for several. Default: the shipped one.",
            show_default=False,
        ),
    ] = None,
    after: Annotated[
        str,
        typer.Option(
            "--after",
            metavar="OPS",
            help="Operations on A first, as jpeg:75,resize:1080, or a platform's name, as whatsapp.",
            show_default=False,
        ),
    ] = "",
    as_json: options.Json = False,
    device: options.DeviceChoice = options.Device.auto,
) -> None:
    """Compare the largest faces of two photos.

    Prints the cosine similarity, the recognizer's thresholds at false accept rates of 0.1, 0.01 and 0.001, and a
    verdict at 0.01. Exits with 0 when it measured, whatever it found.

    Examples:

        emask verify photos/a.jpg protected/a.jpg

        emask verify protected/a.jpg owner.jpg --after jpeg:75,resize:1080
    """
    with reporting("verify", as_json):
        from emask.errors import UsageError
        from emask.handling import parse
        from emask.images import load_photo
        from emask.paths import is_there
        from emask.pipeline.verify import verify_photos
        from emask.recognize import SHIPPED

        for path in (Path(a), Path(b)):
            if not (is_there(path) and path.is_file()):
                raise UsageError(f"no such file: {path}")
        parse(after)
        first, second = load_photo(a), load_photo(b)

        recognizers = [open_recognizer(name, device) for name in recognizer or [SHIPPED]]

        from emask.face.detect import Detector

        result = verify_photos(first, second, recognizers, detector=Detector(device=device.value), after=after)
        if as_json:
            show_json(result.to_dict())
        else:
            for line in verify_lines(result):
                typer.echo(line)


def open_recognizer(name: str, device: options.Device) -> FaceRecognizer:
    """A recognizer by name or file; the one that ships as protect and erase have it, on an engine.

    Raises:
        ModelError: a file, its card or the thresholds are missing or damaged.
        EmaskError: CUDA was asked for and does not load.
    """
    from emask.engine import ShippedRecognizer, open_engine
    from emask.recognize import SHIPPED, load_recognizer
    from emask.weights import shipped_path, thresholds

    if name != SHIPPED:
        return load_recognizer(name, device.value)
    engine = open_engine(recognizer=shipped_path("recognizer"), device=device.value)
    return ShippedRecognizer(engine, thresholds())
