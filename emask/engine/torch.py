"""The same graphs under torch, through onnx2torch: for machines where ONNX Runtime cannot be installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emask.engine import BATCH, INPUTS, Device, GraphEngine
from emask.errors import EmaskError, ModelError, first_line

if TYPE_CHECKING:
    import torch


def convert(path: Path, device: str, hint: str) -> tuple[torch.fx.GraphModule, list[str]]:
    """A graph as a frozen module in evaluation mode, and its inputs' names in the order the module takes them.

    Args:
        device: "cpu" or "cuda".
        hint: what a user can do when it fails.

    Raises:
        ModelError: a file that cannot be converted.
    """
    import onnx
    import onnx2torch

    try:
        graph = onnx.load(str(path))
        weights = {entry.name for entry in graph.graph.initializer}
        order = [entry.name for entry in graph.graph.input if entry.name not in weights]
        return onnx2torch.convert(graph).eval().requires_grad_(False).to(device), order
    except Exception as error:  # operators onnx2torch lacks raise NotImplementedError and others
        raise ModelError(f"torch cannot load {path}: {first_line(error)}", hint) from None


class TorchEngine(GraphEngine):
    """torch on CUDA or the CPU.

    Args:
        files: kind to model file.
        device: "auto", "cpu" or "cuda".

    Raises:
        ModelError: a file that cannot be converted, or with other inputs than its kind has.
        EmaskError: "cuda" was asked for and there is none.
    """

    def __init__(self, files: dict[str, Path], device: Device = "auto", batch_size: int = BATCH) -> None:
        import torch

        super().__init__(files, batch_size)
        if device == "cuda" and not torch.cuda.is_available():
            raise EmaskError("CUDA was asked for but does not load", "use --device cpu")
        self._device = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        self.name = f"torch {'CUDA' if self._device == 'cuda' else 'CPU'}"
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

        inputs = [torch.from_numpy(feeds[name]).to(self._device) for name in self._order[kind]]
        try:
            with torch.inference_mode():
                out = self._modules[kind](*inputs)
        except RuntimeError as error:
            raise ModelError(f"{self.files[kind]} cannot be run: {first_line(error)}", "install onnxruntime") from None
        first = out[0] if isinstance(out, (list, tuple)) else out
        return np.asarray(first.float().cpu().numpy())
