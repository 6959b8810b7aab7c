"""What MLflow runs to make a served model (its "models from code"): nothing is pickled."""

from mlflow.models import set_model

from serving.model import VoxloopModel

__all__: list[str] = []

set_model(VoxloopModel())
