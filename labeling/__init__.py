"""Who labels what next, and the round that turns labels into a better model.

A name is imported when it is used: the round brings torch along, which the viewer's API does without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labeling.errors import LabelingError
    from labeling.jobs import Jobs, in_background
    from labeling.readers import Reader, SimulatedReader
    from labeling.round import Round, Workplace
    from labeling.strategies import Choice, EntropyStrategy, RandomStrategy, Strategy

__all__ = [
    "Choice",
    "EntropyStrategy",
    "Jobs",
    "LabelingError",
    "RandomStrategy",
    "Reader",
    "Round",
    "SimulatedReader",
    "Strategy",
    "Workplace",
    "in_background",
]

_MODULES = {
    "errors": ("LabelingError",),
    "jobs": ("Jobs", "in_background"),
    "readers": ("Reader", "SimulatedReader"),
    "round": ("Round", "Workplace"),
    "strategies": ("Choice", "EntropyStrategy", "RandomStrategy", "Strategy"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"labeling.{module}"), name)
    raise AttributeError(f"module 'labeling' has no attribute {name!r}")
