"""`emask erase`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emask.cli import options
from emask.cli.console import note, reporting


def erase(
    paths: options.Paths,
    key: Annotated[
        str,
        typer.Option(
            "--key",
            metavar="RESTORER",
            help="The restorer: a model file, or the bare name of one that ships (restorer.onnx).",
            show_default=False,
        ),
    ],
    output: options.Output = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="PHOTO",
            help="A photo of the owner: report whether the restored face matches it again.",
            show_default=False,
        ),
    ] = None,
    faces: options.Faces = "all",
    force: options.Force = False,
    resume: options.Resume = False,
    metadata: options.MetadataPolicy = options.Metadata.STRIP,
    quality: options.Quality = 95,
    as_json: options.Json = False,
    device: options.DeviceChoice = options.Device.auto,
) -> None:
    """Take the mask off protected photos.

    Results keep name, format and size and go to the folder erased/: beside the one folder named, otherwise in the
    working directory. Without --reference only the change in similarity between the protected and the restored face
    is known. The restorer.onnx that ships is a public demonstration key: everybody has it.

    Examples:

        emask erase protected/ --key restorer.onnx

        emask erase seen.jpg --key restorer.onnx --reference owner.jpg -o out/
    """
    with reporting("erase", as_json):
        from emask.cli.files import check_writable, execute, open_streams, refuse_json_on_stdout, refuse_originals
        from emask.errors import UsageError
        from emask.paths import is_there, plan
        from emask.pipeline.batch import Erasure, Writing
        from emask.pipeline.erase import reference_embedding
        from emask.pipeline.protect import choose_faces
        from emask.weights import is_public, locate, shipped_path, thresholds

        choose_faces((), faces)
        owner = [] if reference is None else [Path(reference)]
        for path in owner:
            if not (is_there(path) and path.is_file()):
                raise UsageError(f"no such reference file: {reference}")
        restorer = locate(key)
        if is_public(restorer):
            note(f"{restorer.name} is a public demonstration key: anybody can erase masks made with its generator")
        # what lies in protected/ is what there is to erase
        jobs = plan(paths, output, "erased", keep=[restorer, *owner], leave_out=("erased",), tell=note)
        refuse_json_on_stdout(jobs, as_json)
        check_writable(jobs)
        if force or not resume:  # with --resume alone, what is there stays
            refuse_originals(jobs)

        from emask.engine import ShippedRecognizer, open_engine
        from emask.images import load_photo

        owner_photo = None if reference is None else load_photo(reference)
        engine = open_engine(restorer=restorer, recognizer=shipped_path("recognizer"), device=device.value)

        from emask.face.detect import Detector

        detector = Detector(device=device.value)
        recognizer = ShippedRecognizer(engine, thresholds())
        known = None if owner_photo is None else reference_embedding(owner_photo, detector, recognizer)
        work = Erasure(engine, detector, recognizer, known, faces)
        read, write = open_streams(jobs, output)
        writing = Writing(metadata.value, quality, force, resume, read, write)
        details = {"key": str(restorer), "reference": reference, "recognizer": recognizer.name}
        raise typer.Exit(execute("erase", jobs, work, writing, engine.name, details, as_json=as_json))
