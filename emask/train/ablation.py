"""What each part of the method is worth: the same short training with one part changed at a time, in one table.

    python -m emask.train.ablation --data DIR --recognizers DIR --preset small --run runs/ablation [--seeds 0 1 2]

Every variant begins with the same stage 1, draws from the same seed and makes as many steps. Judged by `Validation`:
people and recognizers that are in no training. The target is the preset's: `small` ends with one built-in target, of
which the picture trained on judges; with people as targets it is people never trained, and another photo of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from emask.bench.table import markdown_table
from emask.errors import TrainingError, as_program
from emask.images import write_bytes
from emask.train.config import TrainConfig, preset, without_curriculum
from emask.train.threads import prepare_process

# By name: what differs from the preset. The names are the flags of `emask train`.
VARIANTS: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    "as the preset": lambda config: config,
    "--attack meta": lambda config: replace(config, attack="meta"),
    "--attack meta-first-order": lambda config: replace(config, attack="meta-first-order"),
    "--attack ensemble": lambda config: replace(config, attack="ensemble"),
    "--injection 0": lambda config: replace(config, injection=0.0),
    "--noise none": lambda config: replace(config, noise=("none",)),
    "--no-curriculum": without_curriculum,
    "--no-critic": lambda config: replace(config, weights=replace(config.weights, critic=0.0)),
    "--no-owner-term": lambda config: replace(config, weights=replace(config.weights, owner=0.0)),
}
# Columns of the table: scores of `Validation` in percent, and in dB.
SHARES, DECIBELS = ("asr", "dodge", "reverify"), ("psnr", "psnr-restored")


def variants(config: TrainConfig) -> dict[str, TrainConfig]:
    """Each variant's settings; those that change nothing of this preset are left out."""
    made = {name: change(config) for name, change in VARIANTS.items()}
    return {name: made[name] for name in made if name == "as the preset" or made[name] != config}


def table(rows: Sequence[dict[str, object]]) -> str:
    """The Markdown table of rows as `main` collects them, one line a variant and seed; clean baselines come first."""
    figures = [*(f"{name} (%)" for name in SHARES), *(f"{name} (dB)" for name in DECIBELS)]
    head = ["variant", "seed", "steps", "minutes", *figures]
    lines = []
    for row in rows:
        scores = row["scores"]
        assert isinstance(scores, dict)
        lines.append(
            [str(row["variant"]), str(row["seed"]), str(row["steps"]), f"{row['minutes']:.1f}"]
            + [f"{100 * scores[name]:.1f}" for name in SHARES]
            + [f"{scores[name]:.1f}" if name in scores else "" for name in DECIBELS]
        )
    return "\n".join(markdown_table(head, lines))


@as_program
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m emask.train.ablation`."""
    parser = argparse.ArgumentParser(prog="python -m emask.train.ablation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of photos")
    parser.add_argument("--recognizers", type=Path, required=True, help="folder with recognizers.json")
    parser.add_argument("--preset", default="small", help="settings in steps, so that variants compare")
    parser.add_argument("--run", type=Path, default=Path("runs/ablation"), help="folder for the variants' runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="some of the variants, by flag and value without dashes")
    parser.add_argument("--resume", action="store_true", help="go on: keep what the run has done")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    rows = _run(options)
    print(table(rows))
    return 0


def _run(options: argparse.Namespace) -> list[dict[str, object]]:
    from platformdirs import user_cache_path

    from emask.train.place import join
    from emask.train.prepare import open_recognizers, open_surrogates, open_validation, prepare
    from emask.train.run import check_before, run_stages
    from emask.weights import models_dir

    config = preset(options.preset)
    if config.steps is None:
        raise TrainingError(f"preset {options.preset} is timed", "variants compare by steps: give it steps")
    wanted = variants(config)
    if options.only:
        # without dashes: to argparse a word like --no-critic is an option of this program
        wanted = {name: made for name, made in wanted.items() if name.lstrip("-") in options.only}
        if not wanted:
            raise TrainingError("no such variant", f"there are: {', '.join(name.lstrip('-') for name in VARIANTS)}")
    results = options.run / "ablation.json"
    settings = json.loads(json.dumps(config.to_dict()))
    rows = _kept(results, settings) if options.resume else None
    check_before(options.run, (), None)
    place = join(options.device)
    surrogates = [surrogate.to(place.device) for surrogate in open_surrogates(options.recognizers, None)]
    cache = user_cache_path("emask") / "training"
    recognizers = open_recognizers(config, place)
    targets = models_dir() / "targets"
    prepared = prepare(options.data, surrogates, targets, cache, config, place, recognizers=recognizers)
    validation = open_validation(prepared, options.recognizers, surrogates, config)
    if validation is None:
        raise TrainingError("nobody judges", "an ablation needs recognizers that are no surrogates")

    def quiet(number: int) -> Callable[[float, str], None]:
        return lambda share, line: None

    def write(rows: list[dict[str, object]]) -> None:
        write_bytes(results, json.dumps({"settings": settings, "rows": rows}, indent=1).encode(), force=True)

    if rows is None:
        for old in options.run.glob("seed*/stage1.pt"):  # may be of other settings; from now on they count as these
            old.unlink()
        rows = []
        write(rows)
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed in options.seeds:
        first = options.run / f"seed{seed}"
        first.mkdir(exist_ok=True)
        # one that is there may be half trained
        run_stages((1,), prepared.training, (), replace(config, seed=seed), place, first, quiet, resume=True)
        for name, changed in wanted.items():
            if (name, seed) in done:
                continue
            folder = first / name.replace("--", "").replace(" ", "-")
            folder.mkdir(exist_ok=True)
            shutil.copy(first / "stage1.pt", folder / "stage1.pt")
            began = time.monotonic()
            made = run_stages(
                (2, 3), prepared.training, surrogates, replace(changed, seed=seed), place, folder, quiet,
                recognizers=recognizers,
            )  # fmt: skip
            scores = validation.score(
                made.modules["generator"], made.modules["restorer"], changed.phases[-1].eps, place.device, changed.bf16
            )
            if not rows:
                clean = {name: scores[f"{name}-clean"] for name in SHARES}
                rows.append({"variant": "clean photos", "seed": "", "steps": "", "minutes": 0.0, "scores": clean})
            minutes = (time.monotonic() - began) / 60
            rows.append({"variant": name, "seed": seed, "steps": sum(config.steps[1:]), "minutes": minutes,
                         "scores": scores})  # fmt: skip
            print(f"{name}, seed {seed}: done in {minutes:.1f} min", file=sys.stderr, flush=True)
            write(rows)
    return rows


def _kept(results: Path, settings: dict[str, object]) -> list[dict[str, object]] | None:
    """The rows of an earlier run; None where there has been none.

    Raises:
        TrainingError: they are of other settings.
    """
    if not results.is_file():
        return None
    try:
        kept = json.loads(results.read_text(encoding="utf-8"))
    except ValueError:
        kept = None
    if not isinstance(kept, dict) or kept.get("settings") != settings:
        hint = "name the preset it began with, another folder with --run, or begin anew without --resume"
        raise TrainingError(f"{results} is of other settings", hint)
    rows: list[dict[str, object]] = kept["rows"]
    return rows


if __name__ == "__main__":
    prepare_process()
    sys.exit(main())
