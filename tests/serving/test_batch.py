"""Batch inference and scoring on real Spark, and the receipts of what it made."""

import errno
import functools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest

from catalog import CatalogError, seg
from catalog.disk import disk_full
from serving import batch
from serving.batch import batch_infer, score_pool
from serving.errors import ServingError
from serving.gate import evaluate
from serving.model import load
from serving.receipt import digest, receipt
from serving.registry import ALIAS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.slow

MODEL = "batch"


@pytest.fixture(scope="module")
def project(world: Any) -> Any:
    """The world's project, with a champion."""
    project = replace(world.project, model=MODEL)
    version = world.registry.register(world.trained, model=MODEL, home=world.archive.home)
    world.registry.promote(MODEL, version, evaluate(world.archive, project, world.registry, version))
    return project


def rows(world: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = world.archive.predictions.scan(("sop_uid", "series_uid", "created_at")).read_all().to_pylist()
    return sorted(found, key=lambda row: row["sop_uid"])


def test_every_unlabelled_series_is_predicted_once(spark: "SparkSession", world: Any, project: Any) -> None:
    seen: list[tuple[int, int]] = []
    uri = world.registry.tracking_uri
    report = batch_infer(spark, world.archive, project, tracking_uri=uri, progress=lambda *step: seen.append(step))
    assert (report.version, report.done, report.already, report.failed) == ("1", 2, 0, ())
    assert seen[-1] == (2, 2)
    made = rows(world)
    assert {row["series_uid"] for row in made} == set(world.series[-2:])
    objects = world.archive.objects.version()
    again = batch_infer(spark, world.archive, project, tracking_uri=uri)
    assert (again.done, again.already) == (0, 2)
    assert rows(world) == made
    assert world.archive.objects.version() == objects
    for row in made:
        [path] = world.archive.series_files(seg_series(world, row["sop_uid"]))
        mask = seg.decode(Path(path), world.archive.volume(row["series_uid"]), project.label_set).array
        assert set(mask.ravel().tolist()) <= {0, 3}


def test_every_prediction_is_valid_and_measured(
    spark: "SparkSession", world: Any, project: Any, dciodvfy: Callable[[Path], list[str]]
) -> None:
    batch_infer(spark, world.archive, project, tracking_uri=world.registry.tracking_uri)
    told = world.archive.predictions.scan(("sop_uid", "volumes_ml")).read_all().to_pylist()
    query = "select source_uid, value, model_version from features where source = 'prediction' and name = 'volume'"
    found = {row["source_uid"]: row for row in world.archive.sql(query).to_pylist()}
    assert {uid: row["value"] for uid, row in found.items()} == {
        row["sop_uid"]: pytest.approx(dict(row["volumes_ml"])["ball"]) for row in told
    }
    assert {row["model_version"] for row in found.values()} == {"1"}
    for row in told:
        assert dciodvfy(Path(world.archive.index.instance(row["sop_uid"]).path)) == []


def test_what_was_not_measured_before_a_crash_is_measured_after(
    spark: "SparkSession", world: Any, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    series = world.series[2]
    with monkeypatch.context() as patched:
        patched.setattr(batch.features, "append", die)
        with pytest.raises(KeyboardInterrupt):
            batch_infer(spark, world.archive, project, tracking_uri=world.registry.tracking_uri, series=[series])
    query = f"select name from features where source = 'prediction' and series_uid = '{series}'"
    assert world.archive.sql(query).num_rows == 0
    assert len(world.archive.finish()) == 1
    assert world.archive.sql(query).num_rows == 10
    assert world.archive.finish() == []


def seg_series(world: Any, sop_uid: str) -> str:
    world.archive.index.follow(world.archive.objects)
    return str(world.archive.index.instance(sop_uid).series_uid)


def test_series_can_be_named_and_failures_are_listed(spark: "SparkSession", world: Any, project: Any) -> None:
    uri, broken = world.registry.tracking_uri, world.series[1]
    path = Path(world.archive.series_files(broken)[3])
    content = path.read_bytes()
    path.unlink()
    try:
        report = batch_infer(spark, world.archive, project, tracking_uri=uri, series=world.series[:2])
    finally:
        path.write_bytes(content)
    assert report.done == 1
    [(series, reason)] = report.failed
    assert series == broken
    assert path.name in reason
    with pytest.raises(ServingError, match="not in the project's cohort"):
        batch_infer(spark, world.archive, project, tracking_uri=uri, series=["1.2.3"])


def test_a_receipt_leads_back_to_the_labels_and_readers(world: Any, project: Any, tmp_path: Path) -> None:
    sop_uid = rows(world)[0]["sop_uid"]
    found = receipt(world.archive, sop_uid)
    assert found.ok, found.checks
    told = found.as_json()
    assert told["ok"] is True
    assert (told["model_name"], told["model_version"], told["run_id"]) == (MODEL, "1", world.trained)
    assert told["readers"] == ["ada"]
    assert len(told["labels"]) == len(told["label_ids"]) == 7
    stored = mlflow.MlflowClient(world.registry.tracking_uri).download_artifacts(world.trained, "label_ids.json", str(tmp_path))
    learned = json.loads(Path(stored).read_text())
    assert (told["label_ids"], told["readers"]) == (learned["label_ids"], learned["readers"])
    assert "learned from 7 label revisions by ada" in str(found)
    assert digest(found.row) == told["receipt"]
    assert all(word in str(found) for word in ("receipt ok", world.trained, "ada", told["mask_sha256"]))
    with pytest.raises(ServingError, match="no such prediction"):
        receipt(world.archive, "1.2.3")


@pytest.mark.parametrize(
    ("what", "check"),
    [("pixels", "mask"), ("header", "seg"), ("image", "sources"), ("label", "labels"), ("weights", "weights")],
)
def test_a_changed_byte_is_found(world: Any, project: Any, what: str, check: str) -> None:
    row = receipt(world.archive, rows(world)[0]["sop_uid"]).row
    sop_uid, archive = row["sop_uid"], world.archive
    [label] = archive.labels.scan(("seg_uid",), where=f"label_id = '{row['label_ids'][0]}'").read_all().to_pylist()
    folder = archive.home / "models" / MODEL / f"1-{world.trained[:12]}"
    path = {
        "image": Path(archive.series_files(row["series_uid"])[5]),
        "label": Path(archive.index.instance(label["seg_uid"]).path),
        "weights": folder / "artifacts/run/weights.pt",
    }.get(what, Path(archive.index.instance(sop_uid).path))
    content = path.read_bytes()
    at = content.index(b"Voxloop") if what == "header" else len(content) - 40
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    try:
        found = receipt(archive, sop_uid)
        if what == "weights":
            with pytest.raises(ServingError, match="the weights were changed"):
                load(folder)
    finally:
        path.write_bytes(content)
    assert {name for name, said in found.checks.items() if said != "ok"} == {check}
    assert receipt(archive, sop_uid).ok


def test_of_two_runs_at_once_each_series_is_predicted_by_one(spark: "SparkSession", world: Any, project: Any) -> None:
    twice = replace(project, key="twice")
    chosen = (world.series[:2], world.series[1:3])
    with ThreadPoolExecutor(2) as pool:
        run = functools.partial(batch_infer, spark, world.archive, twice, tracking_uri=world.registry.tracking_uri)
        reports = list(pool.map(lambda series: run(series=series), chosen))
    assert [report.failed for report in reports] == [(), ()]
    found = world.archive.predictions.scan(("sop_uid",), where="project = 'twice'").read_all()["sop_uid"].to_pylist()
    assert len(found) == len(set(found)) == 3
    assert all(receipt(world.archive, sop_uid).ok for sop_uid in found)


def test_a_full_disk_stops_all(spark: "SparkSession", world: Any, project: Any) -> None:
    def work(uid: str) -> dict[str, Any]:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as problem:
            raise disk_full(uid) from problem

    with pytest.raises(CatalogError, match="the home: the disk is full"):
        batch._waves(spark, project.cases(world.archive), work, pytest.fail, None)


def test_weights_that_were_changed_are_said_once(spark: "SparkSession", world: Any, project: Any) -> None:
    [weights] = (world.archive.home / "models" / MODEL).glob("*/artifacts/run/weights.pt")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"!")
    try:
        with pytest.raises(ServingError, match="the weights were changed"):
            score_pool(spark, world.archive, project, tracking_uri=world.registry.tracking_uri)
    finally:
        weights.write_bytes(content)


def test_the_pool_is_scored_by_entropy_once(spark: "SparkSession", world: Any, project: Any) -> None:
    uri = world.registry.tracking_uri
    report = score_pool(spark, world.archive, project, tracking_uri=uri)
    assert (report.done, report.failed) == (2, ())
    assert score_pool(spark, world.archive, project, world.series[-2:], tracking_uri=uri).already == 2
    found = world.archive.scores.scan(("project", "series_uid", "model_version", "kind", "value")).read_all().to_pylist()
    assert {row["series_uid"] for row in found} == set(world.series[-2:])
    assert len(found) == 2
    assert all(row["kind"] == "entropy" and 0 < row["value"] < 1 for row in found)


def test_an_alias_moved_by_hand_is_refused(spark: "SparkSession", world: Any) -> None:
    project = replace(world.project, model="batch-by-hand")
    with pytest.raises(ServingError, match="no champion yet"):
        batch_infer(spark, world.archive, project, tracking_uri=world.registry.tracking_uri)
    version = world.registry.register(world.untrained, model=project.model)
    mlflow.MlflowClient(world.registry.tracking_uri).set_registered_model_alias(project.model, ALIAS, version)
    with pytest.raises(ServingError, match="moved by hand"):
        batch_infer(spark, world.archive, project, tracking_uri=world.registry.tracking_uri)
