"""Histograms of cosines: what is drawn of what, lost faces left out."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from emask.bench.histograms import by_panel, plot

RNG = np.random.default_rng(0)
COSINES = {
    f"unseen/judge/{kind}-{panel}": RNG.uniform(-0.2, 0.9, 40).astype(np.float32)
    for kind in ("clean", "protected", "restored")
    for panel in ("target", "owner", "given", "same")
}


def test_lost_faces_are_left_out() -> None:
    cosines = {**COSINES, "unseen/judge/protected-owner": np.array([0.5, np.nan, 0.1], np.float32)}
    panels = by_panel(cosines, "unseen", "judge")
    assert set(panels) == {"target", "owner"}
    np.testing.assert_allclose(panels["owner"]["protected"], [0.5, 0.1])
    assert by_panel(COSINES, "ada", "judge") == {}


def test_the_picture() -> None:
    pytest.importorskip("matplotlib")
    thresholds = {"judge": {"0.1": 0.2, "0.01": 0.3}}
    png = plot(COSINES, thresholds, "unseen")
    assert png is not None
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG" and picture.width > 700
    assert png == plot(COSINES, thresholds, "unseen")  # equal figures, equal bytes
    assert plot(COSINES, thresholds, "ada") is None
