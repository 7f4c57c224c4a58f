"""`emask train`: a whole small run on photos, and what it refuses before minutes go into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emask.attributes import ATTRIBUTES
from emask.bench import refining
from emask.cli.app import main
from emask.train import ablation, checkpoint, speed
from emask.train.config import climbed, preset
from emask.train.run import starting_weights
from emask.weights import models_dir

PEOPLE = Path(__file__).resolve().parents[1] / "data" / "people"
RECOGNIZERS = {"blocks-8": (8, "A"), "blocks-16": (16, "A"), "judge": (14, "B")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos each of six synthetic people."""
    folder = tmp_path_factory.mktemp("data")
    for photo in PEOPLE.glob("*.jpg"):
        name, number = photo.stem.split("_")
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{name}_000{number}.jpg").write_bytes(photo.read_bytes())
    rows = [f"{photo.name},{','.join(str(number % 2) for _ in ATTRIBUTES)}"
            for number, photo in enumerate(sorted(folder.glob("*/*.jpg")))]  # fmt: skip
    (folder / "attributes.csv").write_text("\n".join([",".join(["file", *ATTRIBUTES]), *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def recognizers(
    tmp_path_factory: pytest.TempPathFactory, make_block_recognizer: Callable[[Path, int], Path]
) -> Path:
    """Three that compare mean colours of blocks: two surrogates, and a judge with a threshold."""
    folder = tmp_path_factory.mktemp("recognizers")
    cards = []
    for name, (side, fold) in RECOGNIZERS.items():
        make_block_recognizer(folder / f"{name}.onnx", side)
        card = {"name": name, "file": f"{name}.onnx", "fold": fold, "size": [112, 112], "mean": [127.5] * 3}
        cards.append({**card, "std": [127.5] * 3, **({"threshold": {"0.01": 0.5}} if fold == "B" else {})})
    (folder / "recognizers.json").write_text(json.dumps({"recognizers": cards}), encoding="utf-8")
    return folder


@pytest.fixture
def work(
    tmp_path: Path, models: Path, data: Path, recognizers: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working directory: with links to data and recognizers where they are looked for, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMASK_DATA", str(data))
    monkeypatch.setenv("EMASK_RECOGNIZERS", str(recognizers))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache")
    return tmp_path


def test_a_whole_run_with_the_smoke_preset(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--stage", "all", "--preset", "smoke", "--run", "runs/new/smoke", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert "Next: emask export" in captured.out and "Traceback" not in captured.err
    # three of the six people are kept for validation
    assert "6 crops, 3 people, surrogates blocks-8, blocks-16, cpu" in captured.err
    run = work / "runs/new/smoke"
    for number in (1, 2, 3):
        assert all((run / f"stage{number}{end}").stat().st_size for end in (".pt", ".csv", "-samples.png"))
        assert Image.open(run / f"stage{number}-samples.png").size[1] % 128 == 0
    # the judge's figures, at the end of stages 2 and 3
    rows = [line.split(",") for line in (run / "validation.csv").read_text().splitlines()]
    assert rows[0][:4] == ["stage", "step", "minutes", "asr"] and "reverify@judge" in rows[0]
    assert [row[:2] for row in rows[1:]] == [["2", "20"], ["3", "10"]]
    assert not [path for path in run.iterdir() if path.name == ".emask-probe" or path.suffix == ".partial"]

    # what is finished stays finished; stage 2 alone goes on where stage 1 is; a changed seed is another run
    before = (run / "stage1.pt").read_bytes()
    arguments = ["--preset", "smoke", "--run", "runs/new/smoke", "--device", "cpu"]
    assert main(["train", "--stage", "3", "--resume", *arguments]) == 0
    assert main(["train", "--stage", "2", *arguments]) == 1
    assert "stage2.pt, runs/new/smoke/stage3.pt would be lost" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--stage", "2", "--force", "--attack", "meta", "--injection", "0", "--noise", "none",
                 "--no-curriculum", "--no-critic", "--no-owner-term", "--target", str(PEOPLE / "june_1.jpg"),
                 "--seed", "3", "--max-minutes", "0.05", *arguments]) == 0  # fmt: skip
    assert (run / "stage1.pt").read_bytes() == before
    assert [line.split(",")[0] for line in (run / "validation.csv").read_text().splitlines()[1:]] == ["2"]
    assert not (run / "stage3.pt").exists()  # it came from the stage 2 before

    capsys.readouterr()
    assert main(["export", "runs/new/smoke", "-o", "exported"]) == 0
    manifest = json.loads(Path("exported/manifest.json").read_text())
    first, *_, last = manifest["models"]["restorer"]["training"].split("; ")
    assert first == "emask train --stage all --preset smoke"
    assert last.startswith("emask train --stage 2 --preset smoke --target june_1.jpg --attack meta")
    assert str(work) not in manifest["models"]["generator"]["training"]
    weights = starting_weights(Path("exported"))["generator"]
    for name, value in checkpoint.load(run / "stage2.pt", "")["generator"].items():
        torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=0)
    assert {"generator.onnx", "restorer.onnx", "manifest.json"} <= {path.name for path in Path("exported").iterdir()}
    assert main(["train", "--stage", "2", "--force", "--start-from", "exported", *arguments]) == 0
    # trained weights can be sharpened for one target in a folder of their own, where no stage 1 has been
    alone = ["--preset", "smoke", "--run", "runs/sharp", "--device", "cpu", "--target", str(PEOPLE / "june_1.jpg")]
    capsys.readouterr()
    assert main(["train", "--stage", "2", "--start-from", "exported", *alone]) == 0
    assert "no stage1.pt in the run: the critic begins anew" in capsys.readouterr().err


def test_one_target_is_sharpened_for_with_nothing_else_named(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`emask train --stage 2 --target tgt.jpg`: the preset is sharpen, and the models that ship are gone on from."""
    began: dict[str, Any] = {}

    def stop(stages: object, data: object, surrogates: object, config: object, *_: object, **more: Any) -> None:
        began.update(more, config=config)
        raise KeyboardInterrupt

    monkeypatch.setattr("emask.train.run.run_stages", stop)
    monkeypatch.setattr("emask.train.run.starting_weights", lambda path: {})
    (work / "tgt.jpg").write_bytes((PEOPLE / "june_1.jpg").read_bytes())
    assert main(["train", "--stage", "2", "--target", "tgt.jpg", "--device", "cpu"]) == 130
    assert began["start_from"] == models_dir() and began["config"] == climbed(preset("sharpen"))
    assert len(began["validation"]._targets.unique(dim=0)) == 1  # judged by whether it is reached
    noted = (work / "runs/default/commands.txt").read_text()
    assert noted == f"emask train --stage 2 --preset sharpen --start-from {models_dir().name} --target tgt.jpg\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "smaller batch"), (RuntimeError("a bug"), "")],
)
def test_memory_that_runs_out_is_one_line(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("emask.train.run.run_stages", fail)
    arguments = ["train", "--stage", "1", "--preset", "smoke", "--device", "cpu"]
    if not said:
        with pytest.raises(RuntimeError, match="a bug"):
            main(arguments)
        return
    assert main(arguments) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "error: out of memory" in shown and said in shown and "--resume" in shown


def test_the_ablation_and_the_speed_report_run(
    work: Path, data: Path, recognizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--data", str(data), "--recognizers", str(recognizers), "--preset", "smoke", "--device", "cpu"]
    assert ablation.main([*folders, "--run", "runs/ablation", "--only", "as the preset", "noise none"]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[1:]] == ["| clean photos", "| as the preset", "| --noise none"]
    trained = work / "runs/ablation/seed0/noise-none/stage3.pt"
    before = trained.stat().st_mtime_ns
    arguments = [*folders, "--run", "runs/ablation", "--resume", "--only", "as the preset", "noise none"]
    assert ablation.main(arguments) == 0
    assert capsys.readouterr().out == printed and trained.stat().st_mtime_ns == before
    # one stage 1 for all variants: they differ in what comes after
    stages = {(work / f"runs/ablation/seed0/{name}/stage1.pt").read_bytes() for name in ("as-the-preset", "noise-none")}
    assert len(stages) == 1
    assert speed.main([*folders, "--steps", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    stages_timed = ["| 1", "| 2, mask alone", "| 2, restorer along", "| 3, generator's masks"]
    assert [row.split(" | ")[0] for row in rows[1:]] == stages_timed
    assert all(float(cell) > 0 for row in rows[1:] for cell in row.strip("| ").split(" | ")[1:4])


def test_the_refining_report_runs(
    work: Path, data: Path, recognizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(data), "--recognizers", str(recognizers), "--judge", "judge"]
    trials = ["--trial", "steps=2", "--trial", "steps=2,eps=4"]

    def table(*more: str) -> list[list[str]]:
        assert refining.main([*arguments, "--targets", "2", *trials, *more]) == 0
        return [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]

    lines = table()
    alone = "| the generator alone"
    assert [line[0] for line in lines] == [alone, alone, "| steps=2", "| steps=2,eps=4"]
    assert lines[0][3:] != lines[2][3:]  # refined, the judge sees something else
    assert float(lines[3][3]) > float(lines[2][3])  # dB: the smaller budget
    through = table("--through", "blocks-8", "blocks-16")
    assert through[0][3:] == lines[0][3:] and through[2][3:] != lines[2][3:]  # another way to refine, nothing else
    assert refining.main(arguments) == 1 and "more than the 8 targets" in capsys.readouterr().err


# arguments beside `train`, exit code, what the error says and what the hint
REFUSED = [
    (["--stage", "2"], 1, "stage1.pt does not exist", "emask train --stage 1"),
    (["--stage", "4"], 2, "'4'", ""),
    ([], 2, "", ""),
    (["--stage", "1", "--noise", "jpeg,grain"], 2, "unknown distortion: grain", "misalignment"),
    (["--stage", "1", "--noise", "none,jpeg"], 2, "unknown distortion: none", "on its own"),
    (["--stage", "all", "--target", "nobody.jpg"], 2, "no photo nobody.jpg", "--target"),
    (["--stage", "1", "--target", "face.jpg"], 2, "stage 1 knows no targets", "--target"),
    (["--stage", "all", "--target", "blank.png"], 1, "no face found in blank.png", "one person"),
    (["--stage", "1", "--surrogate", "blocks-8"], 1, "one surrogate", "two or more"),
    (["--stage", "1", "--surrogate", "nobody"], 1, "no recognizer named nobody", "blocks-8, blocks-16, judge"),
    (["--stage", "1", "--data", "empty"], 1, "no photos in empty", "--data"),
    (["--stage", "1", "--data", "nowhere"], 2, "no folder nowhere", "--data"),
    (["--stage", "1", "--recognizers", "nowhere"], 2, "no folder nowhere", "--recognizers"),
    (["--stage", "1", "--recognizers", "empty"], 5, "no recognizers.json", "recognizers"),
    (["--stage", "1", "--surrogate", "blocks-8", "--surrogate", "blocks-8"], 1, "one surrogate", "two or more"),
    (["--stage", "1", "--run", "face.jpg"], 1, "cannot write to face.jpg", "--run"),
    (["--stage", "1", "--run", "face.jpg/run"], 1, "cannot write to", "--run"),
    (["--stage", "1", "--preset", "huge"], 2, "no preset named 'huge'", "smoke"),
    (["--stage", "1", "--preset", "own.toml"], 2, "no setting 'batchs'", "batch"),
    (["--stage", "all", "--start-from", "nowhere"], 1, "nowhere does not exist", "stage3.pt"),
    (["--stage", "all", "--start-from", "empty"], 1, "generator.onnx does not exist", "folder of models"),
    (["--stage", "all", "--start-from", "face.jpg"], 1, "no checkpoint of emask", ""),
    (["--stage", "3", "--start-from", "face.jpg"], 2, "--start-from", "stage 2"),
    (["--stage", "1", "--attack", "both"], 2, "both", ""),
    (["--stage", "1", "--injection", "1.5"], 2, "--injection", ""),
    (["--stage", "1", "--max-minutes", "0"], 2, "max-minutes", ""),
    (["--stage", "1", "--device", "tpu"], 2, "tpu", ""),
    (["--stage", "recognizer", "--resume"], 2, "trained in one go", "--resume"),
    (["--stage", "refiner", "--device", "cuda"], 2, "trained on the CPU", "--device"),
]


@pytest.mark.parametrize(("arguments", "code", "said", "hint"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_what_cannot_be_trained_is_refused(
    work: Path, face: np.ndarray, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str,
    hint: str,
) -> None:  # fmt: skip
    (work / "empty").mkdir()
    (work / "own.toml").write_text("batchs = 3\n")
    Image.fromarray(face).save(work / "face.jpg", quality=95)
    Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(work / "blank.png")
    smoke = [] if "--preset" in arguments else ["--preset", "smoke"]
    assert main(["train", *arguments, *(smoke if arguments else [])]) == code
    captured = capsys.readouterr()
    assert said in captured.err and hint in captured.err and "Traceback" not in captured.err
    if said:
        assert len([line for line in captured.err.splitlines() if line.startswith("error:")]) == 1
    assert not list(work.rglob("*.pt"))


@pytest.mark.parametrize(("stage", "file"), [("all", "stage2.pt"), ("recognizer", "recognizer.pt")])
def test_a_run_is_not_written_over(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stage: str, file: str
) -> None:
    def begin(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("emask.train.prepare.open_surrogates", begin)
    (work / "runs/default").mkdir(parents=True)
    (work / "runs/default" / file).touch()
    arguments = ["train", "--stage", stage, "--preset", "smoke"]
    assert main(arguments) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"runs/default/{file} would be lost" in said and "--force" in said
    assert main([*arguments, "--force"]) == 130  # by then it has begun
    assert main([*arguments, "--run", "runs/other"]) == 130


def test_without_folders_the_usual_places_are_named(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EMASK_DATA")
    assert main(["train", "--stage", "1"]) == 2
    assert "no --data given" in capsys.readouterr().err


def test_an_interrupted_run_says_so(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("emask.train.prepare.open_surrogates", stop)
    assert main(["train", "--stage", "1", "--preset", "smoke"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_refiner_needs_a_teacher_of_its_form(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--stage", "refiner", "--max-minutes", "0.01", "--run", "runs/r", "--device", "cpu"]) != 0
    assert "none of the surrogates is a MobileFaceNet of the refiner's form" in capsys.readouterr().err
    assert not (work / "runs" / "r" / "refiner.pt").exists()
