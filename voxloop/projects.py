"""The project files of a home, read again when one is new or has changed, so that a running server follows them."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from catalog import CatalogError, Project
from datamodules import DataError, Plan

__all__ = ["ProjectFiles", "load", "projects_of"]


def load(path: str | Path) -> Project:
    """``Project.load``, with the names of its plan's fields looked at too: a slip is told before Spark starts."""
    project = Project.load(path)
    try:
        Plan.check(project.plan)
    except DataError as problem:
        raise CatalogError(f"plan: {problem.problem}", about=str(path), remedy=problem.remedy) from None
    return project


def projects_of(home: Path, named: Path | None = None) -> list[Project]:
    """The projects of a home, ``named`` first, wherever its file is; a CatalogError names the file that cannot be one."""
    return [load(path) for path in _paths(home, named)]


@dataclass(frozen=True)
class _Read:
    """A file as it was read at ``stamp``. With a ``problem`` the project is what the file said before, if it ever said one."""

    stamp: tuple[int, int, int] | None
    project: Project | None
    problem: CatalogError | None = None


class ProjectFiles:
    """The projects of ``projects_of`` as their files are now: to iterate is to look at the files again.

    Never raises: a file that is wrong leaves the others as they are, and its own project as it was read before.
    """

    def __init__(self, home: Path, named: Path | None = None) -> None:
        self._home, self._named = home, named
        self._read: dict[Path, _Read] = {}
        self._lock = threading.Lock()
        self._problems: list[CatalogError] = []

    def __iter__(self) -> Iterator[Project]:
        with self._lock:
            self._read = {path: self._look(path) for path in _paths(self._home, self._named)}
            found: dict[str, Project] = {}
            problems = [read.problem for read in self._read.values() if read.problem]
            for path, read in self._read.items():
                if read.project and found.setdefault(read.project.key, read.project) is not read.project:
                    remedy = "give one of the two another key"
                    problems.append(CatalogError(f"{read.project.key} is another file's key", about=str(path), remedy=remedy))
            self._problems = problems
        return iter(found.values())

    def problems(self) -> list[CatalogError]:
        """What was wrong when they were last looked at, each about a file."""
        return self._problems

    def _look(self, path: Path) -> _Read:
        before = self._read.get(path)
        try:
            status = path.stat()
            stamp = status.st_mtime_ns, status.st_size, status.st_ino
            if before and before.stamp == stamp:
                return before
            return _Read(stamp, load(path))
        except OSError as error:
            remedy = "let the server read it, or take it away"
            problem = CatalogError(f"cannot be read: {error.strerror}", about=str(path), remedy=remedy)
            stamp = None  # look again: what changes it need not change the file
        except CatalogError as error:
            problem = error
        if before and before.project:
            said = f"{problem.problem}; until then the project stays as it was read before"
            problem = CatalogError(said, about=problem.about, remedy=problem.remedy)
        return _Read(stamp, before.project if before else None, problem)


def _paths(home: Path, named: Path | None) -> list[Path]:
    first = [named.resolve()] if named else []
    return first + [path for path in sorted((home / "projects").glob("*.yaml")) if path.resolve() not in first]
