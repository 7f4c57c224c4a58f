"""What is kept of an interrupted run: the same figures again, and only those of the very same run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emask.bench.resume import KeptParts

RUN = {"settings": {"eps": 9.0}, "models": {"generator": "abc"}}
FIGURES = {"protection": {"not_found": 0, "recognizers": {"judge": {"dodging_same": {"0.1": {"value": 0.25}}}}}}
COSINES = {"ada/judge/protected-given": np.array([0.1, np.nan, 0.3], np.float32)}


def test_what_is_put_is_got(tmp_path: Path) -> None:
    assert KeptParts(tmp_path, RUN).get("ada") is None
    KeptParts(tmp_path, RUN).put("ada", FIGURES, COSINES)
    parts = KeptParts(tmp_path, RUN)
    kept = parts.get("ada")
    assert kept is not None and kept[0] == FIGURES and parts.taken == ["ada"]
    np.testing.assert_array_equal(kept[1]["ada/judge/protected-given"], COSINES["ada/judge/protected-given"])
    assert parts.get("bea") is None


def test_a_run_that_differs_finds_nothing(tmp_path: Path) -> None:
    KeptParts(tmp_path, RUN).put("ada", FIGURES, COSINES)
    assert KeptParts(tmp_path, {**RUN, "settings": {"eps": 9.1}}).get("ada") is None


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_a_damaged_part_is_done_again(tmp_path: Path, suffix: str) -> None:
    parts = KeptParts(tmp_path, RUN)
    parts.put("ada", FIGURES, COSINES)
    (file,) = tmp_path.rglob(f"ada.{suffix}")
    file.write_bytes(file.read_bytes()[:10])
    assert parts.get("ada") is None


def test_the_cost_is_that_of_when_it_was_measured(tmp_path: Path) -> None:
    """The twin: a run of which a part was done anew."""
    spent, nothing = {"protect": {"faces": 3}}, {"protect": {"faces": 0}}
    parts = KeptParts(tmp_path, RUN)
    parts.put("ada", FIGURES, COSINES)
    assert parts.cost(spent) == spent
    again = KeptParts(tmp_path, RUN)
    assert again.get("ada") is not None and again.cost(nothing) == spent
    partly = KeptParts(tmp_path, RUN)
    assert partly.get("ada") is not None
    partly.put("bea", FIGURES, COSINES)
    assert partly.cost(nothing) == nothing
