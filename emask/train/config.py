"""Settings of a training run: stages as data, presets as short differences with their reasons."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from emask.errors import UsageError
from emask.nets.generator import NetConfig


@dataclass(frozen=True)
class Phase:
    """A stretch of stage 2's target curriculum.

    Attributes:
        until: share of the stage's time at which it ends.
        built_in: how many of the built-in targets are in use.
        people: how many training people serve as targets besides.
        share: share of the crops whose target is one of those people.
        eps: L2 budget of the mask at the phase's end, in [-1, 1] units over a crop; it moves there linearly.
        restorer: whether the restorer is trained along, end to end with E_p.
    """

    until: float
    built_in: int
    people: int
    share: float
    eps: float
    restorer: bool


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms. The paper's are lost; these bring the terms' gradients on E_p to one scale.

    Stage 1: AttGAN's published ones. Stages 2 and 3: adversarial terms are of order 1 a surrogate at first, the hinge
    is 1 at the budget, roughness and chroma are of order 0.05 at the budget, pixels of order 0.03.
    """

    reconstruction: float = 100.0
    attribute: float = 10.0
    gradient_penalty: float = 10.0
    critic: float = 0.02
    adversarial: float = 1.0
    owner: float = 1.0
    perturbation: float = 0.1
    roughness: float = 8.0
    chroma: float = 5.0
    pixels: float = 10.0
    identity: float = 1.0
    away: float = 0.5


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Attributes:
        net: sizes of the networks.
        minutes: wall-clock minutes of stages 1, 2 and 3; schedules are laid over them.
        steps: numbers of steps instead of minutes, where a run must not depend on the machine's speed.
        batch: crops a step.
        lr: peak learning rates of stages 1, 2 and 3 (Adam); each warms up over 2% and falls to a tenth along a cosine.
        reach: cosine with the target at which the attack is content: what is left goes into looking natural.
        owner_margin: cosine with the owner under which stage 2 is content.
        away_margin: cosine of a restored face with the target under which stage 3 is content.
        eps: L2 budget at the start of stage 2, [-1, 1] units over a crop.
        injection: largest weight w of the clean decoding that training draws; half of the crops get 0.
        clean: share of stage 3's crops that carry no mask: erasing must leave a clean face alone.
        bf16: autocast to bfloat16.
    """

    net: NetConfig = field(default_factory=NetConfig)
    minutes: tuple[float, float, float] = (4.0, 42.0, 10.0)
    steps: tuple[int, int, int] | None = None
    batch: int = 16
    lr: tuple[float, float, float] = (1e-3, 1e-3, 1e-3)
    weights: Weights = field(default_factory=Weights)
    phases: tuple[Phase, ...] = (
        Phase(0.15, 1, 0, 0.0, 17.0, False),
        Phase(0.20, 8, 0, 0.0, 15.0, False),
        Phase(0.30, 8, 100, 0.6, 13.0, False),
        Phase(0.62, 8, 100_000, 0.75, 11.0, False),
        Phase(1.00, 8, 100_000, 0.65, 9.5, True),
    )
    eps: float = 17.0
    reach: float = 0.65
    owner_margin: float = 0.1
    away_margin: float = 0.1
    injection: float = 0.3
    clean: float = 0.1
    bf16: bool = True
    seed: int = 0

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


# cpu: two cores and about an hour. polish: goes on from trained weights (--start-from) without a curriculum, with far
# more weight on colour, because the first weights left yellow and violet contours at eyes and nose. smoke: shows that
# everything runs.
PRESETS: dict[str, TrainConfig] = {
    "cpu": TrainConfig(),
    "polish": TrainConfig(
        minutes=(4.0, 7.0, 2.0),
        lr=(1e-3, 5e-4, 5e-4),
        weights=Weights(chroma=40.0, roughness=12.0),
        phases=(Phase(1.0, 8, 100_000, 0.65, 9.5, True),),
        eps=9.5,
    ),
    "smoke": TrainConfig(
        net=NetConfig(widths=(8, 8, 16, 16), hidden=32), steps=(10, 20, 10), batch=4, bf16=False
    ),
}


def preset(name: str, max_minutes: float | None = None) -> TrainConfig:
    """A preset by name; with `max_minutes` its stages are shortened alike to fit into that time together."""
    if name not in PRESETS:
        raise UsageError(f"no preset named {name!r}", f"presets: {', '.join(PRESETS)}")
    config = PRESETS[name]
    if max_minutes is not None and max_minutes < sum(config.minutes):
        factor = max_minutes / sum(config.minutes)
        first, second, third = config.minutes
        config = replace(config, minutes=(first * factor, second * factor, third * factor))
    return config
