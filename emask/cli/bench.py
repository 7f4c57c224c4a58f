"""`emask bench`: measure the shipped or given models by the photo protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from emask.cli import options
from emask.errors import EmaskError, UsageError

# Recognizers that judge by default: the fold no surrogate comes from.
BLACK_BOX_FOLD = "B"


def bench(
    data: Annotated[Path, typer.Option(help="Folder of photos with lfw_pairs.txt; people of its last folds are used.")],
    recognizers: Annotated[Path, typer.Option(help="Folder of recognizers with recognizers.json.")],
    black_box: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A recognizer to judge with; repeatable. [default: those of fold B]"),
    ] = None,
    faces: Annotated[int, typer.Option(min=1, help="Photos to protect, one a person.")] = 200,
    unseen_targets: Annotated[int, typer.Option(min=0, help="People used as targets that no training saw.")] = 8,
    target: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A built-in target; repeatable. [default: all]")
    ] = None,
    target_others: Annotated[
        Path | None, typer.Option(help="Folder with another photo NAME.jpg of built-in targets.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="emask, or a peer as pgd, mi-fgsm, tip-im; or nothing, grey-square: baselines.")
    ] = "emask",
    surrogate: Annotated[
        list[str] | None, typer.Option(help="A peer's white box; repeatable. [default: those of fold A]")
    ] = None,
    generator: Annotated[Path | None, typer.Option(help="Generator file. [default: the one that ships]")] = None,
    key: Annotated[Path | None, typer.Option(help="Restorer file. [default: the one that ships]")] = None,
    handling: Annotated[
        list[str] | None,
        typer.Option(metavar="OPS", help="Measure again after this, as for verify --after; repeatable; or all."),
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=95, help="JPEG quality of the saved photos.")] = 90,
    strength: Annotated[str, typer.Option(help="low, medium or high.")] = "medium",
    refine: options.Refine = None,
    seed: Annotated[int, typer.Option(help="Decides which people are taken.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for bench.json and bench.md.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON document instead of the table.")] = False,
) -> None:
    """Measure masks on saved photos, by recognizers that no training saw."""
    from emask.train.threads import prepare_process

    prepare_process()
    import json
    import sys

    try:
        from emask.bench.table import render

        document = measure(
            data, recognizers, black_box, faces, unseen_targets, target, target_others, method, surrogate, generator,
            key, handling, quality, strength, refine, seed, device,
        )  # fmt: skip
        text = json.dumps(document, indent=1)
        table = render(document)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            (output / "bench.json").write_text(text + "\n", encoding="utf-8")
            (output / "bench.md").write_text(table, encoding="utf-8")
        print(text if as_json else table)
    except EmaskError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


def measure(
    data: Path,
    recognizers: Path,
    black_box: list[str] | None,
    faces: int,
    unseen_targets: int,
    target: list[str] | None,
    target_others: Path | None,
    method: str,
    surrogate: list[str] | None,
    generator: Path | None,
    key: Path | None,
    handling: list[str] | None,
    quality: int,
    strength: str,
    refine: int | None,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """Run the photo protocol with exported models; arguments as the command's. Returns the JSON document.

    Raises:
        EmaskError: for data, recognizers, targets or models that cannot be used.
    """
    import sys
    import tempfile

    import numpy as np
    from tqdm import tqdm

    from emask import weights
    from emask.bench import protocol
    from emask.bench.methods import EMASK, method_names, method_of
    from emask.engine import open_engine, refined
    from emask.face.detect import Detector
    from emask.handling import choose
    from emask.recognize import load_folder
    from emask.recognize.cards import folder_cards

    handlings = choose(handling or [], "--handling")
    if method not in method_names():
        raise UsageError(f"no method named {method!r}", f"there are: {', '.join(method_names())}")
    w, eps = weights.strength(strength)
    steps = weights.refinement(strength) if refine is None else refine
    files = {
        "generator": generator or weights.shipped_path("generator"),
        "restorer": key or weights.shipped_path("restorer"),
        "recognizer": weights.shipped_path("recognizer"),
    }
    names = black_box or [c.name for c in folder_cards(recognizers) if c.fold == BLACK_BOX_FOLD]
    if not names:
        raise UsageError(f"no recognizer of fold {BLACK_BOX_FOLD} in {recognizers}", "name some with --black-box")
    judges = load_folder(recognizers, names, device)
    settings: dict[str, Any]
    if method == EMASK:
        engine = open_engine(**files, device=device)  # type: ignore[arg-type]
        engine = refined(engine, steps, files["recognizer"], files["restorer"], device)  # type: ignore[arg-type]
        settings = {"strength": strength, "w": w, "eps": eps, "refine": steps, "engine": engine.name}
        measured = protocol.Method(
            protect=lambda crops, wanted: engine.protect(crops, np.asarray(wanted), w=w, eps=eps),
            erase=engine.erase,
            embed=engine.embed,
        )
    else:
        from emask.train.prepare import open_surrogates

        files = {}
        measured = method_of(method, lambda: open_surrogates(recognizers, surrogate))
        settings = {"surrogates": surrogate or "fold A"} if measured.erase is None else {}
    detector = Detector(device=device)

    bars: dict[str, tqdm[Any]] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = tqdm(total=total, desc=what, disable=not sys.stderr.isatty(), file=sys.stderr)
        bars[what].update(done - bars[what].n)

    builtin = []
    for name in target or weights.target_names():
        paths = [weights.find_target(name)]
        other_photo = None if target_others is None else target_others / f"{Path(name).stem}.jpg"
        if other_photo is not None and other_photo.is_file():
            paths.append(other_photo)
        found = protocol.locate([p.name for p in paths], [protocol.read_photo(p) for p in paths], detector)
        given, other = found[0], found[1] if len(found) > 1 else None
        if given is None:
            raise UsageError(f"no face found in the target {name}")
        builtin.append(protocol.Target(Path(name).stem, given, other))
    default = str(weights.manifest().get("targets", {}).get("default", ""))
    try:
        selection = protocol.select(data, faces, unseen_targets, seed, detector, progress)
        with tempfile.TemporaryDirectory(prefix="emask-bench-") as folder:
            result = protocol.run(
                measured,
                selection,
                builtin,
                judges,
                Path(folder),
                detector,
                quality=quality,
                default_target=default if default in {t.name for t in builtin} else None,
                handlings=handlings,
                progress=progress,
            )
    finally:
        for bar in bars.values():
            bar.close()
    return {
        "version": 1,
        "protocol": "photo",
        "settings": {
            "method": method, "faces": faces, "unseen_targets": unseen_targets, "quality": quality,
            "subsampling": "4:2:0", "seed": seed, **settings,
        },
        "models": {kind: {"file": path.name, "sha256": weights.sha256(path)} for kind, path in files.items()},
        "judges": {r.name: {"file": r.card.file.name, "sha256": weights.sha256(r.card.file)} for r in judges},
        **result,
    }  # fmt: skip
