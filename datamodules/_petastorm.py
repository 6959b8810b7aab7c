"""Petastorm, the format of datasets; the only module that imports it.

petastorm 0.13 still asks for names that pyarrow dropped: ``pyarrow.filesystem``, and the old directory-walking
``ParquetDataset`` with its pieces. The ones it reads with are put in its own modules here, before anything else is
imported from it; pyarrow itself stays as it is. A process that imports this module (a Spark worker too) can read and write.
"""

import importlib
import json
import os
import pickle
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

__all__ = ["rows", "seal", "write_row"]


class _Piece:
    """One row group of a file."""

    def __init__(self, path: str, open_file_func: Any = open, row_group: int | None = None, partition_keys: Any = ()) -> None:
        self.path, self.row_group, self.partition_keys = path, row_group, partition_keys

    def read(self, columns: Any = None, **_: Any) -> pa.Table:
        return pq.ParquetFile(self.path).read_row_group(self.row_group or 0, columns=sorted(columns))


class _Dataset:
    """The files of one folder that is not partitioned by directories."""

    partitions = metadata = None

    def __init__(self, path: str, filesystem: Any = None, **_: Any) -> None:
        self.paths = path
        self.fs = filesystem or LocalFileSystem()
        self.pieces = [_Piece(str(file)) for file in sorted(Path(path).glob("*.parquet"))]
        self.common_metadata = pq.read_metadata(Path(path) / "_common_metadata")


def _import_petastorm() -> None:
    """Import what is used below with the gone names in place."""
    for gone in ("pyarrow.filesystem", "pyarrow.hdfs"):
        stand_in = types.ModuleType(gone)
        vars(stand_in).update(LocalFileSystem=LocalFileSystem, HadoopFileSystem=object)
        sys.modules.setdefault(gone, stand_in)
    parquet = types.ModuleType("pyarrow.parquet")
    parquet.__dict__.update(vars(pq), ParquetDataset=_Dataset, ParquetDatasetPiece=_Piece)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("petastorm.reader")
    for name in ("petastorm.reader", "petastorm.etl.dataset_metadata", "petastorm.py_dict_reader_worker"):
        vars(sys.modules[name])["pq"] = parquet


_import_petastorm()

from petastorm import make_reader  # noqa: E402
from petastorm.codecs import NdarrayCodec, ScalarCodec  # noqa: E402
from petastorm.etl.dataset_metadata import ROW_GROUPS_PER_FILE_KEY, UNISCHEMA_KEY  # noqa: E402
from petastorm.unischema import Unischema, UnischemaField, dict_to_spark_row  # noqa: E402
from pyspark.sql.types import StringType  # noqa: E402

_SCHEMA = Unischema(
    "Volume",
    [
        UnischemaField("series_uid", np.str_, (), ScalarCodec(StringType()), False),
        UnischemaField("label_id", np.str_, (), ScalarCodec(StringType()), False),
        UnischemaField("image", np.float32, (None, None, None), NdarrayCodec(), False),
        UnischemaField("mask", np.uint8, (None, None, None), NdarrayCodec(), False),
        UnischemaField("annotated", np.uint8, (None,), NdarrayCodec(), False),
    ],
)
_COLUMNS = pa.schema([(name, pa.string() if name.endswith(("uid", "id")) else pa.binary()) for name in _SCHEMA.fields])


def write_row(path: Path, row: Mapping[str, Any]) -> None:
    """Write one prepared volume as a file with one row group; whole or not at all."""
    encoded = dict_to_spark_row(_SCHEMA, dict(row))
    table = pa.table({name: [encoded[name]] for name in _COLUMNS.names}, schema=_COLUMNS)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        pq.write_table(table, file, compression="zstd", use_dictionary=False, write_statistics=False)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def seal(folder: Path) -> int:
    """Make ``folder`` of such files a Petastorm dataset (its ``_common_metadata``); the number of its rows."""
    files = sorted(file.name for file in folder.glob("*.parquet"))
    told = {UNISCHEMA_KEY: pickle.dumps(_SCHEMA), ROW_GROUPS_PER_FILE_KEY: json.dumps(dict.fromkeys(files, 1))}
    pq.write_metadata(_COLUMNS.with_metadata(told), folder / "_common_metadata")
    return len(files)


def rows(folder: Path, *, shard: int = 0, shards: int = 1, seed: int | None = None) -> Iterator[dict[str, Any]]:
    """Each volume of a dataset once, decoded: by path, or in the order of ``seed``; with ``shards`` every one's own part.

    The dummy pool reads in this thread: petastorm's thread pool was seen to end an epoch early without saying so.
    """
    sharding = {"cur_shard": shard, "shard_count": shards} if shards > 1 else {}
    reader = make_reader(
        folder.resolve().as_uri(),
        filesystem=LocalFileSystem(),
        reader_pool_type="dummy",
        shuffle_row_groups=seed is not None,
        seed=seed,
        num_epochs=1,
        **sharding,
    )
    try:
        for row in reader:
            yield row._asdict()
    finally:  # not as a context manager: its exit prints to standard output
        reader.stop()
        reader.join()
