"""A benchmark says itself when its figures should not be trusted; a sound one says nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from emask.bench.doubts import doubts
from emask.bench.metrics import rate


def document(
    faces: int = 200, lost: int = 0, lost_after: int = 0, alike: int = 2, known: int = 199, unseen: bool = True
) -> dict[str, Any]:
    """200 photos, one judge; of the clean ones `alike` are taken for the target and `known` for their owners."""

    def share(hits: int) -> dict[str, Any]:
        return {"0.01": rate(np.arange(faces) < hits).to_json()}

    clean = {"impersonation_given_clean": share(alike), "dodging_other_clean": share(faces - known)}
    section = {"not_found": lost, "recognizers": {"judge": clean}}
    return {
        "faces": faces, "thresholds": {"judge": {"0.01": 0.2}}, "targets": {"ada": section},
        "unseen": section if unseen else None,
        "erasing": {"default target": {"not_found": lost_after}},
    }  # fmt: skip


def test_a_sound_run_has_none() -> None:
    assert doubts(document(), white_box=["surrogate"]) == []
    assert doubts(document(unseen=False), white_box=[]) == []


def test_each_reason_is_said() -> None:
    by_another = document()
    alike = document(alike=30)["unseen"]["recognizers"]["judge"]["impersonation_given_clean"]
    by_another["unseen"]["recognizers"]["judge"]["impersonation_other_clean"] = alike
    for changed, white_box, said in (
        ({**document(), "photos": [{"person": str(i % 150), "source": str(i)} for i in range(200)]}, [], "150 people"),
        (document(faces=40, known=40, alike=0), [], "40 photos"),
        (document(), ["judge"], "white box"),
        (document(lost=9), [], "9 of 200 faces were not found"),
        (document(lost_after=9), [], "erasing, default target: 9 of 200 faces"),
        (document(alike=30), [], "15.0% of the clean photos for the target at FAR 0.01"),
        (by_another, [], "15.0% of the clean photos for the target at FAR 0.01, by another photo"),
        (document(known=150), [], "only 75.0% of the clean photos"),
    ):
        found = doubts(changed, white_box)
        assert found and all(said in sentence for sentence in found)


def test_a_few_photos_more_than_expected_are_no_reason() -> None:
    """The twin of the look-alikes: 12 of 200 are 6 percent, with an interval down to 3.5."""
    assert doubts(document(alike=12), []) == []
