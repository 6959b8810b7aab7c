"""A sweep's file is checked before anything starts: every error names the field and what to do."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from experiments.errors import ExperimentError
from experiments.sweep_config import SweepConfig
from voxloop.cli import app

PAGE = (Path(__file__).parents[2] / "docs/sweeps.md").read_text()
GOOD = {"name": "first", "target": "data", "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path


def load(folder: Path, **changes: Any) -> SweepConfig:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return SweepConfig.load(path)


def test_a_target_is_relative_to_the_file(folder: Path) -> None:
    assert load(folder).target == folder / "data"


def test_what_a_trial_is_given(folder: Path) -> None:
    network_args = [{"channels": [8, 16]}, {"channels": [16, 32]}]
    space = {"batch": {"low": 2, "high": 8, "step": 2}, "network_args": network_args, "augment": [True, False]}
    config = load(folder, plan={"steps": 9}, space={**GOOD["space"], **space})  # type: ignore[dict-item]
    first, second = config.distributions["network_args"].choices  # type: ignore[attr-defined]
    params = {"batch": 4, "network_args": second, "augment": False, "learning_rate": 0.001}
    given = {"steps": 9, "batch": 4, "network_args": network_args[1], "augment": False, "learning_rate": 0.001}
    assert config.overrides(params) == given
    assert isinstance(first, str)  # Optuna's databases hold plain values


def test_a_changed_space_is_told_apart_and_more_trials_are_not(folder: Path) -> None:
    before, after = load(folder).kept(), load(folder, space={"learning_rate": [0.1]}).kept()
    assert [name for name in before if before[name] != after[name]] == ["space"]
    assert load(folder, trials=99).kept() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {"learning_rat": [0.1]}}, ["space", "learning_rat", "learning_rate"]),
        ({"plan": {"step": 1}}, ["plan", "step", "steps"]),
        ({"plan": {"learning_rate": 0.1}}, ["space.learning_rate", "fixed"]),
        ({"space": {}}, ["space"]),
        ({"space": {"batch": []}}, ["space.batch.choices"]),
        ({"space": {"batch": [2, 2]}}, ["space.batch", "twice"]),
        ({"space": {"batch": {"low": 2}}}, ["space.batch", "low and high"]),
        ({"space": {"batch": {"low": 2, "high": 1}}}, ["space.batch", "below"]),
        ({"space": {"batch": {"low": 1, "high": 2.5}}}, ["space.batch", "whole"]),
        ({"space": {"batch": {"low": 1, "high": 2, "choices": [1]}}}, ["space.batch", "not both"]),
        ({"space": {"ema": {"low": 0, "high": 0.9, "log": True}}}, ["space.ema"]),
        ({"space": {"network": {"low": 0, "high": 1}}}, ["space.network", "choices"]),
        ({"space": {"batch": {"lo": 2}}}, ["space.batch.lo"]),
        ({"target": "nowhere"}, ["target", "nowhere"]),
        ({"name": "../up"}, ["name"]),
        ({"sampler": "grid"}, ["sampler", "tpe"]),
        ({"pruner": "mean"}, ["pruner", "median"]),
        ({"trials": 0}, ["trials"]),
        ({"objective": "loss"}, ["objective"]),
    ],
)
def test_what_does_not_fit_is_named(folder: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ExperimentError) as caught:
        load(folder, **changes)
    assert caught.value.about == str(folder / "sweep.yaml")
    assert caught.value.remedy
    assert all(word in caught.value.problem for word in words), caught.value.problem


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no such file"):
        SweepConfig.load(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("name: [")
    with pytest.raises(ExperimentError, match="not YAML"):
        SweepConfig.load(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("just words")
    with pytest.raises(ExperimentError, match=r"c\.yaml"):
        SweepConfig.load(tmp_path / "c.yaml")


def test_the_file_of_the_docs_loads(tmp_path: Path) -> None:
    (tmp_path / "my-data").mkdir()
    (tmp_path / "sweep.yaml").write_text(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])
    config = SweepConfig.load(tmp_path / "sweep.yaml")
    assert set(config.distributions) == {"learning_rate", "batch", "augment", "network_args"}


def test_the_commands_of_the_docs_are_understood() -> None:
    lines = re.findall(r"^voxloop (.*)$", PAGE, re.MULTILINE)
    assert len(lines) == 3
    for name, *words in map(str.split, lines):
        command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        command.make_context(name, words)
