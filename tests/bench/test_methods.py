"""Methods beside emask: each face gets its own target, and the scores expose those that do nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from emask.bench.methods import (
    BATCH,
    EMASK,
    GREY_SQUARE,
    NOTHING,
    PeerEngine,
    baseline,
    method_names,
    parameters,
    peer_method,
    peer_of,
    within,
)
from emask.bench.on_photos import NEEDED, PEER_NAMES, PeerFiles
from emask.bench.peers import PEERS
from emask.bench.peers.advfaces import KIND, PerturbationGenerator
from emask.bench.protocol import Method
from emask.errors import EmaskError, ModelError, TrainingError, UsageError
from emask.nets.discriminator import Discriminator
from emask.nets.generator import Editor, Generator, NetConfig
from emask.nets.restorer import Restorer
from emask.train.export import export_run


def half_way(crop: Tensor, targets: Tensor, surrogates: object) -> Tensor:
    """A peer that goes half way to its target's mean colour."""
    return (targets.mean((0, 2, 3)).view(1, 3, 1, 1) - crop) / 2


def toy_surrogate() -> Callable[[Tensor], Tensor]:
    """(N, 3, S, S) crops, or inner squares, to (N, 8) unit embeddings."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(3 * 14 * 14, 8))

    def surrogate(crops: Tensor) -> Tensor:
        offset = (crops.shape[-1] - 112) // 2
        return torch.nn.functional.normalize(net(crops[:, :, offset : offset + 112, offset : offset + 112]), dim=1)

    return surrogate


def each(method: Method, targets: np.ndarray) -> np.ndarray:
    """(N, D) of N targets, each given by one photo."""
    return np.stack([method.embed(target[None]) for target in targets])


def test_a_peer_is_shown_each_faces_own_target() -> None:
    rng = np.random.default_rng(0)
    crops = rng.uniform(-1, 1, (2 * BATCH + 3, 3, 128, 128)).astype(np.float32)
    targets = np.broadcast_to(np.array([-0.5, 0.0, 0.5]).reshape(3, 1, 1, 1), (3, 3, 112, 112)).astype(np.float32)
    ticks: list[int] = []
    method = peer_method(half_way, (), ticks.append)
    which = rng.integers(0, 3, len(crops))
    change = method.protect(crops, each(method, targets)[which])
    assert change.dtype == np.float32 and sum(ticks) == len(crops) and max(ticks) <= BATCH
    wanted = np.array([-0.5, 0.0, 0.5])[which].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(crops + change, (crops + wanted) / 2, atol=1e-6)
    one = method.protect(crops[:2], method.embed(targets[:1]))  # one target for all
    np.testing.assert_allclose(crops[:2] + one, (crops[:2] - 0.5) / 2, atol=1e-6)
    assert method.erase is None


def test_baselines() -> None:
    crops = np.random.default_rng(0).uniform(-1, 1, (2, 3, 128, 128)).astype(np.float32)
    for name in (NOTHING, GREY_SQUARE):
        method = baseline(name)
        assert not method.protect(crops, crops[:, :, :112, :112].reshape(2, -1)).any()
        assert method.erase is not None
        restored = crops + method.erase(crops)
        assert np.array_equal(restored, crops if name == NOTHING else np.zeros_like(crops))


NET = NetConfig(widths=(4, 8, 8, 8), hidden=16)


@pytest.fixture
def files(tmp_path: Path) -> PeerFiles:
    """A stage-1 checkpoint and a generator of AdvFaces, both tiny and untrained."""
    torch.manual_seed(0)
    editor, discriminator = Editor(NET), Discriminator(NET.attributes, (4, 4))
    torch.save(
        {"config": NET.to_dict(), "editor": editor.state_dict(), "discriminator": discriminator.state_dict()},
        tmp_path / "stage1.pt",
    )
    generator = PerturbationGenerator(2, 1, ["one"])
    config = {"width": 2, "blocks": 1, "surrogates": ["one"]}
    torch.save({"kind": KIND, "config": config, "generator": generator.state_dict()}, tmp_path / "advfaces.pt")
    return PeerFiles(tmp_path / "stage1.pt", tmp_path / "advfaces.pt")


def test_names() -> None:
    assert {"emask", "nothing", "grey-square", "pgd", "tip-im"} <= set(method_names())
    for name in ("photoshop", "emask", "nothing"):
        with pytest.raises(UsageError, match=name):
            peer_of(name)
    assert set(PEER_NAMES) == set(method_names()) - {EMASK, GREY_SQUARE, NOTHING} == PEERS.keys()


@pytest.mark.parametrize("name", sorted(set(PEER_NAMES) - {"semantic-adv"}))
def test_each_peer_is_made_by_its_name(name: str, files: PeerFiles) -> None:
    """With what it needs, and without what its figures need not say; the twin: those that need a file say so."""
    peer = peer_of(name, 3.0, files)
    assert isinstance(peer, PEERS[name])  # type: ignore[arg-type]
    described = json.loads(json.dumps(parameters(peer)))
    assert described["eps"] == 3.0 and described["norm"] == "l2"
    assert not described.keys() & {"classifier", "generator", "editor"}
    own = parameters(peer_of(name, files=files))
    assert own["eps"] != 3.0 and parameters(within(peer, own["eps"])) == own | {"norm": "l2"}
    if name not in NEEDED:
        return
    option = f"--{NEEDED[name][0]}"
    with pytest.raises(UsageError, match=f"{name} needs {option}") as missing:
        peer_of(name)
    assert missing.value.hint
    nowhere = PeerFiles(Path("nowhere.pt"), Path("nowhere.pt"))
    with pytest.raises(UsageError, match="no file nowhere.pt") as absent:
        peer_of(name, files=nowhere)
    assert option in absent.value.hint


def test_a_file_of_another_kind_is_said_to_be_one(files: PeerFiles, tmp_path: Path) -> None:
    swapped = PeerFiles(files.advfaces, files.classifier)
    (tmp_path / "notes.txt").write_text("no checkpoint")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save({"kind": KIND, "config": {"width": 4}, "generator": {}}, tmp_path / "other.pt")
    cases: list[tuple[str, PeerFiles, type[EmaskError], str]] = [
        ("sibling", swapped, ModelError, "no checkpoint of stage 1"),
        ("advfaces", swapped, ModelError, "no generator of AdvFaces"),
        ("advfaces", PeerFiles(advfaces=tmp_path / "other.pt"), ModelError, "another version"),
        *[(name, PeerFiles(tmp_path / damaged, tmp_path / damaged), TrainingError, "no checkpoint of emask")
          for name in ("sibling", "advfaces") for damaged in ("notes.txt", "list.pt")],
    ]  # fmt: skip
    for name, given, error, said in cases:
        with pytest.raises(error, match=said) as caught:
            peer_of(name, files=given)
        assert caught.value.hint


def test_semantic_adv_edits_as_the_shipped_generator_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Path
) -> None:
    """E and D are read off its file; the twin, a file that does not hold them, is refused."""
    with pytest.raises(ModelError, match="how large its networks are"):
        peer_of("semantic-adv")
    torch.manual_seed(1)
    editor = Editor(NET).eval()
    made = {"generator": Generator(editor).state_dict(), "restorer": Restorer(editor).state_dict()}
    torch.save({"config": NET.to_dict(), **made}, tmp_path / "stage2.pt")
    export_run(tmp_path, tmp_path / "models")
    monkeypatch.setenv("EMASK_MODELS_DIR", str(tmp_path / "models"))
    read = peer_of("semantic-adv").editor  # type: ignore[attr-defined]
    crop, labels = torch.rand(1, 3, 128, 128) * 2 - 1, torch.ones(1, NET.attributes)
    with torch.no_grad():
        torch.testing.assert_close(read(crop, labels), editor(crop, labels), rtol=1e-3, atol=1e-4)


def test_a_real_peer_moves_towards_the_target_it_is_given() -> None:
    surrogate = toy_surrogate()
    rng = np.random.default_rng(1)
    crops = rng.uniform(-0.9, 0.9, (3, 3, 128, 128)).astype(np.float32)
    targets = rng.uniform(-0.9, 0.9, (3, 3, 112, 112)).astype(np.float32)
    method = peer_method(peer_of("fgsm"), [surrogate])
    change = method.protect(crops, each(method, targets))
    with torch.no_grad():
        wanted = surrogate(torch.from_numpy(targets))
        before, after = ((surrogate(torch.from_numpy(x)) * wanted).sum(1) for x in (crops, crops + change))
    assert (after > before + 0.01).all()
    # the twin with a budget of its own: exactly as far as it says, by the Euclidean norm
    held = peer_method(peer_of("fgsm", 3.0), [surrogate]).protect(crops, each(method, targets))
    norms = np.sqrt((held**2).sum((1, 2, 3)))
    assert (norms <= 3.0 * (1 + 1e-5)).all() and (norms > 2.5).all()
    assert np.sqrt((change**2).sum((1, 2, 3))).min() > 4


def test_a_peer_as_an_engine_keeps_the_budget_it_is_asked_for() -> None:
    """By its own norm, whatever strength a photo is protected with; the target is the picture, not the embedding."""
    surrogate = toy_surrogate()
    rng = np.random.default_rng(2)
    crops, target = (rng.uniform(-0.9, 0.9, (n, 3, 128, 128)).astype(np.float32) for n in (2, 1))
    engine = PeerEngine(None, "fgsm", peer_of("fgsm"), [surrogate], target)  # type: ignore[arg-type]
    for eps in (2.0, 6.0):
        change = engine.protect(crops, np.zeros(256, np.float32), w=0.0, eps=eps)
        norms = np.sqrt((change**2).sum((1, 2, 3)))
        assert (norms <= eps * (1 + 1e-5)).all() and (norms > 0.8 * eps).all()
