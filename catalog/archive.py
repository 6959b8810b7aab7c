"""One home: its tables, its stored objects, its index, its volumes."""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import sqlalchemy as sa

from catalog import views
from catalog.errors import CatalogError
from catalog.index import Index, Indexed
from catalog.schemas import FEATURES, LABELS, OBJECTS, PREDICTIONS, SCORES, SPLITS
from catalog.sources import arranged, read_dataset
from catalog.store import Journal, adopt, finish, put
from catalog.table import DeltaTable
from catalog.volumes import parse, pick, read_volume

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset
    from pyspark.sql import SparkSession

__all__ = ["Archive"]


class Archive:
    """The home folder ``home``; cheap to make, nothing is created before something is written, safe in any process.

    ``index_url`` is the SQLAlchemy URL of the query index, by default SQLite in HOME/index.db. ``table`` and ``volume`` put
    the objects' table elsewhere than in HOME/tables/object_catalog, and files that are made elsewhere than under HOME/volume.
    """

    def __init__(
        self,
        home: str | Path,
        *,
        index_url: str | None = None,
        table: str | Path = "object_catalog",
        volume: str | Path = "volume",
    ) -> None:
        self.home = Path(os.path.abspath(home))
        self.index_url = index_url
        tables = self.home / "tables"
        self.objects = DeltaTable(tables / table, OBJECTS)
        self.volume_folder = self.home / volume
        self.labels = DeltaTable(tables / "labels", LABELS)
        self.predictions = DeltaTable(tables / "predictions", PREDICTIONS)
        self.scores = DeltaTable(tables / "scores", SCORES)
        self.features = DeltaTable(tables / "features", FEATURES)
        self.splits = DeltaTable(tables / "splits", SPLITS)
        digest = hashlib.sha256(str(self.objects.path).encode()).hexdigest()[:12]
        own = "index.db" if self.objects.path == tables / "object_catalog" else f"index-{digest}.db"
        self.index = Index(index_url or sa.URL.create("sqlite", database=str(self.home / own)))

    def __repr__(self) -> str:
        return f"Archive({str(self.home)!r})"

    def store(self, datasets: "Iterable[Dataset]", *, folder: str, writer: str, batch: int = 0) -> list[Path]:
        """Put objects into HOME/volume/``folder``/Study/Series/SOP.dcm and into ``object_catalog``; their paths.

        A repeat adds nothing; ``writer`` and ``batch`` name the work for the journal that a crash leaves to ``finish``.
        Raises CatalogError where an object lacks a UID, or its UID is stored with other pixels: the first stays.
        """
        with self.writing():
            return put(self, datasets, folder=folder, journal=Journal(self.home, f"{writer}/{batch}"))

    def adopt(self, paths: Iterable[str | Path], *, writer: str) -> int:
        """Put DICOM files that other processes wrote under HOME/volume into ``object_catalog``; how many rows that added.

        A repeat adds nothing; ``writer`` names the work for the journal. Raises CatalogError where a file lies elsewhere or
        is not there: nothing is added.
        """
        with self.writing():
            return adopt(self, [Path(os.path.abspath(path)) for path in paths], journal=Journal(self.home, writer))

    def series_files(self, series_uid: str) -> list[str]:
        """The paths or URLs of a series' current files, one an instance, by InstanceNumber; CatalogError if unknown."""
        return [found.path for found in self._indexed(series_uid)]

    def volume(self, ref: str) -> "hd.Volume":
        """As VolumeSource.volume; ``ref`` is a SeriesInstanceUID, or names one volume of a series (``catalog.volumes``)."""
        return read_volume(self.series_files(parse(ref)[0]), ref)

    def sources(self, ref: str) -> "list[Dataset]":
        """The headers of ``volume``'s objects without pixels, in the order of its slices where every slice is an object."""
        headers = self._headers(ref)
        return headers if _frames(headers) > 1 else arranged(headers, about=ref)[0]

    def geometry(self, ref: str) -> "hd.VolumeGeometry":
        """The grid of ``volume``, without reading pixels where every slice is a file."""
        headers = self._headers(ref)
        if _frames(headers) > 1:
            return self.volume(ref).get_geometry()
        return arranged(headers, about=ref)[1]

    def sql(self, query: str) -> pa.Table:
        """The answer of DuckDB to one query over the views of ``catalog.views``, read-only.

        CatalogError where DuckDB does not take it.
        """
        return views.query(self, query).read_all()

    def query(self, query: str, *, spark: "SparkSession | None" = None) -> pa.RecordBatchReader:
        """As ``sql``, in batches as they are asked for; by Spark's SQL where a session is given."""
        if spark is not None:
            from catalog import sparksql

            return sparksql.query(spark, self, query)
        return views.query(self, query)

    def own_folders(self) -> set[str]:
        """Folders that ``list_files`` is to skip: a home may lie below what is ingested, which may also lie inside it.

        What was unpacked is listed with its archive.
        """
        own = [
            self.home,
            self.objects.path,
            *(self.home / name for name in ("tables", "journal", "mlflow", "datasets", "spark", "logs")),
        ]
        made = [self.volume_folder / name for name in ("unzipped", "checkpoints", "thumbnails")]
        return {str(folder.resolve()) for folder in (*own, *made)}

    def finish(self) -> list[str]:
        """Complete or remove what a crash left between file, ``object_catalog``, ``labels`` and ``features``; what was done."""
        with self.alone():
            return finish(self)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps ``finish`` of every process waiting: what is under way is not what a crash left."""
        with self._lock(fcntl.LOCK_SH):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits for every writer of every process, and keeps them waiting: for what must not come between their steps."""
        with self._lock(fcntl.LOCK_EX):
            yield

    @contextmanager
    def labelling(self) -> Iterator[None]:
        """Keeps whoever writes a label waiting, in every process: of two with one id the second sees what the first wrote."""
        with self._lock(fcntl.LOCK_EX, ".labelling"):
            yield

    def _headers(self, ref: str) -> "list[Dataset]":
        from pydicom import config

        files = self.series_files(parse(ref)[0])
        if "#" in ref:
            files = list(dict.fromkeys(found.path for found in pick(files, ref).slices))
        with config.disable_value_validation():
            return [read_dataset(path, pixels=False) for path in files]

    def _indexed(self, series_uid: str) -> list[Indexed]:
        self.home.mkdir(parents=True, exist_ok=True)
        self.index.follow(self.objects)
        found = self.index.files(series_uid)
        if not found:
            raise CatalogError("no such series in the catalog", about=series_uid, remedy="ingest its files first")
        return found

    @contextmanager
    def _lock(self, kind: int, name: str = ".writing") -> Iterator[None]:
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / name).open("w") as file:
            fcntl.flock(file, kind)
            yield


def _frames(headers: "Sequence[Dataset]") -> int:
    """How many frames the one object of a multi-frame series has, else 1."""
    return int(headers[0].get("NumberOfFrames") or 1)
