"""The errors a user can meet, one tree over all rooms.

    VoxloopError                 root: a problem, what it was about, what to do next
    ├── CatalogError             files, tables, labels, projects (this room)
    ├── DataError                plans and datasets               (datamodules.errors)
    ├── TrainingError            runs and predictors              (training.errors)
    ├── ServingError             registry, endpoint, batch        (serving.errors)
    ├── LabelingError            strategies, readers, the round   (labeling.errors)
    ├── ExperimentError          sweeps                           (experiments.errors)
    └── FrontDoorError           settings, processes, Java        (voxloop.errors)

The front door prints one as a single line and exits with status 1; any other exception is a bug and shows its traceback.
"""

from functools import partial
from typing import Any

__all__ = ["CatalogError", "VoxloopError"]


class VoxloopError(Exception):
    """A problem a user can mend: says what is wrong, with which file, UID or run, and what to do next."""

    def __init__(self, problem: str, *, about: str = "", remedy: str = "") -> None:
        super().__init__(problem, about, remedy)
        self.problem = problem
        self.about = about
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), self.problem, about=self.about, remedy=self.remedy), ()

    def __str__(self) -> str:
        subject = f"{self.about}: " if self.about else ""
        remedy = f" ({self.remedy})" if self.remedy else ""
        return f"{subject}{self.problem}{remedy}"


class CatalogError(VoxloopError):
    """A file, table, label or project that the catalog cannot take."""
