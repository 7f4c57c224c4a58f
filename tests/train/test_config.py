"""Presets load, wrong settings are refused with a word on what is right, and the ways to change a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from emask.errors import UsageError
from emask.train.clock import Clock, learning_rate, stage_clock
from emask.train.config import Phase, TrainConfig, climbed, preset, preset_names, shortened, without_curriculum
from emask.train.noise import choose_pool

PRESETS = preset_names()


@pytest.mark.parametrize("wrong", [{"refined": 1.5}, {"refine_every": 0}, {"replay": 0}])
def test_refining_in_training_has_limits(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="cannot be"):
        TrainConfig(**wrong)  # type: ignore[arg-type]


def test_there_are_presets() -> None:
    assert {"cpu", "gpu", "paper", "polish", "sharpen", "smoke"} <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_loads_and_makes_sense(name: str) -> None:
    config = preset(name)
    ends = [phase.until for phase in config.phases]
    assert ends == sorted(set(ends)) and ends[-1] == 1.0 and ends[0] > 0
    assert choose_pool(config.noise)
    assert config.eps >= config.phases[-1].eps > 0
    assert all(0 <= phase.share <= 1 and phase.built_in >= 1 for phase in config.phases)
    assert config.phases[-1].restorer
    # a TOML list has become a tuple everywhere: the settings are compared and kept
    assert isinstance(config.net.widths, tuple) and isinstance(config.noise, tuple) and hash(config)


def test_the_papers_settings() -> None:
    paper = preset("paper")
    assert paper.epochs == (200, 100, 50) and paper.lr == (2e-5,) * 3 and paper.constant_lr
    assert paper.injection > 0  # IV-C: clean-domain information is injected during generation
    assert paper.attack == "meta" and paper.primaries == "all"
    assert paper.noise == ("jpeg", "noise", "resize") and paper.weights.owner == 0


WRONG = [
    ("batch = 8\nbatches = 4", "no setting 'batches'", "batch"),
    ("[net]\nwidth = [4]", "net: no setting 'width'", "widths"),
    ("[weights]\nchroma = 1.0", "weights: no setting 'chroma'", "roughness"),
    ("[[phases]]\nuntil = 1.0\nend = 3", "phases: no setting 'end'", "until"),
    ("[[phases]]\nuntil = 1.0", "phases: built_in is missing", "people"),
    ('attack = "met"', "no attack named 'met'", "meta-first-order"),
    ('primaries = "two"', "primaries is 'two'", "all or one"),
    ("batch = ", "not TOML", ""),
]
PHASE = "built_in = 1\npeople = 0\nshare = 0.0\neps = 9.0\nrestorer = true\n"
WRONG += [
    (f"[[phases]]\nuntil = {first}\n{PHASE}[[phases]]\nuntil = {second}\n{PHASE}", "phases end at", "ascend to 1.0")
    for first, second in ((0.5, 0.9), (1.0, 1.0), (1.0, 0.5))
]


@pytest.mark.parametrize(("text", "said", "hint"), WRONG, ids=[case[1] + case[0][:24] for case in WRONG])
def test_wrong_settings_are_refused(tmp_path: Path, text: str, said: str, hint: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        preset(str(path))
    assert said in caught.value.message
    assert hint in caught.value.hint or hint in caught.value.message


def test_a_preset_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("batch = 3\nsteps = [1, 2, 3]\n[weights]\nowner = 0.5\n")
    config = preset(str(path))
    assert (config.batch, config.steps, config.weights.owner) == (3, (1, 2, 3), 0.5)
    assert config == replace(TrainConfig(), batch=3, steps=(1, 2, 3), weights=replace(config.weights, owner=0.5))
    for missing in ("huge", str(tmp_path / "none.toml"), str(tmp_path)):
        with pytest.raises(UsageError, match="no preset named") as caught:
            preset(missing)
        assert "cpu" in caught.value.hint


def test_a_time_limit_shortens_the_named_stages_alike() -> None:
    config = replace(TrainConfig(), minutes=(4.0, 40.0, 16.0))
    assert shortened(config, 30).minutes == (2.0, 20.0, 8.0)
    assert shortened(config, 60) == config and shortened(config, 10_000) == config
    assert shortened(config, 14, (2, 3)).minutes == (4.0, 10.0, 4.0)
    assert shortened(config, 20, (2,)).minutes == (4.0, 20.0, 16.0)


def test_a_time_limit_holds_for_runs_counted_in_epochs_or_steps_too() -> None:
    paper = shortened(preset("paper"), 35)
    assert paper.minutes == (20.0, 10.0, 5.0)  # as its epochs are to one another
    clock = stage_clock(paper, 2, crops=3200, batch=32)
    assert clock.steps == 10_000
    clock = Clock(10.0, steps=1000, elapsed=0.0, step=900, limited=True)
    assert clock.progress == pytest.approx(0.9, abs=1e-3)
    assert Clock(10.0, steps=1000, elapsed=601.0, step=900, limited=True).progress > 1
    assert Clock(10.0, steps=1000, elapsed=601.0, step=900).progress == 0.9


def test_the_clock_goes_by_what_the_settings_name() -> None:
    config = replace(TrainConfig(), minutes=(1.0, 2.0, 3.0), lr=(1e-3, 2e-3, 3e-3))
    assert stage_clock(config, 2, 100, 10, elapsed=60.0).progress == pytest.approx(0.5, abs=1e-3)
    epochs = replace(config, epochs=(1, 2, 3))
    assert stage_clock(epochs, 3, 105, 10, step=15).progress == 0.5  # 3 epochs of 10 whole batches
    assert stage_clock(replace(epochs, steps=(5, 6, 8)), 3, 105, 10, step=2).progress == 0.25
    assert stage_clock(replace(config, epochs=(1, 1, 1)), 1, 3, 10, step=1).progress == 1  # fewer crops than a batch


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    config = replace(TrainConfig(), lr=(1e-3, 2e-3, 3e-3))
    assert learning_rate(config, 2, 0.0) == pytest.approx(0.05 * 2e-3)
    assert learning_rate(config, 2, 0.02) == pytest.approx(2e-3, rel=0.01)
    assert learning_rate(config, 2, 0.5) == pytest.approx(0.55 * 2e-3)
    assert learning_rate(config, 3, 1.0) == learning_rate(config, 3, 1.2) == pytest.approx(3e-4)
    constant = replace(config, constant_lr=True)
    assert {learning_rate(constant, 1, progress) for progress in (0.0, 0.5, 1.0)} == {1e-3}


def test_without_curriculum_the_end_is_there_from_the_start() -> None:
    phases = (Phase(0.4, 1, 0, 0.0, 17.0, False), Phase(1.0, 8, 100, 0.65, 9.5, True))
    flat = without_curriculum(replace(TrainConfig(), phases=phases, eps=17.0))
    assert flat.phases == (phases[1],) and flat.eps == 9.5


def test_trained_weights_begin_where_all_people_are_targets() -> None:
    first, last = (Phase(until, 8, 900, 0.65, eps, True) for until, eps in ((0.6, 11.0), (1.0, 9.5)))
    config = replace(TrainConfig(), phases=(Phase(0.2, 1, 0, 0.0, 15.0, False), first, last), eps=17.0)
    short = climbed(config)
    assert short.phases[0].until == pytest.approx(0.5) and short.phases[1] == last
    assert short.eps == 15.0  # the budget goes on falling from where the phase left out would have brought it
    assert climbed(short) == short


def test_a_preset_can_say_where_and_how_fast_trained_weights_go_on() -> None:
    phases = tuple(Phase(until, 8, 900, 0.65, eps, True) for until, eps in ((0.2, 15.0), (0.6, 11.0), (1.0, 9.5)))
    config = replace(TrainConfig(), phases=phases, eps=17.0, lr=(1e-3, 2e-3, 3e-3), trained_phase=2, trained_lr=0.5)
    short = climbed(config)
    assert short.phases == (replace(phases[2], until=1.0),) and short.eps == 11.0
    assert short.lr == (5e-4, 1e-3, 3e-3)
    assert climbed(short) == short  # not slowed down again
    with pytest.raises(UsageError, match="trained_phase is 3, of 3 phases"):
        replace(config, trained_phase=3)


def test_trained_weights_go_on_with_their_restorer() -> None:
    assert all(phase.restorer for phase in climbed(preset("cpu")).phases)


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_end_is_the_same_for_trained_weights(name: str) -> None:
    config = preset(name)
    assert climbed(config).phases[-1] == config.phases[-1]
