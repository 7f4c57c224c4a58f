"""The three stages on a handful of smooth pictures and tiny surrogates: they learn, refuse and export."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from emask.engine import open_engine
from emask.errors import EmaskError, TrainingError
from emask.nets.blocks import fold_norms
from emask.nets.generator import Generator
from emask.nets.recognizer import Recognizer
from emask.train import checkpoint, export, watch
from emask.train.config import Phase, TrainConfig, Weights
from emask.train.dataset import Batch, TrainingSet
from emask.train.loop import Run, run_stage
from emask.train.place import Place
from emask.train.run import open_stage, run_stages, starting_weights
from emask.train.stage import Setting, Stage
from emask.train.surrogates import Surrogate

OpenStage = Callable[..., Stage]


def quiet(number: int) -> Callable[[float, str], None]:
    return lambda share, line: None


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two networks' weights are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_every_stage_leaves_a_checkpoint_with_finite_weights(run: Path, tiny_config: TrainConfig) -> None:
    assert tiny_config.steps is not None
    for number, name in ((1, "editor"), (2, "generator"), (3, "restorer")):
        state = checkpoint.load(run / f"stage{number}.pt", "")
        assert state["step"] == tiny_config.steps[number - 1]
        assert all(torch.isfinite(value).all() for value in state[name].values())
        assert state["config"] == tiny_config.net.to_dict()


def test_every_stage_leaves_its_table_and_pictures(run: Path) -> None:
    terms = {1: {"reconstruction", "editing", "realism", "wasserstein", "classifier"}}
    terms[2] = {"adversarial", "owner", "perturbation", "roughness", "critic", "cos1", "cos2", "psnr", "pixels"}
    terms[3] = {"pixels", "identity", "away"}
    for number in (1, 2, 3):
        columns = watch.read_columns(run / f"stage{number}.csv")
        assert terms[number] <= columns.keys() and all(np.isfinite(columns[name]).all() for name in terms[number])
        assert (run / f"stage{number}-samples.png").stat().st_size > 1000
    assert not list(run.glob("*.partial"))


def test_curves_are_drawn_where_matplotlib_is(run: Path) -> None:
    pytest.importorskip("matplotlib")
    assert all((run / f"stage{number}-curves.png").stat().st_size > 1000 for number in (1, 2, 3))


def test_stage_two_leaves_encoder_and_decoder_as_they_were(run: Path) -> None:
    state = checkpoint.load(run / "stage1.pt", "")
    editor = export.editor_of(state)
    editor.load_state_dict(state["editor"])
    before = Generator(editor.eval()).state_dict()
    after = checkpoint.load(run / "stage2.pt", "")["generator"]
    frozen = [k for k in after if k.startswith(("encoder.", "decoder."))]
    assert frozen
    for key in frozen:
        torch.testing.assert_close(after[key], before[key])
    for part in ("perturbation_encoder.", "protected_decoder.", "modulation.", "fusion"):
        assert any(not torch.equal(after[k], before[k]) for k in after if k.startswith(part)), part


def test_stage_three_trains_the_restorer_alone(run: Path) -> None:
    second, third = (checkpoint.load(run / f"stage{number}.pt", "") for number in (2, 3))
    assert same(third["generator"], second["generator"])
    assert any(not torch.equal(value, second["restorer"][key]) for key, value in third["restorer"].items())


def test_the_same_seed_gives_the_same_run_and_another_another(
    stage_of: OpenStage, run: Path, tiny_config: TrainConfig, tmp_path: Path, one_thread: None
) -> None:
    restorers = []
    for seed in (0, 0, 1):
        run_stage(stage_of(3, replace(tiny_config, seed=seed)), Run(tmp_path))
        restorers.append(checkpoint.load(tmp_path / "stage3.pt", "")["restorer"])
    assert same(restorers[0], restorers[1]) and not same(restorers[0], restorers[2])


# --- the mask is learned


@pytest.fixture(scope="module")
def learned(
    training_set: TrainingSet, surrogates: list[Surrogate], tiny_config: TrainConfig, run: Path
) -> tuple[Generator, Generator, list[float]]:
    """A generator before and after stage 2 on one target, and the adversarial term of every step."""
    only = replace(
        tiny_config,
        steps=(4, 40, 1),
        lr=(1e-3, 1e-2, 1e-3),
        phases=(Phase(1.0, 1, 0, 0.0, 15.0, False),),
        weights=Weights(owner=0.0, roughness=0.0, critic=0.0),
        noise=("none",),  # what a step draws would be larger than what forty steps learn
    )
    setting = Setting(training_set, only, Place(), surrogates)
    untrained, stage = (open_stage(2, setting, run) for _ in range(2))
    terms = [stage.step(step / 40)["adversarial"].item() for step in range(40)]
    generators = untrained.modules["generator"], stage.modules["generator"]
    assert isinstance(generators[0], Generator) and isinstance(generators[1], Generator)
    return *generators, terms


def test_the_adversarial_term_falls(learned: tuple[Generator, Generator, list[float]]) -> None:
    terms = learned[2]
    assert np.mean(terms[30:]) < 0.9 * np.mean(terms[:10])


def test_mask_moves_the_surrogates_toward_the_target(
    training_set: TrainingSet, surrogates: list[Surrogate], learned: tuple[Generator, Generator, list[float]]
) -> None:
    """The twin: the same network before training leaves the similarity where it was."""
    data = training_set

    def similarity(generator: Generator) -> float:
        crop = data.crops(torch.arange(4, len(data)), torch.zeros(len(data) - 4, dtype=torch.bool))
        zeros = torch.zeros(len(crop), 13)
        with torch.no_grad():
            target = data.target_identity[:1].expand(len(crop), -1)
            change = generator(crop, target, zeros, zeros, torch.zeros(len(crop)), torch.full((len(crop),), 15.0))
            seen = surrogates[0](crop + change)
        return float((seen @ data.target_surrogate[0][0]).mean())

    untrained, trained, _ = learned
    clean = float((data.surrogate[0][4:] @ data.target_surrogate[0][0]).mean())
    assert similarity(untrained) == pytest.approx(clean, abs=1e-4)
    assert similarity(trained) > clean + 0.02


# --- what stands in the way of a run


def test_missing_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="does not exist") as caught:
        checkpoint.load(tmp_path / "stage1.pt", "run --stage 1 first")
    assert caught.value.hint == "run --stage 1 first"


def test_stage_two_without_stage_one_says_what_to_do(stage_of: OpenStage, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"stage1\.pt does not exist") as caught:
        stage_of(2, folder=tmp_path)
    assert "--stage 1" in caught.value.hint


@pytest.mark.parametrize("kept", [0, 1000, -1000])
def test_damaged_checkpoint_is_one_line(run: Path, stage_of: OpenStage, tmp_path: Path, kept: int) -> None:
    (tmp_path / "stage2.pt").write_bytes((run / "stage2.pt").read_bytes()[:kept])
    with pytest.raises(TrainingError, match="damaged") as caught:
        stage_of(3, folder=tmp_path)
    assert "\n" not in caught.value.message and caught.value.hint
    (tmp_path / "stage2.pt").write_text("no checkpoint at all")
    with pytest.raises(TrainingError, match="no checkpoint of emask"):
        stage_of(3, folder=tmp_path)


def test_a_checkpoint_of_other_networks_is_not_gone_on_from(
    stage_of: OpenStage, run: Path, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    shutil.copy(run / "stage1.pt", tmp_path)
    wider = replace(tiny_config, net=replace(tiny_config.net, widths=(8, 8, 8, 8)))
    with pytest.raises(TrainingError, match="other networks") as caught:
        run_stage(stage_of(1, wider), Run(tmp_path, resume=True))
    assert "--resume" in caught.value.hint
    # a checkpoint that holds less, as an older version's
    state = checkpoint.load(run / "stage1.pt", "")
    del state["sampler"]
    checkpoint.save(tmp_path / "stage1.pt", state)
    with pytest.raises(TrainingError, match="other networks"):
        run_stage(stage_of(1), Run(tmp_path, resume=True))


def test_the_number_of_surrogates_does_not_change_on_the_way(stage_of: OpenStage, run: Path) -> None:
    state = checkpoint.load(run / "stage2.pt", "")
    state["extra"]["adaptive"]["means"] = torch.ones(3)
    with pytest.raises(TrainingError, match="3 surrogates, not 2"):
        stage_of(2).restore(state)


def test_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stage1.pt"
    checkpoint.save(path, {"step": 1})

    def full(state: object, file: Path) -> None:
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="No space left") as caught:
        checkpoint.save(path, {"step": 2})
    assert "--resume" in caught.value.hint
    assert checkpoint.load(path, "")["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_without_room_is_found_out_before_the_first_step(
    stage_of: OpenStage, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(3)
    real = (run / "stage3.pt").stat().st_size
    assert 0.7 * real < stage.size() < 1.1 * real  # of networks this small a good part is names and random numbers
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=stage.size() - 1))
    with pytest.raises(TrainingError, match="a checkpoint takes") as caught:
        run_stage(stage, Run(tmp_path))
    assert "--run" in caught.value.hint and not stage.step_count and not list(tmp_path.iterdir())


def test_tables_and_pictures_that_cannot_be_written_do_not_end_a_run(
    stage_of: OpenStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(watch, "append_row", full)
    monkeypatch.setattr(watch, "sample_grid", full)
    lines: list[str] = []
    run_stage(stage_of(3), Run(tmp_path, lambda share, line: lines.append(line)))
    assert [path.name for path in tmp_path.iterdir()] == ["stage3.pt"]
    assert sum("No space left" in line for line in lines) == 2


def test_a_run_that_comes_apart_keeps_its_last_good_checkpoint(stage_of: OpenStage, tmp_path: Path) -> None:
    stage = stage_of(2)
    losses = stage.losses

    def worse(batch: Batch, progress: float) -> dict[str, Tensor]:
        terms = losses(batch, progress)
        return terms | {"owner": terms["owner"] * (float("nan") if stage.step_count == 3 else 1.0)}

    stage.losses = worse  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="came apart before step 4: owner is no number") as caught:
        run_stage(stage, Run(tmp_path, save_every=0.0))
    assert "--resume" in caught.value.hint
    assert checkpoint.load(tmp_path / "stage2.pt", "")["step"] == 3


def test_without_any_labels_none_are_made_up(
    training_set: TrainingSet, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    """By a classifier that was never told anything."""
    unknown = replace(training_set, labels=torch.zeros_like(training_set.labels))
    run_stages((1,), unknown, (), tiny_config, Place(), tmp_path, quiet)
    assert not checkpoint.load(tmp_path / "stage1.pt", "")["extra"]["labels"].any()


def test_a_critic_of_ones_own_is_drawn_from_the_seed(
    training_set: TrainingSet, surrogates: list[Surrogate], tiny_config: TrainConfig, tmp_path: Path, run: Path
) -> None:
    """Whatever was drawn before: processes that share a batch do not begin alike."""
    critics = []
    for seed, before in ((0, 1), (0, 2), (5, 1)):
        torch.manual_seed(before)
        setting = Setting(training_set, replace(tiny_config, edits=0.0, seed=seed), Place(), surrogates)
        stage = open_stage(2, setting, tmp_path, start_from=run / "stage3.pt")
        critics.append(stage.modules["discriminator"].state_dict())
    assert same(critics[0], critics[1]) and not same(critics[0], critics[2])


def test_the_time_that_is_left_is_told(stage_of: OpenStage, tiny_config: TrainConfig, tmp_path: Path) -> None:
    lines: list[str] = []
    timed = replace(tiny_config, steps=None, minutes=(60.0, 60.0, 60.0))
    stage = stage_of(3, timed)
    checkpoint.save(tmp_path / "stage3.pt", stage.state(elapsed=3590.0))

    def report(share: float, line: str) -> None:
        lines.append(line)
        if len(lines) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(stage_of(3, timed), Run(tmp_path, report, resume=True, save_every=0.0))
    assert lines[0].endswith("crops/s  0 min left")


# --- export, and training that begins with exported graphs


def test_export_agrees_with_torch_and_the_engine_loads_it(run: Path, tmp_path: Path) -> None:
    whole = tmp_path / "run"
    shutil.copytree(run, whole)
    torch.save({"student": Recognizer().state_dict(), "step": 1}, whole / "recognizer.pt")
    strengths = {"medium": {"w": 0.0, "eps": 12.0}}
    kinds = export.export_run(whole, tmp_path / "models", strengths)
    assert sorted(kinds) == ["generator", "recognizer", "restorer"]
    engine = open_engine(*(tmp_path / "models" / f"{kind}.onnx" for kind in ("generator", "restorer", "recognizer")))
    crops = np.random.default_rng(0).uniform(-1, 1, (2, 3, 128, 128)).astype(np.float32)
    target = engine.embed(crops[:1, :, 8:120, 8:120])[0]
    change = engine.protect(crops, target, w=0.0, eps=12.0)
    state = checkpoint.load(run / "stage3.pt", "")
    zeros = torch.zeros(2, 13)
    with torch.no_grad():
        expected = export.generator_from(state)(
            torch.from_numpy(crops), torch.from_numpy(target)[None].expand(2, -1), zeros, zeros,
            torch.zeros(2), torch.full((2,), 12.0),
        )  # fmt: skip
    np.testing.assert_allclose(change, expected.numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run's models."""
    folder = tmp_path_factory.mktemp("models")
    export.export_run(run, folder)
    return folder


def test_exported_graphs_hold_the_checkpoints_weights(run: Path, exported: Path) -> None:
    again = starting_weights(exported)
    state = checkpoint.load(run / "stage3.pt", "")
    for kind in ("generator", "restorer"):
        assert again[kind].keys() == state[kind].keys()
        for name, value in again[kind].items():
            torch.testing.assert_close(value, state[kind][name], atol=1e-6, rtol=0)


def test_stage_two_begins_with_exported_graphs_or_a_checkpoint(
    training_set: TrainingSet, surrogates: list[Surrogate], tiny_config: TrainConfig, run: Path, exported: Path
) -> None:
    """The sizes of the networks are those of the weights; the discriminator is stage 1's."""
    wider = replace(tiny_config, net=replace(tiny_config.net, widths=(8, 8, 8, 8)))
    setting = Setting(training_set, wider, Place(), surrogates)
    state = checkpoint.load(run / "stage3.pt", "")
    trained = checkpoint.load(run / "stage1.pt", "")["discriminator"]
    for start in (exported, run / "stage3.pt"):
        stage = open_stage(2, setting, run, start_from=start)
        for kind in ("generator", "restorer"):
            for name, value in stage.modules[kind].state_dict().items():
                torch.testing.assert_close(value, state[kind][name], atol=1e-6, rtol=0)
        assert same(stage.modules["discriminator"].state_dict(), trained)
        stage.step(0.6)
        assert stage.state(0.0)["config"] == tiny_config.net.to_dict()
    with pytest.raises(TrainingError, match="no generator and restorer"):
        open_stage(2, setting, run, start_from=run / "stage1.pt")


def test_equal_weights_come_back_from_an_export(
    training_set: TrainingSet, surrogates: list[Surrogate], tiny_config: TrainConfig, run: Path, tmp_path: Path
) -> None:
    """Of constants that are equal, as an untrained network's zeros are, an exported graph keeps one."""
    stage = open_stage(2, Setting(training_set, tiny_config, Place(), surrogates), run)
    state = stage.state(0.0)
    checkpoint.save(tmp_path / "stage2.pt", state)
    export.export_run(tmp_path, tmp_path / "models")
    again = export.checkpoint_of(tmp_path / "models/generator.onnx", tmp_path / "models/restorer.onnx")
    for kind in ("generator", "restorer"):
        for name, value in again[kind].items():
            torch.testing.assert_close(value, state[kind][name], atol=1e-6, rtol=0)


def test_stage_two_goes_on_from_weights_where_no_stage_one_has_been(
    training_set: TrainingSet, surrogates: list[Surrogate], tiny_config: TrainConfig, run: Path, exported: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """With a critic of its own; edits would be judged by a classifier that nobody trained, and are refused."""
    setting = Setting(training_set, replace(tiny_config, edits=0.0), Place(), surrogates)
    stage = open_stage(2, setting, tmp_path, start_from=exported)
    state = checkpoint.load(run / "stage3.pt", "")
    for name, value in stage.modules["generator"].state_dict().items():
        torch.testing.assert_close(value, state["generator"][name], atol=1e-6, rtol=0)
    before = {name: value.clone() for name, value in stage.modules["discriminator"].state_dict().items()}
    stage.step(0.6)
    assert not same(stage.modules["discriminator"].state_dict(), before)
    edited = Setting(training_set, replace(tiny_config, edits=0.5), Place(), surrogates)
    with pytest.raises(TrainingError, match="nobody judges edits"):
        open_stage(2, edited, tmp_path, start_from=exported)
    with pytest.raises(TrainingError, match=r"stage1\.pt"):
        open_stage(2, setting, tmp_path)


def test_a_whole_run_goes_on_from_trained_weights(
    training_set: TrainingSet, surrogates: list[Surrogate], tiny_config: TrainConfig, run: Path, tmp_path: Path
) -> None:
    """Stage 1 trains E and D further; stage 2 takes these, and moves what were copies of them by as much."""
    start = run / "stage3.pt"
    setting = Setting(training_set, tiny_config, Place(), surrogates)
    old = checkpoint.load(start, "")["generator"]
    begun = open_stage(1, setting, tmp_path, start_from=start).modules["editor"].eval()
    before = export.editor_from({"config": tiny_config.net.to_dict(), "generator": old})
    crop, labels = torch.rand(2, 3, 128, 128) * 2 - 1, torch.rand(2, 13) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(begun(crop, labels), before(crop, labels), atol=1e-4, rtol=1e-4)

    run_stages((1,), training_set, surrogates, tiny_config, Place(), tmp_path, quiet, start_from=start)
    editor = export.editor_from(checkpoint.load(tmp_path / "stage1.pt", ""))
    fold_norms(editor)
    stage = open_stage(2, setting, tmp_path, start_from=start, edited=True)
    begun = stage.modules["generator"].state_dict()
    for name, value in editor.state_dict().items():
        part, rest = name.split(".", 1)
        copy = {"encoder": "perturbation_encoder", "decoder": "protected_decoder"}[part]
        assert torch.equal(begun[name], value) and not torch.equal(value, old[name])
        torch.testing.assert_close(begun[f"{copy}.{rest}"] - value, old[f"{copy}.{rest}"] - old[name])
    for name in begun:
        if name.startswith(("modulation.", "fusion")):
            assert torch.equal(begun[name], old[name])


def test_stage_three_alone_begins_with_the_models_that_ship(
    training_set: TrainingSet, surrogates: list[Surrogate], tiny_config: TrainConfig, run: Path, exported: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("EMASK_MODELS_DIR", str(exported))
    said: list[str] = []
    run_stages((3,), training_set, surrogates, tiny_config, Place(), tmp_path, quiet, say=said.append)
    assert len(said) == 1 and "models that ship" in said[0]
    before, after = (checkpoint.load(folder / "stage3.pt", "") for folder in (run, tmp_path))
    for name, value in after["generator"].items():
        torch.testing.assert_close(value, before["generator"][name], atol=1e-6, rtol=0)
    assert not same(after["restorer"], before["restorer"])


def test_export_refuses_what_disagrees(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    net = export.restorer_from(checkpoint.load(run / "stage3.pt", ""))
    with pytest.raises(EmaskError, match="differ"):
        export.to_onnx(net, "restorer", tmp_path / "restorer.onnx", 128)
    assert list(tmp_path.iterdir()) == []


def test_an_export_appears_whole_or_not_at_all(
    run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported, tmp_path / "models")
    before = {path.name: path.read_bytes() for path in (tmp_path / "models").iterdir()}
    monkeypatch.setattr(export, "_difference", lambda net, kind, *rest: 1.0 if kind == "restorer" else 0.0)
    with pytest.raises(EmaskError, match="restorer: .* differ"):
        export.export_run(run, tmp_path / "models", {"low": {"w": 0.0, "eps": 1.0}})
    assert {path.name: path.read_bytes() for path in (tmp_path / "models").iterdir()} == before


@pytest.mark.skipif(os.name != "posix", reason="modes")
def test_exported_files_have_the_modes_the_user_wants(run: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        export.export_run(run, tmp_path / "models")
    finally:
        os.umask(before)
    files = list((tmp_path / "models").iterdir())
    assert len(files) == 3 and {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_where_nothing_can_be_exported_to(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmaskError, match="cannot write to") as caught:
        export.export_run(run, tmp_path / "file")
    assert caught.value.hint and caught.value.exit_code == 1
    (tmp_path / "manifest.json").write_text('{"version": 1, "mod')
    with pytest.raises(EmaskError, match="cannot read") as caught:
        export.export_run(run, tmp_path)
    assert caught.value.hint and caught.value.exit_code == 5
    with pytest.raises(EmaskError, match="no trained weights"):
        export.export_run(tmp_path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_figures_go_with_the_file_they_were_measured_on(tmp_path: Path) -> None:
    models = tmp_path / "models"
    first, second = (Recognizer().state_dict() for _ in range(2))

    def exported_again(weights: dict[str, Tensor], **more: object) -> dict[str, object]:
        torch.save({"student": weights}, tmp_path / "recognizer.pt")
        export.export_run(tmp_path, models)
        manifest = json.loads((models / "manifest.json").read_text())
        entry: dict[str, object] = manifest["models"]["recognizer"]
        (models / "manifest.json").write_text(
            json.dumps({**manifest, "models": {"recognizer": {**entry, **more}}, "note": "mine"})
        )
        return entry

    exported_again(first, thresholds={"0.01": 0.3}, lfw_accuracy=0.99)
    same_file = exported_again(first)
    assert same_file["thresholds"] == {"0.01": 0.3} and same_file["lfw_accuracy"] == 0.99
    other = exported_again(second)
    assert not {"thresholds", "lfw_accuracy"} & other.keys() and other["training"] == "emask train --stage recognizer"
    assert json.loads((models / "manifest.json").read_text())["note"] == "mine"
