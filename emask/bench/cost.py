"""What a method costs: time a face and memory, on the machine and in the run that its figures are from.

Timings are no part of the benchmark's document, which is the same in every run.
"""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emask.bench.protocol import Method

PROCESS = Path("/proc/self")  # Linux; elsewhere memory is not measured


@dataclass
class Cost:
    """What protecting or erasing has taken so far.

    Attributes:
        faces: crops worked on; seconds: wall-clock time.
        memory: most memory that the process held beyond what it held at the start of a call, MiB; None where unknown.
            Networks that had been loaded by then do not count.
    """

    faces: int = 0
    seconds: float = 0.0
    memory: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Milliseconds a face, faces a second, and MiB; None for what is not known."""
        known = self.faces > 0 and self.seconds > 0
        return {
            "faces": self.faces,
            "ms_per_face": round(1000 * self.seconds / self.faces, 2) if known else None,
            "faces_per_second": round(self.faces / self.seconds, 2) if known else None,
            "memory_mib": None if self.memory is None else round(self.memory),
        }


def timed(method: Method) -> tuple[Method, dict[str, Cost]]:
    """The same method, and what "protect" and "erase" of it cost as they are called."""
    costs = {"protect": Cost()} if method.erase is None else {"protect": Cost(), "erase": Cost()}

    def watched(call: Callable[..., np.ndarray], cost: Cost) -> Callable[..., np.ndarray]:
        def run(crops: np.ndarray, *rest: Any) -> np.ndarray:
            held = _start()
            began = time.perf_counter()
            result = call(crops, *rest)
            cost.seconds += time.perf_counter() - began
            cost.faces += len(crops)
            if held is not None:
                cost.memory = max(cost.memory or 0.0, _status("VmHWM") - held)
            return result

        return run

    erase = None if method.erase is None else watched(method.erase, costs["erase"])
    return Method(watched(method.protect, costs["protect"]), erase, method.embed), costs


def _start() -> float | None:
    """MiB held now, from which the peak counts anew; None where that cannot be had."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else what an earlier method has freed is held, and used again unseen
        (PROCESS / "clear_refs").write_text("5")  # proc(5): VmHWM becomes what is held now
        return _status("VmRSS")
    except (OSError, AttributeError, TypeError):
        return None


def _status(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", (PROCESS / "status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"no {name}")
    return int(found[1]) / 1024
