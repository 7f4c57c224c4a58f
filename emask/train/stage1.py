"""Stage 1, attribute editing: E and D, with critic and attribute classifier (AttGAN, He et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emask.attributes import ATTRIBUTES
from emask.nets.blocks import unfold_norms
from emask.nets.discriminator import Discriminator
from emask.nets.generator import Editor
from emask.train import losses
from emask.train.dataset import Batch
from emask.train.labels import pseudo_labels
from emask.train.noise import distort
from emask.train.stage import Setting, Stage

SAMPLES = 6  # faces in the sample picture
SEEN_THROUGH = ("resize", "noise", "blur", "misalignment")  # what an edit has to survive to count
CALIBRATION = 192  # crops over which the norms of trained weights are measured


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
        self.add("critic", self.discriminator)
        self.editor_parameters = list(self.editor.parameters())
        self.critic_parameters = list(self.discriminator.parameters())
        self.optimize("editor", self.editor_parameters, (0.5, 0.999))
        self.optimize("critic", self.critic_parameters, (0.5, 0.999))
        self.seen_through = tuple(distortion for distortion in self.pool if distortion.name in SEEN_THROUGH)
        self.labels = self.data.labels
        self.labelled_all = False

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
        kind = self.draws.uniform(len(labels), 1).to(labels)
        each = self.draws.uniform(*labels.shape).to(labels)
        return labels * torch.where(kind < 1 / 3, 1.0, torch.where(kind < 2 / 3, 0.0, (each < 0.5).to(labels.dtype)))

    def classify(self, image: Tensor) -> Tensor:
        """The classifier's logits, (B, n), of images after a part of the noise pool.

        Without it the editor writes dots that only this classifier reads; what is still there after blur and noise is
        what people see.
        """
        return self.discriminator(distort([image], self.draws, self.seen_through)[0])[1]  # type: ignore[no-any-return]

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        weights = self.config.weights
        if progress >= self.config.pseudo_from and not self.labelled_all:
            self.labels = pseudo_labels(
                self.discriminator, self.data.pixels.cpu().numpy(), self.labels, self.config.bf16
            )
            self.labelled_all = True
        indices, crop = self.crops(batch)
        a = self.labels[indices]
        shuffled = torch.from_numpy(batch.indices)[self.draws.permutation(len(batch.indices))]
        b = self.partly(self.labels[self.place.part(shuffled).to(self.place.device)])
        for number in range(self.config.critic_steps):
            with torch.no_grad(), self.place.autocast(self.config.bf16):
                edited = self.editor(crop, b).float()
            real_score, _ = self.discriminator(crop)
            fake_score, _ = self.discriminator(edited)
            classifier = losses.attribute(self.classify(crop), self.data.labels[indices])
            distance = losses.wasserstein(real_score, fake_score)
            critic_loss = distance + weights.classifier * classifier
            if (self.step_count * self.config.critic_steps + number) % self.config.penalty_every == 0:
                penalty = losses.gradient_penalty(self.discriminator, crop, edited, self.draws)
                critic_loss = critic_loss + weights.gradient_penalty * penalty
            self.update(critic_loss, ("critic", self.critic_parameters))
        with self.place.autocast(self.config.bf16):
            features = self.editor.encoder(crop)
            edited, _ = self.editor.decoder(features, b)
            rebuilt, _ = self.editor.decoder(features, self.partly(a))
            score, _ = self.discriminator(edited)
            logits = self.classify(edited)
        terms = {
            "reconstruction": losses.reconstruction(rebuilt, crop),
            "editing": losses.attribute(logits, b),
            "realism": -score.float().mean(),
        }
        self.update(self.weighted(terms), ("editor", self.editor_parameters))
        return {"wasserstein": distance, "classifier": classifier, **terms}

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
