"""Thumbnails by Spark: a column of pictures as a ``pyspark.ml`` Transformer, and the PNG files of a whole archive."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyspark.ml import Transformer
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql.types import BinaryType, IntegerType, StringType, StructField, StructType

from catalog._query import quoted
from catalog.archive import Archive
from catalog.disk import atomic_file
from catalog.errors import CatalogError
from catalog.files import Key, listed
from catalog.progress import Progress
from catalog.thumbnail import LARGEST, thumbnail

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["DicomThumbnailExtractor", "ThumbnailReport", "make_thumbnails", "thumbnail_file", "thumbnail_folder"]

FILES_A_TASK = 128
"""How many files a task shows; progress is seen between jobs of one task a core."""

_FIELDS = ("origin", StringType()), ("height", IntegerType()), ("width", IntegerType()), ("nChannels", IntegerType())
_IMAGE = StructType([StructField(*field) for field in (*_FIELDS, ("mode", IntegerType()), ("data", BinaryType()))])
_ARROW_IMAGE = pa.struct(
    [("origin", pa.string()), *((name, pa.int32()) for name in ("height", "width", "nChannels", "mode")), ("data", pa.binary())]
)
_MODES = {1: 0, 3: 16}  # OpenCV's CV_8UC1 and CV_8UC3, as Spark's image data source has them
_ROWS_A_BATCH = 64
_DONE = pa.schema([(name, pa.string()) for name in ("path", "problem", "about", "remedy")])
_DONE_DDL = "path string, problem string, about string, remedy string"


class DicomThumbnailExtractor(Transformer, HasInputCol, HasOutputCol, DefaultParamsReadable, DefaultParamsWritable):
    """Adds a picture of the DICOM file named in each row: column ``outputCol``, a struct as Spark's image data source has it.

    origin       the PNG's path; the path of the DICOM file where nothing is written; the reason where there is no picture
    height       in pixels, -1 where there is no picture; likewise ``width``, ``nChannels`` and ``mode``
    nChannels    1 (grey, mode 0) or 3 (blue, green, red, mode 16)
    data         the pixels by rows, empty where there is no picture

    ``catalog`` is anything with a folder ``home``, as an Archive, or with an ``archive``: the PNG is written to its
    HOME/volume/thumbnails, or to the folder ``volume``, under a name that follows from the file as it is: an unchanged file's
    picture is not made again. Without either nothing is written. ``size`` is the longer side in pixels, at most 256. ``method``
    is accepted for callers that name one, and changes nothing. No row is lost, whatever is wrong with its file.
    """

    size: Param[int] = Param(Params._dummy(), "size", "longer side in pixels, at most 256", TypeConverters.toInt)
    volume: Param[str] = Param(Params._dummy(), "volume", "folder of the PNG files, empty for none", TypeConverters.toString)
    method: Param[str] = Param(Params._dummy(), "method", "of no effect", TypeConverters.toString)

    def __init__(
        self,
        catalog: Any = None,
        *,
        inputCol: str = "local_path",
        outputCol: str = "thumbnail",
        method: str = "pillow",
        size: int = LARGEST,
        volume: str | Path | None = None,
    ) -> None:
        super().__init__()
        archive = getattr(catalog, "archive", catalog)
        if volume is None and hasattr(archive, "volume_folder"):
            volume = thumbnail_folder(archive)
        if catalog is not None and volume is None:
            remedy = "give an Archive, a Catalog, or nothing and volume=FOLDER"
            raise CatalogError("this catalog has no home", about=repr(catalog)[:200], remedy=remedy)
        self._set(inputCol=inputCol, outputCol=outputCol, size=size, volume=str(volume or ""), method=method)

    def _transform(self, dataset: "DataFrame") -> "DataFrame":
        given, made = self.getInputCol(), self.getOutputCol()
        if given not in dataset.columns:
            remedy = f"the columns are {', '.join(dataset.columns)}; name the one with the paths as inputCol"
            raise CatalogError(f"no column {given!r}", about=type(self).__name__, remedy=remedy)
        kept = dataset.drop(made)
        folder = self.getOrDefault(self.volume)
        schema = StructType([*kept.schema.fields, StructField(made, _IMAGE)])
        return kept.mapInArrow(_adding(given, made, folder, self.getOrDefault(self.size)), schema)


def thumbnail_folder(archive: Archive) -> Path:
    """Where the thumbnails of a home lie."""
    return archive.volume_folder / "thumbnails"


def thumbnail_file(folder: str | Path, key: Key, *, size: int = LARGEST) -> Path:
    """The PNG of a file as ``object_catalog`` has it: (path, modificationTime in µs, length); it is there if it was made."""
    name = sha256("\0".join(map(str, (*key, size))).encode()).hexdigest()[:40]
    return Path(folder) / name[:2] / f"{name}.png"


@dataclass(frozen=True)
class ThumbnailReport:
    """Counts of instances: ``wanted``, of these ``made`` now, ``unchanged`` since an earlier run, ``without_pixels`` (reports,
    plans and the like); ``failed`` are (path, reason) of the others. ``folder`` has the PNG files."""

    wanted: int
    made: int
    unchanged: int
    without_pixels: int
    failed: tuple[tuple[str, str], ...]
    folder: Path

    def as_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        failed = [{"path": path, "error": error} for path, error in self.failed]
        return {**asdict(self), "failed": failed, "folder": str(self.folder)}


def make_thumbnails(
    spark: "SparkSession", archive: Archive, *, series: str = "", every: bool = False, progress: Progress | None = None
) -> ThumbnailReport:
    """Make the PNG files that are missing: of the middle instance by InstanceNumber of each series, or of ``every`` instance.

    ``series`` is a SeriesInstanceUID to keep to. What is made stays made when the work is interrupted. CatalogError where the
    series is unknown, or nothing can be written.
    """
    folder = thumbnail_folder(archive)
    rows = _instances(archive, series, every)
    pictured = [(_key(row), str(row["SeriesInstanceUID"])) for row in rows if row["pictured"]]
    missing = [key[0] for key, _ in pictured if not thumbnail_file(folder, key).exists()]
    failed: list[tuple[str, str]] = []
    at_once = FILES_A_TASK * spark.sparkContext.defaultParallelism
    for start in range(0, len(missing), at_once):
        failed += _made(spark, missing[start : start + at_once], folder)
        if progress:
            progress(min(start + at_once, len(missing)), len(missing))
    made, unchanged = len(missing) - len(failed), len(pictured) - len(missing)
    return ThumbnailReport(len(rows), made, unchanged, len(rows) - len(pictured), tuple(failed), folder)


def _instances(archive: Archive, series: str, every: bool) -> list[dict[str, Any]]:
    only = f"WHERE SeriesInstanceUID = {quoted(series)}" if series else ""
    middle = """QUALIFY row_number() OVER (PARTITION BY SeriesInstanceUID ORDER BY InstanceNumber, SOPInstanceUID)
        = count(*) OVER (PARTITION BY SeriesInstanceUID) // 2 + 1"""
    query = f"""SELECT path, modificationTime, length, SeriesInstanceUID,
            "Rows" IS NOT NULL AND (pixel_offset IS NOT NULL OR file_meta IS NULL) AS pictured
        FROM instances {only} {"" if every else middle}"""
    found: list[dict[str, Any]] = archive.sql(query).to_pylist()
    if series and not found:
        raise CatalogError("no such series in the catalog", about=series, remedy="ingest its files first")
    return found


def _key(row: dict[str, Any]) -> Key:
    modified: datetime = row["modificationTime"]
    micros = pa.scalar(modified, pa.timestamp("us", "UTC")).value
    return row["path"], micros, row["length"]


def _made(spark: "SparkSession", paths: Sequence[str], folder: Path) -> list[tuple[str, str]]:
    """Make the pictures of ``paths``; (path, reason) of those that have none."""
    tasks = max(1, min(spark.sparkContext.defaultParallelism, len(paths)))
    frame = spark.createDataFrame(pa.table({"path": pa.array(paths, pa.string())})).repartition(tasks)
    failed = []
    for row in frame.mapInArrow(_making(str(folder)), _DONE_DDL).collect():
        if row.path is None:
            raise CatalogError(row.problem, about=row.about, remedy=row.remedy)
        failed.append((row.path, row.problem))
    return sorted(failed)


def _making(folder: str) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What a task does with its paths: a row comes back for each without a picture, without path where none can be written."""

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            failed = []
            for path in batch["path"].to_pylist():
                try:
                    _kept(path, folder, LARGEST)
                except CatalogError as problem:
                    mine = problem.about == path
                    said = str(problem).removeprefix(f"{path}: ") if mine else problem.problem
                    told = {"about": problem.about, "remedy": problem.remedy}
                    failed.append({"path": path if mine else None, "problem": said, **told})
            yield pa.RecordBatch.from_pylist(failed, schema=_DONE)

    return work


def _adding(given: str, made: str, folder: str, size: int) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What a task does with its rows: each batch again, in small pieces, with the pictures."""

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS_A_BATCH):
                rows = batch.slice(start, _ROWS_A_BATCH)
                pictures = pa.array([_image(path, folder, size) for path in rows[given].to_pylist()], _ARROW_IMAGE)
                yield pa.RecordBatch.from_arrays([*rows.columns, pictures], names=[*rows.schema.names, made])

    return work


def _image(path: str | None, folder: str, size: int) -> dict[str, Any]:
    """The struct of ``outputCol``."""
    from PIL import Image

    try:
        if not path:
            raise CatalogError("the row names no file")
        origin, png = _kept(path, folder, size) if folder else (path, thumbnail(path, size=size))
    except CatalogError as problem:
        return {"origin": str(problem), "height": -1, "width": -1, "nChannels": -1, "mode": -1, "data": b""}
    pixels = np.atleast_3d(np.asarray(Image.open(BytesIO(png))))
    height, width, channels = pixels.shape
    data = np.ascontiguousarray(pixels[..., ::-1]).tobytes()
    return {"origin": origin, "height": height, "width": width, "nChannels": channels, "mode": _MODES[channels], "data": data}


def _kept(path: str, folder: str, size: int) -> tuple[str, bytes]:
    """(path, bytes) of the PNG of the file ``path``, made and written where it is not there; CatalogError as ``thumbnail``."""
    try:
        file = thumbnail_file(folder, listed(path).key, size=size)
    except OSError as problem:
        remedy = "bring it back, or ingest its folder again"
        raise CatalogError(f"the file cannot be opened: {problem.strerror}", about=path, remedy=remedy) from None
    if file.exists():
        return str(file), file.read_bytes()
    png = thumbnail(path, size=size)
    try:
        with atomic_file(file) as out:
            out.write(png)
    except OSError as problem:
        remedy = "make the home writable, then run the same command again"
        raise CatalogError(f"cannot be written: {os.strerror(problem.errno or 0)}", about=folder, remedy=remedy) from None
    return str(file), png
