"""Networks trained by Lightning under MLflow, and the predictor that they become.

What needs torch is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from training.errors import TrainingError

if TYPE_CHECKING:
    from training.launch import DDPLauncher, FakeLauncher, Launcher, LocalLauncher, SparkLauncher, TrainJob
    from training.metrics import dice_by_structure, mean_dice
    from training.predictor import NetPredictor, Point, Prediction, Predictor, Prompts, ThresholdPredictor
    from training.run import LoadedRun, load_run
    from training.training_set import TrainingSet

__all__ = [
    "DDPLauncher",
    "FakeLauncher",
    "Launcher",
    "LoadedRun",
    "LocalLauncher",
    "NetPredictor",
    "Point",
    "Prediction",
    "Predictor",
    "Prompts",
    "SparkLauncher",
    "ThresholdPredictor",
    "TrainJob",
    "TrainingError",
    "TrainingSet",
    "dice_by_structure",
    "load_run",
    "mean_dice",
]

_MODULES = {
    "training.launch": ("DDPLauncher", "FakeLauncher", "Launcher", "LocalLauncher", "SparkLauncher", "TrainJob"),
    "training.metrics": ("dice_by_structure", "mean_dice"),
    "training.predictor": ("NetPredictor", "Point", "Prediction", "Predictor", "Prompts", "ThresholdPredictor"),
    "training.run": ("LoadedRun", "load_run"),
    "training.training_set": ("TrainingSet",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
