"""The catalog as a Spark user sees it: files as a DataFrame, headers by transformers, rows into ``object_catalog`` and back."""

import hashlib
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from catalog.archive import Archive
from catalog.conflicts import Settler
from catalog.errors import CatalogError
from catalog.files import exists, located
from catalog.listing import PATHS, Wanted, list_all, new_folder, write_listing
from catalog.objects import absent, commit_absent, once
from catalog.schemas import OBJECTS
from catalog.table import DeltaTable, Part, write_part

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery

    from catalog.streaming import Stream

__all__ = ["Catalog"]

_ROWS_A_PART = 2000


class Catalog:
    """Files and their headers in the Delta table ``table``, what is made of them under ``volume``.

    Both are names, whose last part is a folder (``HOME/tables/object_catalog``, ``HOME/volume``), or absolute paths;
    ``home`` is where names are looked up. The interface is that of the pixels accelerator.
    """

    def __init__(
        self,
        spark: "SparkSession",
        table: str = "main.voxloop.object_catalog",
        volume: str = "main.voxloop.volume",
        *,
        home: str | Path = ".voxloop",
        index_url: str | None = None,
    ) -> None:
        self.spark = spark
        if spark.sparkContext.master.startswith("local"):  # workers need what this Python has, whatever is on the PATH
            spark.sparkContext.pythonExec = sys.executable
        self.archive = Archive(home, index_url=index_url, table=_folder(table), volume=_folder(volume))
        self._said = f"Catalog(spark, table={table!r}, volume={volume!r}, home={str(home)!r})"
        self._stream: Stream | None = None

    def __repr__(self) -> str:
        return self._said

    def catalog(
        self,
        path: str,
        pattern: str = "*",
        recurse: bool = True,
        streaming: bool = False,
        streamCheckpointBasePath: str | None = None,
        triggerProcessingTime: str | None = None,
        triggerAvailableNow: bool | None = None,
        extractZip: bool = False,
        extractZipBasePath: str | None = None,
        maxFilesPerTrigger: int = 50000,
        detectFileType: bool = False,
    ) -> "DataFrame":
        """The files under ``path`` (a folder, a file or a URL) whose name fits the glob ``pattern``, a row each.

        Columns: path, modificationTime, length, original_path, relative_path, local_path, extension, file_type, path_tags,
        is_anon, and error, which says why a file cannot be opened. ``file_type`` is told by the name, with
        ``detectFileType`` by the content. With ``extractZip`` what zip and tar archives hold follows them, unpacked under
        ``extractZipBasePath``, by default VOLUME/unzipped.

        With ``streaming``, those files that neither the table nor the stream has had, as they are now: at most
        ``maxFilesPerTrigger`` at a time, either all that are there (``triggerAvailableNow``, the default) or again after each
        ``triggerProcessingTime`` ("30 seconds"). What was seen is kept under ``streamCheckpointBasePath``, by default
        VOLUME/checkpoints. CatalogError where ``path`` is not there, or both triggers are named.
        """
        unzipped = str(extractZipBasePath or self.archive.volume_folder / "unzipped") if extractZip else ""
        wanted = Wanted(str(path), pattern, recurse, unzipped, detectFileType)
        if not streaming:
            files, root = list_all(self.archive, wanted)
            folder = new_folder(self.archive.volume_folder / "checkpoints" / "listings")
            return _frame(self.spark, write_listing(files, root, folder, detect=detectFileType), PATHS)
        if triggerProcessingTime and triggerAvailableNow:
            raise CatalogError("two triggers", about=str(path), remedy="give triggerProcessingTime or triggerAvailableNow")
        if maxFilesPerTrigger < 1:
            raise CatalogError(f"maxFilesPerTrigger={maxFilesPerTrigger}", about=str(path), remedy="give 1 or more")
        if not exists(located(path)):
            raise CatalogError("no such folder or file", about=str(path), remedy="check the path")
        from catalog.streaming import Stream

        base = Path(streamCheckpointBasePath or self.archive.volume_folder / "checkpoints")
        objects = self.archive.objects
        objects.create()
        told = "\0".join((located(path), str(objects.path), objects.identity()))
        folder = base / f"{objects.path.name}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
        self._stream = Stream(self.archive, wanted, folder, maxFilesPerTrigger, triggerProcessingTime)
        return self._stream.frame(self.spark)

    def save(
        self, df: "DataFrame", table: str | None = None, mode: str = "append", mergeSchema: bool = True
    ) -> "int | StreamingQuery":
        """Add the rows of ``df`` that the table has not, by path, modification time and length; the table's version then.

        ``df`` is what ``DicomMetaExtractor`` gave, possibly with columns of your own: the table grows by them unless
        ``mergeSchema`` is false. A streaming ``df`` is saved as it comes, each row exactly once however often the stream is
        killed: returned is its StreamingQuery, ended where the trigger is available-now. Raises CatalogError where columns are
        missing, or for a ``mode`` other than append: rows are only ever added.
        """
        if mode != "append":
            raise CatalogError(f"mode {mode!r}", about=repr(self), remedy="the table only grows: use append, or a new table")
        archive = self.archive if table is None else Archive(self.archive.home, table=_folder(table))
        lacking = [name for name in OBJECTS.names if name not in df.columns]
        if lacking:
            remedy = "save what DicomMetaExtractor(catalog).transform(df) returns"
            raise CatalogError(f"no column {', '.join(lacking)}", about=repr(self), remedy=remedy)
        if df.isStreaming:
            if self._stream is None or table is not None:
                raise CatalogError(
                    "not a stream of this catalog", about=repr(self), remedy="catalog(streaming=True) of the same Catalog"
                )
            return self._stream.save(df, lambda batch, writer, number: _append(archive, batch, writer, number, mergeSchema))
        return _append(archive, df, f"save/{uuid.uuid4()}", 0, mergeSchema)

    def load(self, table: str | None = None, version: int | None = None) -> "DataFrame":
        """Every row of the table, now or at ``version``, ``meta`` as VARIANT: ``meta:['00100010'].Value[0].Alphabetic``."""
        from pyspark.sql import functions

        objects = self.archive.objects if table is None else DeltaTable(self.archive.home / "tables" / _folder(table), OBJECTS)
        found = _frame(self.spark, objects.files(version), objects.dataset(-1).schema)
        return found.withColumn("meta", functions.parse_json("meta"))


def _folder(name: str) -> str:
    """A path as it is; of a name its last part."""
    if "://" in name:
        raise CatalogError("tables and volumes lie in folders", about=name, remedy="mount it, and give the folder's path")
    if os.path.isabs(name):
        return name
    if not (last := name.rpartition(".")[2]) or os.sep in name:
        raise CatalogError("neither a name nor an absolute path", about=name or "''", remedy="give a name, or the whole path")
    return last


def _frame(spark: "SparkSession", files: Sequence[str], schema: pa.Schema) -> "DataFrame":
    """The rows of parquet files; they need not have every column of ``schema``."""
    from pyspark.sql.pandas.types import from_arrow_schema

    structure = from_arrow_schema(schema)
    reader = spark.read.schema(structure).option("__globPaths__", "false")  # a folder may be called b[1]
    return reader.parquet(*files) if files else spark.createDataFrame([], structure)


def _append(archive: Archive, df: "DataFrame", writer: str, batch: int, grow: bool) -> int:
    """Write ``df`` by Spark's workers into the table's folder, and commit what the table has not."""
    from pyspark.sql import functions
    from pyspark.sql.pandas.types import to_arrow_schema
    from pyspark.sql.types import VariantType

    if isinstance(df.schema["meta"].dataType, VariantType):
        df = df.withColumn("meta", functions.to_json("meta"))
    objects = archive.objects
    objects.create()
    own = {field.name: field for field in [*OBJECTS]}
    given = to_arrow_schema(df.schema, timezone="UTC")
    extra = [field.with_nullable(True) for field in given if field.name not in own] if grow else []
    _refuse_other_types(archive, extra)
    objects.grow(extra)
    schema = pa.schema([field for field in [*OBJECTS, *extra] if field.name in given.names])
    written = df.mapInArrow(_writer(str(objects.path), schema), "name string, size long, rows long")
    parts = [Part(part.name, part.size, part.rows) for part in written.collect()]
    read = max(objects.version(), 0)
    fresh = absent(objects, once(objects, parts), read)
    settle = Settler(archive, df.sparkSession).settle
    version, _ = commit_absent(objects, fresh, writer=writer, batch=batch, read=read, settle=settle)
    return version


def _refuse_other_types(archive: Archive, columns: Sequence[pa.Field]) -> None:
    """CatalogError where the table has one of ``columns`` by another type, or in other case: rows are never changed again."""
    there = {field.name.lower(): field for field in archive.objects.dataset(-1).schema}
    for column in columns:
        known = there.get(column.name.lower())
        if known and (known.name != column.name or known.type != column.type):
            problem = f"the column {column.name} is {column.type} here, and {known.name} is {known.type} in the table"
            raise CatalogError(problem, about=str(archive.objects.path), remedy="cast it, or give it another name")


def _writer(folder: str, schema: pa.Schema) -> Any:
    """What a task does with its rows: parquet files in ``folder`` that no version names yet."""

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        held: list[pa.RecordBatch] = []
        for batch in batches:
            if batch.num_rows:
                held.append(batch.select(schema.names).cast(schema))
            if sum(b.num_rows for b in held) >= _ROWS_A_PART:
                yield _part(held, folder)
                held = []
        if held:
            yield _part(held, folder)

    return write


def _part(batches: Sequence[pa.RecordBatch], folder: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([asdict(write_part(pa.Table.from_batches(batches), folder))])
