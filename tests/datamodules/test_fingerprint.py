"""What the volumes of a cohort have in common, measured by a Spark job."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import pytest

from catalog.archive import Archive
from catalog.labels import Submission, submit
from datamodules import DataError, Fingerprint, LabelledCase
from datamodules.fingerprint import measure
from experiments.synthetic import LABEL_SET, cases, write

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.slow


def files(folder: Path, *, number: int, inside: float, air: float, spacing: float = 2.0) -> list[LabelledCase]:
    """Cases of (x, y, z) 8×9×10 and a liver of the values ``inside`` ± 1 in ``air``; the numbers differ by case."""
    found = []
    for index in range(number):
        mask = np.zeros((8, 9, 10), np.uint8)
        mask[2:6, 2:6, 2:6] = 1
        image = np.where(mask == 1, inside + np.arange(720).reshape(mask.shape) % 3 - 1, air).astype(np.float32)
        affine = np.diag([-1.0, -1.0, spacing + index, 1.0])
        paths = [folder / f"{inside:g}_{index}.nii", folder / f"{inside:g}_{index}_label.nii"]
        nibabel.save(nibabel.Nifti1Image(image, affine), paths[0])
        nibabel.save(nibabel.Nifti1Image(mask, affine), paths[1])
        found.append(LabelledCase(f"{index}", (str(paths[0]),), str(paths[1]), "train"))
    return found


def test_medians_modality_and_the_foregrounds_values(spark: "SparkSession", tmp_path: Path) -> None:
    listed = files(tmp_path, number=3, inside=60, air=-1000)
    found = measure(spark, None, listed, LABEL_SET)
    assert (found.spacing, found.shape, found.modalities, found.channels) == ((3.0, 1.0, 1.0), (10, 9, 8), ("CT",), ("image",))
    voxels = np.asarray(nibabel.load(listed[0].images[0]).dataobj)[2:6, 2:6, 2:6]
    assert found.intensities == (pytest.approx((59, 61, voxels.mean(), voxels.std()), abs=1e-3),)


def test_a_channel_is_measured_for_itself(spark: "SparkSession", tmp_path: Path) -> None:
    pairs = zip(files(tmp_path, number=2, inside=300, air=0), files(tmp_path, number=2, inside=40, air=-900), strict=True)
    listed = [replace(one, images=(*one.images, *other.images)) for one, other in pairs]
    found = measure(spark, None, listed, LABEL_SET, channels=("T1", "CT"))
    assert (found.modalities, [round(values[2]) for values in found.intensities]) == (("MR", "CT"), [300, 40])
    assert measure(spark, None, listed, LABEL_SET, channels=("T1", "CT"), modalities=("MR", "PT")).modalities == ("MR", "PT")


def test_cases_that_cannot_be_read_are_passed_over(spark: "SparkSession", tmp_path: Path) -> None:
    whole = files(tmp_path, number=2, inside=60, air=0)
    lost = replace(whole[0], images=(str(tmp_path / "lost.nii"),))
    assert measure(spark, None, [lost, whole[1]], LABEL_SET) == measure(spark, None, whole[1:], LABEL_SET)
    assert measure(spark, None, [replace(whole[0], images=whole[0].images * 2), whole[1]], LABEL_SET).spacing[0] == 3
    with pytest.raises(DataError, match=r"no case can be read; the first: .*lost\.nii: no such file"):
        measure(spark, None, [lost], LABEL_SET)
    with pytest.raises(DataError, match="no volumes"):
        measure(spark, None, [], LABEL_SET)


def test_labelled_cases_come_first(spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.fingerprint.MOST", 2)
    listed = files(tmp_path, number=4, inside=60, air=0)
    pool = [replace(case, label="") for case in listed[:3]]
    found = measure(spark, None, [*pool, listed[3]], LABEL_SET)
    assert found.spacing[0] == (2 + 5) / 2
    assert len(found.intensities) == 1
    assert measure(spark, None, pool, LABEL_SET).intensities == ()


def test_a_catalogued_cohort(spark: "SparkSession", tmp_path: Path) -> None:
    from pydicom import dcmread

    write(tmp_path / "cohort", 2)
    archive = Archive(tmp_path / "home")
    objects = (dcmread(path) for path in sorted(tmp_path.glob("cohort/images/*/*.dcm")))
    archive.store(objects, folder="unzipped", writer="test")
    rows = archive.sql("SELECT PatientID, SeriesInstanceUID FROM series WHERE is_image").to_pylist()
    uids = {row["PatientID"]: row["SeriesInstanceUID"] for row in rows}
    (name, image, mask), (other, another, _) = cases(2)
    states = {"liver": "present", "spleen": "present"}
    revision = submit(archive, "phantoms", LABEL_SET, Submission(uids[name], mask, states, "reader"))  # type: ignore[arg-type]
    labelled = LabelledCase(uids[name], (uids[name],), revision.label_id, "train", states)
    unlabelled = LabelledCase(uids[other], (uids[other],), "", "train")
    found = measure(spark, archive, [unlabelled, labelled], LABEL_SET, modalities=("CT",))
    grids = Fingerprint.of([image, another])
    assert (found.spacing, found.shape, found.modalities) == (grids.spacing, grids.shape, ("CT",))
    assert found.intensities[0][2] == pytest.approx(float(image.array[mask.array > 0].mean()), abs=5)
