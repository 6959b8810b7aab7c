"""The README and docs say what is there: links lead somewhere, commands are the ones there are, a project file loads."""

import re
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from catalog import Archive, Project
from voxloop.cli import app
from voxloop.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _names(app: typer.Typer) -> set[str]:
    return {command.name or (command.callback.__name__ if command.callback else "") for command in app.registered_commands}


GROUPS = {str(group.name): _names(group.typer_instance) for group in app.registered_groups if group.typer_instance}
COMMANDS = _names(app)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_every_setting_is_told() -> None:
    told = set(re.findall(r"`VOXLOOP_([A-Z_]+)`", (ROOT / "docs/serve.md").read_text()))
    settings = {name.upper() for name in Settings.model_fields}
    assert told - {"VIEWER_ARCHIVE"} == settings  # that one is scripts/viewer's


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_those_there_are(page: Path) -> None:
    named = set(re.findall(r"voxloop ([a-z]+(?:-[a-z]+)?)(?= |`|$)", page.read_text(), re.MULTILINE))
    assert named <= COMMANDS | set(GROUPS), named - COMMANDS
    for group, commands in GROUPS.items():
        assert set(re.findall(rf"voxloop {group} ([a-z0-9-]+)", page.read_text())) <= commands
    targets = set(re.findall(r"make ([a-z]+(?:-[a-z]+)?)(?=[ `\n])", page.read_text()))
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= known, targets - known


def test_the_readme_fits_on_a_screen_and_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 80
    assert "make demo" in text
    assert "make test" in text


def test_the_project_file_of_the_docs_loads(tmp_path: Path) -> None:
    block = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/project.md").read_text(), re.DOTALL)[0]
    path = tmp_path / "liver.yaml"
    path.write_text(block)
    assert Project.load(path).key == yaml.safe_load(block)["key"]


def test_the_channels_of_the_docs_load(tmp_path: Path) -> None:
    project, channels = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/project.md").read_text(), re.DOTALL)[:2]
    (tmp_path / "p.yaml").write_text(project + channels)
    assert [channel.name for channel in Project.load(tmp_path / "p.yaml").channels] == ["PET", "CT"]


QUERIES = re.findall(r"```sql\n(.*?)```|voxloop sql \"(.*?)\"", "".join(page.read_text() for page in PAGES), re.DOTALL)


@pytest.mark.parametrize("query", [block or words for block, words in QUERIES])
def test_the_queries_of_the_docs_are_answered(query: str, home: Path) -> None:
    assert Archive(home).sql(query).num_rows == 0


@pytest.mark.parametrize("name", sorted([*COMMANDS, *(f"{group} {name}" for group in GROUPS for name in GROUPS[group])]))
def test_every_command_takes_home_and_json(name: str) -> None:
    said = CliRunner().invoke(app, [*name.split(), "--help"], color=False, terminal_width=200).output
    assert "--home" in said
    assert "--json" in said
