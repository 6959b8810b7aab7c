"""What every predictor and every launcher must do; a new one is tested by subclassing and giving it as a fixture.

class TestMine(PredictorTests):
    @pytest.fixture
    def predictor(self) -> Predictor: ...
"""

import highdicom as hd
import numpy as np
import pytest

from training.errors import TrainingError
from training.launch import Launcher, TrainJob
from training.predictor import Point, Predictor, Prompts
from training.run import load_job, load_run

__all__ = ["LauncherTests", "PredictorTests"]


class PredictorTests:
    """Needs the fixtures ``predictor`` and ``image`` (a volume in which the predictor finds something)."""

    takes_points = False

    def test_the_mask_lies_on_the_images_grid(self, predictor: Predictor, image: hd.Volume) -> None:
        prediction = predictor.predict(image, Prompts())
        assert prediction.mask.array.dtype == np.uint8
        assert prediction.mask.geometry_equal(image)
        assert prediction.uncertainty is None

    def test_a_turned_image_gives_a_turned_mask(self, predictor: Predictor, image: hd.Volume) -> None:
        turned = image.permute_spatial_axes([2, 0, 1]).flip_spatial([0, 2])
        expected = predictor.predict(image, Prompts()).mask.match_geometry(turned).array
        assert np.mean(predictor.predict(turned, Prompts()).mask.array == expected) > 0.999

    def test_volumes_are_the_masks(self, predictor: Predictor, image: hd.Volume) -> None:
        prediction = predictor.predict(image, Prompts())
        found = np.count_nonzero(prediction.mask.array) * image.voxel_volume / 1000
        assert found > 0
        assert sum(prediction.volumes_ml.values()) == pytest.approx(found)

    def test_uncertainty_is_a_map_in_nats(self, predictor: Predictor, image: hd.Volume) -> None:
        prediction = predictor.predict(image, Prompts(), uncertainty=True)
        assert prediction.uncertainty is not None
        assert prediction.uncertainty.geometry_equal(image)
        assert prediction.uncertainty.array.dtype == np.float32
        assert prediction.uncertainty.array.min() >= 0
        assert 0 <= prediction.entropy <= prediction.uncertainty.array.max()

    def test_asked_classes_alone_are_answered(self, predictor: Predictor, image: hd.Volume) -> None:
        name = next(iter(predictor.predict(image, Prompts()).volumes_ml))
        prediction = predictor.predict(image, Prompts(classes=(name,)))
        assert list(prediction.volumes_ml) == [name]
        assert len(np.unique(prediction.mask.array)) <= 2

    def test_what_it_cannot_do_is_refused_by_name(self, predictor: Predictor, image: hd.Volume) -> None:
        with pytest.raises(TrainingError, match="unicorn"):
            predictor.predict(image, Prompts(classes=("unicorn",)))
        with pytest.raises(TrainingError, match="unicorn" if self.takes_points else "points"):
            predictor.predict(image, Prompts(points=(Point(0.0, 0.0, 0.0, "unicorn"),)))


class LauncherTests:
    """Needs the fixtures ``launcher`` and ``job``, of the class or wider: one run serves all tests."""

    @pytest.fixture(scope="class")
    @classmethod
    def run_id(cls, launcher: Launcher, job: TrainJob) -> str:
        """A finished run."""
        return launcher.run(job)

    def test_a_run_can_be_loaded_and_traced(self, run_id: str, job: TrainJob) -> None:
        run = load_run(job.tracking_uri, run_id)
        assert (run.plan, run.label_set) == (job.plan, job.label_set)
        assert (run.label_ids, run.readers) == (job.label_ids, job.readers)
        assert job.tags().items() <= run.tags.items()
        assert all(f"val_dice_{name}" in run.metrics for name in job.plan.structures)

    def test_the_runs_inputs_name_the_versions(self, run_id: str, job: TrainJob) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(job.tracking_uri)
        logged = {item.dataset.name: item.dataset.digest for item in client.get_run(run_id).inputs.dataset_inputs}
        assert logged["object_catalog"] == str(job.catalog_version)
        assert logged["labels"] == str(job.labels_version)
        assert {"plan.json", "label_set.json", "slices.png", "weights.pt"} <= {f.path for f in client.list_artifacts(run_id)}
        assert client.get_run(run_id).info.status == "FINISHED"

    def test_the_job_can_be_read_back(self, run_id: str, job: TrainJob) -> None:
        assert load_job(job.tracking_uri, run_id) == job

    def test_a_finished_run_is_not_gone_on_with(self, launcher: Launcher, run_id: str, job: TrainJob) -> None:
        with pytest.raises(TrainingError, match="has finished"):
            launcher.run(job, resume=run_id)
