"""Steps on a GPU do not wait for it: nothing is read from it, and what is sent to it lies in pinned memory.

Without a GPU they run on tensors that have a device, a type and a shape but no values (`FakeTensorMode`), which also
shows where two devices or two types would meet; forwards only, since PyTorch goes backwards in a GPU's own threads.
"""

from __future__ import annotations

import copy
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import emask
from emask.nets.discriminator import Discriminator
from emask.nets.generator import Editor, Generator
from emask.nets.restorer import Restorer
from emask.train import noise
from emask.train.attack import AdaptiveWeights
from emask.train.config import Phase, TrainConfig
from emask.train.dataset import TrainingSet
from emask.train.draws import Draws
from emask.train.place import Place, send
from emask.train.stage import Setting, Stage
from emask.train.stage1 import EditingStage
from emask.train.stage2 import MaskStage
from emask.train.stage3 import RestorerStage
from emask.train.surrogates import Surrogate
from emask.train.targets import TargetDraw

try:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:
    pytest.skip("this PyTorch has no tensors without values", allow_module_level=True)

CPU, CUDA = Place(), torch.device("cuda")
# all but the codecs that work on the CPU
NOISE = tuple(name for name, distortion in noise.POOL.items() if not isinstance(distortion, noise.Codec))
KINDS: dict[str, dict[str, Any]] = {
    "editing": {},
    "ensemble": {},
    "meta": {"attack": "meta", "primaries": "all", "edits": 0.5},
    "restorer": {"edits": 0.5},
}


class Waits(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU, by what it is and the line of the package that does it.

    Attributes:
        found: the counts.
        pinned: what lies in pinned memory; kept, so that nothing else takes its place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.pinned: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        what = self.what(str(func), args, kwargs or {})
        if what:
            self.found[f"{what} at {innermost()}"] += 1
        return func(*args, **kwargs or {})

    def what(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """What an operation waits for, or nothing."""
        if name == "aten._to_copy.default":
            here, there = args[0].device.type, torch.device(kwargs.get("device") or args[0].device).type
            joins = kwargs.get("non_blocking") and any(args[0] is x and x.is_contiguous() for x in self.pinned)
            return "" if here == there or joins else f"{here} to {there}"
        if name == "aten.copy_.default":
            return "" if args[0].device == args[1].device else "a copy"
        if name.startswith(("aten.index.", "aten.index_put")) and args[0].device.type == "cuda":
            return "an index" if any(i is not None and i.device.type == "cpu" for i in args[1]) else ""
        return ""


def innermost() -> str:
    """The innermost line of the package that is running."""
    package = Path(emask.__file__).parent
    lines = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(package)]
    return f"{Path(lines[-1].filename).relative_to(package)}:{lines[-1].lineno}" if lines else "no line"


@contextmanager
def cast(device_type: str, dtype: torch.dtype | None = None, enabled: bool = True) -> Iterator[None]:
    """`torch.autocast`, which does nothing for a GPU that is not there."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.is_autocast_cache_enabled()
    torch.set_autocast_enabled("cuda", enabled)
    torch.set_autocast_dtype("cuda", dtype or torch.bfloat16)
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.set_autocast_cache_enabled(before[2])


def no_gradient(outputs: Tensor, inputs: Tensor | Sequence[Tensor], **_: object) -> list[Tensor]:
    return [torch.zeros_like(x) for x in ([inputs] if isinstance(inputs, Tensor) else inputs)]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """A GPU without values. The count begins where a test enters it."""
    log = Waits()

    def pin(x: Tensor) -> Tensor:
        log.pinned.append(x.clone())
        return log.pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.autograd, "grad", no_gradient)
    monkeypatch.setattr(torch, "autocast", cast)
    monkeypatch.setattr(Stage, "update", lambda *_, **__: None)
    # numbers that decide anything have no values either: every distortion hits
    monkeypatch.setattr(Draws, "shared", lambda self, count=1: [0.0] * (count - 1) + [0.7])
    monkeypatch.setattr(Draws, "state", lambda self: None)
    monkeypatch.setattr(Draws, "restore", lambda self, state: None)
    monkeypatch.setattr(Draws, "_source_on", lambda self, device: None)
    try:
        with FakeTensorMode():
            torch.zeros(3).to(CUDA)[:1]
    except RuntimeError as error:
        pytest.skip(f"this PyTorch wants a GPU even for tensors without values: {error}")
    noise._constant.cache_clear()
    yield log
    noise._constant.cache_clear()  # they have no values


def open_stage(kind: str, config: TrainConfig, surrogates: Sequence[Surrogate], place: Place = CPU) -> Stage:
    """A stage in half precision and with all terms."""
    config = replace(config, bf16=True, noise=NOISE, phases=(Phase(1.0, 2, 100, 0.5, 15.0, True),), pseudo_from=2.0)
    config = replace(config, **KINDS[kind])
    embeddings = [torch.rand(8, 16) for _ in surrogates]
    data = TrainingSet(
        torch.randint(256, (8, 128, 128, 3), dtype=torch.uint8), np.arange(8) // 2, torch.ones(8, 13),
        torch.rand(8, 256), embeddings, torch.rand(2, 256), [rows[:2] for rows in embeddings],
    )  # fmt: skip
    # copies: others use these surrogates as well
    mine = [copy.deepcopy(surrogate).to(place.device) for surrogate in surrogates]
    setting = Setting(data.to(place.device), config, place, mine)
    editor = Editor(config.net).eval()
    if kind == "editing":
        return EditingStage(setting)
    if kind == "restorer":
        return RestorerStage(setting, Generator(editor), Restorer(editor))
    return MaskStage(setting, editor, Discriminator(13))


def without_values(x: Any) -> Any:
    """The same on the GPU and without values; what has parts is changed in place."""
    if isinstance(x, nn.Parameter):
        return nn.Parameter(torch.empty_like(x, device=CUDA), x.requires_grad)
    if isinstance(x, Tensor):
        return torch.empty_like(x, device=CUDA)
    if isinstance(x, TrainingSet):
        return x.to(CUDA)
    if isinstance(x, list):
        return [without_values(one) for one in x]
    if isinstance(x, dict):
        return {name: without_values(one) for name, one in x.items()}
    if isinstance(x, nn.Module):
        for part in x.modules():
            part._parameters.update(without_values(part._parameters))
            part._buffers.update(without_values(part._buffers))
    elif isinstance(x, (Stage, TargetDraw, AdaptiveWeights)):
        vars(x).update(without_values(vars(x)))
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_does_not_wait_for_the_gpu(
    kind: str, surrogates: list[Surrogate], tiny_config: TrainConfig, waits: Waits
) -> None:
    stage = open_stage(kind, tiny_config, surrogates)
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_values(stage)
        stage.place = Place(CUDA)
        with waits:
            terms = stage.losses(stage.sampler.next(), 0.5)
    assert not waits.found, dict(waits.found)
    assert waits.pinned  # something was sent
    assert {(value.device.type, value.dtype) for value in terms.values()} == {("cuda", torch.float32)}


def test_the_count_sees_what_waits(waits: Waits) -> None:
    """The must-fail twin."""
    with FakeTensorMode():
        x, there = torch.zeros(3), torch.zeros(3, device=CUDA)
        with waits:
            assert send(x, there).device == send(torch.arange(3), there.device).device == there.device
            there[torch.arange(3, device=CUDA)] += 1
        assert not waits.found
        ways: list[Callable[[], object]] = [
            lambda: x.to(CUDA), lambda: x.to(there), lambda: x.to(CUDA, non_blocking=True),
            lambda: send(x, CUDA).cpu(), lambda: there.copy_(x), lambda: there[[0, 2]],
        ]  # fmt: skip
        for number, way in enumerate(ways, 1):
            with waits:
                way()
            assert waits.found.total() == number, waits.found
        for way in (there[0].item, there.nonzero, lambda: bool(there.any())):  # PyTorch refuses: it has no values
            with pytest.raises(RuntimeError):
                way()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_pytorch_sees_no_wait_either(kind: str, surrogates: list[Surrogate], tiny_config: TrainConfig) -> None:
    """On a real GPU, backwards and through the optimizers as well; the twin shows that it would tell."""
    stage = open_stage(kind, tiny_config, surrogates, Place(CUDA))
    stage.step(0.1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(8):
            stage.step(0.5)
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.zeros(3).to(CUDA)
    finally:
        torch.cuda.set_sync_debug_mode("default")
