"""Several files of one SOPInstanceUID: their pixels decide whether one is a copy of the other or in conflict with it."""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from catalog._query import connect, quoted
from catalog.errors import CatalogError
from catalog.files import located, open_binary
from catalog.schemas import OBJECTS
from catalog.table import Part, write_part
from catalog.walk import walk

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from catalog.archive import Archive

__all__ = ["Settler", "pixel_hashes", "resolve"]

_RECURRING = """
SELECT sop FROM (
    SELECT SOPInstanceUID AS sop, path FROM fresh WHERE status = 'ok'
    UNION SELECT o.SOPInstanceUID, o.path FROM (SELECT SOPInstanceUID, path FROM objects) o
    SEMI JOIN (SELECT SOPInstanceUID FROM fresh WHERE status = 'ok') f USING (SOPInstanceUID)
) GROUP BY sop HAVING count(*) > 1
"""
_LATEST = """
SELECT * FROM (
    SELECT path, SOPInstanceUID AS sop, SeriesInstanceUID AS series, status, pixel_hash, ingested_at FROM objects
    SEMI JOIN (
        SELECT path FROM (SELECT path, SOPInstanceUID AS sop FROM objects) SEMI JOIN recurring USING (sop)
    ) USING (path)
    QUALIFY row_number() OVER (PARTITION BY path ORDER BY ingested_at DESC) = 1
) SEMI JOIN recurring USING (sop) WHERE status = 'ok' ORDER BY ingested_at DESC, path DESC
"""


@dataclass(frozen=True)
class _File:
    """One file of an object: its path, series, and the hash of its pixels where it is known."""

    path: str
    series: str
    pixel_hash: str | None


class Settler:
    """Decides over new rows whose SOPInstanceUID recurs; ``conflicts`` counts those that it held back."""

    def __init__(self, archive: "Archive", spark: "SparkSession | None" = None) -> None:
        self.archive, self.spark = archive, spark
        self.conflicts = 0

    def settle(self, parts: Sequence[Part], version: int) -> Sequence[Part]:
        """``parts``, written anew where a row of theirs is a copy or a conflict of a row at ``version`` or of another new one.

        A file whose pixels equal those of the current one is a copy: it becomes current itself. One with other pixels is
        a ``conflict`` where the current one is labelled, else the latest counts and a note says so.
        """
        folder = self.archive.objects.path
        fresh = pyarrow.dataset.dataset([str(folder / part.name) for part in parts], format="parquet")
        changes = self._changes(fresh, version)
        return [_changed(part, folder, changes) for part in parts] if changes else parts

    def _changes(self, fresh: Any, version: int) -> dict[str, dict[str, Any]]:
        """path → the columns of its row that change."""
        with connect({"fresh": fresh, "objects": self.archive.objects.dataset(version)}) as connection:
            recurring = connection.sql(_RECURRING).to_arrow_table()
            connection.register("recurring", recurring)
            if not recurring.num_rows:
                return {}
            current = _grouped(connection.sql(_LATEST).to_arrow_table())
            query = "SELECT SOPInstanceUID AS sop, path, SeriesInstanceUID AS series, pixel_hash FROM fresh"
            query = f"{query} WHERE status = 'ok' AND SOPInstanceUID IN (FROM recurring) ORDER BY path"
            new = _grouped(connection.sql(query).to_arrow_table())
        pairs = []
        for sop, files in new.items():
            replaced = {file.path for file in files}
            kept = [file for file in current.get(sop, []) if file.path not in replaced]
            first, *_ = kept or files
            pairs += [(sop, first, file) for file in files if file.path != first.path]
        return self._judged(pairs)

    def _judged(self, pairs: Sequence[tuple[str, _File, _File]]) -> dict[str, dict[str, Any]]:
        unknown = {file.path for _, first, other in pairs for file in (first, other) if not file.pixel_hash}
        hashes = pixel_hashes(sorted(unknown), self.spark)
        labelled, changes = self._labelled(), {}
        for sop, first, other in pairs:
            one, two = first.pixel_hash or hashes[first.path], other.pixel_hash or hashes[other.path]
            change: dict[str, Any] = {} if not two or two.startswith(_ENCODED) else {"pixel_hash": two}
            if one is not None and one != two:
                if {first.series, sop} & labelled:
                    self.conflicts += 1
                    change |= {"status": "conflict", "error": f"other pixels than {first.path}, which has a label"}
                else:
                    change["notes"] = [f"other pixels than {first.path}: the file that was read last counts"]
            changes[other.path] = change
        return changes

    def _labelled(self) -> set[str]:
        """Series that have a label revision, and the objects that hold one."""
        found = self.archive.labels.scan(("series_uid", "seg_uid")).read_all()
        return {*found["series_uid"].to_pylist(), *found["seg_uid"].to_pylist()}


def resolve(archive: "Archive", path: str, *, accept: bool) -> str:
    """Decide over a file in conflict: make it the current one of its object, or reject it for good; its status then.

    The decision is a row of its own, with the same key: the latest counts. CatalogError where the file is not in conflict.
    """
    where = f"path = {quoted(located(path))}"
    rows = archive.objects.scan(OBJECTS.names, where=where).read_all().sort_by("ingested_at")
    if not rows.num_rows or rows["status"][-1].as_py() != "conflict":
        raise CatalogError("not in conflict", about=path, remedy="see voxloop catalog conflicts")
    status, error = ("ok", None) if accept else ("rejected", "rejected in favour of " + rows["error"][-1].as_py())
    (row,) = rows.slice(rows.num_rows - 1).to_pylist()
    decided = {**row, "status": status, "error": error, "ingested_at": datetime.now(UTC)}
    archive.objects.append(pa.Table.from_pylist([decided], schema=OBJECTS), writer=f"resolve/{uuid.uuid4()}", batch=0)
    return status


def pixel_hashes(paths: Sequence[str], spark: "SparkSession | None" = None) -> dict[str, str | None]:
    """The sha256 of the decoded pixels of each file; empty where it has none, None where it has gone.

    Where they cannot be decoded it is that of the bytes that encode them.
    """
    if spark is None or len(paths) < 16:
        return {path: _hash(path) for path in paths}
    context = spark.sparkContext
    found = context.parallelize(paths, min(len(paths), 8 * context.defaultParallelism)).map(lambda path: (path, _hash(path)))
    return dict(found.collect())


_ENCODED = "encoded:"


def _hash(path: str) -> str | None:
    from catalog.pixels import pixel_facts

    try:
        places = walk(path).pixels
        if places is None:
            return ""
        try:
            facts = pixel_facts(path)
            return facts.hash if facts else ""
        except CatalogError:
            return _ENCODED + _digest(path, places.offset, places.length)
    except (OSError, CatalogError):
        return None


def _digest(path: str, offset: int, length: int) -> str:
    with open_binary(path) as file:
        file.seek(offset)
        digest = hashlib.sha256()
        while length > 0 and (block := file.read(min(length, 1 << 20))):
            digest.update(block)
            length -= len(block)
    return digest.hexdigest()


def _grouped(found: pa.Table) -> dict[str, list[_File]]:
    """The files of each SOPInstanceUID, in the order found."""
    files: dict[str, list[_File]] = {}
    for row in found.select(["sop", "path", "series", "pixel_hash"]).to_pylist():
        files.setdefault(row["sop"], []).append(_File(row["path"], row["series"], row["pixel_hash"]))
    return files


def _changed(part: Part, folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> Part:
    """The part with the ``changes`` to its rows, by path."""
    stored = pq.read_table(folder / part.name)
    if not any(path in changes for path in stored["path"].to_pylist()):
        return part
    rows = [{**row, **changes.get(row["path"], {})} for row in stored.to_pylist()]
    (folder / part.name).unlink(missing_ok=True)
    return write_part(pa.Table.from_pylist(rows, schema=stored.schema), folder)
