"""The equations as the stages put them together: each term and total of a step by hand, and what no step may disturb.

Each term is tested by itself in test_losses.py, the attack in test_attack.py. Here it is whether a stage hands them the
right pictures, labels and weights, with the right sign.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from emask.recognize import Recognizer
from emask.recognize.cards import Card
from emask.train import losses, masking, watch
from emask.train.config import Phase, TrainConfig, Weights
from emask.train.dataset import Batch, TrainingSet
from emask.train.loop import Run, run_stage
from emask.train.masking import MaskingStage
from emask.train.noise import Redetection
from emask.train.place import Place
from emask.train.run import open_stage
from emask.train.stage import Setting, Stage
from emask.train.stage1 import EditingStage
from emask.train.surrogates import Surrogate, read_cards
from emask.train.validation import Validation

OpenStage = Callable[..., Stage]
MakeStage = Callable[..., Any]


@pytest.fixture
def masked(stage_of: OpenStage, tiny_config: TrainConfig) -> MakeStage:
    """Stage 2 or 3 where every term has a value to be seen: masks beyond the budget, no hinge that is content."""

    def make(number: int = 2, **changes: Any) -> MaskingStage:
        whole = (Phase(1.0, 2, 100, 0.5, 15.0, True),)
        settings = {"reach": 1.0, "owner_margin": -1.0, "away_margin": -1.0, "edits": 1.0, "clean": 0.0, **changes}
        stage = stage_of(number, replace(tiny_config, phases=whole, noise=("none",), **settings))
        assert isinstance(stage, MaskingStage)
        generator = stage.modules["generator"]
        torch.manual_seed(1)
        with torch.no_grad():
            for part in (generator.perturbation_encoder, generator.protected_decoder, stage.modules["restorer"]):
                for parameter in part.parameters():  # type: ignore[union-attr]
                    parameter += 0.15 * torch.randn_like(parameter)
        return stage

    return make


@pytest.fixture
def at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The restorer sees crops where they lie: with an empty noise pool, the protected crop itself."""
    monkeypatch.setattr(masking, "REDETECTION", Redetection(shift=0.0, degrees=0.0, zoom=0.0))


def hold(stage: Stage) -> dict[str, Tensor]:
    """Let no step move anything; gives what would have been minimised, by the first optimizer's name."""
    caught: dict[str, Tensor] = {}

    def catch(loss: Tensor, *parts: tuple[str, list[nn.Parameter]], clip: float | None = None) -> None:
        caught[parts[0][0]] = loss.detach()

    stage.update = catch  # type: ignore[method-assign, assignment]
    return caught


def record(of: object, name: str) -> list[Any]:
    """What a method returns from now on."""
    returned: list[Any] = []
    method = getattr(of, name)

    def kept(*args: Any, **kwargs: Any) -> Any:
        returned.append(method(*args, **kwargs))
        return returned[-1]

    setattr(of, name, kept)
    return returned


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """The mean over a batch."""
    return nn.functional.cosine_similarity(x, y).mean()


def entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the labels that are known, all of which are -1 or 1: log(1 + exp(-label * logit))."""
    return nn.functional.softplus(-labels * logits)[labels != 0].mean()


def penalty(critic: nn.Module, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """WGAN-GP's, between the pictures at the shares that were drawn."""
    between = (share * real + (1 - share) * fake).detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(critic(between).sum(), between)
    return (grad.flatten(1).norm(dim=1) - 1).square().mean().detach()


def agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each of the expected numbers was found; none is so small that its sign would not show."""
    for name, value in expected.items():
        assert abs(float(value)) > 2e-3, name
        assert found[name].item() == pytest.approx(float(value), rel=1e-4, abs=1e-5), name


# --- stage 1


def test_the_losses_of_stage_one_by_hand(stage_of: OpenStage, tiny_config: TrainConfig) -> None:
    config = replace(tiny_config, batch=8, critic_steps=1, penalty_every=1, noise=("none",))
    stage = stage_of(1, config)
    assert isinstance(stage, EditingStage)
    with torch.no_grad():  # untrained ones hardly tell pictures apart
        for part in stage.critic.parameters():
            part *= 3
        stage.classifier[-1].weight *= 100  # type: ignore[operator, union-attr]
    totals, wanted, partly = hold(stage), record(stage, "wanted"), record(stage, "partly")
    drawn = record(stage.draws, "uniform")
    batch = stage.sampler.next()
    terms = stage.losses(batch, 0.0)  # at first the classifier sees the pictures as they are

    indices, crop = stage.crops(batch)
    a, (b,) = stage.data.labels[indices], wanted
    with torch.no_grad():
        edited, rebuilt = stage.editor(crop, b), stage.editor(crop, partly[-1])
        fake, real = (stage.critic(pictures).mean() for pictures in (edited, crop))
        logits = stage.classifier.eval()(edited)
        of_real = stage.classifier.train()(crop)
    expected = {
        "reconstruction": (rebuilt - crop).abs().mean(),
        "editing": entropy(logits, b),
        "kept": entropy(logits, torch.where(b == 0, a, 0.0)),
        "realism": -fake,
        "wasserstein": fake - real,
        "classifier": losses.attribute(of_real, a, stage.on),
    }
    agree(terms, expected)
    assert abs(expected["editing"] - entropy(logits, a)) > 0.1  # what is wanted is not what is there

    weights = config.weights
    names = ("reconstruction", "editing", "kept", "realism")
    (share,) = (numbers for numbers in drawn if numbers.ndim == 4)
    by_hand = {
        "editor": sum(getattr(weights, name) * expected[name] for name in names),
        "critic": expected["wasserstein"]
        + weights.classifier * expected["classifier"]
        + weights.gradient_penalty * penalty(stage.critic, crop, edited, share),
    }
    agree(totals, by_hand)  # type: ignore[arg-type]


# --- stage 2


def test_the_losses_of_stage_two_by_hand(masked: MakeStage, at_rest: None) -> None:
    stage = masked()
    totals, requests, drawn = hold(stage), record(stage, "request"), record(stage.draws, "uniform")
    terms = stage.step(0.0)

    (asked,) = requests
    crop = asked.crop
    with torch.no_grad():
        mask, edit = stage.generator.mask(crop, asked.target, asked.a, asked.b, asked.w)
        change = stage.generator.compose(crop, mask, edit, asked.eps)
        protected = crop + change
        restored = protected + stage.restorer(protected)
        seen, erased = [surrogate(protected) for surrogate in stage.surrogates], stage.surrogates[0](restored)
        critic, classifier = stage.discriminator.critic, stage.discriminator.classifier
        left = restored - crop
        expected = {
            "adversarial": sum(1 - cosine(e, t) for e, t in zip(seen, asked.wanted, strict=True)),  # at weights of 1
            "owner": sum(1 + cosine(e, s) for e, s in zip(seen, asked.sources, strict=True)) / 2,  # margin -1
            "perturbation": (mask.flatten(1).norm(dim=1) / asked.eps).mean(),
            "roughness": losses.roughness(change, crop),
            "critic": -critic(protected).mean(),
            "attribute": entropy(classifier(protected), asked.b),
            "pixels": left.abs().mean() + left.square().mean((1, 2, 3)).sqrt().mean(),
            "identity": 1 - cosine(erased, asked.sources[0]),
            "away": 1 + cosine(erased, asked.wanted[0]),  # margin -1
        }
        scores = critic(protected).mean() - critic(crop).mean()
    assert (mask.flatten(1).norm(dim=1) > asked.eps).all()
    agree(terms, expected)  # type: ignore[arg-type]

    weights = stage.config.weights
    share = [numbers for numbers in drawn if numbers.ndim == 4][-1]
    by_hand = {
        "generator": sum(getattr(weights, name) * value for name, value in expected.items()),
        "critic": scores + weights.gradient_penalty * penalty(critic, crop, protected, share),
    }
    agree(totals, by_hand)  # type: ignore[arg-type]


def test_surrogates_weigh_by_what_they_lost_in_the_epoch_so_far(masked: MakeStage) -> None:
    """Two steps in each of two epochs, a crop each: weights follow 1 - cos, and an epoch forgets the one before it."""
    reach = 0.9
    stage = masked(reach=reach)
    hold(stage)
    lost: list[np.ndarray] = []
    found: list[float] = []
    for crop, epoch in ((4, 0), (9, 0), (14, 1), (21, 1)):
        terms = stage.losses(Batch(np.array([crop]), np.zeros(1, bool), epoch), 0.0)
        lost.append(np.array([1 - float(terms["cos1"]), 1 - float(terms["cos2"])]))
        found.append(float(terms["adversarial"]))

    def adversarial(step: int, *known: int) -> float:
        """The step's term with weights by the mean losses of the steps that are known; all 1 without any."""
        means = np.mean([lost[k] for k in known], 0) if known else np.ones(2)
        weights = np.clip(means / means.mean(), 0.5, 2.0)
        return float((weights * np.maximum(0, lost[step] - (1 - reach))).sum())

    # the first step of an epoch goes by the weights of the last
    expected = [adversarial(0), adversarial(1, 0), adversarial(2, 0, 1), adversarial(3, 2)]
    assert found == pytest.approx(expected, rel=1e-4)
    for step, other in ((1, adversarial(1)), (2, adversarial(2)), (3, adversarial(3)), (3, adversarial(3, 0, 1, 2))):
        assert found[step] != pytest.approx(other, rel=1e-2)  # had all weighed 1, or were nothing forgotten


@pytest.mark.parametrize("name", ["pixels", "identity", "away"])
def test_the_restorers_terms_train_the_generator_along(masked: MakeStage, name: str) -> None:
    """End to end: E_p learns to make what can be taken off. No other term has a weight."""
    none = {field.name: 0.0 for field in fields(Weights)}
    stage = masked(weights=Weights(**{**none, name: 1.0}))
    before = [p.clone() for p in stage.theta]
    stage.step(0.5)
    for parameters in (stage.generator.perturbation_encoder.parameters(), stage.restorer.parameters()):
        assert any(p.grad is not None and p.grad.any() for p in parameters)
    assert any(not torch.equal(p, old) for p, old in zip(stage.theta, before, strict=True))


# --- stage 3


def test_the_losses_of_stage_three_by_hand(masked: MakeStage, at_rest: None) -> None:
    stage = masked(3, edits=0.0)
    totals, requests = hold(stage), record(stage, "request")
    terms = stage.step(0.0)

    (asked,) = requests
    crop = asked.crop
    with torch.no_grad():
        protected = crop + stage.generator(crop, asked.target, asked.a, asked.b, asked.w, asked.eps)
        restored = protected + stage.restorer(protected)
        erased, left = stage.surrogates[0](restored), restored - crop
    expected = {
        "pixels": left.abs().mean() + left.square().mean((1, 2, 3)).sqrt().mean(),
        "identity": 1 - cosine(erased, asked.sources[0]),
        "away": 1 + cosine(erased, asked.wanted[0]),  # margin -1
    }
    assert terms.keys() == expected.keys()
    agree(terms, expected)
    agree(totals, {"restorer": sum(getattr(stage.config.weights, name) * value for name, value in expected.items())})  # type: ignore[dict-item]


def test_the_restorer_comes_to_take_masks_off(masked: MakeStage) -> None:
    stage = masked(3, edits=0.0, lr=(1e-3, 1e-3, 3e-3))
    batch = stage.sampler.next()
    stage.sampler.next = lambda: batch  # the same crops, so that what falls is not the draw's doing
    pixels = [stage.step(0.1)["pixels"].item() for _ in range(12)]
    assert np.mean(pixels[-3:]) < 0.9 * np.mean(pixels[:3])


# --- what no step may disturb


@pytest.fixture(scope="module")
def validation(
    training_set: TrainingSet, make_block_recognizer: Callable[[Path, int], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Validation:  # fmt: skip
    path = make_block_recognizer(tmp_path_factory.mktemp("judge") / "judge.onnx", 16)
    judge = Recognizer(Card("judge", path, thresholds={"0.01": 0.1}), "cpu")
    photos = training_set.pixels.numpy().reshape(12, 2, 128, 128, 3)
    return Validation(photos[9:], [judge], training_set.target_identity, photos[:2])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_looking_on_the_way_disturbs_nothing(
    stage_of: OpenStage, tiny_config: TrainConfig, validation: Validation, tmp_path: Path, number: int,
    one_thread: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Pictures and scores after every step, and the same losses and weights bit for bit as without."""
    samples, curves = (f"stage{number}-{name}.png" for name in ("samples", "curves"))

    def draw(table: Path, picture: Path, **more: Any) -> bool:
        """Drawing takes seconds, and is tested elsewhere: the steps it would have drawn."""
        picture.write_text(str(watch.read_columns(table)["step"].tolist()))
        return True

    monkeypatch.setattr(watch, "draw_curves", draw)

    def trained(minutes: float) -> tuple[list[dict[str, float]], dict[str, Any], list[tuple[bool, str, list[float]]]]:
        """Each step's losses, the weights, and what was there before each step: samples, curves, scores."""
        folder = tmp_path / str(minutes)
        folder.mkdir()
        stage = stage_of(number, replace(tiny_config, steps=(3, 3, 3), watch=minutes))
        step, terms, there = stage.step, [], []

        def noted(progress: float) -> dict[str, Tensor]:
            drawn = (folder / curves).read_text() if (folder / curves).exists() else ""
            scored = watch.read_columns(folder / watch.VALIDATION).get("step", np.zeros(0))
            there.append(((folder / samples).exists(), drawn, scored.tolist()))
            (folder / samples).unlink(missing_ok=True)  # a new one each time
            values = step(progress)
            terms.append({name: value.item() for name, value in values.items()})
            return values

        stage.step = noted  # type: ignore[method-assign]
        run_stage(stage, Run(folder, validation=validation, save_every=0.0))  # a row of losses a step
        assert (folder / samples).exists() and (folder / curves).read_text() == "[1.0, 2.0, 3.0]"
        return terms, {name: module.state_dict() for name, module in stage.modules.items()}, there

    looked, weights, there = trained(1e-9)
    alone, expected, nothing = trained(0.0)
    assert looked == alone and len(looked) == 3
    for name, module in expected.items():
        assert all(torch.equal(weights[name][key], value) for key, value in module.items()), name
    scored = [[], [1.0], [1.0, 2.0]] if number > 1 else [[]] * 3  # stage 1 has no mask to validate
    assert there == list(zip((False, True, True), ("", "[1.0]", "[1.0, 2.0]"), scored, strict=True))
    assert nothing == [(False, "", [])] * 3


@contextmanager
def told_of_waiting() -> Iterator[None]:
    """CUDA warns where the CPU waits for it: to be read in the test's output."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_step_in_bfloat16_on_a_gpu(
    training_set: TrainingSet, recognizer_folder: Path, tiny_config: TrainConfig, run: Path, projection: nn.Module,
    number: int,
) -> None:  # fmt: skip
    place = Place(torch.device("cuda"))
    cards = read_cards(recognizer_folder)
    surrogates = [Surrogate(cards[name]).eval().to(place.device) for name in ("one", "two")]
    recognizers = [copy.deepcopy(projection).to(place.device)]
    whole = (Phase(1.0, 2, 100, 0.5, 15.0, True),)
    config = replace(tiny_config, bf16=True, phases=whole, edits=1.0, attack="meta", refined=0.5, replay=8)
    stage = open_stage(number, Setting(training_set.to(place.device), config, place, surrogates, recognizers), run)
    with told_of_waiting():
        terms = stage.step(0.5)
    assert all(value.device.type == "cuda" and torch.isfinite(value) for value in terms.values())
    assert all(torch.isfinite(p).all() for module in stage.modules.values() for p in module.parameters())
