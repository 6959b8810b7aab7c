"""New files as a Structured Streaming source, and their rows into the table exactly once."""

import json
import os
import uuid
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from pyspark.errors import PySparkException
from pyspark.sql.datasource import DataSource, DataSourceStreamReader, InputPartition
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.streaming.datasource import ReadAllAvailable, ReadLimit, ReadMaxFiles, SupportsTriggerAvailableNow

from catalog.archive import Archive
from catalog.disk import atomic_file
from catalog.errors import CatalogError
from catalog.files import Listed
from catalog.listing import PATHS, Wanted, list_wanted, opened, write_listing
from catalog.objects import among, known

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery


__all__ = ["Stream"]

_ROWS_A_FILE = 2000
_LOOKED_UP = 50_000
"""How many listed files are looked up in the table at a time."""


@dataclass(frozen=True)
class Stream:
    """The new files of one ``Wanted``: at most ``limit`` a batch, all there are now or again after each ``interval``.

    ``checkpoint`` keeps what was seen: ``listings`` the files, numbered; ``spark`` how far Spark has come; ``id`` the name
    under which batches are committed.
    """

    archive: Archive
    wanted: Wanted
    checkpoint: Path
    limit: int
    interval: str | None

    def frame(self, spark: "SparkSession") -> "DataFrame":
        """The streaming DataFrame, with the columns of PATHS."""
        spark.dataSource.register(_Source)
        objects = {"home": str(self.archive.home), "table": str(self.archive.objects.path)}
        told = {**objects, "wanted": self.wanted.as_json(), "listings": str(self.checkpoint / "listings"), "limit": self.limit}
        return spark.readStream.format(_Source.name()).option("told", json.dumps(told)).load()

    def save(self, df: "DataFrame", append: "Callable[[DataFrame, str, int], object]") -> "StreamingQuery":
        """Start the query that gives each batch to ``append`` with the stream's name and the batch's number.

        It has ended where there is no interval. Raises the CatalogError that ``append`` ended with.
        """
        name, failed = f"stream/{self._name()}", []

        def each(batch: "DataFrame", number: int) -> None:
            try:
                append(batch, name, number)
            except Exception as problem:
                failed.append(problem)
                raise

        writing = df.writeStream.foreachBatch(each).option("checkpointLocation", str(self.checkpoint / "spark"))
        trigger: dict[str, Any] = {"processingTime": self.interval} if self.interval else {"availableNow": True}
        try:
            query = writing.trigger(**trigger).start()
            if not self.interval:
                query.awaitTermination()
        except PySparkException as problem:  # with a page of Java
            if failed:
                raise failed[0] from None
            reason = str(problem).strip().splitlines()[0]
            raise CatalogError(f"the stream ended: {reason}", about=self.wanted.path, remedy="see Spark's log") from problem
        return query

    def _name(self) -> str:
        file = self.checkpoint / "id"
        if not file.exists():
            with atomic_file(file) as new:
                new.write(str(uuid.uuid4()).encode())
        return file.read_text()


class _Source(DataSource):
    """What Spark knows of a stream."""

    @classmethod
    def name(cls) -> str:
        return "voxloop_files"

    def schema(self) -> Any:
        return from_arrow_schema(PATHS)

    def streamReader(self, schema: Any) -> DataSourceStreamReader:
        return _Reader(json.loads(self.options["told"]))


class _Reader(DataSourceStreamReader, SupportsTriggerAvailableNow):
    """Lists what is new into numbered files; an offset is how many of these were read."""

    def __init__(self, told: MutableMapping[str, Any]) -> None:
        self.archive = Archive(told["home"], table=told["table"])
        self.wanted, self.folder, self.limit = Wanted(**told["wanted"]), Path(told["listings"]), int(told["limit"])
        self.last: int | None = None

    def initialOffset(self) -> dict[str, int]:
        return {"files": 0}

    def getDefaultReadLimit(self) -> ReadLimit:
        return ReadMaxFiles(self.limit)

    def prepareForTriggerAvailableNow(self) -> None:
        self._list()
        self.last = len(self._written())

    def latestOffset(self, start: dict[str, int], limit: ReadLimit) -> dict[str, int]:
        if self.last is None and len(self._written()) <= start["files"]:
            self._list()
        end = len(self._written()) if self.last is None else self.last
        if not isinstance(limit, ReadAllAvailable):
            end = min(end, start["files"] + max(1, self.limit // self._size()))
        return {"files": max(end, start["files"])}

    def partitions(self, start: dict[str, int], end: dict[str, int]) -> Sequence[InputPartition]:
        return [InputPartition(str(path)) for path in self._written()[start["files"] : end["files"]]]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        yield from pq.ParquetFile(partition.value).iter_batches(batch_size=250)

    def _list(self) -> None:
        """Write down what neither the table nor an earlier listing has."""
        files, root = list_wanted(self.archive, self.wanted, skip=[os.path.realpath(self.folder.parent)])
        write_listing(self._unseen(files), root, self.folder, detect=self.wanted.detect, rows=self._size())

    def _unseen(self, files: Iterator[Listed]) -> Iterator[Listed]:
        """The new ones of ``files``, and of what those hold that are archives; only new files and archives are opened."""
        version, written = self.archive.objects.version(), [str(path) for path in self._written()]
        earlier = pyarrow.dataset.dataset(written, schema=PATHS, format="parquet") if written else PATHS.empty_table()

        def told(files: Iterator[Listed]) -> Iterator[tuple[Listed, str]]:
            while batch := list(islice(files, _LOOKED_UP)):
                seen = {**dict.fromkeys(among(earlier, batch), "seen"), **known(self.archive.objects, version, batch)}
                yield from ((file, seen.get(file.key, "")) for file in batch)

        for listed, status in told(files):
            file, members = listed, list[Listed]()
            if self.wanted.unzipped and status in ("", "archive"):
                file, members = opened(listed, Path(self.wanted.unzipped))
            if not status:
                yield file
            yield from (member for member, status in told(iter(members)) if not status)

    def _size(self) -> int:
        return min(_ROWS_A_FILE, self.limit)

    def _written(self) -> list[Path]:
        return sorted(self.folder.glob("files-*.parquet"))
