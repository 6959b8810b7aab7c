"""Settings come from the environment, an option goes before them, a wrong one is named."""

from pathlib import Path

import pytest

from voxloop.errors import FrontDoorError
from voxloop.home import only_one
from voxloop.settings import read


def test_the_option_goes_before_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VOXLOOP_HOME", str(tmp_path / "one"))
    assert read().home == tmp_path / "one"
    assert read(tmp_path / "two").home == tmp_path / "two"


def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXLOOP_MLFLOW_PORT", "many")
    with pytest.raises(FrontDoorError, match="VOXLOOP_MLFLOW_PORT"):
        read()


def test_a_home_is_worked_in_by_one_command_at_a_time(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(FrontDoorError, match=str(tmp_path)), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass
