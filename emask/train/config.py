"""Settings of a training run: stages as data. Presets are short TOML files in `presets/`, with their reasons."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from emask.errors import UsageError
from emask.nets.generator import NetConfig
from emask.train.attack import Attack

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = Path(__file__).with_name("presets")


@dataclass(frozen=True)
class Phase:
    """A stretch of stage 2's target curriculum.

    Attributes:
        until: share of the stage at which it ends.
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

    Stage 1: AttGAN's published ones; `editing` is its attribute term on the edited crop, `kept` the same of the
    attributes that were to stay. Stages 2 and 3: adversarial terms are of order 1 a surrogate at first, the hinge is 1
    at the budget, roughness is of order 0.05 at the budget, pixels of order 0.03.
    """

    reconstruction: float = 100.0
    editing: float = 10.0
    kept: float = 10.0
    classifier: float = 1.0
    gradient_penalty: float = 10.0
    realism: float = 1.0
    critic: float = 0.02
    attribute: float = 0.1
    adversarial: float = 1.0
    owner: float = 1.0
    perturbation: float = 0.1
    roughness: float = 8.0
    pixels: float = 10.0
    identity: float = 1.0
    away: float = 0.5


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Attributes:
        net: sizes of the networks.
        minutes: wall-clock minutes of stages 1, 2 and 3; schedules are laid over them.
        epochs: passes over the data instead of minutes.
        steps: numbers of steps instead of either: a run that does not depend on machine or data.
        limited: with epochs or steps, `minutes` end a stage all the same.
        batch: crops a step and process.
        lr: peak learning rates of stages 1, 2 and 3 (Adam); each warms up over 2% and falls to a tenth along a cosine.
        constant_lr: neither warm-up nor fall.
        trained_lr: factor on the learning rates of stages 1 and 2 for weights that are trained already (`climbed`).
        trained_phase: the phase that such weights begin with; None for the first with as many people as any.
        critic_steps: steps of critic and classifier for one of the editor in stage 1.
        critic_every: stage 2 trains its critic once in so many steps.
        robust: radius of the changes that stage 1's classifier learns to see through, L2 in [-1, 1] units over a crop.
        penalty_every: the gradient penalty joins the critic's loss once in so many of stage 1's critic steps.
        pseudo_from: share of stage 1 after which the classifier labels the photos that have no labels.
        edits: share of the crops of stages 2 and 3 that also get another attribute.
        attack: "ensemble", "meta" (double gradient) or "meta-first-order".
        primaries: "all" surrogates are primary in every step, or "one" a step in turn.
        inner_lr: alpha of the meta-auxiliary attack's inner step.
        noise: names of the noise pool's operations, or "all", or "none".
        reach: cosine with the target at which the attack is content: what is left goes into looking natural.
        owner_margin: cosine with the owner under which stage 2 is content.
        away_margin: cosine of a restored face with the target under which stage 3 is content.
        eps: L2 budget at the start of stage 2, [-1, 1] units over a crop.
        injection: largest weight w of the clean decoding that training draws; half of the crops get 0.
        clean: share of stage 3's crops that carry no mask: erasing must leave a clean face alone.
        refined: share of stage 3's steps on refined masks; 0 for the generator's alone.
        refine_every: stage 3 refines the masks of a batch once in so many steps.
        replay: how many refined masks stage 3 keeps to train on, times the number of processes; the oldest go.
        bf16: autocast to bfloat16.
        watch: minutes between curves, sample pictures and validation; 0 only at a stage's end.
        validate: people whose photos leave training and serve validation; 0 for none.
    """

    net: NetConfig = field(default_factory=NetConfig)
    minutes: tuple[float, float, float] = (4.0, 42.0, 10.0)
    epochs: tuple[int, int, int] | None = None
    steps: tuple[int, int, int] | None = None
    limited: bool = False
    batch: int = 16
    lr: tuple[float, float, float] = (1e-3, 1e-3, 1e-3)
    constant_lr: bool = False
    trained_lr: float = 1.0
    trained_phase: int | None = None
    critic_steps: int = 1
    critic_every: int = 4
    robust: float = 4.0
    penalty_every: int = 2
    pseudo_from: float = 0.5
    edits: float = 0.0
    attack: str = "ensemble"
    primaries: str = "one"
    inner_lr: float = 0.01
    noise: tuple[str, ...] = (
        "jpeg-codec", "resize", "noise", "blur", "brightness", "contrast", "misalignment", "crop",
    )  # fmt: skip
    weights: Weights = field(default_factory=Weights)
    phases: tuple[Phase, ...] = (Phase(1.0, 8, 100_000, 0.65, 9.5, True),)
    eps: float = 9.5
    reach: float = 0.65
    owner_margin: float = 0.1
    away_margin: float = 0.1
    injection: float = 0.3
    clean: float = 0.1
    refined: float = 0.0
    refine_every: int = 40
    replay: int = 1024
    bf16: bool = True
    watch: float = 5.0
    validate: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        attacks = [attack.value for attack in Attack]
        if self.attack not in attacks:
            raise UsageError(f"no attack named {self.attack!r}", f"there are: {', '.join(attacks)}")
        if self.primaries not in ("all", "one"):
            raise UsageError(f"primaries is {self.primaries!r}", "say all or one")
        if not 0 <= self.refined <= 1 or self.refine_every < 1 or self.replay < 1:
            said = f"refined {self.refined:g}, refine_every {self.refine_every}, replay {self.replay}"
            raise UsageError(f"{said}: these cannot be", "refined is a share, the other two are at least 1")
        if self.trained_phase is not None and not 0 <= self.trained_phase < len(self.phases):
            hint = "they are counted from 0"
            raise UsageError(f"trained_phase is {self.trained_phase}, of {len(self.phases)} phases", hint)
        ends = [0.0, *(phase.until for phase in self.phases)]
        if ends[-1] != 1.0 or any(before >= end for before, end in zip(ends, ends[1:], strict=False)):
            raise UsageError(f"phases end at {ends[1:]}", "let their `until` ascend to 1.0, the end of the stage")

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def _build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a table; lists become tuples, tables the field's own class."""
    known = {f.name for f in fields(kind)}
    unknown = [name for name in values if name not in known]
    if unknown:
        raise UsageError(f"{where}: no setting {unknown[0]!r}", f"there are: {', '.join(sorted(known))}")
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in missing if name not in values]
    if missing:
        raise UsageError(f"{where}: {missing[0]} is missing", f"say {', '.join(missing)}")
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name in ("net", "weights"):
            value = _build(NetConfig if name == "net" else Weights, value, f"{where}, {name}")
        elif name == "phases":
            value = tuple(_build(Phase, phase, f"{where}, phases") for phase in value)
        elif isinstance(value, list):
            value = tuple(value)
        made[name] = value
    return kind(**made)


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset(name: str) -> TrainConfig:
    """A preset by name, or a TOML file of the same form.

    Raises:
        UsageError: no such preset or file, or a setting in it that does not exist.
    """
    path = PRESETS / f"{name}.toml"
    if not path.is_file():
        path = Path(name)
        if path.suffix != ".toml" or not path.is_file():
            raise UsageError(f"no preset named {name!r}", f"presets: {', '.join(preset_names())}, or a .toml file")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    return _build(TrainConfig, values, path.name)


def shortened(config: TrainConfig, minutes: float, stages: tuple[int, ...] = (1, 2, 3)) -> TrainConfig:
    """The same with the named stages shortened alike, so that together they take at most so many minutes.

    How long epochs or steps will take is not known: each stage gets its share of the minutes, and may end before.
    """
    counted = config.steps or config.epochs
    parts: tuple[float, ...] = counted or config.minutes
    wanted = sum(parts[stage - 1] for stage in stages)
    if not counted and minutes >= wanted:
        return config
    first, second, third = (
        part * minutes / wanted if stage in stages else own
        for stage, (part, own) in enumerate(zip(parts, config.minutes, strict=True), 1)
    )
    return replace(config, minutes=(first, second, third), limited=counted is not None)


def without_curriculum(config: TrainConfig) -> TrainConfig:
    """All targets, the final budget and the restorer from stage 2's first step on."""
    last = replace(config.phases[-1], until=1.0)
    return replace(config, phases=(last,), eps=last.eps)


def climbed(config: TrainConfig) -> TrainConfig:
    """The settings for weights that have been through the curriculum: they begin late in it, at smaller learning rates.

    Where the preset does not say with which phase, they begin where all people have become targets.
    """
    number = config.trained_phase
    if number is None:
        most = max(phase.people for phase in config.phases)
        number = next(number for number, phase in enumerate(config.phases) if phase.people == most)
    before = config.phases[number - 1] if number else None
    done = before.until if before else 0.0
    phases = tuple(replace(p, until=(p.until - done) / (1 - done)) for p in config.phases[number:])
    first, second, third = config.lr
    lr = (first * config.trained_lr, second * config.trained_lr, third)
    eps = before.eps if before else config.eps
    return replace(config, phases=phases, eps=eps, lr=lr, trained_lr=1.0, trained_phase=None)
