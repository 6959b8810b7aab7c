"""From labelled series and NIfTI files to prepared volumes: real Spark, real DICOM, real Petastorm."""

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import pytest
import torch

from catalog.archive import Archive
from catalog.disk import disk_full
from catalog.errors import CatalogError
from catalog.labels import Submission, submit
from datamodules import DatasetInfo, LabelledCase, Plan, build
from datamodules._petastorm import samples
from datamodules.dataset import _make
from datamodules.errors import DataError
from datamodules.fingerprint import Fingerprint, measure
from datamodules.prepare import prepare, prepare_mask
from datamodules.volumes import PreparedVolume, prepared_volumes
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


Files = list[LabelledCase]


def nifti(path: Path, array: np.ndarray, spacing: float = 2.0) -> str:
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-spacing, -spacing, spacing, 1.0])), path)
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Three cases of one channel, (x, y, z) 16×18×12, with the liver in them."""
    rng, listed = np.random.default_rng(0), []
    for index in range(3):
        mask = np.zeros((16, 18, 12), np.uint8)
        mask[4:9, 4:9, 3:6] = 1
        image = nifti(
            tmp_path / f"{index}_image.nii.gz", (rng.integers(0, 400, mask.shape) + mask * np.int16(300)).astype(np.int16)
        )
        listed.append(LabelledCase(f"case {index}", (image,), nifti(tmp_path / f"{index}.nii.gz", mask), "train"))
    return listed


def plan_of(**more: object) -> Plan:
    return Plan.make(more, LABEL_SET, Fingerprint((2.0, 2.0, 2.0), (12, 18, 16)))


def test_files_are_known_by_their_bytes(spark: "SparkSession", files: Files, tmp_path: Path) -> None:
    root, plan, told = tmp_path / "datasets", plan_of(), []
    first = build(spark, None, files, plan, LABEL_SET, root, progress=lambda done, total: told.append((done, total)))
    assert (first.prepared, told[0], told[-1]) == (3, (0, 3), (3, 3))
    (tmp_path / "moved").mkdir()
    moved = [replace(case, images=(shutil.copy(case.images[0], tmp_path / "moved"),)) for case in files]
    assert build(spark, None, moved, plan, LABEL_SET, root) == first
    relabelled = nibabel.load(files[0].label).get_fdata().astype(np.uint8)
    relabelled[5, 5, 5] = 2
    nifti(Path(files[0].label), relabelled)
    again = build(spark, None, files, plan, LABEL_SET, root)
    assert (again.prepared, again.rows) == (1, first.rows)
    assert sorted(sample.present.tolist() for sample in samples(again.path / "train")) == [[True, False]] * 2 + [[True, True]]
    assert [sample.present.tolist() for sample in samples(first.path / "train")] == [[True, False]] * 3  # as it was


def test_only_what_the_volumes_depend_on_prepares_them_again(spark: "SparkSession", files: Files, tmp_path: Path) -> None:
    root, cohort = tmp_path / "datasets", [[0.0, 9.0, 4.0, 2.0]]
    first = build(spark, None, files, plan_of(), LABEL_SET, root)
    assert build(spark, None, files, plan_of(intensities=cohort, batch=7), LABEL_SET, root).prepared == 0  # zscore: its own
    ct = build(spark, None, files, plan_of(normalization="ct", intensities=cohort), LABEL_SET, root)
    assert (ct.prepared, build(spark, None, files, plan_of(spacing=(3, 2, 2)), LABEL_SET, root).prepared) == (3, 3)
    assert len({first.digest, ct.digest}) == 2
    assert next(samples(ct.path / "train")).intensity.tolist() == [[1, 0, 9, 4, 2]]


def test_two_channels_are_measured_and_become_one_image(spark: "SparkSession", files: Files, tmp_path: Path) -> None:
    rng, listed = np.random.default_rng(0), []
    for index, case in enumerate(files):  # the second channel comes on a grid of its own
        ct = nifti(tmp_path / f"{index}_ct.nii.gz", rng.integers(-1000, 400, (16, 18, 12)).astype(np.int16))
        pet = nifti(tmp_path / f"{index}_pet.nii.gz", rng.normal(5, 1, (8, 9, 6)).astype(np.float32), spacing=4.0)
        listed.append(replace(case, images=(ct, pet)))
    found = measure(spark, None, listed, LABEL_SET, channels=("CT", "PET"))
    assert (found.modalities, found.spacing, found.shape) == (("CT", "MR"), (2.0, 2.0, 2.0), (12, 18, 16))
    low, high, mean, _ = found.intensities[1]
    assert 2 < low < 5 < high < 8
    assert mean == pytest.approx(5, abs=0.3)
    info = build(spark, None, listed, Plan.make({}, LABEL_SET, found), LABEL_SET, tmp_path / "datasets")
    first = next(samples(info.path / "train"))
    assert first.image.shape == (2, 12, 18, 16)
    assert first.intensity[0, 1:].tolist() == pytest.approx(found.intensities[0], rel=1e-5)
    assert (first.present.tolist(), first.annotated.tolist()) == ([True, False], [True, True])
    assert first.label_id.startswith("0.nii.gz@")


def test_a_slice_is_a_volume(spark: "SparkSession", tmp_path: Path) -> None:
    mask = np.zeros((20, 24, 1), np.uint8)
    mask[3:9, 4:12] = 2
    case = LabelledCase("a", (nifti(tmp_path / "a.nii", mask * np.int16(90)),), nifti(tmp_path / "a_label.nii", mask), "train")
    plan = Plan.make({}, LABEL_SET, measure(spark, None, [case], LABEL_SET))
    assert plan.dimensions == 2
    [kept] = samples(build(spark, None, [case], plan, LABEL_SET, tmp_path / "datasets").path / "train")
    assert (kept.image.shape, kept.image.dtype) == ((1, 1, 24, 20), torch.int16)
    assert int((kept.mask == 2).sum()) == 48 == len(kept.centres)


def test_states_alone_are_learned_from_where_nothing_is_outlined(spark: "SparkSession", files: Files, tmp_path: Path) -> None:
    case = replace(files[0], label="", states={"liver": "absent", "spleen": "present"})
    [kept] = samples(build(spark, None, [case], plan_of(), LABEL_SET, tmp_path / "datasets").path / "train")
    assert (kept.present.tolist(), kept.annotated.tolist(), kept.label_id) == ([False, True], [True, True], "")
    assert not kept.mask.any()
    assert kept.centres.shape == (0, 4)


def test_what_cannot_be_used_is_left_out_with_its_reason(spark: "SparkSession", files: Files, tmp_path: Path) -> None:
    image, label = files[0].images[0], files[0].label
    mask = nibabel.load(label).get_fdata().astype(np.uint8)
    lost = nibabel.load(image).get_fdata().astype(np.float32)
    lost[1, 2, 3] = np.nan
    (tmp_path / "cut.nii.gz").write_bytes(Path(image).read_bytes()[:-200])
    hurt = {
        "cut": replace(files[0], images=(str(tmp_path / "cut.nii.gz"),)),
        "gone": replace(files[0], images=(str(tmp_path / "gone.nii.gz"),)),
        "nan": replace(files[0], images=(nifti(tmp_path / "nan.nii.gz", lost),)),
        "other shape": replace(files[0], label=nifti(tmp_path / "shape.nii.gz", mask[:-1])),
        "other place": replace(files[0], label=nifti(tmp_path / "place.nii.gz", mask, spacing=2.1)),
        "no structure": replace(files[0], label=nifti(tmp_path / "value.nii.gz", mask * 9)),
        "half a class": replace(files[0], label=nifti(tmp_path / "half.nii.gz", mask * np.float32(0.5))),
        "channels": replace(files[0], images=(image, image)),
    }
    listed = [files[1], *(replace(case, case=name) for name, case in hurt.items())]
    info = build(spark, None, listed, plan_of(), LABEL_SET, tmp_path / "datasets")
    reasons = dict(info.left_out)
    assert (info.rows, info.prepared, set(reasons)) == ({"train": 1}, 1, set(hurt))
    told = {
        "cut": "cut short",
        "gone": "no such file",
        "nan": "not finite",
        "other shape": "(12, 18, 15), is not on its image's grid",
        "other place": "is not on its image's grid",
        "no structure": "its value 9 is in no label set",
        "half a class": "its value 0.5 is in no label set",
        "channels": "2 images for 1 channels",
    }
    assert {name: words for name, words in told.items() if words not in reasons[name]} == {}
    assert DatasetInfo.read(info.path) == info
    mended = [listed[0], *(replace(case, images=(image,), label=label) for case in listed[1:])]
    again = build(spark, None, mended, plan_of(), LABEL_SET, tmp_path / "datasets")
    assert (again.rows, again.prepared, again.left_out) == ({"train": 9}, 8, ())
    assert again.path != info.path


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"case": "case 1"}, "case 1: is listed twice"),
        ({"role": "test"}, "role 'test' is none of train, validation, holdout"),
        ({"label": ""}, "has neither a label nor states"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(
    spark: "SparkSession", files: Files, tmp_path: Path, change: dict[str, str], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        build(spark, None, [replace(files[0], **change), *files[1:]], plan_of(), LABEL_SET, tmp_path / "datasets")  # type: ignore[arg-type]
    assert not (tmp_path / "datasets").exists()


def test_names_that_no_file_may_have_are_kept(spark: "SparkSession", files: Files, tmp_path: Path) -> None:
    names = ["../up", "a/b", "a-b"]
    listed = [replace(case, case=name) for case, name in zip(files, names, strict=True)]
    info = build(spark, None, listed, plan_of(), LABEL_SET, tmp_path / "datasets")
    found = [sample.case for sample in samples(info.path / "train")]
    assert sorted(found) == sorted(names)
    told = json.loads((info.path / "dataset.json").read_text())["cases"]["train"]
    assert [case["case"] for case in told] == found  # in the order of the samples
    assert len(list(tmp_path.rglob("*.parquet"))) == 6


def test_an_interrupted_build_goes_on(spark: "SparkSession", files: Files, tmp_path: Path) -> None:
    root = tmp_path / "datasets"
    whole = build(spark, None, files, plan_of(), LABEL_SET, root)
    shutil.rmtree(whole.path)
    sorted((root / "volumes").iterdir())[0].unlink()
    left = root / "volumes" / ".tmp-999999999-0-x.parquet"  # what a killed worker wrote
    left.write_bytes(b"half")
    again = build(spark, None, files, plan_of(), LABEL_SET, root)
    assert (again, again.prepared) == (whole, 1)
    assert not left.exists()


def test_builds_side_by_side_give_one_dataset(spark: "SparkSession", files: Files, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        infos = list(pool.map(lambda _: build(spark, None, files, plan_of(), LABEL_SET, tmp_path / "datasets"), range(2)))
    assert infos[0] == infos[1]
    assert len(list(samples(infos[0].path / "train"))) == 3
    assert {path.name for path in (tmp_path / "datasets").iterdir()} == {"volumes", infos[0].digest}
    assert len(list((tmp_path / "datasets" / "volumes").iterdir())) == 3


def test_a_full_disk_ends_the_build_and_leaves_nothing_half(
    spark: "SparkSession", files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [volume, *_] = prepared_volumes(None, files, plan_of(), LABEL_SET, tmp_path / "volumes")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(CatalogError, match="the disk is full"):
            volume.make()
    assert list((tmp_path / "volumes").iterdir()) == []

    class Full(PreparedVolume):
        def make(self) -> None:
            raise disk_full("volumes")

    with pytest.raises(DataError, match=r"the disk is full \(make room, then train again"):
        _make(spark, [Full(**vars(volume))], lambda done: None, tmp_path)


def test_datasets_are_copied_where_there_are_no_links(
    spark: "SparkSession", files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    info = build(spark, None, files, plan_of(), LABEL_SET, tmp_path / "datasets")
    assert len(list(samples(info.path / "train"))) == 3
    assert {path.stat().st_nlink for path in info.path.glob("train/*.parquet")} == {1}
