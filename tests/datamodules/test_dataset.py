"""From catalogued series and label revisions to patches: real Spark, real DICOM, real Petastorm."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from catalog.archive import Archive
from catalog.labels import Submission, submit
from catalog.project import Project, Split
from datamodules.datamodule import VolumeDataModule, Volumes
from datamodules.dataset import DatasetInfo, LabelledCase, build
from datamodules.errors import DataError
from datamodules.plan import Fingerprint, Plan
from datamodules.prepare import prepare, prepare_mask
from experiments.synthetic import LABEL_SET, cases, write

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.slow
PLAN = Plan.make({"patch": (16, 32, 32), "validate_every": 5}, LABEL_SET, Fingerprint((5.0, 4.0, 4.0), (28, 40, 40)))
PROJECT = Project("phantoms", "", LABEL_SET, {}, Split(0.2, 0.2, "seed"), "phantoms", 0.02)
STATES = {"liver": "present", "spleen": "present"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Four phantoms in a home of their own."""
    from pydicom import dcmread

    folder = tmp_path_factory.mktemp("cohort")
    write(folder, 4)
    archive = Archive(tmp_path_factory.mktemp("home"))
    archive.store((dcmread(path) for path in sorted(folder.glob("images/*/*.dcm"))), folder="unzipped", writer="test")
    return archive


@pytest.fixture(scope="module")
def labelled(archive: Archive) -> list[LabelledCase]:
    """Three training cases and one for validation; the second's spleen is not annotated."""
    series = archive.sql("SELECT PatientID, SeriesInstanceUID FROM series WHERE is_image").to_pylist()
    uids = {row["PatientID"]: row["SeriesInstanceUID"] for row in series}
    found = []
    for index, (name, _, mask) in enumerate(cases(4)):
        states = dict(STATES, spleen="not_annotated") if index == 1 else STATES
        drawn = mask.with_array(np.where(mask.array == 2, 0, mask.array)) if index == 1 else mask
        revision = submit(archive, PROJECT.key, LABEL_SET, Submission(uids[name], drawn, states, "reader"))  # type: ignore[arg-type]
        role = "validation" if index == 3 else "train"
        found.append(LabelledCase(uids[name], revision.label_id, role, states))
    return found


@pytest.fixture(scope="module")
def built(
    spark: "SparkSession", archive: Archive, labelled: list[LabelledCase], tmp_path_factory: pytest.TempPathFactory
) -> DatasetInfo:
    return build(spark, archive, PROJECT, labelled, PLAN, tmp_path_factory.mktemp("datasets"))


def test_volumes_come_back_as_prepared(built: DatasetInfo, archive: Archive, labelled: list[LabelledCase]) -> None:
    assert built.rows == {"train": 3, "validation": 1}
    assert built.left_out == ()
    kept = next(VolumeDataModule(built, PLAN).volumes("validation").in_turn())
    expected = prepare(archive.volume(labelled[3].series_uid), PLAN)
    assert torch.allclose(kept.image, expected.image, atol=1e-5)  # sums depend on the number of threads
    assert torch.equal(kept.mask, prepare_mask(list(cases(4))[3][2], PLAN))
    unknown = [volume.annotated.tolist() for volume in VolumeDataModule(built, PLAN).volumes("train").in_turn()]
    assert sorted(unknown) == [[True, False], [True, True], [True, True]]


def test_the_same_inputs_are_not_prepared_again(
    built: DatasetInfo, spark: "SparkSession", archive: Archive, labelled: list[LabelledCase]
) -> None:
    before = (built.path / "dataset.json").stat().st_mtime_ns
    again = build(spark, archive, PROJECT, labelled[::-1], replace(PLAN, steps=7), built.path.parent)
    assert again == built
    assert (built.path / "dataset.json").stat().st_mtime_ns == before
    other = build(spark, archive, PROJECT, labelled[:3], PLAN, built.path.parent)
    assert other.path != built.path


def test_a_build_goes_on_where_it_stopped(
    built: DatasetInfo, spark: "SparkSession", archive: Archive, labelled: list[LabelledCase], tmp_path: Path
) -> None:
    done = built.path / "train" / f"{labelled[0].series_uid}.parquet"
    kept = tmp_path / f"{built.digest}.partial" / "train" / done.name
    kept.parent.mkdir(parents=True)
    kept.write_bytes(done.read_bytes())
    inode, told = kept.stat().st_ino, []
    again = build(spark, archive, PROJECT, labelled, PLAN, tmp_path, progress=lambda done, total: told.append((done, total)))
    assert (again.path / "train" / done.name).stat().st_ino == inode
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not kept.exists()


def test_an_unfinished_folder_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete dataset"):
        DatasetInfo.read(tmp_path)


def test_a_corrupt_case_is_left_out_and_named(
    spark: "SparkSession", archive: Archive, labelled: list[LabelledCase], tmp_path: Path
) -> None:
    hurt = labelled[2]
    path = Path(archive.series_files(hurt.series_uid)[5])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        info = build(spark, archive, PROJECT, labelled, PLAN, tmp_path)
        assert info.rows == {"train": 2, "validation": 1}
        assert [series_uid for series_uid, _ in info.left_out] == [hurt.series_uid]
        assert info.left_out[0][1]
        with pytest.raises(DataError, match=hurt.series_uid):
            build(spark, archive, PROJECT, [hurt], PLAN, tmp_path)
    finally:
        path.write_bytes(whole)


def test_a_label_that_is_not_there_is_named(
    spark: "SparkSession", archive: Archive, labelled: list[LabelledCase], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="nobody"):
        build(spark, archive, PROJECT, [replace(labelled[0], label_id="nobody")], PLAN, tmp_path)


def batches(built: DatasetInfo, **changes: object) -> Iterator[dict[str, torch.Tensor]]:
    return iter(VolumeDataModule(built, replace(PLAN, **changes)).train_dataloader())  # type: ignore[arg-type]


def test_an_epoch_is_seeded_and_complete(built: DatasetInfo) -> None:
    first, again, other = list(batches(built)), list(batches(built)), list(batches(built, seed=1))
    assert len(first) == PLAN.validate_every
    assert first[0]["image"].shape == (PLAN.batch, 1, *PLAN.patch)
    assert all(
        torch.equal(a["image"], b["image"]) and torch.equal(a["mask"], b["mask"]) for a, b in zip(first, again, strict=True)
    )
    assert not torch.equal(first[0]["image"], other[0]["image"])


def test_most_patches_hold_a_structure(built: DatasetInfo) -> None:
    holds = [bool(mask.any()) for batch in batches(built, validate_every=20) for mask in batch["mask"]]
    assert np.mean(holds) > 0.6


def test_a_small_memory_gives_the_same_volumes(built: DatasetInfo) -> None:
    volumes = Volumes(built.path / "train", 3, memory=1)
    assert [len(list(volumes.in_turn())) for _ in range(2)] == [3, 3]
    assert not volumes.in_memory
    module = VolumeDataModule(built, PLAN, memory=1)
    assert len(list(module.train_dataloader())) == PLAN.validate_every
    kept = Volumes(built.path / "train", 3)
    list(kept.in_turn())
    assert kept.in_memory


def test_volumes_beyond_memory_are_all_seen_in_time(tmp_path: Path) -> None:
    from datamodules._petastorm import seal, write_row

    for index in range(12):
        image, mask = np.full((4, 4, 4), index, np.float32), np.zeros((4, 4, 4), np.uint8)
        row = {
            "series_uid": str(index),
            "label_id": str(index),
            "image": image,
            "mask": mask,
            "annotated": np.ones(2, np.uint8),
        }
        write_row(tmp_path / f"{index:02d}.parquet", row)
    seal(tmp_path)
    volumes = Volumes(tmp_path, 12, memory=1)
    seen = {
        int(patch.image[0, 0, 0, 0])
        for epoch in range(80)
        for patch in islice(volumes.in_turn(np.random.default_rng(epoch)), 2)
    }
    assert seen == set(range(12))


def test_a_lost_volume_does_not_pass_unseen(built: DatasetInfo) -> None:
    with pytest.raises(DataError, match="3 volumes were read, 4 were written"):
        list(Volumes(built.path / "train", 4).in_turn())
    wrong = replace(built, rows={"train": 4})
    with pytest.raises(DataError, match="were read"):
        list(VolumeDataModule(wrong, PLAN).train_dataloader())


def test_shards_share_the_volumes(built: DatasetInfo) -> None:
    parts = [[v.image.sum().item() for v in Volumes(built.path / "train", 3, shard=k, shards=2).in_turn()] for k in (0, 1)]
    assert sorted(map(len, parts)) == [1, 2]
    assert len({*parts[0], *parts[1]}) == 3


def test_no_training_case_is_said(built: DatasetInfo) -> None:
    with pytest.raises(DataError, match="no labelled training case"):
        VolumeDataModule(replace(built, rows={"validation": 1}), PLAN).train_dataloader()


def test_the_marker_is_readable(built: DatasetInfo) -> None:
    assert json.loads((built.path / "dataset.json").read_text())["rows"] == built.rows
