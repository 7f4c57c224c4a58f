"""`emask protect`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emask.cli import options
from emask.cli.console import note, reporting
from emask.errors import UsageError

if TYPE_CHECKING:
    from emask.bench.on_photos import PeerFiles
    from emask.paths import Job

# False accept rate of the similarity under which two photos of a target are of two people: all but one in a thousand
# pairs of one person are above it.
SAME_PERSON = "0.1"


def protect(
    paths: options.Paths,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="TGT",
            help="Whom a recognizer should see: a photo with one face, a folder of photos of one person, or the name of"
            " a built-in target. Repeatable for further photos of this person, which make it likelier that others of"
            " them match. Default: the built-in default target, a synthetic person.",
            show_default=False,
        ),
    ] = None,
    output: options.Output = None,
    strength: Annotated[options.Strength, typer.Option("--strength", help="How strong the mask is.")] = (
        options.Strength.medium
    ),
    refine: options.Refine = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            "--attribute",
            metavar="NAME",
            help="Change the look as well, repeatable: eyeglasses, blond-hair, no-beard and so on; no- in front turns"
            " one off. Default: none, the look is kept.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="emask, or for comparison a peer that cannot be erased: fgsm, pgd, mi-fgsm, tip-im, gmaa-like,"
            " sibling, semantic-adv, advfaces. Peers need torch and --recognizers.",
        ),
    ] = "emask",
    recognizers: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A peer's white boxes, with recognizers.json [default: $EMASK_RECOGNIZERS]."
        ),
    ] = None,
    classifier: options.Classifier = None,
    advfaces: options.AdvFacesFile = None,
    faces: options.Faces = "all",
    force: options.Force = False,
    resume: options.Resume = False,
    metadata: options.MetadataPolicy = options.Metadata.STRIP,
    quality: options.Quality = 95,
    as_json: options.Json = False,
    device: options.DeviceChoice = options.Device.auto,
) -> None:
    """Put an erasable mask on the faces in photos.

    Results keep name, format and size and go to the folder protected/: beside the one folder named, otherwise in the
    working directory. Photos without a face are reported and left out. What is reported was measured on the files
    as written.

    Examples:

        emask protect photos/ --target tgt.jpg

        emask protect portrait.jpg -o out/ --strength high

        emask protect portrait.jpg --attribute eyeglasses --attribute no-beard

        cat portrait.png | emask protect - > protected.png
    """
    with reporting("protect", as_json):
        from emask.attributes import choose, labels
        from emask.cli.files import check_writable, execute, open_streams, refuse_json_on_stdout, refuse_originals
        from emask.paths import plan
        from emask.pipeline.batch import Protection, Writing
        from emask.pipeline.protect import choose_faces
        from emask.weights import find_targets, refinement, thresholds
        from emask.weights import strength as figures

        choose_faces((), faces)
        chosen = choose(attribute or [])
        peer = method != "emask"
        if peer:
            from emask.bench.on_photos import PeerFiles, peer_engine

            files = PeerFiles(classifier, advfaces)
            white_boxes = check_peer(method, recognizers, files, chosen, refine)
        named = find_targets(target or ())
        jobs = plan(paths, output, "protected", keep=named, leave_out=("protected", "erased"), tell=note)
        refuse_target_folder(jobs, target or ())
        refuse_json_on_stdout(jobs, as_json)
        check_writable(jobs)
        if force or not resume:  # with --resume alone, what is there stays
            refuse_originals(jobs)
        w, eps = figures(strength.value)
        steps = refinement(strength.value) if refine is None else refine

        from emask.engine import ShippedRecognizer, inner_square, masking_engine, to_network

        if peer:
            steps = 0
        engine = masking_engine(steps, device.value, erase=False)

        from emask.face.detect import Detector
        from emask.pipeline.target import read_target, refuse_strangers

        detector = Detector(device=device.value)
        recognizer = ShippedRecognizer(engine, thresholds())
        given = read_target(named, detector)
        for file, reason in given.left_out.items():
            print(f"target: {file} left out: {reason}", file=sys.stderr)
        embeddings = recognizer.embed(given.crops)
        refuse_strangers(embeddings, given.used, recognizer.thresholds[SAME_PERSON])
        aim = engine.embed_person(inner_square(to_network(given.crops)))
        if peer:
            engine = peer_engine(engine, method, white_boxes, given.crops[:1], files)
        b = labels(chosen) if chosen else None
        # not of unit length: what is told is the mean of the cosines, which thresholds are made for
        mean = embeddings.mean(0)
        work = Protection(engine, detector, recognizer, mean, w=w, eps=eps, faces=faces, b=b, aim=aim)
        read, write = open_streams(jobs, output)
        writing = Writing(metadata.value, quality, force, resume, read, write)
        details = {
            "target": str(given.used[0]), "target_photos": [str(file) for file in given.used], "method": method,
            "strength": strength.value, "w": w, "eps": eps, "refine": steps, "attributes": chosen,
            "recognizer": recognizer.name,
        }  # fmt: skip
        raise typer.Exit(execute("protect", jobs, work, writing, engine.name, details, as_json=as_json))


def refuse_target_folder(jobs: Sequence[Job], names: Sequence[str]) -> None:
    """Keep results out of a folder of the target's photos, which the next run would take for more of them.

    Raises:
        UsageError: one would be written there.
    """
    from emask.paths import real_path

    folders = {real_path(Path(name)) for name in names if Path(name).is_dir()}
    for job in jobs:
        if job.output is not None and real_path(job.output.parent) in folders:
            raise UsageError(
                f"{job.output} would lie among the target's photos", "name another folder with -o"
            )


def check_peer(
    method: str, recognizers: Path | None, files: PeerFiles, chosen: dict[str, int], refine: int | None
) -> Path | None:
    """The folder of a peer's white boxes, if it has any, checked and made ready for before anything is loaded.

    Raises:
        UsageError: no such method, no recognizers, no file for a peer that needs one, or what only emask can do.
        ModelError: a shipped model that the peer looks into is missing or damaged.
    """
    from emask.bench.on_photos import PEER_NAMES, TRAINED, prepare
    from emask.cli.train import RECOGNIZER_PLACES, find_folder

    if method not in PEER_NAMES:
        raise UsageError(f"no method named {method!r}", f"there are: emask, {', '.join(PEER_NAMES)}")
    if chosen:
        raise UsageError(f"{method} changes no attributes", "leave out --attribute")
    if refine:
        raise UsageError(f"{method} has no refining", "leave out --refine")
    files.of(method)
    folder = None
    if method not in TRAINED:
        folder = find_folder(recognizers, "EMASK_RECOGNIZERS", RECOGNIZER_PLACES, "--recognizers")
    prepare()
    return folder
