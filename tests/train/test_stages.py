"""What one step of a stage does: which terms, what weights, what is drawn, what is trained and what stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from emask.attributes import ATTRIBUTES, HAIR_COLOURS
from emask.errors import TrainingError
from emask.nets.discriminator import Discriminator
from emask.nets.generator import Editor, Generator
from emask.nets.restorer import Restorer
from emask.train import losses, masking
from emask.train.config import Phase, TrainConfig, Weights
from emask.train.dataset import Batch, Sampler, TrainingSet
from emask.train.masking import EDITABLE, Request
from emask.train.noise import Redetection
from emask.train.place import Place
from emask.train.stage import Setting
from emask.train.stage1 import EditingStage, adversary
from emask.train.stage2 import MaskStage
from emask.train.stage3 import RestorerStage
from emask.train.surrogates import Surrogate

BUDGET = 15.0
WITH_RESTORER = (Phase(1.0, 2, 100, 0.5, BUDGET, True),)
WITHOUT_RESTORER = (Phase(1.0, 2, 100, 0.5, BUDGET, False),)
MakeStage = Callable[[TrainConfig], MaskStage]
MakeRestorerStage = Callable[..., RestorerStage]


@pytest.fixture
def mask_stage(training_set: TrainingSet, surrogates: list[Surrogate]) -> MakeStage:
    """Stage 2 with networks far from where they begin, so that every term has a gradient: a mask beyond the budget."""

    def make(config: TrainConfig) -> MaskStage:
        torch.manual_seed(0)
        editor, discriminator = Editor(config.net).eval(), Discriminator(13)
        stage = MaskStage(Setting(training_set, config, Place(), surrogates), editor, discriminator)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in [*stage.theta, *stage.restorer_parameters]:
                parameter += 0.15 * torch.randn_like(parameter)
            for parameter in discriminator.critic.parameters():  # an untrained one hardly tells pictures apart
                parameter *= 3
            discriminator.classifier[-1].weight *= 3000  # type: ignore[index, operator, union-attr]
        return stage

    return make


@pytest.fixture
def active(tiny_config: TrainConfig) -> TrainConfig:
    """Settings at which no hinge is content: every term of the loss has a gradient."""
    return replace(
        tiny_config, phases=WITH_RESTORER, noise=("none",), reach=1.0, owner_margin=-1.0, away_margin=-1.0, edits=1.0
    )


def loss_of(stage: MaskStage) -> tuple[dict[str, float], float, Tensor]:
    """A step's terms, its weighted total, and the total's gradient for generator and restorer."""
    caught: list[tuple[float, Tensor]] = []

    def catch(loss: Tensor, *parts: tuple[str, list[Tensor]], clip: float | None = None) -> None:
        if parts[0][0] != "critic":
            every = [p for _, parameters in parts for p in parameters]
            grads = torch.autograd.grad(loss, every, allow_unused=True)
            caught.append((loss.item(), torch.cat([torch.zeros(1) if g is None else g.flatten() for g in grads])))

    stage.update = catch  # type: ignore[method-assign, assignment]
    terms = {name: value.item() for name, value in stage.step(0.0).items()}
    assert len(caught) == 1
    return terms, *caught[0]


# the terms of DESIGN section 2, of the owner and of smoothness
TERMS = [
    "adversarial", "owner", "perturbation", "roughness", "critic", "attribute", "pixels", "identity", "away"
]  # fmt: skip


def test_the_total_of_stage_two_is_the_weighted_sum_of_its_terms(mask_stage: MakeStage, active: TrainConfig) -> None:
    terms, total, gradient = loss_of(mask_stage(active))
    assert set(TERMS) <= terms.keys()
    assert terms["perturbation"] > 1  # the mask is beyond the budget, as it is meant to be here
    assert total == pytest.approx(sum(getattr(active.weights, name) * terms[name] for name in TERMS), rel=1e-5)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", TERMS)
def test_every_term_has_its_weight(mask_stage: MakeStage, active: TrainConfig, name: str) -> None:
    weight = getattr(active.weights, name)

    def gradient(factor: float) -> Tensor:
        return loss_of(mask_stage(replace(active, weights=replace(active.weights, **{name: factor * weight}))))[2]

    none, once, twice, thrice = (gradient(factor) for factor in (0.0, 1.0, 2.0, 3.0))
    share = twice - once
    assert share.norm() > 1e-4 * once.norm() and (once - none).norm() > 0.9 * share.norm()
    assert (thrice - twice - share).norm() < 1e-2 * share.norm()


def test_weights_of_another_stage_have_no_effect(mask_stage: MakeStage, active: TrainConfig) -> None:
    other = replace(active.weights, reconstruction=0.0, editing=0.0, kept=0.0, classifier=0.0, realism=0.0)
    assert torch.equal(loss_of(mask_stage(replace(active, weights=other)))[2], loss_of(mask_stage(active))[2])


def test_without_restorer_or_edits_their_terms_are_missing(mask_stage: MakeStage, active: TrainConfig) -> None:
    terms, _, _ = loss_of(mask_stage(replace(active, phases=WITHOUT_RESTORER, edits=0.0)))
    assert {"adversarial", "owner", "perturbation", "roughness", "critic"} <= terms.keys()
    assert not {"attribute", "pixels", "identity", "away"} & terms.keys()
    for name, other in (("critic", "attribute"), ("attribute", "critic")):  # either goes without the other
        terms, _, _ = loss_of(mask_stage(replace(active, weights=replace(active.weights, **{name: 0.0}))))
        assert name not in terms and other in terms


def test_the_attacks_differ(mask_stage: MakeStage, active: TrainConfig) -> None:
    """One step each from the same networks with the same draws: another loss, another gradient, finite parameters."""
    only = replace(active, weights=Weights(owner=0, perturbation=0, roughness=0, critic=0), phases=WITHOUT_RESTORER)
    kinds = ("ensemble", "meta", "meta-first-order")
    gradients = {kind: loss_of(mask_stage(replace(only, attack=kind, inner_lr=0.1)))[2] for kind in kinds}
    for first, second in (("ensemble", "meta"), ("ensemble", "meta-first-order"), ("meta", "meta-first-order")):
        assert (gradients[first] - gradients[second]).norm() > 1e-3 * gradients[first].norm()

    after = {}
    for kind in kinds:
        stage = mask_stage(replace(active, attack=kind))
        encoder = {name: value.clone() for name, value in stage.generator.encoder.state_dict().items()}
        stage.step(0.1)
        after[kind] = torch.cat([p.detach().flatten() for p in stage.theta])
        assert torch.isfinite(after[kind]).all()
        assert all(torch.equal(value, encoder[name]) for name, value in stage.generator.encoder.state_dict().items())
    assert not any(torch.equal(after["ensemble"], after[kind]) for kind in kinds[1:])
    assert not torch.equal(after["meta"], after["meta-first-order"])


def test_all_primaries_are_more_than_one(mask_stage: MakeStage, active: TrainConfig) -> None:
    meta = replace(active, attack="meta")
    one, both = (loss_of(mask_stage(replace(meta, primaries=which)))[0]["adversarial"] for which in ("one", "all"))
    assert both > 1.5 * one


def test_the_terms_of_a_crop_that_carries_no_mask_yet(
    training_set: TrainingSet, surrogates: list[Surrogate], tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first the protected crop is the crop itself, and the restorer changes nothing: all terms are known."""
    config = replace(tiny_config, phases=WITH_RESTORER, noise=("none",), owner_margin=0.25, reach=0.5)
    batch = Batch(np.array([4, 9, 14, 19]), np.zeros(4, bool), 0)
    elsewhere = MaskStage(
        Setting(training_set, config, Place(), surrogates), Editor(config.net).eval(), Discriminator(13)
    )
    assert elsewhere.losses(batch, 0.0)["identity"] > 1e-3  # another detection always moves what the restorer sees
    monkeypatch.setattr(masking, "REDETECTION", Redetection(shift=0.0, degrees=0.0, zoom=0.0))

    def fresh() -> MaskStage:
        torch.manual_seed(0)
        return MaskStage(
            Setting(training_set, config, Place(), surrogates), Editor(config.net).eval(), Discriminator(13)
        )

    request = fresh().request(batch, 0.0, BUDGET, (0.7, 1.3))  # the one that the step draws
    with torch.no_grad():
        score = fresh().discriminator.critic(request.crop).mean()
    cosines = [losses.cosine_rows(s, w) for s, w in zip(request.sources, request.wanted, strict=True)]
    terms = fresh().losses(batch, 0.0)
    expected = {
        "adversarial": sum((0.5 - c).clamp(min=0).mean() for c in cosines),  # with weights of 1
        "owner": 0.75, "perturbation": 1.0, "roughness": 0.0, "pixels": 0.0, "identity": 0.0,
        "away": (cosines[0] - config.away_margin).clamp(min=0).mean(), "critic": -score,
        "cos1": cosines[0].mean(), "cos2": cosines[1].mean(),
    }  # fmt: skip
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(float(value), abs=1e-4), name
    assert abs(expected["away"] - expected["adversarial"]) > 0.01 and cosines[0].max() < 0.9  # nothing equal by chance


def test_injection_weights_are_drawn_up_to_the_limit_on_half_of_the_crops(
    mask_stage: MakeStage, tiny_config: TrainConfig
) -> None:
    def drawn(injection: float) -> Tensor:
        stage = mask_stage(replace(tiny_config, injection=injection))
        return torch.cat([stage.request(stage.sampler.next(), 0.9, BUDGET, (0.7, 1.3)).w for _ in range(60)])

    assert not drawn(0.0).any()
    w = drawn(0.4)
    assert 0.38 < w.max() <= 0.4 and w.min() == 0
    assert (w > 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert w[w > 0].mean() == pytest.approx(0.2, abs=0.03)


def test_requests_draw_budgets_and_edits_as_the_settings_say(mask_stage: MakeStage, tiny_config: TrainConfig) -> None:
    stage = mask_stage(tiny_config)
    requests = [stage.request(stage.sampler.next(), 0.9, BUDGET, (0.7, 1.5)) for _ in range(60)]
    budgets = torch.cat([request.eps for request in requests])
    assert BUDGET * 0.7 <= budgets.min() < BUDGET * 0.75 and BUDGET * 1.45 < budgets.max() <= BUDGET * 1.5
    assert not any(request.edit or request.b.any() for request in requests)

    stage = mask_stage(replace(tiny_config, edits=0.5))
    requests = [stage.request(stage.sampler.next(), 0.9, BUDGET, (1.0, 1.0)) for _ in range(60)]
    b = torch.cat([request.b for request in requests])
    assert all(request.edit and not request.a.any() for request in requests)
    assert b.abs().sum(1).mean() == pytest.approx(0.5, abs=0.1) and set(b.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert int(b.any(0).sum()) == len(EDITABLE)


def test_a_request_belongs_to_its_crops(mask_stage: MakeStage, tiny_config: TrainConfig) -> None:
    """The owners' embeddings are those of the crops; mirrored ones are mirrored."""
    stage = mask_stage(tiny_config)
    batch = stage.sampler.next()
    request = stage.request(batch, 0.9, BUDGET, (1.0, 1.0))
    assert batch.mirrored.any() and not batch.mirrored.all()
    for row, (index, mirrored) in enumerate(zip(batch.indices, batch.mirrored, strict=True)):
        pixels = stage.data.pixels[int(index)].float() / 127.5 - 1
        expected = pixels.flip(1) if mirrored else pixels
        torch.testing.assert_close(request.crop[row], expected.permute(2, 0, 1))
        for k, rows in enumerate(stage.data.surrogate):
            assert torch.equal(request.sources[k][row], rows[int(index)])


def test_the_sampler_uses_every_crop_once_an_epoch() -> None:
    sampler = Sampler(10, 4, seed=0)
    batches = [sampler.next() for _ in range(15)]
    order = np.concatenate([batch.indices for batch in batches])
    for epoch in range(6):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
    # a batch that joins two epochs belongs to the one it begins in
    assert [batch.epoch for batch in batches[:8]] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert 0.3 < np.concatenate([batch.mirrored for batch in batches]).mean() < 0.7
    assert len(Sampler(3, 8, seed=0).next().indices) == 8  # fewer crops than a batch


def test_a_restorer_that_has_nothing_to_do_stays_finite(
    training_set: TrainingSet, surrogates: list[Surrogate], tiny_config: TrainConfig
) -> None:
    """Clean crops, no noise and a restorer that changes nothing: the difference is zero exactly."""
    config = replace(tiny_config, clean=1.0, noise=("none",))
    torch.manual_seed(0)
    editor = Editor(config.net).eval()
    stage = RestorerStage(
        Setting(training_set, config, Place(), surrogates), Generator(editor), Restorer(editor)
    )
    terms = stage.step(0.1)
    assert terms["pixels"].item() == pytest.approx(0, abs=1e-5)
    assert all(torch.isfinite(p).all() for p in stage.parameters)


@pytest.fixture
def refined_stage(training_set: TrainingSet, surrogates: list[Surrogate], projection: nn.Module) -> MakeRestorerStage:
    """Stage 3 with a generator whose masks are beyond the budget."""

    def make(
        config: TrainConfig, recognizers: Sequence[nn.Module] = (projection,), data: TrainingSet = training_set
    ) -> RestorerStage:
        torch.manual_seed(0)
        editor = Editor(config.net).eval()
        generator, restorer = Generator(editor), Restorer(editor)
        with torch.no_grad():
            for parameter in generator.protected_decoder.parameters():
                parameter += 0.15 * torch.randn_like(parameter)
        return RestorerStage(Setting(data, config, Place(), surrogates, recognizers), generator, restorer)

    return make


def changes_of(stage: RestorerStage) -> tuple[Tensor, Tensor]:
    """Crops and changes that a step of stage 3 hands to the restorer."""
    caught: list[tuple[Tensor, Tensor]] = []
    restoration = stage.restoration

    def catch(restorer: Restorer, protected: Tensor, request: Request, k: int) -> dict[str, Tensor]:
        caught.append((request.crop, protected - request.crop))
        return restoration(restorer, protected, request, k)

    stage.restoration = catch  # type: ignore[method-assign]
    stage.step(0.5)
    return caught[0]


def test_stage_three_trains_on_masks_as_protect_refines_them(
    refined_stage: MakeRestorerStage, tiny_config: TrainConfig
) -> None:
    """The crops are the batch's, the changes as large as the generator's and others; the twin is without refining."""
    config = replace(tiny_config, refined=1.0, refine_every=2, replay=10, clean=0.0)
    stage, twin = refined_stage(config), refined_stage(replace(config, refined=0.0))
    before = [p.clone() for p in stage.generator.parameters()]
    (crop, refined), (batch, plain) = changes_of(stage), changes_of(twin)
    assert len(stage.replay) == len(batch) == config.batch
    rows = [int((batch == one).flatten(1).all(1).nonzero()[0]) for one in crop]
    norms = refined.flatten(1).norm(dim=1)
    assert (norms <= plain[rows].flatten(1).norm(dim=1) * 1.01).all() and (norms > 0.1).all()
    assert ((refined - plain[rows]).flatten(1).norm(dim=1) > 0.1 * norms).all()
    assert all(torch.equal(a, b) for a, b in zip(before, stage.generator.parameters(), strict=True))
    assert all(p.requires_grad for p in stage.restorer.parameters())


def test_masks_are_refined_through_the_refiner_too(
    refined_stage: MakeRestorerStage, tiny_config: TrainConfig, training_set: TrainingSet, projection: nn.Module
) -> None:
    """Its embeddings stand behind the recognizer's; the generator is given the first ones only, the mask both."""

    class Turned(nn.Module):
        """The recognizer's embeddings in another order: another space, of the same pictures."""

        def forward(self, x: Tensor) -> Tensor:
            return projection(x).flip(1)  # type: ignore[no-any-return]

    wide = replace(
        training_set,
        identity=torch.cat([training_set.identity, training_set.identity.flip(1)], 1),
        target_identity=torch.cat([training_set.target_identity, training_set.target_identity.flip(1)], 1),
    )
    config = replace(tiny_config, refined=1.0, refine_every=2, replay=10, clean=0.0)
    both = refined_stage(config, (projection, Turned()), wide)
    _, alone = changes_of(refined_stage(config))
    _, changed = changes_of(both)
    # the same cosines in another order: joined, they are the recognizer's own, and so is the mask
    torch.testing.assert_close(changed, alone, atol=2e-3, rtol=0)
    other = replace(wide, target_identity=wide.target_identity.roll(1, 1), identity=wide.identity.roll(1, 1))
    _, elsewhere = changes_of(refined_stage(config, (projection, Turned()), other))
    assert (elsewhere - alone).abs().max() > 0.01  # the twin: with other targets the masks are others


def test_a_replayed_mask_keeps_its_owner_and_target(refined_stage: MakeRestorerStage, tiny_config: TrainConfig) -> None:
    """Two batches in the replay, drawn from in another order than they came."""
    stage = refined_stage(replace(tiny_config, refined=1.0, replay=16))
    known: list[Request] = []
    for _ in range(2):
        batch = stage.sampler.next()
        request = stage.request(batch, 1.0, BUDGET, (1.0, 1.0))
        stage._refine(batch, request)
        known.append(request)
    replayed, change = stage._replayed(known[0])
    assert len(change) == len(replayed.crop) == tiny_config.batch
    crops = torch.cat([request.crop for request in known])
    for row, crop in enumerate(replayed.crop):
        (match,) = (crops == crop).flatten(1).all(1).nonzero().flatten().tolist()
        for k in range(2):
            assert torch.equal(replayed.wanted[k][row], torch.cat([r.wanted[k] for r in known])[match])
            assert torch.equal(replayed.sources[k][row], torch.cat([r.sources[k] for r in known])[match])


def test_the_replay_keeps_the_newest(refined_stage: MakeRestorerStage, tiny_config: TrainConfig) -> None:
    config = replace(tiny_config, refined=0.5, refine_every=2, replay=6)
    stage = refined_stage(config)
    sizes, seen = [], []
    for _ in range(5):
        seen.append(torch.from_numpy(stage.sampler.next().indices.copy()))
        stage.sampler = Sampler(len(stage.data), 4, seed=len(seen))  # another order each time
        first = Sampler(len(stage.data), 4, seed=len(seen)).next().indices
        stage.step(0.5)
        sizes.append(len(stage.replay))
        if stage.step_count % 2:
            assert stage.replay.rows["index"][-4:].tolist() == first.tolist()
    assert sizes == [4, 4, 6, 6, 6]


def test_refined_masks_need_a_recognizer(refined_stage: MakeRestorerStage, tiny_config: TrainConfig) -> None:
    with pytest.raises(TrainingError, match="no recognizer"):
        refined_stage(replace(tiny_config, refined=0.5), ())
    refined_stage(tiny_config, ())


def test_the_critic_learns_to_tell_protected_from_real(mask_stage: MakeStage, active: TrainConfig) -> None:
    """The sign of its loss: with the generator standing still, real crops come to score higher than protected ones."""
    stage = mask_stage(replace(active, weights=replace(active.weights, gradient_penalty=0.0)))
    request = stage.request(stage.sampler.next(), 0.0, BUDGET, (1.0, 1.0))
    protected = (request.crop + 0.3 * torch.randn(request.crop.shape)).clamp(-1, 1)
    for _ in range(10):
        stage._train_critic(request.crop, protected)
    with torch.no_grad():
        assert losses.wasserstein(*map(stage.discriminator.critic, (request.crop, protected))) < -0.01


def test_stage_one_trains_critic_and_editor_against_each_other(
    training_set: TrainingSet, tiny_config: TrainConfig
) -> None:
    """critic_steps updates of the critic for one of the editor, the penalty in one of `penalty_every` of these."""
    stage = EditingStage(Setting(training_set, replace(tiny_config, critic_steps=3, penalty_every=2), Place()))
    updates: list[tuple[str, bool]] = []
    update = stage.update

    def count(loss: Tensor, *parts: tuple[str, list[Tensor]], clip: float | None = None) -> None:
        seen, ahead = set(), [loss.grad_fn]
        while ahead:
            node = ahead.pop()
            if node is not None and node not in seen:
                seen.add(node)
                ahead += [before for before, _ in node.next_functions]
        # a double backward is what tells the penalty
        updates.append((parts[0][0], any("BackwardBackward" in node.name() for node in seen)))
        update(loss, *parts, clip=clip)

    stage.update = count  # type: ignore[method-assign, assignment]
    for step in range(2):
        terms = stage.step(step / 4)
        assert all(torch.isfinite(value) for value in terms.values())
    assert [name for name, _ in updates] == ["critic"] * 3 + ["editor"] + ["critic"] * 3 + ["editor"]
    assert [penalty for name, penalty in updates if name == "critic"] == [True, False] * 3


def test_edits_are_classified_through_blur_and_noise(training_set: TrainingSet, tiny_config: TrainConfig) -> None:
    """The twin: with an empty pool the classifier sees the very pixels."""
    for noise in (("none",), ("blur", "noise", "resize", "jpeg-codec")):
        torch.manual_seed(0)
        stage = EditingStage(Setting(training_set, replace(tiny_config, noise=noise), Place()))
        crop = stage.crops(stage.sampler.next())[1]
        same = [torch.equal(stage.see(crop), crop) for _ in range(12)]
        assert all(same) == (noise == ("none",))
        assert {distortion.name for distortion in stage.seen_through} == set(noise) - {"none", "jpeg-codec"}


def test_the_adversary_turns_answers_within_its_ball() -> None:
    """The twin: with the sign turned around it would make the classifier surer."""
    torch.manual_seed(0)
    classifier = Discriminator(13, (4, 6, 8)).classifier.eval()
    with torch.no_grad():  # an untrained one hardly tells pictures apart
        classifier[-1].weight *= 300  # type: ignore[operator, union-attr]
    crop, on = torch.rand(3, 3, 64, 64) - 0.5, torch.full((13,), 0.5)
    labels = torch.where(torch.rand(3, 13) < 0.5, -1.0, 1.0)
    seen = adversary(classifier, crop, labels, on, radius=4.0)
    assert not seen.requires_grad and ((seen - crop).flatten(1).norm(dim=1) <= 4 * (1 + 1e-5)).all()
    before, after = (losses.attribute(classifier(x), labels).item() for x in (crop, seen))
    opposite = losses.attribute(classifier(2 * crop - seen), labels).item()
    assert opposite < before - 1e-3 < before + 1e-3 < after


def test_what_is_asked_of_the_editor(training_set: TrainingSet, tiny_config: TrainConfig) -> None:
    """A third as other photos have it, a third one attribute, a third two; of hair colours one at most."""
    stage = EditingStage(Setting(training_set, tiny_config, Place()))
    asked = stage.wanted(torch.full((6000, 13), 0.5))
    alone = asked[((asked == 0) | (asked.abs() == 1)).all(1) & (asked != 0).any(1)]
    assert len(alone) / 6000 == pytest.approx(2 / 3, abs=0.04)
    hair = [ATTRIBUTES.index(name) for name in HAIR_COLOURS]
    rest = alone[(alone[:, hair] == 0).all(1)]
    assert set((rest != 0).sum(1).tolist()) == {1, 2}
    assert (alone[:, hair] > 0).sum(1).max() == 1
    blond = alone[alone[:, hair[1]] > 0]
    assert ((blond[:, hair] < 0).sum(1) == 2).float().mean() > 0.6  # unless it was asked for as the second
    assert (alone > 0).sum() / (alone != 0).sum() == pytest.approx(0.45, abs=0.05)


def test_partly_known_labels_are_a_third_each(training_set: TrainingSet, tiny_config: TrainConfig) -> None:
    stage = EditingStage(Setting(training_set, tiny_config, Place()))
    known = stage.partly(torch.ones(3000, 13)).mean(1)
    assert (known == 1).float().mean() == pytest.approx(1 / 3, abs=0.04)
    assert (known == 0).float().mean() == pytest.approx(1 / 3, abs=0.04)
    between = known[(known > 0) & (known < 1)]
    assert between.mean() == pytest.approx(0.5, abs=0.05)


def test_the_editor_is_to_raise_the_critics_score_and_comes_to_rebuild(
    training_set: TrainingSet, tiny_config: TrainConfig
) -> None:
    stage = EditingStage(Setting(training_set, replace(tiny_config, critic_steps=1), Place()))
    first = stage.sampler.next()
    with torch.no_grad():
        real = stage.critic(stage.crops(first)[1]).mean().item()
    update, stage.update = stage.update, lambda *_, **__: None  # type: ignore[method-assign]
    terms = stage.losses(first, 0.0)  # nothing has moved: the edited crops' score is that of the critic's own term
    assert terms["realism"].item() == pytest.approx(-(terms["wasserstein"].item() + real), abs=1e-5)
    stage.update = update  # type: ignore[method-assign]
    rebuilt = [stage.step(0.1)["reconstruction"].item() for _ in range(12)]
    assert np.mean(rebuilt[9:]) < 0.95 * terms["reconstruction"].item()
