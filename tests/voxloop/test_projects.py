"""Project files that are written, changed, broken and mended while a server follows them."""

import os
from pathlib import Path

import pytest

from catalog import CatalogError
from voxloop.projects import ProjectFiles, projects_of


def write(home: Path, name: str, key: str, model: str = "m") -> Path:
    path = home / "projects" / name
    path.parent.mkdir(exist_ok=True)
    structure = "{name: lesion, value: 1, code: [SCT, '52988006', Lesion], color: [200, 80, 60]}"
    label_set = f"{{name: t, structures: [{structure}]}}"
    path.write_text(f"key: {key}\ncohort: select 1\nlabel_set: {label_set}\nmodel: {model}\n")
    return path


def told(files: ProjectFiles) -> tuple[dict[str, str], list[str]]:
    """The model of each project, and the problems."""
    return {project.key: project.model for project in files}, [str(problem) for problem in files.problems()]


def test_a_file_is_seen_once_it_is_there_changed_and_gone(tmp_path: Path) -> None:
    files = ProjectFiles(tmp_path)
    assert told(files) == ({}, [])
    first = write(tmp_path, "a.yaml", "a")
    assert told(files) == ({"a": "m"}, [])
    write(tmp_path, "b.yaml", "b")
    write(tmp_path, "a.yaml", "a", "n")
    assert told(files) == ({"a": "n", "b": "m"}, [])
    first.unlink()
    assert told(files) == ({"b": "m"}, [])


def test_what_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "a")
    files = ProjectFiles(tmp_path)
    (before,), (after,) = files, files
    assert before is after


@pytest.mark.parametrize(("plan", "said"), [("{stepz: 4}", "plan: unknown key stepz"), ("{channels: [a]}", "channels follows")])
def test_a_plan_with_a_field_that_it_cannot_have_is_refused(tmp_path: Path, plan: str, said: str) -> None:
    path = write(tmp_path, "a.yaml", "a")
    path.write_text(path.read_text() + f"plan: {plan}\n")
    with pytest.raises(CatalogError, match=said) as caught:
        projects_of(tmp_path)
    assert caught.value.about == str(path)
    assert told(ProjectFiles(tmp_path))[0] == {}


def test_a_broken_file_takes_no_project_down_and_is_named_until_it_is_mended(tmp_path: Path) -> None:
    files = ProjectFiles(tmp_path)
    write(tmp_path, "good.yaml", "good")
    (tmp_path / "projects" / "new.yaml").write_text("key: [")
    edited = write(tmp_path, "edited.yaml", "edited")
    known, (problem,) = told(files)
    assert known == {"edited": "m", "good": "m"}
    assert "new.yaml" in problem and "not YAML" in problem and "mend the project file" in problem
    edited.write_text(edited.read_text().replace("model: m", "modell: n"))
    known, problems = told(files)
    assert known == {"edited": "m", "good": "m"}
    kept = "edited.yaml: modell: there is no such field; until then the project stays as it was"
    assert [kept in one for one in problems] == [True, False]
    (tmp_path / "projects" / "new.yaml").unlink()
    write(tmp_path, "edited.yaml", "edited", "n")
    assert told(files) == ({"edited": "n", "good": "m"}, [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named_and_read_once_it_may(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "a")
    path.chmod(0)
    files = ProjectFiles(tmp_path)
    known, (problem,) = told(files)
    assert known == {} and "a.yaml: cannot be read: Permission denied" in problem
    path.chmod(0o600)
    assert told(files) == ({"a": "m"}, [])


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "a")
    (tmp_path / "projects" / "b.yaml").symlink_to(tmp_path / "nowhere")
    known, (problem,) = told(ProjectFiles(tmp_path))
    assert known == {"a": "m"} and "b.yaml" in problem


def test_two_files_of_one_key_are_told_of_and_the_first_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "same", "first")
    write(tmp_path, "b.yaml", "same", "second")
    known, (problem,) = told(ProjectFiles(tmp_path))
    assert known == {"same": "first"}
    assert "b.yaml: same is another file's key" in problem


def test_the_named_file_comes_first_wherever_it_is(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "a")
    named = write(tmp_path, "z.yaml", "z").rename(tmp_path / "z.yaml")
    assert list(told(ProjectFiles(tmp_path, named))[0]) == ["z", "a"]
    named.write_text("key: [")
    with pytest.raises(CatalogError, match="not YAML"):
        projects_of(tmp_path, named)
