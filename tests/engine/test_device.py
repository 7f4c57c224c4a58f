"""Which device torch takes, whatever GPU this machine has: a small computation is made to work or to fail."""

from __future__ import annotations

import pytest
import torch

from emask.engine.device import gpu_works, note_once, torch_device
from emask.errors import EmaskError


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One that torch sees, and that computes as the CPU does."""
    ones = torch.ones
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.ones", lambda *shape, device: ones(*shape))
    note_once.cache_clear()
    return monkeypatch


def test_a_gpu_that_works_is_taken(gpu: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert [torch_device(choice) for choice in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
    assert gpu_works() is True
    gpu.setattr("torch.cuda.is_available", lambda: False)
    assert torch_device("auto") == "cpu" and gpu_works() is None
    with pytest.raises(EmaskError, match="CUDA was asked for"):
        torch_device("cuda")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("said", "told"), [
    ("CUDA error: no kernel image is available for execution on the device\nmore of it", "the GPU failed: CUDA error"),
    ("CUDA out of memory. Tried to allocate 2.00 MiB", "out of memory"),
    ("Found no NVIDIA driver", "the GPU failed: Found no"),
])  # fmt: skip
def test_one_that_fails_is_left_alone_and_told_once(
    gpu: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str, told: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError(said)

    gpu.setattr("torch.ones", fail)
    assert torch_device("auto") == torch_device("auto") == "cpu" and gpu_works() is False
    line = said.splitlines()[0]
    assert capsys.readouterr().err == f"note: the GPU cannot be used, computing on the CPU: {line}\n"
    with pytest.raises(EmaskError, match=told):
        torch_device("cuda")
