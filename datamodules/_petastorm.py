"""Petastorm, the format of datasets; the only module that imports it.

A case is a file with one row group. A volume of more than BLOCK bytes is several rows of it, slabs along z, so that no cell
comes near the 2 GB that Arrow gives one. The files hold petastorm's own schema and codecs: plain petastorm reads them too.
Here petastorm's reader and its dummy pool (in this thread: its thread pool was seen to end an epoch early without saying so)
are given a worker that makes a Sample of a file without copying its voxels.

petastorm 0.13 still asks for names that pyarrow dropped: ``pyarrow.filesystem``, and the old directory-walking
``ParquetDataset`` with its pieces. The ones it reads with are put in its own modules here, before anything else is
imported from it; pyarrow itself stays as it is. A process that imports this module (a Spark worker too) can read and write.
"""

import importlib
import io
import json
import os
import pickle
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from catalog.disk import atomic_file
from datamodules.sample import Sample

__all__ = ["BLOCK", "samples", "seal", "write"]

BLOCK = 512 * 1024**2
"""Bytes of an image in one cell at most."""

SMALL = 1024**2


class _Piece:
    """One row group of a file."""

    def __init__(self, path: str, row_group: int = 0, **_: Any) -> None:
        self.path, self.row_group, self.partition_keys = path, row_group, ()

    def read(self, columns: Any = None, **_: Any) -> pa.Table:
        return pq.ParquetFile(self.path).read_row_group(self.row_group, columns=sorted(columns))


class _Dataset:
    """The files of one folder that is not partitioned by directories."""

    partitions = metadata = None

    def __init__(self, path: str, filesystem: Any = None, **_: Any) -> None:
        self.paths, self.fs = path, filesystem or LocalFileSystem()
        self.pieces = [_Piece(str(file)) for file in Path(path).glob("*.parquet")]
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

from petastorm.codecs import NdarrayCodec, ScalarCodec  # noqa: E402
from petastorm.etl.dataset_metadata import ROW_GROUPS_PER_FILE_KEY, UNISCHEMA_KEY  # noqa: E402
from petastorm.py_dict_reader_worker import PyDictReaderWorker  # noqa: E402
from petastorm.reader import Reader  # noqa: E402
from petastorm.unischema import Unischema, UnischemaField, dict_to_spark_row  # noqa: E402
from petastorm.workers_pool import EmptyResultError  # noqa: E402
from petastorm.workers_pool.dummy_pool import DummyPool  # noqa: E402
from petastorm.workers_pool.ventilator import ConcurrentVentilator  # noqa: E402
from pyspark.sql.types import IntegerType, StringType  # noqa: E402

_TEXTS = ("case", "study_uid", "patient_id", "label_id")
_IMAGES = {"image_int16": (np.int16, (None, None, None, None)), "image_float32": (np.float32, (None, None, None, None))}
_ARRAYS = {
    "intensity": (np.float32, (None, 5)),
    "mask": (np.uint8, (None, None, None)),
    "annotated": (np.uint8, (None,)),
    "present": (np.uint8, (None,)),
    "centres": (np.int32, (None, 4)),
}
_SCHEMA = Unischema(
    "Case",
    [
        *(UnischemaField(name, np.str_, (), ScalarCodec(StringType()), False) for name in _TEXTS),
        *(UnischemaField(name, np.int32, (), ScalarCodec(IntegerType()), False) for name in ("block", "blocks")),
        *(UnischemaField(name, *kind, NdarrayCodec(), True) for name, kind in _IMAGES.items()),
        *(UnischemaField(name, *kind, NdarrayCodec(), False) for name, kind in _ARRAYS.items()),
    ],
)
_COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        *((name, pa.int32()) for name in ("block", "blocks")),
        *((name, pa.binary()) for name in (*_IMAGES, *_ARRAYS)),
    ]
)


def write(path: Path, sample: Sample) -> None:
    """Write a case (on the CPU) as a file with one row group, whole or not at all; CatalogError where the disk is full.

    zstd at its fastest was measured: a CT read from memory at 1.6 GB/s and of 0.62 of its size, by lz4 at 3.7 GB/s and of
    0.85, which a disk cannot give.
    """
    batches = [_encoded(row) for row in _rows(sample)]  # a batch a row has pages of its own, which are limited as cells are
    table = pa.Table.from_batches(batches, _COLUMNS)
    how = {"compression": "zstd", "compression_level": 1, "use_dictionary": False, "write_statistics": False}
    with atomic_file(path) as file:
        pq.write_table(table, file, row_group_size=len(batches), **how)


def seal(folder: Path) -> int:
    """Make ``folder`` of such files a Petastorm dataset (its ``_common_metadata``); the number of its cases."""
    files = sorted(file.name for file in folder.glob("*.parquet"))
    told = {UNISCHEMA_KEY: pickle.dumps(_SCHEMA), ROW_GROUPS_PER_FILE_KEY: json.dumps(dict.fromkeys(files, 1))}
    pq.write_metadata(_COLUMNS.with_metadata(told), folder / "_common_metadata")
    return len(files)


def samples(folder: Path, order: Sequence[int] | None = None) -> Iterator[Sample]:
    """Each case of a dataset's folder by file name, or those numbered in ``order``, which may repeat.

    Tensors lie over what was read: they are not to be written to.
    """
    if order is not None and not len(order):
        return
    reader = _OrderedReader(str(folder.resolve()), order)
    try:
        yield from reader
    finally:  # not as a context manager: its exit prints to standard output
        reader.stop()
        reader.join()


def _rows(sample: Sample) -> Iterator[dict[str, Any]]:
    """A row a block."""
    whole: dict[str, Any] = {name: getattr(sample, name) for name in _TEXTS}
    for name in ("intensity", "annotated", "present", "centres"):
        whole[name] = getattr(sample, name).numpy().astype(_ARRAYS[name][0])
    depth = sample.image.shape[1]
    thick = max(1, depth * BLOCK // max(1, sample.image.nbytes))
    starts = range(0, depth, thick)
    for block, start in enumerate(starts):
        image = np.ascontiguousarray(sample.image[:, start : start + thick].numpy())
        kinds = {**dict.fromkeys(_IMAGES), f"image_{image.dtype}": image}
        mask = np.ascontiguousarray(sample.mask[start : start + thick].numpy())
        yield {**whole, "block": block, "blocks": len(starts), **kinds, "mask": mask}


def _encoded(row: dict[str, Any]) -> pa.RecordBatch:
    cells = dict_to_spark_row(_SCHEMA, row)
    return pa.record_batch([pa.array([cells[field.name]], field.type) for field in _COLUMNS], _COLUMNS)


class _AtOnce(ConcurrentVentilator):  # type: ignore[misc]
    """Hands the pool its whole list in this thread. petastorm's own thread lets the dummy pool run dry, which then sleeps
    for 0.1 s at a time, and for ever if it looks between the last item and the thread's end."""

    def start(self) -> None:
        self._ventilate()


class _Worker(PyDictReaderWorker):  # type: ignore[misc]
    """Publishes a file as one Sample."""

    @staticmethod
    def new_results_queue_reader() -> "_Results":
        return _Results()

    def process(self, piece_index: int, *_: Any, **__: Any) -> None:
        self.publish_func(_sample(self._split_pieces[piece_index].path))


class _Results:
    batched_output = False

    def read_next(self, pool: Any, *_: Any) -> Sample:
        try:
            found: Sample = pool.get_results()
        except EmptyResultError:
            raise StopIteration from None
        return found


class _OrderedReader(Reader):  # type: ignore[misc]
    """The row groups of a folder by name, or those numbered in ``order``."""

    def __init__(self, folder: str, order: Sequence[int] | None) -> None:
        self._order = order
        super().__init__(LocalFileSystem(), folder, reader_pool=DummyPool(), worker_class=_Worker, num_epochs=1)

    def _create_ventilator(self, row_group_indexes: Sequence[int], *_: Any) -> _AtOnce:
        asked = row_group_indexes if self._order is None else [row_group_indexes[index] for index in self._order]
        return _AtOnce(self._workers_pool.ventilate, [{"piece_index": index} for index in asked])


def _sample(path: str) -> Sample:
    with pq.ParquetFile(_opened(path)) as file:
        one = file.metadata.num_rows == 1
        columns = [*_TEXTS, *_ARRAYS, *(_IMAGES if one else ())]
        table = file.read_row_group(0, columns=columns, use_threads=False)  # one column is nearly all there is
        if one:
            image, mask = _image(table), _tensor(table["mask"])
        else:
            mask = torch.cat([_tensor(table["mask"].slice(row)) for row in range(table.num_rows)])
            image = _joined(file, len(mask))
    texts = {name: table[name][0].as_py() for name in _TEXTS}
    rest = {name: _tensor(table[name]) for name in ("intensity", "centres")}
    states = {name: _tensor(table[name]).bool() for name in ("annotated", "present")}
    return Sample(**texts, image=image, mask=mask, **rest, **states)


def _opened(path: str) -> Any:
    """A small file at once: reading it column by column takes longer."""
    return pa.BufferReader(Path(path).read_bytes()) if os.path.getsize(path) < SMALL else path


def _image(table: pa.Table) -> torch.Tensor:
    return next(_tensor(table[name]) for name in _IMAGES if not table[name].null_count)


def _joined(file: pq.ParquetFile, depth: int) -> torch.Tensor:
    """The image of several blocks, one of which is held besides it at a time."""
    image, start = torch.empty(0), 0
    for batch in file.iter_batches(batch_size=1, columns=list(_IMAGES), use_threads=False):
        block = _image(pa.table(batch))
        if not start:
            image = torch.empty((block.shape[0], depth, *block.shape[2:]), dtype=block.dtype)
        image[:, start : start + block.shape[1]] = block
        start += block.shape[1]
    return image


_ARROW = {np.dtype(kind): pa.from_numpy_dtype(kind) for kind in (np.int16, np.float32, np.uint8, np.int32)}


def _tensor(column: pa.ChunkedArray) -> torch.Tensor:
    """What NdarrayCodec wrote into the first cell, as a tensor over the same bytes: a scalar of Arrow's would be a copy, and of
    a read-only array of NumPy's torch warns."""
    cells = column.chunk(0)
    _, offsets, values = cells.buffers()
    start, end = np.frombuffer(offsets, np.int32, 2, 4 * cells.offset).tolist()
    buffer = values[start:end]
    length = 10 + int.from_bytes(buffer[8:10].to_pybytes(), "little")
    kind, shape, count = _header(buffer[:length].to_pybytes())
    if not count:
        return torch.from_numpy(np.empty(shape, kind))
    values = pa.Array.from_buffers(_ARROW[kind], count, [None, buffer.slice(length)])
    return torch.from_dlpack(values).reshape(shape)


@lru_cache(4096)
def _header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """(type, shape, number of values) by the header of the .npy format, version 1."""
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, _, kind = np.lib.format.read_array_header_1_0(file)
    return kind, shape, int(np.prod(shape))
