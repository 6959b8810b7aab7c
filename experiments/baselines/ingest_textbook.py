"""The textbook way to index DICOM headers with Spark: binaryFile lists, pydicom reads in many threads, parquet is written."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["ingest"]

THREADS = 32
SCHEMA = "path string, modificationTime timestamp, length long, meta string"


def ingest(spark: "SparkSession", folder: Path, out: Path) -> None:
    """Write a row a file of ``folder`` to ``out``: path, time, length and the header as pydicom's DICOM JSON."""
    shutil.rmtree(out, ignore_errors=True)
    listing = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(str(folder)).drop("content")
    listing.mapInPandas(_read, SCHEMA).write.parquet(str(out))


def _read(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    with ThreadPoolExecutor(THREADS) as pool:
        for frame in frames:
            yield frame.assign(meta=list(pool.map(_header, frame["path"])))


def _header(path: str) -> str:
    from pydicom import dcmread

    try:
        dataset = dcmread(path.removeprefix("file:"), stop_before_pixels=True, defer_size=1000)
        header = dataset.to_json_dict(bulk_data_threshold=1 << 20, bulk_data_element_handler=lambda _: "")
        return json.dumps({**header, **dataset.file_meta.to_json_dict()})
    except Exception as problem:
        return json.dumps({"error": str(problem)})
