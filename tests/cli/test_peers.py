"""Photos protected by a method emask is compared with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emask.bench.peers import PEERS
from emask.bench.peers.advfaces import KIND, PerturbationGenerator
from emask.bench.peers.semantic_adv import SemanticAdv
from emask.bench.peers.sibling import SiblingAttack
from emask.cli.app import main
from emask.nets.discriminator import Discriminator
from emask.nets.generator import Editor, Generator, NetConfig
from emask.nets.restorer import Restorer
from emask.train.export import export_run


@pytest.fixture
def work(
    tmp_path: Path, face: np.ndarray, models: Path, monkeypatch: pytest.MonkeyPatch,
    make_white_boxes: Callable[[Path, dict[str, int]], None],
) -> Path:  # fmt: skip
    """The working directory: face.jpg, tgt.jpg, and recognizers/ with two of fold A that compare colours of blocks."""
    Image.fromarray(face).save(tmp_path / "face.jpg", quality=95)
    Image.fromarray(np.ascontiguousarray(face[:, ::-1])).save(tmp_path / "tgt.jpg", quality=95)
    folder = tmp_path / "recognizers"
    folder.mkdir()
    make_white_boxes(folder, {"one": 16, "two": 28})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMASK_RECOGNIZERS", raising=False)
    return tmp_path


def test_a_peer_masks_photos_within_the_strengths_budget(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The twin: a low strength changes less."""
    errors = []
    for strength in ("low", "high"):
        arguments = ["protect", "face.jpg", "--target", "tgt.jpg", "--method", "fgsm", "--strength", strength, "--json"]
        assert main([*arguments, "-o", strength]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["summary"]["method"] == "fgsm" and document["summary"]["refine"] == 0
        changed = np.asarray(Image.open(work / strength / "face.jpg"), np.float32)
        errors.append(float(np.sqrt(np.mean((changed - np.asarray(Image.open("face.jpg"), np.float32)) ** 2))))
    assert 0.5 < errors[0] < errors[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--method", "photoshop"], "no method named"), (["--method", "nothing"], "no method named"),
     (["--method", "fgsm", "--attribute", "eyeglasses"], "leave out --attribute"),
     (["--method", "fgsm", "--refine", "5"], "leave out --refine"),
     (["--method", "fgsm", "--recognizers", "elsewhere"], "no folder elsewhere")],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main(["protect", "face.jpg", "--target", "tgt.jpg", *more]) == 2
    assert said in capsys.readouterr().err
    assert not (work / "protected").exists()


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [(["--method", "sibling"], 2, "sibling needs --classifier FILE"),
     (["--method", "advfaces"], 2, "advfaces needs --advfaces FILE"),
     (["--method", "sibling", "--classifier", "stage1.pt"], 2, "no file stage1.pt"),
     (["--method", "advfaces", "--advfaces", "tgt.jpg"], 1, "tgt.jpg is no checkpoint of emask"),
     (["--method", "semantic-adv"], 5, "does not say how large its networks are")],
)  # fmt: skip
def test_a_peer_without_the_file_it_needs_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, said: str
) -> None:
    assert main(["protect", "face.jpg", "--target", "tgt.jpg", *more]) == code
    told = capsys.readouterr().err
    assert said in told and "hint: " in told and "Traceback" not in told
    assert not (work / "protected").exists()


@pytest.fixture
def trained(work: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with networks of emask's own making: stage1.pt, advfaces.pt, and models with E and D."""
    torch.manual_seed(0)
    net = NetConfig(widths=(4, 8, 8, 8), hidden=16)
    editor, discriminator = Editor(net).eval(), Discriminator(net.attributes, (4, 4))
    editor.decoder.to_image.weight.data *= 30
    whole = {"config": net.to_dict(), "editor": editor.state_dict(), "discriminator": discriminator.state_dict()}
    torch.save(whole, work / "stage1.pt")
    generator = PerturbationGenerator(2, 1, ["one"])
    torch.nn.init.normal_(generator.to_change.weight)
    config = {"width": 2, "blocks": 1, "surrogates": ["one"]}
    torch.save({"kind": KIND, "config": config, "generator": generator.state_dict()}, work / "advfaces.pt")
    run = work / "run"
    run.mkdir()
    made = {"generator": Generator(editor).state_dict(), "restorer": Restorer(editor).state_dict()}
    torch.save({"config": net.to_dict(), **made}, run / "stage2.pt")
    shutil.copytree(tiny_models, run / "models")
    export_run(run, run / "models")
    monkeypatch.setenv("EMASK_MODELS_DIR", str(run / "models"))
    # the parameters of their papers take hundreds of passes
    monkeypatch.setitem(PEERS, "sibling", partial(SiblingAttack, steps=2))
    monkeypatch.setitem(PEERS, "semantic-adv", partial(SemanticAdv, steps=2))
    return work


def test_peers_that_need_a_network_mask_photos(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """AdvFaces without any recognizer at hand."""
    for name, more in (
        ("sibling", ["--classifier", "stage1.pt"]), ("semantic-adv", []), ("advfaces", ["--advfaces", "advfaces.pt"])
    ):  # fmt: skip
        if name == "advfaces":
            (trained / "recognizers").rename(trained / "hidden")
        arguments = ["protect", "face.jpg", "--target", "tgt.jpg", "--method", name, *more, "--json", "-o", name]
        assert main(arguments) == 0, capsys.readouterr().err
        assert json.loads(capsys.readouterr().out)["summary"]["method"] == name
        changed = np.asarray(Image.open(trained / name / "face.jpg"), np.float32)
        assert np.abs(changed - np.asarray(Image.open("face.jpg"), np.float32)).mean() > 0.3, name


def test_a_peer_needs_white_boxes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "recognizers").rename(work / "hidden")
    if Path("../shared/recognizers").is_dir():
        pytest.skip("a usual place of recognizers lies beside this folder")
    assert main(["protect", "face.jpg", "--method", "pgd"]) == 2
    assert "--recognizers" in capsys.readouterr().err
