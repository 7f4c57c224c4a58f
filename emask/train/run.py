"""A whole run: the stages in turn, each beginning with what the one before left in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emask.errors import TrainingError, UsageError
from emask.nets.blocks import fold_norms
from emask.nets.discriminator import Discriminator
from emask.paths import make_folder
from emask.train.checkpoint import load
from emask.train.config import TrainConfig
from emask.train.dataset import TrainingSet
from emask.train.export import COMMANDS, checkpoint_of, editor_from, generator_from, restorer_from
from emask.train.loop import Report, Run, run_stage
from emask.train.place import Place
from emask.train.stage import Setting, Stage
from emask.train.stage1 import EditingStage
from emask.train.stage2 import MaskStage
from emask.train.stage3 import RestorerStage
from emask.train.surrogates import Surrogate
from emask.train.validation import Validation
from emask.weights import shipped_path

NEEDS_STAGE_1 = "run emask train --stage 1 first, or go on from trained weights with --start-from"


def check_before(
    folder: Path, stages: Sequence[int], start_from: Path | None, resume: bool = False, force: bool = False
) -> None:
    """Refuse a run that cannot work, or would cost another, before minutes go into preparing it; make its folder.

    Args:
        force: checkpoints that are there may be lost.

    Raises:
        TrainingError: what the first stage or stage 2 begins with is not there, or checkpoints would be lost:
            start_from whether forced or not.
        EmaskError: the folder cannot be written.
        ModelError: start_from holds a damaged model.
        UsageError: start_from without stage 2.
    """
    if tuple(stages) == (2,) and start_from is None and not (folder / "stage1.pt").exists():
        raise TrainingError(f"{folder / 'stage1.pt'} does not exist", NEEDS_STAGE_1)
    if start_from is not None and 2 not in stages:
        raise UsageError("--start-from is what stage 2 begins with", "leave it out, or train stage 2 as well")
    if start_from is not None:
        starting_weights(start_from)
    make_folder(folder, "--run")
    lost = _lost(folder, stages, resume)
    if start_from is not None and any(path.samefile(start_from) for path in lost):
        raise TrainingError(f"{start_from} would be replaced on the way", "name another folder with --run")
    if not force:
        refuse_to_replace(lost, "go on with --resume, name another folder with --run, or begin anew with --force")


def _lost(folder: Path, stages: Sequence[int], resume: bool) -> list[Path]:
    """Checkpoints that are there and will not be: those of stages that begin anew, and of all stages after them."""
    paths = {number: folder / f"stage{number}.pt" for number in (1, 2, 3)}
    anew = [number for number in stages if not (resume and paths[number].exists())]
    return [path for number, path in paths.items() if anew and number >= anew[0] and path.exists()]


def refuse_to_replace(checkpoints: Sequence[Path], hint: str) -> None:
    """Refuse what would cost checkpoints.

    Raises:
        TrainingError: one is there.
    """
    there = [str(path) for path in checkpoints if path.exists()]
    if there:
        raise TrainingError(f"{', '.join(there)} would be lost", hint)


def starting_weights(start_from: Path) -> dict[str, Any]:
    """Generator and restorer of a stage-2 or stage-3 checkpoint, or of a folder of exported models.

    Raises:
        TrainingError: it holds none.
        ModelError: a model is damaged or of another version.
    """
    hint = "--start-from takes a stage2.pt or stage3.pt, or a folder of models"
    if start_from.is_dir():
        models = start_from / "generator.onnx", start_from / "restorer.onnx"
        for path in models:
            if not path.is_file():
                raise TrainingError(f"{path} does not exist", hint)
        return checkpoint_of(*models)
    state = load(start_from, hint)
    if not {"generator", "restorer"} <= state.keys():
        raise TrainingError(f"{start_from} holds no generator and restorer", hint)
    return state


def note_command(folder: Path, options: Mapping[str, object], anew: bool = False) -> None:
    """Add to the run's `commands.txt` how it is trained, for the manifest of what is exported from it.

    Args:
        options: of `emask train`, by name; those that are None or False are left out, as is where things lie.
        anew: forget what was noted before: another run begins in this folder.
    """
    words = ["emask train"]
    for name, value in options.items():
        if value is not None and value is not False:
            words.append(f"--{name}" if value is True else f"--{name} {value}")
    with (folder / COMMANDS).open("w" if anew else "a", encoding="utf-8") as file:
        file.write(" ".join(words) + "\n")


def open_stage(
    number: int, setting: Setting, folder: Path, start_from: Path | None = None,
    say: Callable[[str], None] = lambda line: None, edited: bool = False,
) -> Stage:  # fmt: skip
    """A stage with the weights it begins with; the arguments are those of `run_stages`.

    Args:
        edited: whether the run's stage 1 has gone on from `start_from`, too, so that stage 2 takes its E and D.

    Raises:
        TrainingError: the folder lacks what the stage begins with.
    """
    if number == 1:
        return EditingStage(setting, None if start_from is None else editor_from(starting_weights(start_from)))
    if number == 2:
        return _mask_stage(setting, folder, start_from, edited, say)
    return _restorer_stage(setting, folder, say)


def run_stages(
    stages: Sequence[int], data: TrainingSet, surrogates: Sequence[Surrogate], config: TrainConfig, place: Place,
    folder: Path, report: Callable[[int], Report], *, validation: Validation | None = None, resume: bool = False,
    start_from: Path | None = None, say: Callable[[str], None] = lambda line: None,
    recognizers: Sequence[nn.Module] = (),
) -> Stage:  # fmt: skip
    """Train stages in turn; returns the last of them.

    Args:
        stages: of 1, 2 and 3, in this order.
        data: on the CPU; it goes to the place's device.
        surrogates: on the place's device.
        folder: the run's; it exists.
        report: gives a stage's report by its number.
        start_from: trained weights: stage 1 goes on from their E and D, stage 2 from the rest; for the curriculum see
            `config.climbed`.
        say: told what a user should know.
        recognizers: on the place's device; see `Setting`.

    Raises:
        TrainingError: a stage lacks what it begins with, or a checkpoint cannot be written.
    """
    setting = Setting(data.to(place.device), config, place, surrogates, recognizers)
    for number in stages:
        stage = open_stage(number, setting, folder, start_from, say, 1 in stages)
        run_stage(stage, Run(folder, report(number) if place.first else _silent, validation, resume))
        if place.world > 1:  # the next stage reads what the first process has written
            place.agree(0.0)
    return stage


def _silent(share: float, line: str) -> None:
    """What further processes report."""


def _mask_stage(
    setting: Setting, folder: Path, start_from: Path | None, edited: bool, say: Callable[[str], None]
) -> MaskStage:
    if start_from is not None and not (folder / "stage1.pt").exists():
        if setting.config.edits > 0:
            raise TrainingError("nobody judges edits without stage 1", "run emask train --stage 1 first, or edits = 0")
        say("no stage1.pt in the run: the critic begins anew")
        weights = starting_weights(start_from)
        torch.manual_seed(setting.config.seed)  # in all processes the same critic, whatever has been drawn before
        return MaskStage(setting, editor_from(weights), Discriminator(setting.config.net.attributes), weights)
    state = load(folder / "stage1.pt", NEEDS_STAGE_1)
    if "discriminator" not in state:
        raise TrainingError(f"{folder / 'stage1.pt'} is of an older version", NEEDS_STAGE_1)
    discriminator = Discriminator(setting.config.net.attributes)
    discriminator.load_state_dict(state["discriminator"])
    if start_from is None:
        return MaskStage(setting, editor_from(state), discriminator)
    # the sizes of the networks are those of the weights, whatever the preset says
    weights = starting_weights(start_from)
    if edited:
        editor = editor_from(state)
        fold_norms(editor)
        weights["generator"] = moved(weights["generator"], editor.state_dict())
    return MaskStage(setting, editor_from(weights), discriminator, weights)


def moved(generator: dict[str, Tensor], editor: dict[str, Tensor]) -> dict[str, Tensor]:
    """A generator's weights with E and D as stage 1 has trained them further.

    E_p and the protected decoder once were copies of E and D; they move by as much, which keeps the difference that
    makes the mask.

    Args:
        generator: state of a `Generator`.
        editor: state of an `Editor` with folded norms that went on from that generator's.
    """
    changed = dict(generator)
    for name, value in editor.items():
        part, rest = name.split(".", 1)
        copy = {"encoder": "perturbation_encoder", "decoder": "protected_decoder"}[part] + "." + rest
        changed[name] = value
        changed[copy] = generator[copy] + (value - generator[name])
    return changed


def _restorer_stage(setting: Setting, folder: Path, say: Callable[[str], None]) -> RestorerStage:
    if (folder / "stage2.pt").exists():
        state = load(folder / "stage2.pt", "")
    else:
        say("no stage2.pt in the run: going on from the models that ship")
        state = checkpoint_of(shipped_path("generator"), shipped_path("restorer"))
    return RestorerStage(setting, generator_from(state), restorer_from(state))
