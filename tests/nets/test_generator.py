"""Properties of the networks: what holds at the start, and what the run-time inputs w and eps promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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


def test_discriminator_heads() -> None:
    score, logits = Discriminator(13, widths=(4, 4, 4, 4))(torch.rand(2, 3, 64, 64))
    assert score.shape == (2,)
    assert logits.shape == (2, 13)


def test_recognizer_gives_unit_embeddings() -> None:
    embedding = Recognizer().eval()(torch.rand(2, 3, 112, 112) * 2 - 1)
    assert embedding.shape == (2, EMBEDDING)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
