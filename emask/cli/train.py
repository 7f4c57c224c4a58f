"""`emask train`: the three-stage curriculum, and the distillation of the recognizer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emask.cli.options import Device, DeviceChoice
from emask.errors import TrainingError, UsageError, device_failure

if TYPE_CHECKING:
    from tqdm import tqdm


class StageName(str, Enum):
    """What to train."""

    one = "1"
    two = "2"
    three = "3"
    all = "all"
    recognizer = "recognizer"
    refiner = "refiner"


class AttackName(str, Enum):
    """How the surrogates are attacked."""

    meta = "meta"
    first_order = "meta-first-order"
    ensemble = "ensemble"


# Where photos and recognizers are looked for when no option and no variable names them.
DATA_PLACES = ("data", "../shared/data")
RECOGNIZER_PLACES = ("recognizers", "../shared/recognizers")


def find_folder(option: Path | None, variable: str, places: tuple[str, ...], flag: str) -> Path:
    """A folder from the option, else from the environment, else the first usual place that exists.

    Raises:
        UsageError: when there is none.
    """
    named = option or (Path(os.environ[variable]) if os.environ.get(variable) else None)
    if named is not None:
        if not named.is_dir():
            raise UsageError(f"no folder {named}", f"name one with {flag}")
        return named
    for place in places:
        if Path(place).is_dir():
            return Path(place)
    raise UsageError(f"no {flag} given and none of {', '.join(places)} exists", f"name a folder with {flag}")


def train(
    stage: Annotated[StageName, typer.Option(help="Which stage; all runs 1, 2 and 3 in turn.")],
    data: Annotated[Path | None, typer.Option(help="Folder of photos [default: $EMASK_DATA, data/].")] = None,
    recognizers: Annotated[
        Path | None,
        typer.Option(help="Folder of surrogates with recognizers.json [default: $EMASK_RECOGNIZERS, recognizers/]."),
    ] = None,
    surrogate: Annotated[
        list[str] | None,
        typer.Option(
            help="A surrogate's name, or facenet-vggface2, or facenet-casia-webface; repeatable "
            "[default: those of fold A]."
        ),
    ] = None,
    run: Annotated[Path, typer.Option(help="Folder for checkpoints, tables and pictures.")] = Path("runs/default"),
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings: cpu, gpu, paper, polish, replay, sharpen, small, smoke, or a .toml file "
            "[default: cpu; sharpen for --stage 2 --target]."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's checkpoints.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Begin anew where the run has checkpoints; later stages' go as well.")
    ] = False,
    max_minutes: Annotated[
        float | None, typer.Option(help="Wall-clock limit for all the stages named.", min=0.01)
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(help="Go on from these weights: a stage-2 or stage-3 checkpoint, or a folder of models."),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(
            help="A photo: train for this target in the place of the built-in ones; with --stage 2 in a run without "
            "a stage 1 it goes on from the models that ship."
        ),
    ] = None,
    attack: Annotated[AttackName | None, typer.Option(help="How surrogates are attacked [default: preset's].")] = None,
    injection: Annotated[
        float | None, typer.Option(help="Largest weight of the clean decoding in training.", min=0.0, max=1.0)
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help="Operations of the noise pool, with commas between; or all, or none.")
    ] = None,
    no_curriculum: Annotated[bool, typer.Option("--no-curriculum", help="All targets from the first step.")] = False,
    no_critic: Annotated[bool, typer.Option("--no-critic", help="No critic in stage 2.")] = False,
    no_owner_term: Annotated[bool, typer.Option("--no-owner-term", help="Do not move away from the owner.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and of all that is drawn.")] = None,
    device: DeviceChoice = Device.auto,
) -> None:
    """Train the mask: attribute editing (1), mask and restorer (2), restorer alone (3).

    Each stage takes the one before from the run folder; stage 3 without one goes on from the models that ship.
    `--stage recognizer` distils the project's own recognizer from the surrogates, `--stage refiner` the one that masks
    are refined through. People of the test folds are never used. Several GPUs: torchrun --nproc-per-node N -m emask
    train ...
    """
    from emask.train.threads import prepare_process

    prepare_process()
    from dataclasses import replace

    from platformdirs import user_cache_path

    from emask.train import config as settings
    from emask.train.labels import check_labels
    from emask.train.noise import choose_pool
    from emask.train.place import join
    from emask.train.prepare import open_recognizers, open_surrogates, open_validation, prepare
    from emask.train.run import check_before, note_command, refuse_to_replace, run_stages
    from emask.weights import models_dir

    sharpened = stage is StageName.two and target is not None
    preset = preset or ("sharpen" if sharpened else "cpu")
    if sharpened and start_from is None and not (run / "stage1.pt").exists():
        start_from = models_dir()
    config = settings.preset(preset)
    distilled = stage in (StageName.recognizer, StageName.refiner)
    stages = (1, 2, 3) if stage is StageName.all else () if distilled else (int(stage.value),)
    if max_minutes is not None and stages:
        config = settings.shortened(config, max_minutes, stages)
    changes: dict[str, Any] = {}
    if attack is not None:
        changes["attack"] = attack.value
    if injection is not None:
        changes["injection"] = injection
    if noise is not None:
        changes["noise"] = tuple(name.strip() for name in noise.split(","))
    if seed is not None:
        changes["seed"] = seed
    weights = config.weights
    if no_critic:
        weights = replace(weights, critic=0.0)
    if no_owner_term:
        weights = replace(weights, owner=0.0)
    config = replace(config, weights=weights, **changes)
    if start_from is not None:
        config = settings.climbed(config)
    if no_curriculum:
        config = settings.without_curriculum(config)
    choose_pool(config.noise)  # unknown names are refused before anything is loaded
    if target is not None and not target.is_file():
        raise UsageError(f"no photo {target}", "name the photo of one person with --target")
    if target is not None and stages == (1,):
        raise UsageError("stage 1 knows no targets", "leave out --target")
    if distilled and resume:
        raise UsageError(f"--stage {stage.value} is trained in one go", "leave out --resume")
    if distilled and device is Device.cuda:
        raise UsageError(f"--stage {stage.value} is trained on the CPU", "leave out --device")
    data_folder = find_folder(data, "EMASK_DATA", DATA_PLACES, "--data")
    recognizer_folder = find_folder(recognizers, "EMASK_RECOGNIZERS", RECOGNIZER_PLACES, "--recognizers")
    check_before(run, stages, start_from, resume, force)
    if distilled and not force:
        hint = "name another folder with --run, or begin anew with --force"
        refuse_to_replace([run / f"{stage.value}.pt"], hint)
    surrogates = open_surrogates(recognizer_folder, surrogate, 1 if stage is StageName.refiner else 2)
    cache = user_cache_path("emask") / "training"
    bars = _Bars()
    if distilled:
        _distil(stage, data_folder, surrogates, cache, run, max_minutes, config.seed, bars.progress)
        return
    if 1 in stages:
        for line in check_labels(data_folder):
            typer.echo(line, err=True)
    place = join(device.value)
    surrogates = [surrogate.to(place.device) for surrogate in surrogates]
    portraits = target or models_dir() / "targets"
    own = open_recognizers(config, place) if 3 in stages else []
    prepared = prepare(data_folder, surrogates, portraits, cache, config, place, bars.progress, own)
    if place.first:
        named = {
            "stage": stage.value, "preset": Path(preset).name, "start-from": start_from and start_from.name,
            "target": target and target.name, "attack": attack and attack.value, "injection": injection, "noise": noise,
            "no-curriculum": no_curriculum, "no-critic": no_critic, "no-owner-term": no_owner_term, "seed": seed,
            "max-minutes": max_minutes, "resume": resume,
        }  # fmt: skip
        note_command(run, named, anew=1 in stages and not resume)
        typer.echo(
            f"{len(prepared.training)} crops, {len(set(prepared.training.people.tolist()))} people, "
            f"surrogates {', '.join(s.card.name for s in surrogates)}, {place.device}",
            err=True,
        )
    validation = None
    if place.first and stages != (1,):
        validation = open_validation(
            prepared, recognizer_folder, surrogates, config, place.choice, built_in=sharpened
        )
    try:
        run_stages(
            stages, prepared.training, surrogates, config, place, run, bars.stage, validation=validation, resume=resume,
            start_from=start_from, say=lambda line: typer.echo(line, err=True), recognizers=own,
        )  # fmt: skip
    except (RuntimeError, MemoryError) as error:
        failure = device_failure(error)
        if failure is None:
            raise
        hint = "take a preset with a smaller batch" if "memory" in failure.message else failure.hint
        raise TrainingError(failure.message, f"{hint}; --resume goes on from the last checkpoint") from error
    if place.first:
        typer.echo(f"done: {run}. Next: emask export {run}")


class _Bars:
    """Progress bars on standard error, where that is a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._what = ""  # a bar that is not shown does not know what it is for

    def progress(self, what: str, done: int, count: int) -> None:
        """A bar of photos for a piece of preparation."""
        from tqdm import tqdm

        if self._bar is None or self._what != what:
            self._what = what
            self._bar = tqdm(total=count, desc=what, unit="photo", disable=None)
        self._bar.update(done - self._bar.n)
        if done == count:
            self._bar.close()

    def stage(self, number: int) -> Callable[[float, str], None]:
        """A bar for a stage: share done, time spent and time left, with lines of losses above it."""
        from tqdm import tqdm

        shape = "{l_bar}{bar}| {elapsed}<{remaining}"
        bar = tqdm(total=100, desc=f"stage {number}", bar_format=shape, disable=None)

        def report(share: float, line: str) -> None:
            if not bar.disable and bar.n == bar.initial == 0:  # what an earlier run did took this one no time
                bar.initial = bar.n = min(100.0, 100 * share)
            bar.update(min(100.0, 100 * share) - bar.n)
            bar.write(line, file=sys.stderr)
            if share >= 1:
                bar.close()

        return report


def _distil(
    stage: StageName, data: Path, teachers: list, cache: Path, run: Path, minutes: float | None, seed: int,
    progress: Callable[[str, int, int], None],
) -> None:  # fmt: skip
    import numpy as np

    from emask import weights
    from emask.engine import open_engine
    from emask.nets.recognizer import COMPACT, WIDE
    from emask.train.data import load_crops
    from emask.train.distill import DistillConfig, TeacherSpace, distill, embed_all, fits, generator_masks

    form, config, masked = COMPACT, DistillConfig(seed=seed), None
    if stage is StageName.refiner:  # said before faces are looked for
        form, config = WIDE, DistillConfig(seed=seed, batch=40)
        teachers = [teacher for teacher in teachers if fits(teacher, form)][:1]
        if not teachers:
            hint = "name another with --surrogate"
            raise TrainingError("none of the surrogates is a MobileFaceNet of the refiner's form", hint)
    crops = load_crops(data, cache, lambda done, count: progress("finding faces", done, count))
    if stage is StageName.refiner:
        shipped = weights.shipped_path
        masked = generator_masks(open_engine(shipped("generator"), None, shipped("recognizer"), "cpu"), crops, seed)
    minutes = minutes or (25.0 if form is COMPACT else 70.0)
    space = TeacherSpace(teachers)
    space.fit(embed_all(space, crops, np.flatnonzero(~crops.test)), form.embedding)
    place = run / f"{stage.value}.pt"
    distill(crops, space, config, minutes, place, typer.echo, form, masked)
    typer.echo(f"done: {place}. Next: emask export {run}")
