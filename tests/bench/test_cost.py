"""What a method costs is counted for each part of it, and its results are as they were."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from emask.bench import cost
from emask.bench.cost import timed
from emask.bench.protocol import Method


def test_faces_and_time_add_up_and_results_stay() -> None:
    def protect(crops: np.ndarray, targets: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        return crops + targets

    def erase(crops: np.ndarray) -> np.ndarray:
        held = np.ones(60 * 2**20, np.uint8)  # 60 MiB that the other part does not hold
        return crops - held[0]

    method, costs = timed(Method(protect, erase, lambda squares: squares))
    crops, targets = np.ones((3, 2)), np.full((3, 2), 5.0)
    for _ in range(2):
        np.testing.assert_array_equal(method.protect(crops, targets), crops + 5)
    assert method.erase is not None
    np.testing.assert_array_equal(method.erase(crops), crops - 1)
    spent = {name: of.to_json() for name, of in costs.items()}
    assert spent["protect"]["faces"] == 6 and spent["erase"]["faces"] == 3
    assert spent["protect"]["ms_per_face"] >= 2 * 20 / 6
    if spent["erase"]["memory_mib"] is not None:
        assert spent["erase"]["memory_mib"] > 40 > spent["protect"]["memory_mib"]


def test_where_memory_is_not_known_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without /proc, and one that does not let its peak be reset."""
    method, costs = timed(Method(lambda crops, targets: crops, None, lambda squares: squares))
    monkeypatch.setattr(cost, "PROCESS", tmp_path / "nowhere")
    method.protect(np.ones((2, 2)), np.ones((2, 2)))
    assert costs["protect"].to_json()["memory_mib"] is None and costs["protect"].faces == 2


def test_what_cannot_erase_has_no_cost_of_it() -> None:
    method, costs = timed(Method(lambda crops, targets: crops, None, lambda squares: squares))
    assert method.erase is None and list(costs) == ["protect"]
    assert costs["protect"].to_json()["ms_per_face"] is None  # nothing was asked of it
