"""ONNX Runtime and torch on the tiny models: the protocol's promises, and that both give the same numbers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from emask import weights
from emask.engine import Engine, open_engine, to_grey_levels, to_network
from emask.engine.check import try_model
from emask.engine.device import note_once
from emask.engine.onnx import CPU, CUDA
from emask.errors import EmaskError, ModelError, UsageError


def crops(count: int, size: int = 128) -> np.ndarray:
    return np.random.default_rng(count).uniform(-1, 1, (count, 3, size, size)).astype(np.float32)


@pytest.fixture(params=["onnx", "torch"])
def engine(request: pytest.FixtureRequest, models: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("EMASK_ENGINE", request.param)
    return everything(models)


def everything(models: Path) -> Engine:
    return open_engine(
        models / "generator.onnx", models / "restorer.onnx", models / "recognizer.onnx", device="cpu"
    )


def test_shapes_range_and_identity(engine: Engine) -> None:
    x = crops(3)
    target = np.full(256, 1 / 16, np.float32)
    change = engine.protect(x, target, w=0.2, eps=20.0)
    assert change.shape == x.shape and change.dtype == np.float32
    assert np.abs(x + change).max() <= 1 + 1e-6 and np.abs(change).max() > 0.01
    assert not engine.protect(x, target, w=1.0, eps=20.0).any()
    assert not engine.protect(x, target, w=0.0, eps=0.0).any()
    assert engine.erase(x).shape == x.shape
    np.testing.assert_allclose(np.linalg.norm(engine.embed(crops(2, 112)), axis=1), 1, atol=1e-5)


def test_batches_do_not_change_the_numbers(engine: Engine) -> None:
    x = crops(5)
    targets = np.random.default_rng(1).normal(size=(5, 256)).astype(np.float32)
    whole = engine.protect(x, targets, w=0.1, eps=15.0)
    engine.batch_size = 2  # type: ignore[attr-defined]
    np.testing.assert_allclose(engine.protect(x, targets, w=0.1, eps=15.0), whole, atol=1e-6)


def test_torch_gives_what_onnx_runtime_gives(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMASK_ENGINE", "onnx")
    first = everything(models)
    monkeypatch.setenv("EMASK_ENGINE", "torch")
    second = everything(models)
    assert (first.name, second.name) == ("ONNX Runtime CPU", "torch CPU")
    x, target = crops(3), np.random.default_rng(2).normal(size=256).astype(np.float32)
    labels = np.eye(13, dtype=np.float32)[:3]
    arguments = {"w": 0.3, "eps": 25.0, "b": labels}
    np.testing.assert_allclose(first.protect(x, target, **arguments), second.protect(x, target, **arguments), atol=1e-5)
    np.testing.assert_allclose(first.erase(x), second.erase(x), atol=1e-5)
    inner = crops(3, 112)
    np.testing.assert_allclose(first.embed(inner), second.embed(inner), atol=1e-5)


def test_torch_steps_in_where_onnx_runtime_is_missing(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import emask.engine as module

    real = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    assert open_engine(restorer=models / "restorer.onnx", device="cpu").name == "torch CPU"


def test_files_that_do_not_fit(models: Path, foreign_model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    for path in (foreign_model, tmp_path / "bad.onnx", tmp_path / "missing.onnx", models / "generator.onnx"):
        with pytest.raises(ModelError):
            open_engine(restorer=path)


def test_a_graph_with_the_wrong_inputs(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(str(models / "restorer.onnx"))
    onnx.helper.set_model_props(model, {"emask.kind": "generator", "emask.format": "1"})
    onnx.save(model, str(tmp_path / "generator.onnx"))
    for name in ("onnx", "torch"):
        monkeypatch.setenv("EMASK_ENGINE", name)
        with pytest.raises(ModelError, match="has the inputs crop"):
            open_engine(generator=tmp_path / "generator.onnx", device="cpu")


def test_wrong_requests(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(restorer=models / "restorer.onnx", device="cpu")
    with pytest.raises(ModelError, match="without a generator"):
        engine.protect(crops(1), np.zeros(256, np.float32), w=0.5, eps=1.0)
    with pytest.raises(ValueError, match="shape"):
        engine.erase(crops(1, 112))
    with pytest.raises(UsageError):
        open_engine(restorer=models / "restorer.onnx", device="tpu")  # type: ignore[arg-type]
    monkeypatch.setenv("EMASK_ENGINE", "abacus")
    with pytest.raises(UsageError, match="abacus"):
        open_engine(restorer=models / "restorer.onnx")


def test_a_minimum_that_is_left_out(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the exported generator, which clamps from above alone."""
    model = onnx.load(str(models / "restorer.onnx"))
    (clip,) = (node for node in model.graph.node if node.op_type == "Clip")
    clip.input[1] = ""
    onnx.save(model, str(tmp_path / "restorer.onnx"))
    x, found = crops(2), []
    for name in ("onnx", "torch"):
        monkeypatch.setenv("EMASK_ENGINE", name)
        found.append(open_engine(restorer=tmp_path / "restorer.onnx", device="cpu").erase(x))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_cuda_that_does_not_load_is_said(models: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("EMASK_ENGINE", name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("emask.engine.onnx._has_nvidia_driver", lambda: False)
    with pytest.raises(EmaskError, match="CUDA was asked for but does not load"):
        open_engine(restorer=models / "restorer.onnx", device="cuda")


@pytest.fixture
def half_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU with a driver, on which ONNX Runtime's provider does not load; what is done to its sessions."""
    done: list[str] = []

    class Session:
        def __init__(self, path: str, options: object, providers: list[str]) -> None:
            done.append(providers[0])

        def disable_fallback(self) -> None:
            done.append("no fallback")

        def get_providers(self) -> list[str]:
            return [CPU]

        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="crop")]

    def preload() -> None:
        print("\x1b[33mFailed to load libcurand.so.10: no such file\x1b[0m\nPlease follow the instructions.")

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr("onnxruntime.preload_dlls", preload, raising=False)
    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    monkeypatch.setattr("emask.engine.onnx._has_nvidia_driver", lambda: True)
    note_once.cache_clear()
    return done


def test_why_onnx_runtime_stays_on_the_cpu(
    models: Path, half_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Told once, where torch computes on CUDA; the twins are a torch that sees no GPU, and one on which it fails."""
    failed = "note: ONNX Runtime computes on the CPU: Failed to load libcurand"
    for works, told in ((False, ""), (None, ""), (True, failed)):
        monkeypatch.setattr("emask.engine.onnx.gpu_works", lambda works=works: works)
        engine = open_engine(restorer=models / "restorer.onnx", recognizer=models / "recognizer.onnx")
        assert engine.name == "ONNX Runtime CPU"
        out, err = capfd.readouterr()
        assert not out and err.startswith(told) and len(err.splitlines()) == bool(told)
    assert half_a_gpu == [CPU, "no fallback"] * 2 + [CUDA, "no fallback"] * 4
    with pytest.raises(EmaskError, match="does not load: Failed to load libcurand.so.10: no such file$"):
        open_engine(restorer=models / "restorer.onnx", device="cuda")


@pytest.mark.parametrize(("said", "kind"), [
    ("Failed to allocate memory for requested buffer of size 4096", EmaskError),
    ("std::bad_alloc", EmaskError),
    ("CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR", EmaskError),
    ("the shapes do not match", ModelError),
])  # fmt: skip
def test_a_machine_that_fails_is_no_broken_model(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[EmaskError]
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError(said)

    if engine.name.startswith("torch"):
        monkeypatch.setattr(engine._modules["restorer"], "forward", fail)  # type: ignore[attr-defined]
    else:
        monkeypatch.setitem(engine._sessions, "restorer", SimpleNamespace(run=fail))  # type: ignore[attr-defined]
    with pytest.raises(kind) as caught:
        engine.erase(crops(1))
    assert type(caught.value) is kind


def test_what_torch_cannot_load_does_not_run(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks are refined through it, whatever else runs it; the generator is not."""

    def fail(*args: object) -> None:
        raise ModelError("torch cannot load it")

    monkeypatch.setattr("emask.engine.torch.convert", fail)
    assert [(entry.kind, try_model(entry, "cpu").runs) for entry in weights.status()] == [
        ("generator", True), ("restorer", False), ("recognizer", False),
    ]  # fmt: skip


def test_the_onnx_engine_needs_no_torch(models: Path) -> None:
    import subprocess

    script = (
        "import sys; from pathlib import Path; from emask import open_engine; import numpy as np\n"
        f"e = open_engine(restorer=Path({str(models / 'restorer.onnx')!r}), device='cpu')\n"
        "e.erase(np.zeros((1, 3, 128, 128), np.float32)); assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_grey_levels_and_network_units() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    x = to_network(levels)
    assert x.shape == (1, 3, 16, 16) and x.min() == -1 and x.max() == 1
    np.testing.assert_allclose(to_grey_levels(x + 1), levels, atol=1e-4)


def test_a_target_is_the_same_person_mirrored(models: Path) -> None:
    """The twin: merely embedded, a face and its mirror image are two."""
    engine = open_engine(recognizer=models / "recognizer.onnx", device="cpu")
    shown = crops(2, 112)
    mirrored = np.ascontiguousarray(shown[..., ::-1])
    one, other = engine.embed_target(shown), engine.embed_target(mirrored)
    np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    assert np.abs(engine.embed(shown) - engine.embed(mirrored)).max() > 0.01
    first, second = engine.embed(shown), engine.embed(mirrored)
    # as near to the one as to the other
    np.testing.assert_allclose((one * first).sum(1), (one * second).sum(1), atol=1e-5)
