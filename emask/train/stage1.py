"""Stage 1, attribute editing: E and D, with critic and attribute classifier (AttGAN, He et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emask.attributes import ATTRIBUTES, HAIR_COLOURS
from emask.nets.blocks import unfold_norms
from emask.nets.discriminator import Classifier, Discriminator
from emask.nets.generator import Editor
from emask.train import losses
from emask.train.dataset import Batch
from emask.train.labels import pseudo_labels
from emask.train.noise import distort
from emask.train.place import send
from emask.train.stage import Setting, Stage

SAMPLES = 6  # faces in the sample picture
SEEN_THROUGH = ("resize", "noise", "blur", "misalignment")  # what an edit has to survive to count
FULL_RADIUS = 0.3  # share of the stage after which the classifier meets changes of the whole radius
_HAIR = [ATTRIBUTES.index(name) for name in HAIR_COLOURS]
CALIBRATION = 192  # crops over which the norms of trained weights are measured


def adversary(
    classifier: Classifier, image: Tensor, labels: Tensor, on: Tensor, radius: float, steps: int = 2
) -> Tensor:
    """Images changed against their labels, within an L2 ball: what the classifier has to see through.

    A classifier trained on these has gradients that look like what it classifies (Santurkar et al. 2019, "Image
    Synthesis with a Single (Robust) Classifier"), and to turn its answer takes a change larger than the ball. Projected
    gradient ascent (Madry et al. 2018).

    Args:
        image: (B, 3, S, S) in [-1, 1].
        labels, on: as for `losses.attribute`.
        radius: of the ball, in [-1, 1] units over an image.

    Returns:
        (B, 3, S, S), without gradient.
    """
    change = torch.zeros_like(image)
    for _ in range(steps):
        change.requires_grad_(True)
        loss = losses.attribute(classifier(image.detach() + change), labels, on)
        (grad,) = torch.autograd.grad(loss, change)
        length = grad.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        change = change.detach() + radius / steps * grad / length
    return (image.detach() + change).clamp(-1, 1)


class EditingStage(Stage):
    """x_b = D(E(x), b), x_rec = D(E(x), a): reconstruction, the critic's realism, the classifier's attributes.

    Args:
        setting: data, settings, place and surrogates.
        editor: trained E and D with folded norms, to go on from.
    """

    number = 1

    def __init__(self, setting: Setting, editor: Editor | None = None) -> None:
        super().__init__(setting)
        config = self.config
        self.editor = Editor(config.net) if editor is None else editor
        self.net = self.editor.config
        if editor is not None:
            crop, labels = self._like_training()
            unfold_norms(editor.to(crop.device), lambda: editor(crop, labels))
            editor.train()
        self.discriminator = Discriminator(self.net.attributes)
        self.add("editor", self.editor)
        self.add("discriminator", self.discriminator)
        self.editor_parameters = list(self.editor.parameters())
        self.critic, self.classifier = self.discriminator.critic, self.discriminator.classifier
        self.critic_parameters = list(self.discriminator.parameters())
        self.optimize("editor", self.editor_parameters, (0.5, 0.999))
        self.optimize("critic", self.critic_parameters, (0.5, 0.999))
        self.seen_through = tuple(distortion for distortion in self.pool if distortion.name in SEEN_THROUGH)
        self.labels = self.data.labels
        known = self.labels != 0
        # of no labels at all nothing is learned that others could be given by
        self.labelled_all = not bool(known.any())
        # how often each attribute is on; one that always is, or never, cannot be balanced
        self.on = ((self.labels > 0).sum(0) / known.sum(0).clamp(min=1)).clamp(0.02, 0.98)

    def _like_training(self) -> tuple[Tensor, Tensor]:
        """Crops from all over the set, and labels as training gives them: on a third none, on a third others."""
        count = min(CALIBRATION, len(self.data))
        rows = torch.linspace(0, len(self.data) - 1, count, device=self.place.device).long()
        labels = self.data.labels[rows.roll(1)]
        labels[::3] = 0.0
        return self.data.crops(rows, torch.zeros_like(rows, dtype=torch.bool)), labels

    def partly(self, labels: Tensor) -> Tensor:
        """Labels with some set to zero, as a user gives them: on a third of the crops none is known, on a third some.

        Zeros come to mean "as it is", so that one attribute can be asked for alone.
        """
        kind = send(self.draws.uniform(len(labels), 1), labels)
        each = send(self.draws.uniform(*labels.shape), labels)
        return labels * torch.where(kind < 1 / 3, 1.0, torch.where(kind < 2 / 3, 0.0, (each < 0.5).to(labels.dtype)))

    def wanted(self, labels: Tensor) -> Tensor:
        """Labels b to edit to: on a third of the crops another photo's, in part; on the rest one or two attributes.

        Other photos' labels are AttGAN's way. But rare attributes are hardly ever on in them, and a user asks for few:
        so one, and in half of the crops a second, is switched on or off, the others being zeros, "as it is".
        """
        count, attributes = labels.shape
        kind, second, values = (self.draws.uniform(count, n) for n in (1, 1, 2))
        which = (self.draws.uniform(count, 2) * attributes).long()
        values = torch.where(values < 0.5, -1.0, 1.0)
        values[:, 1:] *= second < 0.5
        asked = torch.zeros(count, attributes).scatter(1, which[:, 1:], values[:, 1:])
        asked.scatter_(1, which[:, :1], values[:, :1])
        for colour in _HAIR:  # a face has one at most
            others = [other for other in _HAIR if other != colour]
            asked[:, others] = torch.where((which[:, :1] == colour) & (values[:, :1] > 0), -1.0, asked[:, others])
        return torch.where(send(kind, labels) < 1 / 3, self.partly(labels), send(asked, labels))

    def see(self, image: Tensor) -> Tensor:
        """Images after a part of the noise pool, as the classifier is shown them, both real and edited ones.

        Without it the editor writes dots that only this classifier reads; what is still there after blur and noise is
        what people see.
        """
        return distort([image], self.draws, self.seen_through)[0]

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        weights = self.config.weights
        if progress >= self.config.pseudo_from and not self.labelled_all:
            labels = pseudo_labels(self.classifier, self.data.pixels.cpu().numpy(), self.labels, self.config.bf16)
            # each process's classifier has batch norms of its own, and so an opinion of its own
            self.labels = self.place.broadcast(labels)
            self.labelled_all = True
        indices, crop = self.crops(batch)
        a = self.labels[indices]
        shuffled = torch.from_numpy(batch.indices)[self.draws.permutation(len(batch.indices))]
        b = self.wanted(self.labels[send(self.place.part(shuffled), self.place.device)])
        for number in range(self.config.critic_steps):
            with torch.no_grad(), self.place.autocast(self.config.bf16):
                edited = self.editor(crop, b).float()
            distance = losses.wasserstein(self.critic(crop), self.critic(edited))
            classifier = self._classify_real(crop, self.data.labels[indices], progress)
            critic_loss = distance + weights.classifier * classifier
            if (self.step_count * self.config.critic_steps + number) % self.config.penalty_every == 0:
                penalty = losses.gradient_penalty(self.critic, crop, edited, self.draws)
                critic_loss = critic_loss + weights.gradient_penalty * penalty
            self.update(critic_loss, ("critic", self.critic_parameters))
        with self.place.autocast(self.config.bf16):
            features = self.editor.encoder(crop)
            edited, _ = self.editor.decoder(features, b)
            rebuilt, _ = self.editor.decoder(features, self.partly(a))
            score = self.critic(edited)
            logits = self.classifier.eval()(self.see(edited))
        terms = {
            "reconstruction": losses.reconstruction(rebuilt, crop),
            "editing": losses.attribute(logits, b),
            "kept": losses.attribute(logits, torch.where(b == 0, a, 0.0)),
            "realism": -score.float().mean(),
        }
        self.update(self.weighted(terms), ("editor", self.editor_parameters))
        return {"wasserstein": distance, "classifier": classifier, **terms}

    def _classify_real(self, crop: Tensor, labels: Tensor, progress: float) -> Tensor:
        """The classifier's own loss, on crops changed against their labels."""
        seen = self.see(crop)
        radius = self.config.robust * min(1.0, progress / FULL_RADIUS)
        with self.place.autocast(self.config.bf16):
            if radius > 0:
                seen = adversary(self.classifier.eval(), seen, labels, self.on, radius)
            return losses.attribute(self.classifier.train()(seen), labels, self.on)

    def samples(self) -> dict[str, list[Tensor]]:
        """Original, rebuilt, then three attributes switched on."""
        crop = self.data.crops(
            torch.arange(min(SAMPLES, len(self.data)), device=self.place.device),
            torch.zeros(min(SAMPLES, len(self.data)), dtype=torch.bool, device=self.place.device),
        )
        training = self.editor.training
        self.editor.eval()
        rows = {"original": crop}
        with torch.no_grad():
            for name in ("rebuilt", "Blond_Hair", "Eyeglasses", "Mustache"):
                labels = torch.zeros(len(crop), self.net.attributes, device=crop.device)
                if name in ATTRIBUTES:
                    labels[:, ATTRIBUTES.index(name)] = 1.0
                rows[name] = self.editor(crop, labels).clamp(-1, 1)
        self.editor.train(training)
        return {name: list(images) for name, images in rows.items()}

    def extra(self) -> dict[str, Any]:
        return {"labels": self.labels.cpu() if self.labelled_all else None}

    def restore_extra(self, extra: dict[str, Any]) -> None:
        self.labelled_all = extra["labels"] is not None
        self.labels = extra["labels"].to(self.place.device) if self.labelled_all else self.data.labels
