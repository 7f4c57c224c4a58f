"""`emask bench`: measure the shipped or given models by the photo protocol."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emask.cli import options
from emask.cli.console import reporting
from emask.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from emask.bench.on_photos import PeerFiles
    from emask.bench.protocol import Method, Target
    from emask.face.detect import Detector
    from emask.train.surrogates import Surrogate

NO_TARGET = "none"  # in the place of built-in ones
EMASK = "emask"  # as in emask.bench.methods, which loads torch
# Photos and unseen targets of a run, and of one with --quick.
FULL, QUICK = (200, 8), (30, 4)


class Fold(str, Enum):
    """A half of the recognizers: emask looked through those of A in training."""

    A = "A"
    B = "B"

    @property
    def other(self) -> Fold:
        """The half that judges when this one is the white box."""
        return Fold.B if self is Fold.A else Fold.A


def bench(
    data: Annotated[Path, typer.Option(help="Folder of photos with lfw_pairs.txt; people of its last folds are used.")],
    recognizers: Annotated[Path, typer.Option(help="Folder of recognizers with recognizers.json.")],
    black_box: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A recognizer to judge with; repeatable. [default: those of the other fold]"),
    ] = None,
    faces: Annotated[int | None, typer.Option(min=1, help="Photos to protect. [default: 200]")] = None,
    peer_faces: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With several --method: photos to compare them on, the first ones, without --handling; "
            "emask is measured on all of them too. [default: all]",
        ),
    ] = None,
    unseen_targets: Annotated[
        int | None, typer.Option(min=0, help="People used as targets that no training saw. [default: 8]")
    ] = None,
    target_photos: Annotated[
        int, typer.Option(min=1, help="Photos of each unseen target that emask is given; peers take the first.")
    ] = 1,
    target_min_photos: Annotated[
        int | None,
        typer.Option(min=2, help="Photos that an unseen target has at least. [default: those given and another one]"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look, not a figure to quote: 30 photos, 4 unseen targets, 1 built-in.")
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A built-in target; repeatable; none: unseen ones only. [default: all]"),
    ] = None,
    target_others: Annotated[
        Path | None, typer.Option(help="Folder with another photo NAME.jpg of built-in targets.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="emask, or a peer as pgd, tip-im, sibling; or nothing, grey-square: baselines. "
            "Repeatable: all on the same photos, side by side. [default: emask]"
        ),
    ] = None,
    surrogate: Annotated[
        list[str] | None, typer.Option(help="A peer's white box; repeatable. [default: those of the fold]")
    ] = None,
    white_boxes: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of peers' white boxes and recognizers.json. [default: --recognizers]"),
    ] = None,
    classifier: options.Classifier = None,
    advfaces: options.AdvFacesFile = None,
    fold: Annotated[
        Fold, typer.Option(help="Recognizers that are white boxes to peers; those of the other fold judge.")
    ] = Fold.A,
    generator: Annotated[Path | None, typer.Option(help="Generator file. [default: the one that ships]")] = None,
    key: Annotated[Path | None, typer.Option(help="Restorer file. [default: the one that ships]")] = None,
    handling: Annotated[
        list[str] | None,
        typer.Option(metavar="OPS", help="Measure again after this, as for verify --after; repeatable; all; curves."),
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=95, help="JPEG quality of the saved photos.")] = 90,
    strength: Annotated[options.Strength, typer.Option(help="How strong the mask is.")] = options.Strength.medium,
    eps: Annotated[
        float | None,
        typer.Option(min=0.0, help="L2 budget over a crop, in [-1, 1] units. [default: strength's, each peer's own]"),
    ] = None,
    refine: options.Refine = None,
    seed: Annotated[int, typer.Option(help="Decides which people are taken.")] = 0,
    sources: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Protect only photos below this folder of the data, as ffhq; one an owner will do."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run into the same --output that was interrupted.")
    ] = False,
    device: options.DeviceChoice = options.Device.auto,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for bench.json, bench.md and plots.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON document instead of the table.")] = False,
) -> None:
    """Measure masks on saved photos, by recognizers that no training saw."""
    from emask.train.threads import prepare_process

    prepare_process()
    with reporting("bench", as_json):
        from emask.bench.on_photos import PeerFiles
        from emask.bench.resume import kept_in
        from emask.paths import make_folder

        usual = QUICK if quick else FULL
        faces = usual[0] if faces is None else faces
        unseen_targets = usual[1] if unseen_targets is None else unseen_targets
        run = Bench(
            data=data, recognizers=recognizers, black_box=black_box, faces=faces, peer_faces=peer_faces,
            unseen_targets=unseen_targets, target=target, default_only=quick, target_others=target_others,
            surrogate=surrogate, white_boxes=white_boxes, peer_files=PeerFiles(classifier, advfaces), fold=fold,
            generator=generator, key=key, handling=handling, quality=quality, strength=strength.value, eps=eps,
            refine=refine, seed=seed, device=device.value, sources=sources, target_photos=target_photos,
            target_min_photos=target_min_photos,
        )  # fmt: skip
        if resume and output is None:
            raise UsageError("--resume without --output", "name the folder of the run that was interrupted with -o")
        kept = None if output is None else kept_in(output, resume)
        if output is not None:
            make_folder(output)  # what cannot be written is said before hours of work
        methods = list(dict.fromkeys(method or [EMASK]))
        measured: dict[str, Measured] = {}
        for turn, one in run.measure(methods, kept):
            measured[turn.label] = one
            if output is not None and len(methods) > 1:  # what is done is kept, whatever becomes of the next
                write({turn.method: one}, output / turn.label)
        text, table = write(measured, output)
        if kept is not None:
            shutil.rmtree(kept, ignore_errors=True)
        print(text if as_json else table)


@dataclass(frozen=True)
class Measured:
    """What one method gave: its JSON document, what it cost, and the cosines behind the rates."""

    document: dict[str, Any]
    cost: dict[str, Any]
    similarities: dict[str, np.ndarray]


@dataclass(frozen=True)
class Turn:
    """What is measured at a time.

    Attributes:
        label: how it is called, and its folder.
        method: measured on the first `photos`, or on all.
    """

    label: str
    method: str
    photos: int | None = None


def turns(methods: Sequence[str], photos: int, few: int | None) -> list[Turn]:
    """What is measured, in order.

    Args:
        methods: by name.
        photos: that there are.
        few: photos to compare the methods on; None takes all, as does a number that there are no more of.
    """
    from emask.bench.sidebyside import ALL

    if few is None or few >= photos:
        return [Turn(name, name) for name in methods]
    # emask on all of them comes last: what it leaves in memory is no part of what the others are compared by
    return [*(Turn(name, name, few) for name in methods), Turn(ALL, EMASK)]


def write(measured: dict[str, Measured], output: Path | None) -> tuple[str, str]:
    """JSON and Markdown of a run, and what belongs beside them, in a folder as well unless None.

    Args:
        measured: by label of the turn.
    """
    import json

    from emask.bench import sidebyside
    from emask.bench.resume import COSINES, cosines_file
    from emask.bench.table import render
    from emask.images import write_files

    measured = dict(measured)
    whole = {EMASK: one} if (one := measured.pop(sidebyside.ALL, None)) is not None else {}
    single = len(measured) == 1
    documents = {name: one.document for name, one in measured.items()}
    costs = {name: one.cost for name, one in measured.items()}
    first = next(iter(measured.values()))
    on_all = {name: one.document for name, one in whole.items()}
    several = {"methods": documents, **({sidebyside.ALL: on_all} if whole else {})}
    text = json.dumps(first.document if single else several, indent=1)
    table = render(first.document) if single else sidebyside.render(documents, costs, on_all)
    if output is not None:
        if whole:
            costs[sidebyside.ALL] = {name: one.cost for name, one in whole.items()}
        files: dict[str, bytes | None] = {
            "bench.json": text.encode() + b"\n",
            "bench.md": table.encode(),
            "cost.json": json.dumps(costs, indent=1).encode() + b"\n",
        }
        if single:
            files |= {COSINES: cosines_file(first.similarities), **pictures(first)}
        else:
            files["methods.png"] = sidebyside.plot(documents)
        write_files(output, files)
    return text, table


def pictures(one: Measured) -> dict[str, bytes | None]:
    """By file name, the plots that a method's figures allow, as PNG; None for those they do not."""
    from emask.bench import histograms, robustness

    return {
        "handling.png": robustness.plot(one.document),
        "similarities.png": histograms.of_run(one.document, one.similarities),
    }


@dataclass(frozen=True)
class Bench:
    """The photo protocol with exported models and peers; attributes as the command's options."""

    data: Path
    recognizers: Path
    black_box: list[str] | None
    faces: int
    unseen_targets: int
    target: list[str] | None
    default_only: bool
    target_others: Path | None
    surrogate: list[str] | None
    peer_files: PeerFiles
    fold: Fold
    generator: Path | None
    key: Path | None
    handling: list[str] | None
    quality: int
    strength: str
    eps: float | None
    refine: int | None
    seed: int
    device: str
    sources: str | None = None
    peer_faces: int | None = None
    white_boxes: Path | None = None
    target_photos: int = 1
    target_min_photos: int | None = None

    def measure(self, methods: Sequence[str], kept: Path | None = None) -> Iterator[tuple[Turn, Measured]]:
        """Each of `turns`, with the same targets and judges, on the same photos or the first of them.

        Args:
            methods: by name.
            kept: folder where what is done is kept, and taken from; None does without.

        Raises:
            EmaskError: for methods, data, recognizers, targets or models that cannot be used.
        """
        import sys
        import tempfile

        from tqdm import tqdm

        from emask import weights
        from emask.bench import protocol
        from emask.bench.cost import timed
        from emask.bench.doubts import doubts
        from emask.bench.methods import method_names
        from emask.bench.on_photos import PEER_NAMES, TRAINED
        from emask.bench.resume import KeptParts, versions
        from emask.face.detect import Detector
        from emask.handling import choose
        from emask.recognize import load_folder
        from emask.recognize.cards import folder_cards
        from emask.train.prepare import DEFAULT_FOLD, open_surrogates

        handlings = choose(self.handling or [], "--handling")
        for name in methods:
            if name not in method_names():
                raise UsageError(f"no method named {name!r}", f"there are: {', '.join(method_names())}")
            self.peer_files.of(name)
        if self.peer_faces is not None and (EMASK not in methods or len(methods) < 2):
            hint = "add --method emask and another one; for fewer photos altogether: --faces"
            raise UsageError("--peer-faces is for emask beside other methods", hint)
        if EMASK in methods:  # what is wrong with them is said before recognizers are opened
            weights.strength(self.strength)
            self._files()
        cards = folder_cards(self.recognizers)
        trained = [c.name for c in cards if c.fold == DEFAULT_FOLD]
        offered = cards if self.white_boxes is None else folder_cards(self.white_boxes)
        white_box = self.surrogate or [c.name for c in offered if c.fold == self.fold.value]
        names = self.black_box or [c.name for c in cards if c.fold == self.fold.other.value]
        if not names:
            hint = "name some with --black-box"
            raise UsageError(f"no recognizer of fold {self.fold.other.value} in {self.recognizers}", hint)
        peers = [name for name in methods if name in PEER_NAMES and name not in TRAINED]
        if peers and not white_box:
            where = f"in {self.white_boxes or self.recognizers} for {peers[0]}"
            hint = "name some with --surrogate, or their folder with --white-boxes"
            raise UsageError(f"no recognizer of fold {self.fold.value} {where}", hint)
        surrogates = open_surrogates(self.white_boxes or self.recognizers, white_box) if peers else []
        ready = {name: self._prepare(name, surrogates) for name in methods}
        judges = load_folder(self.recognizers, names, self.device)
        detector = Detector(device=self.device)  # type: ignore[arg-type]
        default = str(weights.manifest().get("targets", {}).get("default", ""))
        builtin = self._targets(detector, [default] if self.default_only and default else weights.target_names())
        bars: dict[str, tqdm[Any]] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = tqdm(total=total, desc=what, disable=not sys.stderr.isatty(), file=sys.stderr)
            bars[what].update(done - bars[what].n)

        try:
            selection = protocol.select(
                self.data, self.faces, self.unseen_targets, self.seed, detector, progress, self.sources,
                self.target_photos, self.target_min_photos,
            )  # fmt: skip
            with tempfile.TemporaryDirectory(prefix="emask-bench-") as folder:
                ground = protocol.survey(selection, judges, Path(folder), detector, self.quality, progress=progress)
            for turn in turns(methods, len(selection.sources), self.peer_faces):
                measured, settings, files = ready[turn.method]
                prefix = f"{turn.label}: " if len(methods) > 1 else ""
                few = turn.photos
                mine = selection if few is None else replace(selection, sources=selection.sources[:few])
                after = handlings if few is None else []
                watched, cost = timed(measured)
                head: dict[str, Any] = {
                    "settings": {
                        "method": turn.method, "faces": few or self.faces, "unseen_targets": self.unseen_targets,
                        "target_photos": self.target_photos, "target_min_photos": self.target_min_photos,
                        "quality": self.quality, "subsampling": "4:2:0", "seed": self.seed, "sources": self.sources,
                        **settings,
                    },
                    "models": {k: {"file": path.name, "sha256": weights.sha256(path)} for k, path in files.items()},
                    "judges": {
                        r.name: {"file": r.card.file.name, "sha256": weights.sha256(r.card.file)} for r in judges
                    },
                    "versions": versions(),
                }  # fmt: skip
                run = {
                    **head, "photos": selection.fingerprint(), "default": default, "handlings": [h.name for h in after],
                    "targets": [(t.name, *(p.fingerprint() if p else "" for p in (t.given, t.other))) for t in builtin],
                }  # fmt: skip
                parts = None if kept is None else KeptParts(kept, run)
                similarities: dict[str, np.ndarray] = {}
                with tempfile.TemporaryDirectory(prefix="emask-bench-") as folder:
                    result = protocol.run(
                        watched,
                        mine,
                        builtin,
                        judges,
                        Path(folder),
                        detector,
                        quality=self.quality,
                        default_target=default if default in {t.name for t in builtin} else None,
                        handlings=after,
                        progress=lambda what, done, total, prefix=prefix: progress(prefix + what, done, total),  # type: ignore[misc]
                        similarities=similarities,
                        parts=parts,
                        ground=ground if few is None else ground.first(few),
                    )
                document = {
                    "version": 1,
                    "protocol": "photo",
                    **head,
                    "warnings": doubts(result, trained if turn.method == EMASK else settings.get("surrogates", ())),
                    **result,
                }  # fmt: skip
                spent = {what: of.to_json() for what, of in cost.items()}
                yield turn, Measured(document, spent if parts is None else parts.cost(spent), similarities)
        finally:
            for bar in bars.values():
                bar.close()

    def _files(self) -> dict[str, Path]:
        """emask's model files.

        Raises:
            ModelError: a shipped one is missing or damaged.
        """
        from emask.weights import shipped_path

        return {
            "generator": self.generator or shipped_path("generator"),
            "restorer": self.key or shipped_path("restorer"),
            "recognizer": shipped_path("recognizer"),
        }

    def _prepare(self, name: str, surrogates: list[Surrogate]) -> tuple[Method, dict[str, Any], dict[str, Path]]:
        """A method, its settings for the document, and the model files it uses."""
        from emask import weights
        from emask.bench.methods import baseline, emask_method, parameters, peer_method, peer_of
        from emask.bench.on_photos import PEER_NAMES
        from emask.bench.peers.advfaces import AdvFaces
        from emask.engine import masking_engine
        from emask.engine.refine import Refinement

        if name in PEER_NAMES:
            peer = peer_of(name, self.eps, self.peer_files)
            names = [surrogate.card.name for surrogate in surrogates]
            if isinstance(peer, AdvFaces):
                names = list(peer.generator.surrogates)
            described = {"surrogates": names, "parameters": parameters(peer)}
            looked_through = {surrogate.card.name: surrogate.card.file for surrogate in surrogates}
            return peer_method(peer, surrogates), described, {**self.peer_files.of(name), **looked_through}
        if name != EMASK:
            return baseline(name), {}, {}
        w, eps = weights.strength(self.strength)
        eps = eps if self.eps is None else self.eps
        steps = weights.refinement(self.strength) if self.refine is None else self.refine
        files = self._files()
        engine = masking_engine(steps, self.device, self.generator, self.key)  # type: ignore[arg-type]
        if steps and (refiner := weights.refiner_path()) is not None:
            files = {**files, weights.REFINER: refiner}
        settings = {"strength": self.strength, "w": w, "eps": eps, "refine": steps, "engine": engine.name}
        if steps:
            settings["refining"] = asdict(Refinement(steps=steps))
        return emask_method(engine, w, eps), settings, files

    def _targets(self, detector: Detector, usual: Sequence[str]) -> list[Target]:
        """The built-in targets named, or else the usual ones.

        Raises:
            UsageError: none and others together, or none and no unseen ones either; a target that cannot be used.
        """
        from emask import weights
        from emask.bench import protocol
        from emask.images import load_photo

        found = []
        if self.target and NO_TARGET in self.target:
            if len(self.target) > 1 or not self.unseen_targets:
                raise UsageError(f"--target {NO_TARGET} leaves no target", "it goes with unseen targets, and by itself")
            return []
        for name in self.target or usual:
            paths = [weights.find_target(name) if self.target else weights.built_in_target(name)]
            other = None if self.target_others is None else self.target_others / f"{Path(name).stem}.jpg"
            if other is not None and other.is_file():
                paths.append(other)
            located = protocol.locate([p.name for p in paths], [load_photo(p).pixels for p in paths], detector)
            if located[0] is None:
                raise UsageError(f"no face found in the target {name}")
            found.append(protocol.Target(Path(name).stem, located[0], located[1] if len(located) > 1 else None))
        names = [target.name for target in found]
        if len(set(names)) < len(names) or protocol.UNSEEN in names:
            hint = f'give the files names of their own; "{protocol.UNSEEN}" is taken'
            raise UsageError(f"targets of the same name, or of one that is taken: {', '.join(names)}", hint)
        return found
