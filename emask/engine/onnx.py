"""The graphs under ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emask.engine import BATCH, INPUTS, Device, GraphEngine
from emask.engine.device import gpu_works, no_cuda, note_once
from emask.errors import EmaskError, ModelError, device_failure, first_line

if TYPE_CHECKING:
    import onnxruntime

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
# Only fatal messages: ONNX Runtime otherwise reports at length that it found no CUDA before it goes on without.
_FATAL = 4


class OnnxEngine(GraphEngine):
    """ONNX Runtime; CUDA where its provider really loads, else the CPU.

    Args:
        files: kind to model file.
        device: "auto", "cpu" or "cuda".

    Raises:
        ModelError: a file that ONNX Runtime cannot load, or with other inputs than its kind has.
        EmaskError: "cuda" was asked for and does not load, or memory ran out.
    """

    def __init__(self, files: dict[str, Path], device: Device = "auto", batch_size: int = BATCH) -> None:
        super().__init__(files, batch_size)
        self._sessions = {}
        for kind, path in files.items():
            try:
                session = open_session(path, device)
            except EmaskError:
                raise
            except Exception as error:  # its exception classes are generated and share no public base
                message = f"ONNX Runtime cannot load {path}: {first_line(error)}"
                raise device_failure(error) or ModelError(message, "export the model again") from None
            names = {entry.name for entry in session.get_inputs()}
            if names != set(INPUTS[kind]):
                raise ModelError(
                    f"{path} has the inputs {', '.join(sorted(names))}, not those of a {kind}", "export the model again"
                )
            self._sessions[kind] = session
        # what was asked for and what was loaded can differ: the provider's libraries may be missing
        on_cuda = {session.get_providers()[0] for session in self._sessions.values()} == {CUDA}
        self.name = "ONNX Runtime CUDA" if on_cuda else "ONNX Runtime CPU"

    def _forward(self, kind: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
        try:
            return np.asarray(self._sessions[kind].run(None, feeds)[0], np.float32)
        except Exception as error:
            message = f"{self.files[kind]} cannot be run: {first_line(error)}"
            raise device_failure(error) or ModelError(message, "export the model again") from None


def open_session(path: Path, device: str) -> onnxruntime.InferenceSession:
    """A graph under ONNX Runtime, without the messages it prints.

    Args:
        device: "cpu" stays there; "cuda" insists; otherwise CUDA where its provider really loads and torch knows of no
            failure, else the CPU, with a note where torch computes on CUDA.

    Raises:
        EmaskError: CUDA was asked for and does not load.
        Exception: what ONNX Runtime raises of a file it cannot load; its classes are generated.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(_FATAL)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    cuda = device != "cpu" and CUDA in onnxruntime.get_available_providers() and _has_nvidia_driver()
    works = gpu_works() if cuda and device != "cuda" else None
    cuda = cuda and works is not False  # what fails under torch would fail here in the middle of the work
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # libraries not found, and a provider that fails, come by print()
        if cuda and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        session = onnxruntime.InferenceSession(str(path), options, [CUDA, CPU] if cuda else [CPU])
    # a provider that fails later would print that on standard output, and go on with the CPU unseen
    session.disable_fallback()
    if session.get_providers()[0] != CUDA:
        if device == "cuda":
            raise no_cuda(_reason(printed.getvalue()))
        if works:
            reason = _reason(printed.getvalue()) or "its CUDA provider does not load"
            note_once(f"ONNX Runtime computes on the CPU: {reason}")
    return session


def _reason(printed: str) -> str:
    """What ONNX Runtime printed of why CUDA does not load, in one line: without colours, frames and advice."""
    lines = (line.strip() for line in re.sub(r"\x1b\[[\d;]*m", "", printed).splitlines())
    told = (line for line in lines if line and not line.startswith(("*", "Falling back", "Please follow")))
    return "; ".join(told)[:300]


def _has_nvidia_driver() -> bool:
    """Whether trying CUDA makes sense at all; without a driver the attempt only costs time."""
    if os.name == "nt":
        return True
    return any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu"))
