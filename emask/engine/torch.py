"""The same graphs under torch, through onnx2torch: for machines where ONNX Runtime cannot be installed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emask.engine import BATCH, INPUTS, Device, GraphEngine
from emask.engine.device import torch_device
from emask.errors import ModelError, device_failure, first_line

if TYPE_CHECKING:
    import onnx
    import torch


def convert(path: Path, device: str, hint: str) -> tuple[torch.fx.GraphModule, list[str]]:
    """A graph as a frozen module in evaluation mode, and its inputs' names in the order the module takes them.

    Args:
        device: a torch device.
        hint: what a user can do when it fails.

    Raises:
        ModelError: a file that cannot be converted.
        EmaskError: out of memory, or the GPU failed.
    """
    import onnx
    import onnx2torch

    try:
        graph = onnx.load(str(path))
        _fill_in_minimum(graph.graph)
        weights = {entry.name for entry in graph.graph.initializer}
        order = [entry.name for entry in graph.graph.input if entry.name not in weights]
        return onnx2torch.convert(graph).eval().requires_grad_(False).to(device), order
    except Exception as error:  # operators onnx2torch lacks raise NotImplementedError and others
        raise device_failure(error) or ModelError(f"torch cannot load {path}: {first_line(error)}", hint) from None


def _fill_in_minimum(graph: onnx.GraphProto) -> None:
    """Name a Clip's minimum where it is left out: onnx2torch takes it for one that is computed, and refuses."""
    from onnx import TensorProto, helper

    for number, node in enumerate(graph.node):
        if node.op_type == "Clip" and len(node.input) > 2 and not node.input[1]:
            node.input[1] = f"emask.minimum.{number}"
            graph.initializer.append(helper.make_tensor(node.input[1], TensorProto.FLOAT, [], [float("-inf")]))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warning that torch has for how onnx2torch indexes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="onnx2torch")
        yield


def torch_name(device: str) -> str:
    """What an engine is called that computes by torch there."""
    return f"torch {'CPU' if device == 'cpu' else 'CUDA'}"


class TorchEngine(GraphEngine):
    """torch on CUDA or the CPU.

    Args:
        files: kind to model file.
        device: "auto", "cpu" or "cuda".

    Raises:
        ModelError: a file that cannot be converted, or with other inputs than its kind has.
        EmaskError: "cuda" was asked for and does not work, or memory ran out.
    """

    def __init__(self, files: dict[str, Path], device: Device = "auto", batch_size: int = BATCH) -> None:
        super().__init__(files, batch_size)
        self._device = torch_device(device)
        self.name = torch_name(self._device)
        self._modules: dict[str, torch.nn.Module] = {}
        self._order: dict[str, list[str]] = {}
        for kind, path in files.items():
            module, order = convert(path, self._device, "install onnxruntime")
            if set(order) != set(INPUTS[kind]):
                raise ModelError(
                    f"{path} has the inputs {', '.join(sorted(order))}, not those of a {kind}", "export the model again"
                )
            self._modules[kind] = module
            self._order[kind] = order

    def _forward(self, kind: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
        import torch

        try:
            inputs = [torch.from_numpy(feeds[name]).to(self._device) for name in self._order[kind]]
            with torch.inference_mode(), quiet():
                out = self._modules[kind](*inputs)
            first = out[0] if isinstance(out, (list, tuple)) else out
            return np.asarray(first.float().cpu().numpy())
        except (RuntimeError, MemoryError) as error:
            message = f"{self.files[kind]} cannot be run: {first_line(error)}"
            raise device_failure(error) or ModelError(message, "install onnxruntime") from None
