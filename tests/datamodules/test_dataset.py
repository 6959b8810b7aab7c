"""From labelled series and NIfTI files to prepared volumes: real Spark, real DICOM, real Petastorm."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import pytest
import torch

from catalog.archive import Archive
from catalog.labels import Submission, submit
from datamodules import DatasetInfo, LabelledCase, Plan, build
from datamodules._petastorm import samples, seal, write
from datamodules.errors import DataError
from datamodules.fingerprint import Fingerprint, measure
from datamodules.prepare import prepare, prepare_mask
from datamodules.sample import Sample
from experiments.synthetic import LABEL_SET, cases
from experiments.synthetic import write as write_cohort

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.slow
PLAN = Plan.make({"patch": (16, 32, 32)}, LABEL_SET, Fingerprint((5.0, 4.0, 4.0), (28, 40, 40)))
STATES = {"liver": "present", "spleen": "present"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Four phantoms in a home of their own."""
    from pydicom import dcmread

    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, 4)
    archive = Archive(tmp_path_factory.mktemp("home"))
    archive.store((dcmread(path) for path in sorted(folder.glob("images/*/*.dcm"))), folder="unzipped", writer="test")
    return archive


@pytest.fixture(scope="module")
def labelled(archive: Archive) -> list[LabelledCase]:
    """Three training cases and one for validation; the second's spleen is not annotated."""
    series = archive.sql("SELECT PatientID, SeriesInstanceUID, StudyInstanceUID FROM series WHERE is_image").to_pylist()
    known = {row["PatientID"]: row for row in series}
    found = []
    for index, (name, _, mask) in enumerate(cases(4)):
        states = dict(STATES, spleen="not_annotated") if index == 1 else STATES
        drawn = mask.with_array(np.where(mask.array == 2, 0, mask.array)) if index == 1 else mask
        uid = known[name]["SeriesInstanceUID"]
        revision = submit(archive, "phantoms", LABEL_SET, Submission(uid, drawn, states, "reader"))  # type: ignore[arg-type]
        role, study = "validation" if index == 3 else "train", known[name]["StudyInstanceUID"]
        found.append(LabelledCase(uid, (uid,), revision.label_id, role, states, study, name))
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def built(spark: "SparkSession", archive: Archive, labelled: list[LabelledCase], root: Path) -> DatasetInfo:
    return build(spark, archive, labelled, PLAN, LABEL_SET, root)


def test_volumes_come_back_as_serving_prepares_them(built: DatasetInfo, archive: Archive, labelled: list[LabelledCase]) -> None:
    assert built.rows == {"train": 3, "validation": 1}
    assert (built.left_out, built.prepared) == ((), 4)
    [kept] = samples(built.path / "validation")
    assert torch.equal(kept.normalised(), prepare(archive.volume(labelled[3].case), PLAN).image)
    assert torch.equal(kept.mask, prepare_mask(list(cases(4))[3][2], PLAN))
    assert (kept.case, kept.patient_id, kept.label_id) == (labelled[3].case, labelled[3].patient_id, labelled[3].label)
    unknown = [sample.annotated.tolist() for sample in samples(built.path / "train")]
    assert sorted(unknown) == [[True, False], [True, True], [True, True]]
    for cls, *voxel in kept.centres.tolist():
        assert kept.mask[tuple(voxel)] == cls
    assert set(kept.centres[:, 0].tolist()) == {1, 2}


def test_an_unchanged_case_is_prepared_once(
    built: DatasetInfo, spark: "SparkSession", archive: Archive, labelled: list[LabelledCase], root: Path
) -> None:
    again = build(spark, archive, labelled[::-1], replace(PLAN, steps=7), LABEL_SET, root)
    assert (again, again.prepared) == (built, 0)
    fewer = build(spark, archive, labelled[:3], PLAN, LABEL_SET, root)
    assert (fewer.prepared, fewer.rows) == (0, {"train": 3})
    assert fewer.path != built.path
    swapped = [replace(labelled[0], role="validation"), *labelled[1:]]
    assert build(spark, archive, swapped, PLAN, LABEL_SET, root).prepared == 0


def test_a_new_label_prepares_one_case(
    built: DatasetInfo, spark: "SparkSession", archive: Archive, labelled: list[LabelledCase], root: Path
) -> None:
    case, (_, _, mask) = labelled[2], list(cases(4))[2]
    revision = submit(archive, "phantoms", LABEL_SET, Submission(case.case, mask, STATES, "other"))  # type: ignore[arg-type]
    changed = [*labelled[:2], replace(case, label=revision.label_id), labelled[3]]
    assert build(spark, archive, changed, PLAN, LABEL_SET, root).prepared == 1


def test_a_dataset_can_be_carried(built: DatasetInfo, tmp_path: Path) -> None:
    shutil.copytree(built.path, tmp_path / "carried")
    info = DatasetInfo.read(tmp_path / "carried")
    assert (info.rows, info.plan, info.label_set) == (built.rows, PLAN, LABEL_SET)
    assert len(list(samples(info.path / "train"))) == 3
    told = json.loads((info.path / "dataset.json").read_text())
    assert {case["case"] for case in told["cases"]["train"]} == {sample.case for sample in samples(info.path / "train")}


def test_an_unfinished_folder_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete dataset"):
        DatasetInfo.read(tmp_path)


def test_a_corrupt_case_is_left_out_named_and_tried_again(
    spark: "SparkSession", archive: Archive, labelled: list[LabelledCase], tmp_path: Path
) -> None:
    hurt = labelled[2]
    path = Path(archive.series_files(hurt.case)[5])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        info = build(spark, archive, labelled, PLAN, LABEL_SET, tmp_path)
        assert info.rows == {"train": 2, "validation": 1}
        assert [case for case, _ in info.left_out] == [hurt.case]
        assert info.left_out[0][1]
        with pytest.raises(DataError, match=hurt.case):
            build(spark, archive, [hurt], PLAN, LABEL_SET, tmp_path)
    finally:
        path.write_bytes(whole)
    mended = build(spark, archive, labelled, PLAN, LABEL_SET, tmp_path)
    assert (mended.left_out, mended.rows["train"]) == ((), 3)


def test_a_label_that_is_not_there_is_named(
    spark: "SparkSession", archive: Archive, labelled: list[LabelledCase], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="nobody"):
        build(spark, archive, [replace(labelled[0], label="nobody")], PLAN, LABEL_SET, tmp_path)


def nifti(path: Path, array: np.ndarray, spacing: float = 2.0) -> str:
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-spacing, -spacing, spacing, 1.0])), path)
    return str(path)


def test_nifti_files_of_two_channels_become_a_dataset(spark: "SparkSession", tmp_path: Path) -> None:
    rng, listed = np.random.default_rng(0), []
    for index in range(3):
        mask = np.zeros((16, 18, 12), np.uint8)
        mask[4:9, 4:9, 3:6] = 1
        images = [
            nifti(tmp_path / f"{index}_ct.nii.gz", rng.integers(-1000, 400, mask.shape).astype(np.int16)),
            nifti(tmp_path / f"{index}_pet.nii.gz", rng.normal(5, 1, mask.shape).astype(np.float32)),
        ]
        label = nifti(tmp_path / f"{index}.nii.gz", mask if index < 2 else mask * 9)
        listed.append(LabelledCase(f"case {index}", tuple(images), label, "train"))
    found = measure(spark, None, listed, LABEL_SET, channels=("CT", "PET"))
    assert found.modalities == ("CT", "MR")
    assert found.spacing == (2.0, 2.0, 2.0)
    assert found.intensities[1][2] == pytest.approx(5, abs=0.3)
    plan = Plan.make({}, LABEL_SET, found)
    info = build(spark, None, listed, plan, LABEL_SET, tmp_path / "datasets")
    assert [case for case, _ in info.left_out] == ["case 2"]
    assert "9" in info.left_out[0][1]
    first = next(samples(info.path / "train"))
    assert first.image.shape == (2, 12, 18, 16)
    assert first.present.tolist() == [True, False]
    assert first.annotated.tolist() == [True, True]


def sample(index: int, dtype: torch.dtype = torch.int16) -> Sample:
    image = torch.full((2, 6, 4, 4), index).to(dtype)
    states = torch.tensor([True, False])
    numbers = torch.tensor([[1.0, -5.0, 5.0, 0.5, 2.0]] * 2)
    mask = torch.arange(96, dtype=torch.uint8).view(6, 4, 4)
    return Sample(
        f"c{index}", "s", "p", "l", image, numbers, mask, states, states, torch.tensor([[1, 0, 0, 1]], dtype=torch.int32)
    )


def test_rows_are_read_in_the_asked_order_and_blocks_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(4):
        monkeypatch.setattr("datamodules._petastorm.BLOCK", 100 if index == 2 else 2**20)
        write(tmp_path / f"{index}.parquet", sample(index, torch.float32 if index % 2 else torch.int16))
    assert seal(tmp_path) == 4
    found = list(samples(tmp_path, [2, 0, 3, 2]))
    assert [one.case for one in found] == ["c2", "c0", "c3", "c2"]
    assert [one.image.dtype for one in found] == [torch.int16, torch.int16, torch.float32, torch.int16]
    assert torch.equal(found[0].image, sample(2).image)
    assert torch.equal(found[0].mask, sample(2).mask)
    assert list(samples(tmp_path, [])) == []


def test_plain_petastorm_reads_what_was_written(tmp_path: Path) -> None:
    import pickle

    import pyarrow.parquet as pq

    write(tmp_path / "0.parquet", sample(3))
    seal(tmp_path)
    schema = pickle.loads(pq.read_metadata(tmp_path / "_common_metadata").metadata[b"dataset-toolkit.unischema.v1"])
    cell = pq.read_table(tmp_path / "0.parquet")["mask"][0].as_py()
    assert np.array_equal(schema.mask.codec.decode(schema.mask, cell), sample(3).mask.numpy())
