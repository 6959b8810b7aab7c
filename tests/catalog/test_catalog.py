"""The interface that users of pixels know."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from catalog import Catalog, CatalogError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.slow


def counted(catalog: Catalog) -> dict[str, int]:
    rows = catalog.archive.sql("SELECT status, count(*) n FROM object_catalog GROUP BY 1").to_pylist()
    return {row["status"]: row["n"] for row in rows}


def test_a_notebook_of_pixels_runs(spark: "SparkSession", home: Path, folder: Path) -> None:
    from catalog.dicom import DicomMetaExtractor

    catalog = Catalog(spark, table="main.voxloop.object_catalog", volume="main.voxloop.volume", home=home)
    df = catalog.catalog(str(folder))
    assert df.columns[:9] == [
        *("path", "modificationTime", "length", "original_path", "relative_path"),
        *("local_path", "extension", "file_type", "path_tags"),
    ]
    assert df.count() == 13
    meta = DicomMetaExtractor(catalog).transform(df)
    catalog.save(meta)
    assert counted(catalog) == {"ok": 12, "not_dicom": 1}
    loaded = catalog.load()
    loaded.createOrReplaceTempView("object_catalog")
    query = "SELECT meta:['00100020'].Value[0]::string AS patient, count(*) AS n FROM object_catalog WHERE extension = 'dcm'"
    found = spark.sql(f"{query} GROUP BY 1 ORDER BY 1").collect()
    assert [(row.patient, row.n) for row in found] == [("a", 6), ("b", 6)]
    version = catalog.archive.objects.version()
    catalog.save(meta)
    assert counted(catalog) == {"ok": 12, "not_dicom": 1} and catalog.load(version=version).count() == 13


def test_the_ported_notebook_of_the_docs_runs(
    spark: "SparkSession", home: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "pixels.md").read_text()
    with zipfile.ZipFile(folder / "more.zip", "w") as more:
        more.write(folder / "a" / "0001.dcm", "again.dcm")
    notebook: dict[str, object] = {"spark": spark, "path": str(folder), "home": home}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, notebook)
    catalog = notebook["catalog"]
    assert isinstance(catalog, Catalog) and counted(catalog) == {"ok": 13, "not_dicom": 1, "archive": 1}
    pictures = {row.thumbnail.origin for row in catalog.load().filter("status = 'ok'").collect()}
    assert pictures and all(Path(picture).is_file() for picture in pictures)


def test_transformers_make_a_pipeline_and_own_columns_are_kept(spark: "SparkSession", home: Path, folder: Path) -> None:
    from pyspark.ml import Pipeline
    from pyspark.sql import functions

    from catalog.dicom import DicomMetaExtractor

    catalog = Catalog(spark, home=home)
    df = catalog.catalog(str(folder), pattern="*.dcm").withColumn("site", functions.lit("north"))
    stages = [DicomMetaExtractor(catalog, deep=True, useVariant=False)]
    found = Pipeline(stages=stages).fit(df).transform(df)
    catalog.save(found)
    rows = catalog.archive.sql("SELECT site, pixel_hash, pixel_min, pixel_max, pixel_shape FROM object_catalog").to_pylist()
    assert {row["site"] for row in rows} == {"north"} and len({row["pixel_hash"] for row in rows}) == 6
    assert all(row["pixel_min"] < row["pixel_max"] and row["pixel_shape"] == [9, 11] for row in rows)


def test_other_tables_and_their_mistakes(spark: "SparkSession", home: Path, folder: Path, tmp_path: Path) -> None:
    from catalog.dicom import DicomMetaExtractor

    catalog = Catalog(spark, table=str(tmp_path / "elsewhere"), volume=str(tmp_path / "files"), home=home)
    df = catalog.catalog(str(folder / "a"), recurse=False)
    catalog.save(DicomMetaExtractor(catalog).transform(df))
    assert (tmp_path / "elsewhere" / "_delta_log").is_dir() and counted(catalog) == {"ok": 6}
    with pytest.raises(CatalogError, match="only grows"):
        catalog.save(df, mode="overwrite")
    with pytest.raises(CatalogError, match="DicomMetaExtractor"):
        catalog.save(df)
    with pytest.raises(CatalogError, match="nowhere"):
        catalog.catalog(str(tmp_path / "nowhere"))
    with pytest.raises(CatalogError, match="give triggerProcessingTime or triggerAvailableNow"):
        catalog.catalog(str(folder), streaming=True, triggerProcessingTime="1 second", triggerAvailableNow=True)
    with pytest.raises(CatalogError, match="mount it"):
        Catalog(spark, table="s3://bucket/table")


def stream(catalog: Catalog, folder: Path, **options: object) -> object:
    from catalog.dicom import DicomMetaExtractor

    return catalog.save(DicomMetaExtractor(catalog).transform(catalog.catalog(str(folder), streaming=True, **options)))


def test_a_stream_takes_what_is_new_in_batches(spark: "SparkSession", home: Path, folder: Path) -> None:
    catalog = Catalog(spark, home=home)
    first = stream(catalog, folder, maxFilesPerTrigger=5)
    assert counted(catalog) == {"ok": 12, "not_dicom": 1} and not first.isActive
    assert catalog.archive.objects.version() == 3  # 5 + 5 + 3 files
    shutil.copy(folder / "a" / "0001.dcm", folder / "copy.dcm")
    os.utime(folder / "readme.txt", (0, 0))
    stream(catalog, folder, maxFilesPerTrigger=5)
    assert counted(catalog) == {"ok": 13, "not_dicom": 2}
    stream(catalog, folder, maxFilesPerTrigger=5)
    assert counted(catalog) == {"ok": 13, "not_dicom": 2}


def test_a_stream_goes_on_at_an_interval(spark: "SparkSession", home: Path, folder: Path) -> None:
    catalog = Catalog(spark, home=home)
    query = stream(catalog, folder, triggerProcessingTime="100 milliseconds")
    try:
        query.processAllAvailable()
        assert counted(catalog) == {"ok": 12, "not_dicom": 1}
        shutil.copytree(folder / "a", folder / "c")
        query.processAllAvailable()
        assert counted(catalog) == {"ok": 18, "not_dicom": 1}
    finally:
        query.stop()


def test_a_stream_has_a_row_for_a_truncated_file_too(spark: "SparkSession", home: Path, folder: Path) -> None:
    whole = (folder / "a" / "0001.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(whole[:-9])
    catalog = Catalog(spark, home=home)
    stream(catalog, folder)
    assert counted(catalog) == {"ok": 12, "not_dicom": 1, "broken": 1}
    (folder / "cut.dcm").write_bytes(whole)
    stream(catalog, folder)
    assert counted(catalog) == {"ok": 13, "not_dicom": 1, "broken": 1}


def test_a_stream_unpacks_what_arrives(spark: "SparkSession", home: Path, folder: Path) -> None:
    catalog = Catalog(spark, home=home)
    stream(catalog, folder, extractZip=True)
    with zipfile.ZipFile(folder / "more.zip", "w") as more:
        more.write(folder / "a" / "0001.dcm", "again.dcm")
    for _ in range(2):
        stream(catalog, folder, extractZip=True, extractZipBasePath=str(folder / "unpacked"))
        assert counted(catalog) == {"ok": 13, "not_dicom": 1, "archive": 1}


def test_two_tables_have_streams_of_their_own(spark: "SparkSession", home: Path, folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        catalog = Catalog(spark, table=str(tmp_path / name / "t"), home=home)
        stream(catalog, folder / "a")
        assert counted(catalog) == {"ok": 6}
        catalog.archive.index.follow(catalog.archive.objects)
        assert len(catalog.archive.index.instances({})) == 6


def test_mistakes_with_streams_are_one_line(spark: "SparkSession", home: Path, folder: Path) -> None:
    catalog = Catalog(spark, home=home)
    for options in ({"triggerProcessingTime": "banana"}, {"maxFilesPerTrigger": 0}):
        with pytest.raises(CatalogError, match=r"banana|give 1 or more") as caught:
            stream(catalog, folder, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(CatalogError, match="check the path"):
        catalog.catalog(str(folder / "nowhere"), streaming=True)


def test_a_row_is_saved_once_and_columns_keep_their_type(spark: "SparkSession", home: Path, folder: Path) -> None:
    from pyspark.sql import functions

    from catalog.dicom import DicomMetaExtractor

    catalog = Catalog(spark, home=home / "b[1]")
    found = DicomMetaExtractor(catalog).transform(catalog.catalog(str(folder))).cache()
    catalog.save(found.union(found).withColumn("score", functions.lit(1.5)))
    assert counted(catalog) == {"ok": 12, "not_dicom": 1}
    with pytest.raises(CatalogError, match="score is string here, and score is double in the table"):
        catalog.save(found.withColumn("score", functions.lit("high")))
    with pytest.raises(CatalogError, match="no column length"):
        catalog.save(found.drop("length"))
    assert catalog.load().filter("score > 1").count() == 13


KILLED = """
import os, sys
from pathlib import Path
from catalog import Catalog
from catalog.dicom import DicomMetaExtractor
from catalog.table import DeltaTable
from voxloop.spark import session

home, folder, when, number = sys.argv[1:]
committed = DeltaTable.commit

def commit(table, parts, *, writer, batch, read=None):
    if (when, number) == ("before", str(batch)):
        os.kill(os.getpid(), 9)
    version = committed(table, parts, writer=writer, batch=batch, read=read)
    if (when, number) == ("after", str(batch)):
        os.kill(os.getpid(), 9)
    return version

DeltaTable.commit = commit
spark = session(scratch=Path(home) / "spark", warm=False)
catalog = Catalog(spark, home=home)
files = catalog.catalog(folder, streaming=True, maxFilesPerTrigger=5)
catalog.save(DicomMetaExtractor(catalog).transform(files))
"""


def test_a_killed_stream_loses_and_doubles_nothing(spark: "SparkSession", home: Path, folder: Path) -> None:
    for when in ("before", "after"):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(home), str(folder), when, "1"], capture_output=True, text=True, check=False
        )
        assert done.returncode == -9, done.stderr[-2000:]
    catalog = Catalog(spark, home=home)
    assert sum(counted(catalog).values()) == 10  # two batches are in
    stream(catalog, folder, maxFilesPerTrigger=5)
    assert counted(catalog) == {"ok": 12, "not_dicom": 1}
    assert catalog.archive.sql("SELECT count(DISTINCT path) n FROM object_catalog")["n"].to_pylist() == [13]
    assert catalog.archive.objects.vacuum(hours=0), "what the killed one wrote and never committed"
