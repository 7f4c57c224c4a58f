"""Several processes that share each batch: what they draw, and that they end where one process ends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emask.errors import TrainingError
from emask.train import checkpoint
from emask.train.config import TrainConfig
from emask.train.dataset import TrainingSet
from emask.train.draws import Draws
from emask.train.loop import Run, run_stage
from emask.train.place import Place, join, send
from emask.train.run import open_stage
from emask.train.stage import Setting
from emask.train.surrogates import Surrogate

WORKER = Path(__file__).with_name("worker.py")


def test_processes_draw_parts_of_what_one_process_draws() -> None:
    one, two = Draws(3), [Draws(3, rank, 2) for rank in range(2)]
    for _ in range(2):
        whole = one.uniform(6, 2), one.normal(4), one.shared(2), one.permutation(5)
        parts = [(d.uniform(3, 2), d.normal(2), d.shared(2), d.permutation(5)) for d in two]
        for index in range(2):
            assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])  # type: ignore[arg-type]
        assert parts[0][2] == parts[1][2] == whole[2]
        assert all(torch.equal(part[3], whole[3]) for part in parts)  # type: ignore[arg-type]
    assert not torch.equal(parts[0][0], parts[1][0])


def test_draws_go_back_to_where_they_stood() -> None:
    draws = Draws(0)
    draws.uniform(3)
    state = draws.state()
    first = draws.normal(5)
    draws.uniform(7)
    draws.restore(state)
    assert torch.equal(draws.normal(5), first)


def test_what_is_drawn_on_a_device_follows_from_the_source() -> None:
    """Asked for the CPU, where this way is not taken otherwise: parts of a whole, and again after going back."""
    cpu = torch.device("cpu")
    one, two = Draws(3), [Draws(3, rank, 2) for rank in range(2)]
    state = one.state()
    first, second = one._normal_on(cpu, 4, 50), one._normal_on(cpu, 4, 50)
    for whole in (first, second):
        assert torch.equal(torch.cat([d._normal_on(cpu, 2, 50) for d in two]), whole)
    assert not torch.equal(first, second)
    one.restore(state)
    assert torch.equal(one._normal_on(cpu, 4, 50), first)
    assert first.mean().abs() < 0.3 and first.std().item() == pytest.approx(1, abs=0.2)


def test_on_the_cpu_noise_comes_from_the_source_itself() -> None:
    rows = torch.zeros(2, 3, dtype=torch.float64)
    assert torch.equal(Draws(3).normal_like(rows), Draws(3).normal(2, 3).double())


def test_what_is_sent_arrives_as_it_is() -> None:
    x = torch.arange(3)
    assert send(x, torch.device("cpu")) is x
    assert torch.equal(send(x, torch.zeros(1)), x.float())


def test_a_place_takes_its_rows_of_a_batch() -> None:
    rows = torch.arange(6)
    assert [Place(rank=rank, world=3).part(rows).tolist() for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert Place().part(rows) is not None and Place().part(rows).tolist() == rows.tolist()
    assert torch.equal(Place().gather(rows), rows) and torch.equal(Place().broadcast(rows), rows)
    assert Place().agree(0.25) == 0.25 and Place().first and not Place(rank=1, world=2).first


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert join("auto").device.type == join("cpu").device.type == "cpu"
    with pytest.raises(TrainingError, match="CUDA was asked for") as caught:
        join("cuda")
    assert "--device cpu" in caught.value.hint


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# What two processes train with half of each batch, and one with all of it: by run folder, the stage and its settings.
Runs = dict[str, tuple[int, TrainConfig]]


@pytest.fixture(scope="module")
def runs(tiny_config: TrainConfig) -> Runs:
    half = replace(tiny_config, batch=2, steps=(3, 4, 4))
    return {
        "ensemble": (2, half),
        "meta": (2, replace(half, attack="meta", inner_lr=0.1)),
        "first-order": (2, replace(half, attack="meta-first-order", primaries="all", inner_lr=0.1)),
        "restorer": (3, half),
        "refined": (3, replace(half, refined=0.7, refine_every=2, replay=3, constant_lr=True)),
        "editing": (1, half),
    }


@pytest.fixture(scope="module")
def by_two(
    runs: Runs, run: Path, training_set: TrainingSet, recognizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What two processes on one machine leave, joined by gloo."""
    folder = tmp_path_factory.mktemp("two")
    stages = []
    for name, (number, config) in runs.items():
        (folder / name).mkdir()
        if number > 1:
            shutil.copy(run / f"stage{number - 1}.pt", folder / name)
        stages.append((number, config, folder / name))
    (folder / "again").mkdir()
    shutil.copy(run / "stage2.pt", folder / "again")
    for steps in (2, 4):  # the same in two runs, of which the second goes on
        stages.append((3, replace(runs["refined"][1], steps=(1, 1, steps)), folder / "again"))
    torch.save({"data": training_set, "recognizers": recognizer_folder, "pause": 0, "stages": stages}, folder / "job")
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder / "job")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return folder


def trained(folder: Path, number: int) -> dict[str, Tensor]:
    """The weights of a stage's checkpoint."""
    state = checkpoint.load(folder / f"stage{number}.pt", "")
    parts = [name for name in ("editor", "generator", "restorer", "critic") if name in state]
    return {f"{part}.{name}": value for part in parts for name, value in state[part].items()}


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((value - second[name]).abs().max()) for name, value in first.items())


@pytest.mark.parametrize("name", ["ensemble", "meta", "first-order", "restorer", "refined"])
def test_two_processes_end_where_one_with_the_whole_batch_ends(
    name: str, runs: Runs, by_two: Path, run: Path, training_set: TrainingSet, surrogates: list[Surrogate],
    projection: nn.Module, tmp_path: Path, one_thread: None,
) -> None:  # fmt: skip
    number, config = runs[name]
    two = trained(by_two / name, number)

    def alone(batch: int) -> dict[str, Tensor]:
        own = replace(config, batch=batch, replay=config.replay * batch // 2)  # as many refined masks in all
        setting = Setting(training_set, own, Place(), surrogates, [projection])
        run_stage(open_stage(number, setting, run), Run(tmp_path))
        return trained(tmp_path, number)

    # sums in another order differ in the last bit; a codec that rounds and Adam's first steps make more of that
    whole, half = largest_difference(two, alone(4)), largest_difference(two, alone(2))
    assert half > 1e-3  # the must-fail twin: one process with half of each batch
    assert whole < 0.1 * half


def test_stage_one_trains_by_two_as_well(by_two: Path, runs: Runs) -> None:
    """Its batch norm sees a process's own crops only, so that no one process ends where two do."""
    state = checkpoint.load(by_two / "editing" / "stage1.pt", "")
    assert state["step"] == 3 and all(torch.isfinite(value).all() for value in state["editor"].values())
    assert sorted(path.suffix for path in (by_two / "editing").glob("stage1*")).count(".csv") == 1


def by_rank(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes has come to."""
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def test_processes_tell_each_other(by_two: Path) -> None:
    for left in by_rank(by_two / "editing"):
        assert left["told"][0].tolist() == [2, 0] and left["told"][1].tolist() == [[2, 0], [2, 1]]


def test_processes_train_the_same_weights_on_the_same_labels(by_two: Path, training_set: TrainingSet) -> None:
    """Photos without labels get the first process's: each one's classifier has batch norms of its own."""
    first, second = (left["state"] for left in by_rank(by_two / "editing"))
    assert not training_set.labels.any(1).all() and first["extra"]["labels"].any(1).all()
    assert torch.equal(first["extra"]["labels"], second["extra"]["labels"])
    parts = first["discriminator"], second["discriminator"]
    differ = [name for name, value in parts[0].items() if not torch.equal(value, parts[1][name])]
    assert differ and all("running" in name for name in differ)


def test_two_processes_go_on_with_their_refined_masks(by_two: Path) -> None:
    """Bit for bit as without an interruption; both hold the masks of both."""
    rows = [left["state"]["extra"] for left in by_rank(by_two / "again")]
    assert len(rows[0]["change"]) == 6 and rows[0].keys() == rows[1].keys()
    assert all(torch.equal(value, rows[1][name]) for name, value in rows[0].items())
    whole, again = (checkpoint.load(by_two / name / "stage3.pt", "") for name in ("refined", "again"))
    assert whole["step"] == again["step"] == 4
    assert all(torch.equal(value, again["extra"][name]) for name, value in whole["extra"].items())
    assert all(torch.equal(value, again["restorer"][name]) for name, value in whole["restorer"].items())
