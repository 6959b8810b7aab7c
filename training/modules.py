"""Which Lightning module a plan is trained by."""

import pickle
from pathlib import Path

import torch

from datamodules.plan import Plan
from training.errors import TrainingError
from training.module import PlanModule, SegmentationModule

__all__ = ["module"]


def module(plan: Plan, *, weights: Path | None = None) -> PlanModule:
    """The module of ``plan.task``, untrained, or beginning with ``weights``: a state dict of its network, or for ``vista3d``
    the published file. TrainingError where they do not fit.
    """
    if plan.task == "vista3d":
        from training.vista import Vista3DModule

        tuned: PlanModule = Vista3DModule(plan, weights=weights)
        return tuned
    if plan.task == "classification":
        from training.classification import ClassificationModule

        made: PlanModule = ClassificationModule(plan)
    else:
        made = SegmentationModule(plan)
    if weights:
        _begin_with(made, weights)
    return made


def _begin_with(made: PlanModule, weights: Path) -> None:
    try:
        made.net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (OSError, EOFError, RuntimeError, TypeError, AttributeError, pickle.UnpicklingError) as problem:
        said = f"does not fit {made.plan.network}: {str(problem).splitlines()[0]}"
        raise TrainingError(said, about=str(weights), remedy="give weights of a run with the same network") from None
