"""What the three stages have in common: what they are given, and what a checkpoint of them holds."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from emask.errors import TrainingError
from emask.train.clock import learning_rate
from emask.train.config import TrainConfig
from emask.train.dataset import Batch, Sampler, TrainingSet
from emask.train.draws import Draws
from emask.train.noise import Distortion, choose_pool
from emask.train.place import Place, send
from emask.train.surrogates import Surrogate


@dataclass(frozen=True)
class Setting:
    """What a stage works with.

    Attributes:
        data: on the place's device.
        config: the run's settings.
        place: where it computes.
        surrogates: on the place's device; stage 1 needs none.
        recognizers: the project's own, and the refiner where there is one: crops to embeddings, which together are as
            in `data.identity`; for stage 3 on refined masks.
    """

    data: TrainingSet
    config: TrainConfig
    place: Place
    surrogates: Sequence[Surrogate] = ()
    recognizers: Sequence[nn.Module] = ()


def _fingerprint(data: TrainingSet) -> str:
    """Of the crops and their order, which a checkpoint's random numbers point into."""
    few = data.pixels[:, ::32, ::32].cpu().numpy()
    return hashlib.sha256(data.people.tobytes() + few.tobytes()).hexdigest()[:12]


class Stage(ABC):
    """A stage of the training: networks, optimizers, and one step.

    Everything random comes from `draws` and `sampler`, so that a run goes on after an interruption exactly as it would
    have gone on without.
    """

    number: ClassVar[int]

    def __init__(self, setting: Setting) -> None:
        config, place = setting.config, setting.place
        self.data, self.config, self.place = setting.data, config, place
        self.net = config.net  # a stage that begins with given weights has theirs
        self.surrogates = list(setting.surrogates)
        torch.manual_seed(config.seed)  # initial weights
        seed = config.seed * 4 + self.number
        self.draws = Draws(seed, place.rank, place.world)
        self.sampler = Sampler(len(self.data), config.batch * place.world, seed)
        self.pool: tuple[Distortion, ...] = choose_pool(config.noise)
        self.step_count = 0
        self._photos = _fingerprint(self.data)
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    @abstractmethod
    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """One step: draw, compute, update. Returns the named terms, for the loss table."""

    @abstractmethod
    def samples(self) -> dict[str, list[Tensor]]:
        """Pictures that show what the stage has learned: named rows of (3, S, S) tensors in [-1, 1]."""

    def step(self, progress: float) -> dict[str, Tensor]:
        """Make one step at this progress of the stage."""
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rate(name, progress)
        terms = self.losses(self.sampler.next(), progress)
        self.step_count += 1
        return terms

    def rate(self, optimizer: str, progress: float) -> float:
        """Learning rate of an optimizer, by name."""
        del optimizer
        return learning_rate(self.config, self.number, progress)

    def add(self, name: str, module: nn.Module) -> nn.Module:
        """Put a network on the device, channels last, and into the checkpoint."""
        self.modules[name] = module.to(self.place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self.modules[name]

    def optimize(
        self, name: str, parameters: Sequence[nn.Parameter], betas: tuple[float, float]
    ) -> torch.optim.Optimizer:
        """An Adam over parameters, in the checkpoint under a name."""
        self.optimizers[name] = torch.optim.Adam(parameters, self.config.lr[self.number - 1], betas=betas)
        return self.optimizers[name]

    def update(self, loss: Tensor, *parts: tuple[str, Sequence[nn.Parameter]], clip: float | None = None) -> None:
        """Backpropagate a loss and step the named optimizers, each over its parameters.

        Args:
            clip: largest norm of each part's gradient.
        """
        for name, _ in parts:
            self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        for name, parameters in parts:
            self.place.average_gradients(parameters)
            if clip is not None:
                nn.utils.clip_grad_norm_(parameters, clip)
            self.optimizers[name].step()

    def weighted(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of terms; each name is a field of `Weights`."""
        return torch.stack([getattr(self.config.weights, name) * value for name, value in terms.items()]).sum()

    def settings(self) -> dict[str, Any]:
        """What a run that goes on must have in common with what it goes on from: settings by name, and the photos.

        How long it takes, how fast it learns and how often it is looked at may change on the way.
        """
        free = {"net", "minutes", "epochs", "steps", "limited", "lr", "trained_lr", "watch"}
        kept = {name: value for name, value in self.config.to_dict().items() if name not in free}
        return {**kept, "photos": self._photos}

    def size(self) -> int:
        """Bytes of a checkpoint, roughly: the networks, and two moments of what is trained."""
        weights = [tensor for module in self.modules.values() for tensor in module.state_dict().values()]
        trained = [p for o in self.optimizers.values() for group in o.param_groups for p in group["params"]]
        return sum(x.numel() * x.element_size() for x in [*weights, *trained, *trained])

    def extra(self) -> dict[str, Any]:
        """What a checkpoint holds besides networks, optimizers and random sources."""
        return {}

    def restore_extra(self, extra: dict[str, Any]) -> None:
        """Take `extra` back."""
        assert not extra, "a stage that keeps more in its checkpoints takes it back"

    def state(self, elapsed: float) -> dict[str, Any]:
        """A checkpoint, after `elapsed` seconds."""
        return {
            "config": self.net.to_dict(),
            **{name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "draws": self.draws.state(),
            "sampler": self.sampler.state(),
            "extra": self.extra(),
            "settings": self.settings(),
            "step": self.step_count,
            "elapsed": elapsed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint of this stage.

        Raises:
            TrainingError: it is one of another version, of networks of other sizes, of other settings or other photos.
        """
        keys = {"config", *self.modules, "optimizers", "draws", "sampler", "extra", "step", "elapsed"}
        if not keys <= state.keys() or state["config"] != self.net.to_dict():
            raise TrainingError(
                f"the run's stage{self.number}.pt is of other networks than this preset's",
                "go on with the preset it began with, or begin anew without --resume",
            )
        began, now = state.get("settings", {}), self.settings()  # an older version kept none
        for name in began:
            if began[name] != now.get(name):
                short = all(isinstance(value, str | int | float) for value in (began[name], now.get(name)))
                how = f" ({began[name]}, now {now.get(name)})" if short and name != "photos" else ""
                raise TrainingError(
                    f"the run's stage{self.number}.pt was begun with other {name}{how}",
                    "go on with the settings it began with, or begin anew without --resume",
                )
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.draws.restore(state["draws"])
        self.sampler.restore(state["sampler"])
        self.restore_extra(state["extra"])
        self.step_count = state["step"]

    def crops(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """This process's part of a batch: (B,) int64 indices on the device and (B, 3, S, S) crops."""
        device = self.place.device
        indices = send(self.place.part(torch.from_numpy(batch.indices)), device)
        mirrored = send(self.place.part(torch.from_numpy(batch.mirrored)), device)
        return indices, self.data.crops(indices, mirrored)
