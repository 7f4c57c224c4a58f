"""`emask train`: the three-stage curriculum, and the distillation of the recognizer."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from emask.errors import TrainingError, UsageError


class StageName(str, Enum):
    """What to train."""

    one = "1"
    two = "2"
    three = "3"
    all = "all"
    recognizer = "recognizer"


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
        list[str] | None, typer.Option(help="A surrogate's name, repeatable [default: those of fold A].")
    ] = None,
    run: Annotated[Path, typer.Option(help="Folder for checkpoints and loss tables.")] = Path("runs/default"),
    preset: Annotated[str, typer.Option(help="Settings: cpu, polish or smoke.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's checkpoint.")] = False,
    max_minutes: Annotated[float | None, typer.Option(help="Wall-clock limit for all the stages named.")] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(help="Begin stage 2 with these weights: a stage-2 or stage-3 checkpoint, or a folder of models."),
    ] = None,
) -> None:
    """Train the mask: attribute editing (1), mask and restorer (2), restorer alone (3).

    Each stage takes the one before from the run folder; stage 3 without one goes on from the models that ship.
    `--stage recognizer` distils the project's own recognizer from the surrogates. People of the test folds are never
    used.
    """
    from emask.train.threads import prepare_process

    prepare_process()
    from dataclasses import replace

    from platformdirs import user_cache_path
    from tqdm import tqdm

    from emask.train import config as presets
    from emask.train import loop
    from emask.train.prepare import open_surrogates, prepare
    from emask.weights import models_dir, shipped_path

    config = presets.preset(preset)
    stages = (1, 2, 3) if stage is StageName.all else () if stage is StageName.recognizer else (int(stage.value),)
    if max_minutes is not None and stages:
        wanted = sum(config.minutes[s - 1] for s in stages)
        if max_minutes < wanted:
            first, second, third = (m * max_minutes / wanted for m in config.minutes)
            config = replace(config, minutes=(first, second, third))
    data_folder = find_folder(data, "EMASK_DATA", DATA_PLACES, "--data")
    recognizer_folder = find_folder(recognizers, "EMASK_RECOGNIZERS", RECOGNIZER_PLACES, "--recognizers")
    if stages == (2,) and not (run / "stage1.pt").exists():
        raise TrainingError(f"{run / 'stage1.pt'} does not exist", "run emask train --stage 1 first")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make {run}: {error.strerror}", "name another folder with --run") from error
    surrogates = open_surrogates(recognizer_folder, surrogate)
    cache = user_cache_path("emask") / "training"
    bar: tqdm | None = None

    def progress(what: str, done: int, count: int) -> None:
        nonlocal bar
        if bar is None or bar.desc.removesuffix(": ") != what:
            bar = tqdm(total=count, desc=what, unit="photo", disable=None)
        bar.update(done - bar.n)
        if done == count:
            bar.close()

    if stage is StageName.recognizer:
        _recognizer(data_folder, surrogates, cache, run, max_minutes or 25.0, config.seed, progress)
        return
    training_set = prepare(data_folder, surrogates, models_dir() / "targets", cache, config.bf16, progress)
    typer.echo(
        f"{len(training_set.pixels)} crops, {len(set(training_set.people.tolist()))} people, "
        f"surrogates {', '.join(s.card.name for s in surrogates)}",
        err=True,
    )

    def reporter(number: int) -> Callable[[float, str], None]:
        shape = "{l_bar}{bar}| {elapsed}<{remaining}"
        stage_bar = tqdm(total=100, desc=f"stage {number}", bar_format=shape, disable=None)

        def report(share: float, line: str) -> None:
            stage_bar.update(min(100.0, 100 * share) - stage_bar.n)
            stage_bar.write(line)

        return report

    from emask.train.export import checkpoint_of, editor_of, generator_from, restorer_from

    for number in stages:
        report = reporter(number)
        if number == 1:
            loop.stage1(training_set, config, run, resume, report)
        elif number == 2:
            state = loop.load(run / "stage1.pt", "run --stage 1 first")
            editor = editor_of(state)
            editor.load_state_dict(state["editor"])
            if start_from is not None and start_from.is_dir():
                exported = checkpoint_of(start_from / "generator.onnx", start_from / "restorer.onnx")
                start_from = run / "start.pt"
                loop.save(start_from, exported)
            loop.stage2(training_set, surrogates, editor.eval(), config, run, resume, report, start_from)
        else:
            if (run / "stage2.pt").exists():
                state = loop.load(run / "stage2.pt", "")
            else:
                typer.echo("no stage2.pt in the run: going on from the models that ship", err=True)
                state = checkpoint_of(shipped_path("generator"), shipped_path("restorer"))
            g, restorer = generator_from(state), restorer_from(state)
            loop.stage3(training_set, surrogates, g, restorer.train(), config, run, resume, report)
    typer.echo(f"done: {run}. Next: emask export {run}")


def _recognizer(
    data: Path, teachers: list, cache: Path, run: Path, minutes: float, seed: int,
    progress: Callable[[str, int, int], None],
) -> None:  # fmt: skip
    import numpy as np

    from emask.train.data import load_crops
    from emask.train.distill import DistillConfig, TeacherSpace, distill, embed_all

    crops = load_crops(data, cache, lambda done, count: progress("finding faces", done, count))
    space = TeacherSpace(teachers)
    space.fit(embed_all(space, crops, np.flatnonzero(~crops.test)))
    distill(crops, space, DistillConfig(seed=seed), minutes, run / "recognizer.pt", typer.echo)
    typer.echo(f"done: {run / 'recognizer.pt'}. Next: emask export {run}")
