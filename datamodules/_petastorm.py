"""Petastorm, the format of datasets; the only module that imports it.

A case is a file with one row group. A volume of more than BLOCK bytes is several rows of it, slabs along z, so that no cell
comes near the 2 GB that Arrow gives one. The files hold petastorm's own schema and codecs: plain petastorm reads them too.

petastorm 0.13 still asks for names that pyarrow dropped: ``pyarrow.filesystem``, and the old directory-walking
``ParquetDataset`` with its pieces. The ones it reads with are put in its own modules here, before anything else is
imported from it; pyarrow itself stays as it is. A process that imports this module (a Spark worker too) can read and write.
"""

import importlib
import io
import json
import pickle
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from catalog.disk import atomic_file
from datamodules.sample import Sample

__all__ = ["BLOCK", "samples", "seal", "write"]

BLOCK = 512 * 1024**2
"""Bytes of an image in one cell at most."""

warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # what was read is never written to


class _Piece:
    """One row group of a file; its cells are views of what was read, not copies."""

    def __init__(self, path: str) -> None:
        self.path, self.partition_keys = path, ()

    def read(self, columns: Any = None, **_: Any) -> "_Piece":
        self.table = pq.ParquetFile(self.path).read_row_group(0, columns=sorted(columns))
        return self

    def to_pandas(self, **_: Any) -> pd.DataFrame:
        table, self.table = self.table, None
        return pd.DataFrame({name: pd.Series(_cells(table[name]), dtype=object) for name in table.column_names})


def _cells(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_binary(column.type):
        return [cell.as_buffer() if cell.is_valid else None for cell in column]
    return list(column.to_pylist())


class _Dataset:
    """The files of one folder by name, or those that ``filters`` lists by number, in that order.

    Its schema is ours: what a carried dataset has pickled is not loaded.
    """

    partitions = metadata = None

    def __init__(self, path: str, filters: Sequence[int] | None = None, **_: Any) -> None:
        self.paths, self.fs = path, types.SimpleNamespace(open=lambda path: None)
        files = sorted(str(file) for file in Path(path).glob("*.parquet"))
        self.pieces = [_Piece(files[index]) for index in (range(len(files)) if filters is None else filters)]
        self.common_metadata = types.SimpleNamespace(metadata={UNISCHEMA_KEY: pickle.dumps(_READ)})


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
    vars(sys.modules["petastorm.etl.dataset_metadata"])["load_row_groups"] = lambda dataset: dataset.pieces  # in our order
    vars(sys.modules["petastorm.py_dict_reader_worker"])["ParquetFile"] = lambda file: None  # a piece opens its own


_import_petastorm()

from petastorm import make_reader  # noqa: E402
from petastorm.codecs import NdarrayCodec, ScalarCodec  # noqa: E402
from petastorm.etl.dataset_metadata import ROW_GROUPS_PER_FILE_KEY, UNISCHEMA_KEY  # noqa: E402
from petastorm.unischema import Unischema, UnischemaField, dict_to_spark_row  # noqa: E402
from pyspark.sql.types import IntegerType, StringType  # noqa: E402


class _View(NdarrayCodec):  # type: ignore[misc]
    """Reads what NdarrayCodec writes without copying it."""

    def decode(self, unischema_field: Any, value: Any) -> np.ndarray:
        header = io.BytesIO(memoryview(value)[:256])
        np.lib.format.read_magic(header)
        shape, _, dtype = np.lib.format.read_array_header_1_0(header)
        return np.frombuffer(value, dtype, offset=header.tell()).reshape(shape)


_TEXTS = ("case", "study_uid", "patient_id", "label_id")
_ARRAYS = {
    "image_int16": (np.int16, (None, None, None, None)),
    "image_float32": (np.float32, (None, None, None, None)),
    "intensity": (np.float32, (None, 5)),
    "mask": (np.uint8, (None, None, None)),
    "annotated": (np.uint8, (None,)),
    "present": (np.uint8, (None,)),
    "centres": (np.int32, (None, 4)),
}


def _schema(codec: Any) -> Unischema:
    fields = [UnischemaField(name, np.str_, (), ScalarCodec(StringType()), False) for name in _TEXTS]
    fields += [UnischemaField(name, np.int32, (), ScalarCodec(IntegerType()), False) for name in ("block", "blocks")]
    fields += [UnischemaField(name, *kind, codec, name.startswith("image_")) for name, kind in _ARRAYS.items()]
    return Unischema("Case", fields)


_SCHEMA, _READ = _schema(NdarrayCodec()), _schema(_View())
_COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        *((name, pa.int32()) for name in ("block", "blocks")),
        *((name, pa.binary()) for name in _ARRAYS),
    ]
)


def write(path: Path, sample: Sample) -> None:
    """Write a case (on the CPU) as a file with one row group, whole or not at all; CatalogError where the disk is full."""
    rows = [dict_to_spark_row(_SCHEMA, row) for row in _rows(sample)]
    columns = [pa.chunked_array([pa.array([row[f.name]], f.type) for row in rows]) for f in _COLUMNS]
    with atomic_file(path) as file:
        pq.write_table(
            pa.table(columns, _COLUMNS),
            file,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            write_statistics=False,
        )


def seal(folder: Path) -> int:
    """Make ``folder`` of such files a Petastorm dataset (its ``_common_metadata``); the number of its cases."""
    files = sorted(file.name for file in folder.glob("*.parquet"))
    told = {UNISCHEMA_KEY: pickle.dumps(_SCHEMA), ROW_GROUPS_PER_FILE_KEY: json.dumps(dict.fromkeys(files, 1))}
    pq.write_metadata(_COLUMNS.with_metadata(told), folder / "_common_metadata")
    return len(files)


def samples(folder: Path, order: Sequence[int] | None = None) -> Iterator[Sample]:
    """Each case of a dataset's folder by file name, or those numbered in ``order``, which may repeat.

    The dummy pool reads in this thread: petastorm's thread pool was seen to end an epoch early without saying so. Tensors are
    views of what was read: they are not to be written to.
    """
    if order is not None and not len(order):
        return
    reader = make_reader(
        folder.resolve().as_uri(),
        filesystem=LocalFileSystem(),
        reader_pool_type="dummy",
        shuffle_row_groups=False,
        num_epochs=1,
        filters=None if order is None else list(map(int, order)),
    )
    try:
        blocks: list[dict[str, Any]] = []
        for row in reader:
            blocks.append(row._asdict())
            if len(blocks) == blocks[0]["blocks"]:
                yield _sample(blocks)
                blocks = []
    finally:  # not as a context manager: its exit prints to standard output
        reader.stop()
        reader.join()


def _rows(sample: Sample) -> Iterator[dict[str, Any]]:
    """A row a block."""
    whole = {name: getattr(sample, name) for name in _TEXTS}
    for name in ("intensity", "annotated", "present", "centres"):
        whole[name] = getattr(sample, name).numpy().astype(_ARRAYS[name][0])
    depth = sample.image.shape[1]
    thick = max(1, depth * BLOCK // max(1, sample.image.nbytes))
    starts = range(0, depth, thick)
    for block, start in enumerate(starts):
        image = np.ascontiguousarray(sample.image[:, start : start + thick].numpy())
        kinds = {"image_int16": None, "image_float32": None, f"image_{image.dtype}": image}
        mask = np.ascontiguousarray(sample.mask[start : start + thick].numpy())
        yield {**whole, "block": block, "blocks": len(starts), **kinds, "mask": mask}


def _sample(blocks: list[dict[str, Any]]) -> Sample:
    first = blocks[0]
    kind = "image_int16" if first["image_int16"] is not None else "image_float32"
    image, mask = (
        torch.from_numpy(first[name] if len(blocks) == 1 else np.concatenate([block[name] for block in blocks], axis=axis))
        for name, axis in ((kind, 1), ("mask", 0))
    )
    rest = {name: torch.from_numpy(first[name]) for name in ("intensity", "centres")}
    states = {name: torch.from_numpy(first[name]).bool() for name in ("annotated", "present")}
    return Sample(**{name: str(first[name]) for name in _TEXTS}, image=image, mask=mask, **rest, **states)
