"""Properties of the networks: what holds at the start, and what the run-time inputs w and eps promise."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from emask.nets.blocks import Decoder, fold_norms, fuse, inject
from emask.nets.discriminator import Discriminator
from emask.nets.generator import Editor, Generator, NetConfig
from emask.nets.recognizer import EMBEDDING, Recognizer
from emask.nets.restorer import Restorer

CONFIG = NetConfig(size=32, widths=(4, 6, 8, 8), hidden=8)


def unit(batch: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(batch, CONFIG.target), dim=1)


@pytest.fixture
def editor() -> Editor:
    torch.manual_seed(0)
    editor = Editor(CONFIG)
    editor.train()
    for _ in range(3):  # running statistics that differ from the initial ones
        editor(torch.rand(8, 3, 32, 32) * 2 - 1, torch.zeros(8, CONFIG.attributes))
    return editor.eval()


@pytest.fixture
def trained(editor: Editor) -> Generator:
    """A generator whose mask is far from zero."""
    generator = Generator(editor).eval()
    with torch.no_grad():
        generator.modulation.out.weight.normal_(0, 0.3)
        for part in (generator.perturbation_encoder, generator.protected_decoder):
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return generator


def inputs(batch: int = 3, w: float = 0.0, eps: float = 4.0) -> dict[str, Tensor]:
    torch.manual_seed(1)
    labels = torch.rand(batch, CONFIG.attributes) * 2 - 1
    return {
        "crop": torch.rand(batch, 3, 32, 32) * 2 - 1,
        "target": unit(batch),
        "a": labels,
        "b": labels.clone(),
        "w": torch.full((batch,), w),
        "eps": torch.full((batch,), eps),
    }


def test_mask_and_what_takes_it_off_are_grey(trained: Generator, editor: Editor) -> None:
    x = inputs()
    mask, edit = trained.mask(*(x[name] for name in ("crop", "target", "a", "b", "w")))
    assert float(mask.abs().max()) > 0.01
    torch.testing.assert_close(mask, mask[:, :1].expand_as(mask), atol=0, rtol=0)
    inside = x["crop"] * 0.5  # far from black and white, where clamping would part the channels
    composed = trained.compose(inside, mask, torch.zeros_like(edit), torch.full((3,), 4.0))
    torch.testing.assert_close(composed, composed[:, :1].expand_as(composed), atol=1e-6, rtol=0)
    restorer = Restorer(editor)
    with torch.no_grad():
        restorer.decoder.to_image.weight.normal_(0, 0.2)
    undone = restorer(inside)
    assert float(undone.detach().abs().max()) > 0.01
    torch.testing.assert_close(undone, undone[:, :1].expand_as(undone), atol=1e-6, rtol=0)


def test_folding_norms_changes_nothing(editor: Editor) -> None:
    x = inputs()
    generator = Generator(editor)
    folded = generator.decoder(generator.encoder(x["crop"]), x["a"])[0]
    torch.testing.assert_close(folded, editor(x["crop"], x["a"]), atol=1e-5, rtol=1e-4)


def test_mask_is_exactly_zero_at_first(editor: Editor) -> None:
    x = inputs()
    mask, edit = Generator(editor).mask(x["crop"], x["target"], x["a"], -x["a"], x["w"])
    assert mask.abs().max() == 0
    assert edit.abs().max() > 0


def test_protected_equals_attribute_edited_at_first(editor: Editor) -> None:
    x = inputs()
    generator = Generator(editor)
    protected = x["crop"] + generator(x["crop"], x["target"], x["a"], -x["a"], x["w"], x["eps"])
    edit = generator.decoder(generator.encoder(x["crop"]), -x["a"])[0]
    edit = edit - generator.decoder(generator.encoder(x["crop"]), x["a"])[0]
    expected = torch.clamp(x["crop"] + edit * generator.window, -1, 1)
    torch.testing.assert_close(protected, expected, atol=1e-6, rtol=0)


def test_w_one_gives_the_clean_decoding(trained: Generator) -> None:
    assert trained(**inputs(w=0.0)).abs().max() > 1e-3  # the twin: without injection there is a mask
    assert trained(**inputs(w=1.0)).abs().max() == 0


def test_mask_weakens_with_w(trained: Generator) -> None:
    norms = [float(trained.mask(**_mask_inputs(w))[0].norm()) for w in (0.0, 0.3, 0.6, 1.0)]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] == 0


def _mask_inputs(w: float) -> dict[str, Tensor]:
    x = inputs(w=w)
    del x["eps"]
    return x


@pytest.mark.parametrize("eps", [0.0, 0.5, 2.0])
def test_mask_keeps_its_budget(trained: Generator, eps: float) -> None:
    norm = trained(**inputs(eps=eps)).square().sum((1, 2, 3)).sqrt()
    assert (norm <= eps + 1e-5).all()
    if eps:
        assert (norm > 0.5 * eps).all()  # and uses it


def test_result_stays_in_range_and_borders_stay(trained: Generator) -> None:
    x = inputs(eps=100.0)
    change = trained(**x)
    assert (x["crop"] + change).abs().max() <= 1 + 1e-6
    for edge in (change[:, :, 0], change[:, :, -1], change[:, :, :, 0], change[:, :, :, -1]):
        assert edge.abs().max() == 0


def test_target_decides_the_mask(trained: Generator) -> None:
    x = inputs()
    one = trained(**x)
    other = trained(**{**x, "target": -x["target"]})
    assert (one - other).abs().max() > 1e-3


def test_only_the_mask_is_trainable(editor: Editor) -> None:
    generator = Generator(editor)
    x = inputs()
    mask, _ = generator.mask(x["crop"], x["target"], x["a"], x["b"], x["w"])
    (mask * torch.randn_like(mask)).sum().backward()
    assert all(p.grad is None for part in (generator.encoder, generator.decoder) for p in part.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in generator.perturbation_encoder.parameters())
    assert generator.modulation.out.weight.grad is not None
    assert generator.modulation.out.weight.grad.abs().sum() > 0


def test_restorer_changes_nothing_at_first_and_can_learn(editor: Editor) -> None:
    restorer = Restorer(editor)
    crop = inputs()["crop"]
    change = restorer(crop)
    assert change.abs().max() == 0
    (change * torch.randn_like(change)).sum().backward()
    gradient = restorer.decoder.to_image.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0


# --- the two equations by which clean and protected features meet


class Times(nn.Module):
    """A layer whose output can be worked out in one's head: a multiple of the sum over its input's channels."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, modulation: object = None) -> Tensor:
        return self.factor * x.sum(1, keepdim=True)


def plain(value: float, side: int) -> Tensor:
    """(1, 1, side, side) of one value."""
    return torch.full((1, 1, side, side), value)


def test_fusion_lies_between_the_encoders_by_its_share() -> None:
    e, p = torch.tensor([10.0, 1.0]), torch.tensor([2.0, 5.0])
    assert fuse(e, p, torch.tensor(0.25)).tolist() == [8.0, 2.0]
    assert torch.equal(fuse(e, p, torch.tensor(0.0)), e) and torch.equal(fuse(e, p, torch.tensor(1.0)), p)
    same = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fuse(same, same, torch.tensor(0.3)), same)  # bit for bit: no mask at first


def test_injection_mixes_each_crop_by_its_own_weight() -> None:
    protected, clean = plain(10.0, 2).expand(3, 1, 2, 2), plain(2.0, 2).expand(3, 1, 2, 2)
    w = torch.tensor([0.0, 0.25, 1.0]).view(3, 1, 1, 1)
    mixed = inject(protected, clean, w)
    assert torch.equal(mixed, torch.tensor([10.0, 8.0, 2.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2))
    assert inject(protected.bfloat16(), clean.bfloat16(), w).dtype == torch.bfloat16


def test_the_perturbation_encoder_reads_what_was_fused_before(editor: Editor) -> None:
    """Two layers by hand. Of its own output the second would make 3 * 6, of the opposite fusion 3 * 12."""
    generator = Generator(editor)
    generator.perturbation_encoder.layers = nn.ModuleList([Times(2.0), Times(3.0)])
    generator.fusion = nn.Parameter(torch.tensor([0.25, 0.5]))
    crop = torch.zeros(1, 3, 2, 2)
    crop[:, 0] = 1.0
    first, second = generator.fused(crop, [plain(10.0, 2), plain(100.0, 2)], [(crop, crop)] * 2)
    assert torch.equal(first, plain(8.0, 2))  # p = 2 * 1, f = 10 + 0.25 (2 - 10)
    assert torch.equal(second, plain(62.0, 2))  # p = 3 * 8, f = 100 + 0.5 (24 - 100)


def test_every_layer_of_the_decoder_is_mixed_with_the_clean_one() -> None:
    """Two layers and the image by hand; the w of one layer is in all that follow."""
    decoder = Decoder((1, 1), attributes=1)
    decoder.layers, decoder.to_image = nn.ModuleList([Times(2.0), Times(3.0)]), Times(1.0)  # type: ignore[assignment]
    features, labels = [plain(10.0, 2), plain(100.0, 1)], torch.ones(1, 1)
    clean = [plain(2.0, 1), plain(6.0, 2), plain(-2.0, 2)]
    image, outputs = decoder(features, labels, None, (clean, torch.full((1, 1, 1, 1), 0.25)))
    by_hand = [
        0.75 * 2 * (1 + 100) + 0.25 * 2,  # 152
        0.75 * 3 * (152 + 10) + 0.25 * 6,  # 366
        0.75 * 366 + 0.25 * -2,
    ]
    assert [output.unique().tolist() for output in outputs] == [[value] for value in by_hand]
    assert torch.equal(image, plain(274.0, 2))


def test_the_mask_of_two_layers_written_out() -> None:
    """All of `mask` without a loop: modulation, fusion, injection, and the difference to the clean decoding in grey."""
    torch.manual_seed(0)
    generator = Generator(Editor(NetConfig(size=32, widths=(4, 6), hidden=8)).eval())
    with torch.no_grad():
        for parameter in generator.trainable():
            parameter += 0.3 * torch.randn_like(parameter)
    x = _mask_inputs(0.0) | {"w": torch.tensor([0.0, 0.3, 0.8])}
    x["b"] = -x["a"]
    crop, target, a, b, w = (x[name] for name in ("crop", "target", "a", "b", "w"))
    (e_1, e_2), (ep_1, ep_2) = generator.encoder.layers, generator.perturbation_encoder.layers
    (d_1, d_2), (dp_1, dp_2) = generator.decoder.layers, generator.protected_decoder.layers
    mod_e1, mod_e2, mod_d1, mod_d2 = generator.modulation(target)
    s_1, s_2 = generator.fusion

    def joined(x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([nn.functional.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], 1)

    def decoded(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = d_1(joined(labels[:, :, None, None], clean_2))
        second = d_2(joined(first, clean_1))
        return first, second, generator.decoder.to_image(second)

    clean_1 = e_1(crop)
    clean_2 = e_2(clean_1)
    c_1, c_2, c_image = decoded(b)
    f_1 = clean_1 + s_1 * (ep_1(crop, mod_e1) - clean_1)
    f_2 = clean_2 + s_2 * (ep_2(f_1, mod_e2) - clean_2)
    w = w.view(-1, 1, 1, 1)
    p_1 = (1 - w) * dp_1(joined(b[:, :, None, None], f_2), mod_d1) + w * c_1
    p_2 = (1 - w) * dp_2(joined(p_1, f_1), mod_d2) + w * c_2
    p_image = (1 - w) * generator.protected_decoder.to_image(p_2) + w * c_image

    mask, edit = generator.mask(**x)
    assert mask.detach().abs().amax((1, 2, 3)).min() > 0.01
    torch.testing.assert_close(mask, (p_image - c_image).mean(1, keepdim=True).expand(-1, 3, -1, -1))
    torch.testing.assert_close(edit, c_image - decoded(a)[2])


def test_there_is_no_mask_at_first_in_bfloat16_either(editor: Editor) -> None:
    """Whatever w is. With a w of bfloat16 the two parts of the mix would not add up to 1."""
    x = inputs(batch=4)
    x["w"] = torch.tensor([0.0, 0.1, 0.3, 1.0])
    generator = Generator(editor)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mask, _ = generator.mask(*(x[name] for name in ("crop", "target", "a", "b", "w")))
        features = generator.encoder(x["crop"])
        clean = generator.decoder(features, x["b"])[1]
        types = _types(generator.protected_decoder(features, x["b"], None, (clean, x["w"].view(-1, 1, 1, 1)))[1])
    assert float(mask.detach().abs().max()) < 1e-5
    # one type throughout: nothing is widened on the way; the image alone is float32
    assert types == _types(clean) == [torch.bfloat16] * 4 + [torch.float32]


def _types(outputs: Sequence[Tensor]) -> list[torch.dtype]:
    return [output.dtype for output in outputs]


def test_the_restorer_starts_from_the_editor(editor: Editor) -> None:
    """All of it but the last step, which is zero: its features are E's, its decoding D's with labels of zero."""
    restorer, crop = Restorer(editor), inputs()["crop"]
    labels = torch.zeros(len(crop), CONFIG.attributes)
    fold_norms(editor)
    features = editor.encoder(crop)
    for ours, theirs in zip(restorer.encoder(crop), features, strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = (net.decoder(features, labels)[1] for net in (restorer, editor))
    assert all(torch.equal(one, other) for one, other in zip(ours[:-1], theirs[:-1], strict=True))
    assert not ours[-1].any() and theirs[-1].any()
    # a copy: training it leaves the editor alone
    assert {id(p) for p in restorer.parameters()}.isdisjoint(id(p) for p in editor.parameters())


def test_discriminator_heads() -> None:
    score, logits = Discriminator(13, widths=(4, 4, 4, 4))(torch.rand(2, 3, 64, 64))
    assert score.shape == (2,)
    assert logits.shape == (2, 13)


def test_recognizer_gives_unit_embeddings() -> None:
    embedding = Recognizer().eval()(torch.rand(2, 3, 112, 112) * 2 - 1)
    assert embedding.shape == (2, EMBEDDING)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
