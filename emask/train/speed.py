"""How fast each stage trains on this machine, where its time goes, and how much of what the machine can do that is.

    python -m emask.train.speed --data DIR --recognizers DIR --preset cpu [--steps 20]

Crops per second of each stage; floating-point operations of a step, counted, as a share of what the machine reaches on
one large matrix product of the same type (the compute roof; convolutions of few channels are bound by memory long
before it); and the operators that take most of the time.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from emask.bench.table import markdown_table
from emask.errors import as_program
from emask.train.threads import prepare_process

WARM_UP = 4  # steps before the clock starts: kernels are compiled, memory is fetched
OPERATORS = 6  # lines of the profile


@as_program
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m emask.train.speed`."""
    parser = argparse.ArgumentParser(prog="python -m emask.train.speed", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of photos")
    parser.add_argument("--recognizers", type=Path, required=True, help="folder with recognizers.json")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--steps", type=int, default=20, help="steps to time, a stage")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    print(measure(options.data, options.recognizers, options.preset, options.steps, options.device))
    return 0


def measure(data: Path, recognizers: Path, preset_name: str, steps: int, device: str = "auto") -> str:
    """Time all stages as a preset has them, stage 2 in its last phase; returns Markdown."""
    import torch
    from platformdirs import user_cache_path
    from torch.profiler import ProfilerActivity, profile
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    from emask.nets.discriminator import Discriminator
    from emask.train.config import preset
    from emask.train.place import join
    from emask.train.prepare import open_surrogates, prepare
    from emask.train.stage import Setting, Stage
    from emask.train.stage1 import EditingStage
    from emask.train.stage2 import MaskStage
    from emask.train.stage3 import RestorerStage
    from emask.weights import models_dir

    config = replace(preset(preset_name), validate=0)
    place = join(device)
    surrogates = [surrogate.to(place.device) for surrogate in open_surrogates(recognizers, None)]
    cache = user_cache_path("emask") / "training"
    prepared = prepare(data, surrogates, models_dir() / "targets", cache, config, place)
    # refining comes in bursts, which a few steps cannot measure
    config = replace(config, refined=0.0)
    setting = Setting(prepared.training.to(place.device), config, place, surrogates)

    class Operations(TorchDispatchMode):
        """Counts floating-point operations; torch's own counter fails on a gradient within a step (the penalty's)."""

        total = 0.0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            count = flop_registry.get(func.overloadpacket)
            if count is not None:
                self.total += count(*args, **(kwargs or {}), out_val=out)
            return out

    def wait() -> None:
        if place.device.type == "cuda":
            torch.cuda.synchronize()

    def roof() -> float:
        """Operations per second of a large product of two matrices, in training's type."""
        size = 2048 if place.device.type == "cpu" else 8192
        kind = torch.bfloat16 if config.bf16 else torch.float32
        x = torch.rand(size, size, device=place.device, dtype=kind)
        x @ x
        wait()
        began = time.perf_counter()
        for _ in range(5):
            x @ x
        wait()
        return 5 * 2 * size**3 / (time.perf_counter() - began)

    def stages() -> dict[str, tuple[Stage, float]]:
        first = EditingStage(setting)
        second = MaskStage(setting, first.editor.eval(), Discriminator(config.net.attributes))  # which copies it
        first.editor.train()
        alone = next((phase.until for phase in config.phases if not phase.restorer), None)
        made: dict[str, tuple[Stage, float]] = {"1": (first, 0.0)}
        if alone is not None:
            made["2, mask alone"] = (second, 0.0)
        made["2, restorer along"] = (second, 0.999)
        made["3, generator's masks"] = (RestorerStage(setting, second.generator, second.restorer), 0.5)
        return made

    best = roof()
    rows, profiles = [], []
    batch = config.batch * place.world
    for name, (stage, progress) in stages().items():
        for _ in range(WARM_UP):
            stage.step(progress)
        wait()
        began = time.perf_counter()
        for _ in range(steps):
            stage.step(progress)
        wait()
        seconds = (time.perf_counter() - began) / steps
        with Operations() as counter:
            stage.step(progress)
        operations = counter.total
        rows.append([name, f"{batch / seconds:.1f}", f"{1000 * seconds:.0f}", f"{operations / 1e9:.1f}",
                     f"{100 * operations / seconds / best:.0f}"])  # fmt: skip
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (place.device.type == "cuda")
        with profile(activities=activities) as profiled:
            stage.step(progress)
        entries = profiled.key_averages()
        key = "self_device_time_total" if place.device.type == "cuda" else "self_cpu_time_total"
        whole = sum(getattr(entry, key) for entry in entries) or 1.0
        top = sorted(entries, key=lambda entry: -getattr(entry, key))[:OPERATORS]
        profiles.append(f"- stage {name}: " + ", ".join(f"{e.key} {100 * getattr(e, key) / whole:.0f}%" for e in top))
    head = ["stage", "crops/s", "ms a step", "GFLOP a step", "share of the roof (%)"]
    machine = torch.cuda.get_device_name() if place.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    kind = "bfloat16" if config.bf16 else "float32"
    title = f"Preset `{preset_name}`, batch {batch}, {machine}, {platform.machine()}, PyTorch {torch.__version__}; "
    title += f"roof {best / 1e9:.0f} GFLOP/s ({kind} matrix product)."
    return "\n".join([title, "", *markdown_table(head, rows), *profiles])


if __name__ == "__main__":
    prepare_process()
    sys.exit(main())
