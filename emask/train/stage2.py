"""Stage 2, the mask: E_p, its fusion, the protected decoder, the target's modulation; then the restorer along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emask.errors import TrainingError
from emask.nets.discriminator import Discriminator
from emask.nets.generator import Editor, Generator
from emask.nets.restorer import Restorer
from emask.train import losses
from emask.train.attack import AdaptiveWeights, Attack, MaskAt, attack_loss, primaries_of
from emask.train.dataset import Batch
from emask.train.masking import MaskingStage
from emask.train.noise import distort
from emask.train.stage import Setting

CRITIC_LR = 2e-4  # AttGAN's


class MaskStage(MaskingStage):
    """L_adv + owner + hinge + roughness + critic, and the restorer's terms once the curriculum says so.

    Args:
        setting: data, settings, place and surrogates.
        editor: stage 1's E and D, in evaluation mode.
        discriminator: stage 1's; its critic learns on.
        weights: state of generator and restorer to begin with instead of copies of the editor.
    """

    number = 2

    def __init__(
        self, setting: Setting, editor: Editor, discriminator: Discriminator, weights: dict[str, Any] | None = None
    ) -> None:
        super().__init__(setting)
        self.net = editor.config
        self.generator, self.restorer = Generator(editor), Restorer(editor)
        self.discriminator = discriminator.eval().requires_grad_(False)
        if weights is not None:
            self.generator.load_state_dict(weights["generator"])
            self.restorer.load_state_dict(weights["restorer"])
        self.add("generator", self.generator)
        self.add("restorer", self.restorer)
        self.add("discriminator", self.discriminator)
        self.theta = self.generator.trainable()
        self.restorer_parameters = list(self.restorer.parameters())
        self.critic_parameters = list(self.discriminator.critic.requires_grad_().parameters())
        self.optimize("generator", self.theta, (0.9, 0.99))
        self.optimize("restorer", self.restorer_parameters, (0.9, 0.99))
        self.optimize("critic", self.critic_parameters, (0.5, 0.999))
        self.mask_at = MaskAt(self.generator)
        self.adaptive = AdaptiveWeights(len(self.surrogates), device=self.place.device)
        self.epoch = 0

    def rate(self, optimizer: str, progress: float) -> float:
        return CRITIC_LR if optimizer == "critic" else super().rate(optimizer, progress)

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        config, place = self.config, self.place
        if batch.epoch != self.epoch:
            self.epoch = batch.epoch
            self.adaptive.start_epoch()
        number, eps = self.targets.phase(progress)
        phase = config.phases[number]
        request = self.request(batch, progress, eps, (0.7, 1.3))
        before_noise = self.draws.state()
        with place.autocast(config.bf16):
            known = self.generator.clean(request.crop, request.a, request.b, request.edit)

        def protect(theta: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
            """The unbounded mask and the change that ships; at theta, or at the network's own parameters."""
            with place.autocast(config.bf16):
                mask, edit = self.mask_at(
                    theta, request.crop, request.target, request.a, request.b, request.w, known=known
                )
            # in float32, as the noise: both work on small differences
            return mask, self.generator.compose(request.crop, mask, edit, request.eps)

        def look(change: Tensor, which: Sequence[int]) -> list[Tensor]:
            """Embeddings of the noised protected crops; the noise of a step is the same at every theta."""
            self.draws.restore(before_noise)
            seen = distort([request.crop + change], self.draws, self.pool)[0]
            with place.autocast(config.bf16):
                return [self.surrogates[k](seen) for k in which]

        def each(embeddings: list[Tensor], which: Sequence[int], reach: float = config.reach) -> list[Tensor]:
            return [losses.toward(e, request.wanted[k], reach) for e, k in zip(embeddings, which, strict=True)]

        everyone = range(len(self.surrogates))
        mask, change = protect(None)
        protected = request.crop + change
        embeddings = look(change, everyone)
        at_theta = each(embeddings, everyone)
        attack = attack_loss(
            Attack(config.attack), at_theta, lambda theta, which: each(look(protect(theta)[1], which), which),
            self.mask_at.theta(), self.adaptive.weights(), config.inner_lr,
            primaries_of(self.step_count, len(self.surrogates), config.primaries == "one"),
            average=place.mean if place.world > 1 else None,
        )  # fmt: skip
        # by 1 - cos itself: a surrogate that has come within reach still counts by how far it is
        self.adaptive.update(place.average(torch.stack([loss.detach() for loss in each(embeddings, everyone, 1.0)])))
        terms = {
            "adversarial": attack,
            "owner": losses.owner(embeddings, request.sources, config.owner_margin),
            "perturbation": losses.perturbation(mask, request.eps),
            "roughness": losses.roughness(change, request.crop),
        }
        with place.autocast(config.bf16):
            if config.weights.critic:
                terms["critic"] = -self.discriminator.critic(protected).float().mean()
            if config.weights.attribute and request.edit:
                terms["attribute"] = losses.attribute(self.discriminator.classifier(protected), request.b)
        parts = [("generator", self.theta)]
        if phase.restorer:
            k = self.step_count % len(self.surrogates)
            terms |= self.restoration(self.restorer, protected, request, k)
            parts.append(("restorer", self.restorer_parameters))
        self.update(self.weighted(terms), *parts, clip=1.0)
        if config.weights.critic and self.step_count % config.critic_every == 0:
            self._train_critic(request.crop, protected.detach())
        with torch.no_grad():
            cosines = {f"cos{k + 1}": losses.cosine_rows(e, request.wanted[k]).mean() for k, e in enumerate(embeddings)}
            psnr = 6.0206 - 10 * torch.log10(change.square().mean((1, 2, 3)) + 1e-12).mean()
        return {**terms, **cosines, "psnr": psnr}

    def _train_critic(self, crop: Tensor, protected: Tensor) -> None:
        critic = self.discriminator.critic
        loss = losses.wasserstein(critic(crop), critic(protected))
        penalty = losses.gradient_penalty(critic, crop, protected, self.draws)
        self.update(loss + self.config.weights.gradient_penalty * penalty, ("critic", self.critic_parameters))

    def extra(self) -> dict[str, Any]:
        return {"adaptive": self.adaptive.state(), "epoch": self.epoch}

    def restore_extra(self, extra: dict[str, Any]) -> None:
        count = len(extra["adaptive"]["means"])
        if count != len(self.surrogates):
            raise TrainingError(f"this run began with {count} surrogates, not {len(self.surrogates)}", "name the same")
        self.adaptive.restore(extra["adaptive"])
        self.epoch = extra["epoch"]
