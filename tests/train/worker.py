"""A process of its own that trains stages, for tests that kill it or that let two of them share each batch.

    python worker.py JOB.pt

The job holds the training set, the surrogates' folder, and what to train: (stage's number, settings, run folder) each;
it goes on with what it finds there. Of several processes each leaves what it has come to as rankN.pt.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from conftest import Projection  # this file's folder is where Python looks first

from emask.train.loop import Run, run_stage
from emask.train.place import join
from emask.train.run import open_stage
from emask.train.stage import Setting
from emask.train.surrogates import Surrogate, read_cards

torch.set_num_threads(1)
job = torch.load(Path(sys.argv[1]), weights_only=False)
cards = read_cards(job["recognizers"])
surrogates = [Surrogate(cards[name]).eval() for name in ("one", "two")]
recognizers = [Projection().requires_grad_(False)]
place = join("cpu")
for number, config, folder in job["stages"]:
    stage = open_stage(number, Setting(job["data"], config, place, surrogates, recognizers), folder)
    if job["pause"]:
        step = stage.step

        def slow(progress: float, step=step) -> dict[str, torch.Tensor]:
            time.sleep(job["pause"])
            return step(progress)

        stage.step = slow  # type: ignore[method-assign]
    run_stage(stage, Run(folder, resume=True, save_every=0.0))
    if place.world > 1:
        told = place.broadcast(torch.tensor([2.0, place.rank])), place.gather(torch.tensor([[2.0, place.rank]]))
        torch.save({"state": stage.state(0.0), "told": told}, folder / f"rank{place.rank}.pt")
if place.world > 1:
    torch.distributed.destroy_process_group()
