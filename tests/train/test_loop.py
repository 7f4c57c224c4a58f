"""The three stages on a handful of smooth pictures and tiny surrogates: they learn, resume, refuse and export."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emask.engine import open_engine
from emask.errors import EmaskError, TrainingError, UsageError
from emask.nets.generator import NetConfig
from emask.nets.recognizer import Recognizer
from emask.train import export, loop
from emask.train.config import PRESETS, Phase, TrainConfig, Weights, preset
from emask.train.loop import TrainingSet
from emask.train.prepare import embed_crops
from emask.train.surrogates import Surrogate

N = 24


@pytest.fixture(scope="module")
def data(surrogates: list[Surrogate]) -> TrainingSet:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((N, 3, 9, 9))).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(128, 128), mode="bicubic").clamp(0, 1)
    pixels = (smooth * 255).byte().permute(0, 2, 3, 1).numpy().copy()
    embedded = embed_crops(surrogates, pixels, bf16=False)
    identity = torch.nn.functional.normalize(torch.randn(N, 256), dim=1)
    labels = torch.from_numpy(rng.choice([-1.0, 1.0], (N, 13))).float()
    return TrainingSet(
        pixels, np.arange(N) // 2, labels, identity, embedded, identity[:2], [e[:2].clone() for e in embedded]
    )


def config(**changes: object) -> TrainConfig:
    base = TrainConfig(
        net=NetConfig(widths=(4, 8, 8, 8), hidden=16),
        batch=4,
        bf16=False,
        phases=(Phase(0.5, 1, 0, 0.0, 15.0, False), Phase(1.0, 2, 100, 0.5, 14.0, True)),
        steps=(4, 8, 4),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def quiet(share: float, line: str) -> None:
    return None


@pytest.fixture(scope="module")
def run(data: TrainingSet, surrogates: list[Surrogate], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    editor = loop.stage1(data, config(), folder, False, quiet)
    generator, restorer = loop.stage2(data, surrogates, editor.eval(), config(), folder, False, quiet)
    loop.stage3(data, surrogates, generator, restorer, config(), folder, False, quiet)
    return folder


def test_every_stage_leaves_a_checkpoint_with_finite_weights(run: Path) -> None:
    for number, name in ((1, "editor"), (2, "generator"), (3, "restorer")):
        state = loop.load(run / f"stage{number}.pt", "")
        assert state["step"] > 0
        assert all(torch.isfinite(value).all() for value in state[name].values())


def test_stage_two_leaves_encoder_and_decoder_as_they_were(run: Path) -> None:
    state = loop.load(run / "stage1.pt", "")
    editor = export.editor_of(state)
    editor.load_state_dict(state["editor"])
    before = loop.Generator(editor.eval()).state_dict()
    after = loop.load(run / "stage2.pt", "")["generator"]
    frozen = [k for k in after if k.startswith(("encoder.", "decoder."))]
    assert frozen
    for key in frozen:
        torch.testing.assert_close(after[key], before[key])
    assert any(not torch.equal(after[k], before[k]) for k in after if k.startswith("perturbation_encoder."))


def test_stage_three_trains_the_restorer_alone(run: Path) -> None:
    second, third = loop.load(run / "stage2.pt", ""), loop.load(run / "stage3.pt", "")
    assert all(torch.equal(value, second["generator"][key]) for key, value in third["generator"].items())
    assert any(not torch.equal(value, second["restorer"][key]) for key, value in third["restorer"].items())


def test_mask_moves_the_surrogates_toward_the_target(
    data: TrainingSet, surrogates: list[Surrogate], tmp_path: Path
) -> None:
    """The twin: the same network before training leaves the similarity where it was."""
    only = config(
        steps=(4, 40, 1),
        lr=(1e-3, 1e-2, 1e-3),
        phases=(Phase(1.0, 1, 0, 0.0, 15.0, False),),
        weights=Weights(owner=0.0, roughness=0.0, chroma=0.0, critic=0.0),
    )
    editor = loop.stage1(data, only, tmp_path, False, quiet).eval()
    untrained = loop.Generator(editor)
    trained, _ = loop.stage2(data, surrogates, editor, only, tmp_path, False, quiet)

    def similarity(generator: loop.Generator) -> float:
        crop = loop.to_float(data.pixels[4:])
        batch = len(crop)
        zeros = torch.zeros(batch, 13)
        with torch.no_grad():
            target = data.target_identity[:1].expand(batch, -1)
            change = generator(crop, target, zeros, zeros, torch.zeros(batch), torch.full((batch,), 15.0))
            seen = surrogates[0](crop + change)
        return float((seen @ data.target_surrogate[0][0]).mean())

    clean = float((data.surrogate[0][4:] @ data.target_surrogate[0][0]).mean())
    assert similarity(untrained) == pytest.approx(clean, abs=1e-4)
    assert similarity(trained) > clean + 0.02


def test_resume_goes_on_from_the_checkpoint(
    data: TrainingSet, surrogates: list[Surrogate], run: Path, tmp_path: Path
) -> None:
    (tmp_path / "stage1.pt").write_bytes((run / "stage1.pt").read_bytes())
    (tmp_path / "stage2.pt").write_bytes((run / "stage2.pt").read_bytes())
    before = loop.load(tmp_path / "stage2.pt", "")
    state = loop.load(run / "stage1.pt", "")
    editor = export.editor_of(state)
    editor.load_state_dict(state["editor"])
    longer = config(steps=(4, before["step"] + 3, 4))
    loop.stage2(data, surrogates, editor.eval(), longer, tmp_path, True, quiet)
    after = loop.load(tmp_path / "stage2.pt", "")
    assert after["step"] == before["step"] + 3
    assert after["elapsed"] > before["elapsed"]


def test_loss_table_has_a_header_and_numbers(run: Path, tmp_path: Path) -> None:
    table = loop.LossTable(tmp_path / "t.csv", resume=False)
    table.add({"a": torch.tensor(1.0)})
    table.add({"a": torch.tensor(3.0)})
    assert table.flush(2, loop.Clock(1)) == "a 2.000"
    rows = list(csv.reader((tmp_path / "t.csv").open()))
    assert rows[0] == ["step", "minutes", "a"]
    assert float(rows[1][2]) == 2.0


def test_missing_stage_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        loop.load(tmp_path / "stage1.pt", "run --stage 1 first")
    assert caught.value.hint == "run --stage 1 first"


def test_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stage1.pt"
    loop.save(path, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="No space left"):
        loop.save(path, {"step": 2})
    assert loop.load(path, "")["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_presets_and_time_limit() -> None:
    assert sum(preset("cpu", 10).minutes) == pytest.approx(10)
    assert preset("cpu", 10_000) == PRESETS["cpu"]
    with pytest.raises(UsageError, match="no preset named 'huge'"):
        preset("huge")


def test_export_agrees_with_torch_and_the_engine_loads_it(run: Path, tmp_path: Path) -> None:
    torch.save({"student": Recognizer().state_dict(), "step": 1}, run / "recognizer.pt")
    strengths = {"medium": {"w": 0.0, "eps": 12.0}}
    kinds = export.export_run(run, tmp_path, strengths)
    assert sorted(kinds) == ["generator", "recognizer", "restorer"]
    engine = open_engine(tmp_path / "generator.onnx", tmp_path / "restorer.onnx", tmp_path / "recognizer.onnx")
    crops = np.random.default_rng(0).uniform(-1, 1, (2, 3, 128, 128)).astype(np.float32)
    target = engine.embed(crops[:1, :, 8:120, 8:120])[0]
    change = engine.protect(crops, target, w=0.0, eps=12.0)
    state = loop.load(run / "stage3.pt", "")
    zeros = torch.zeros(2, 13)
    with torch.no_grad():
        expected = export.generator_from(state)(
            torch.from_numpy(crops), torch.from_numpy(target)[None].expand(2, -1), zeros, zeros,
            torch.zeros(2), torch.full((2,), 12.0),
        )  # fmt: skip
    np.testing.assert_allclose(change, expected.numpy(), atol=1e-4)


def test_training_can_go_on_from_exported_graphs(run: Path, tmp_path: Path) -> None:
    export.export_run(run, tmp_path)
    again = export.checkpoint_of(tmp_path / "generator.onnx", tmp_path / "restorer.onnx")
    state = loop.load(run / "stage3.pt", "")
    for kind in ("generator", "restorer"):
        assert again[kind].keys() == state[kind].keys()
        for name, value in again[kind].items():
            torch.testing.assert_close(value, state[kind][name], atol=1e-6, rtol=0)


def test_export_refuses_what_disagrees(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    net = export.restorer_from(loop.load(run / "stage3.pt", ""))
    with pytest.raises(EmaskError, match="differ"):
        export.to_onnx(net, "restorer", tmp_path / "restorer.onnx", 128)
    assert list(tmp_path.iterdir()) == []
