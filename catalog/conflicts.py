"""Several files of one SOPInstanceUID: their pixels decide whether one is a copy of the other or in conflict with it."""

import hashlib
import io
import json
import re
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq

from catalog._element import file_tag
from catalog._query import connect
from catalog.deflated import DEFLATED, inflated
from catalog.errors import CatalogError
from catalog.files import located, open_binary
from catalog.table import Part, write_part
from catalog.walk import Header, walk

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from catalog.archive import Archive

__all__ = ["PIXEL_DATA", "Settler", "Shown", "differing", "resolve", "shown"]

_RECURRING = """
SELECT sop FROM (
    SELECT SOPInstanceUID AS sop, path, modificationTime, length FROM fresh WHERE status = 'ok'
    UNION SELECT * FROM (SELECT SOPInstanceUID, path, modificationTime, length FROM objects) o
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


PIXEL_DATA = 0x7FE00010
_SYNTAX = 0x00020010
_PLACE = [
    file_tag(tag)
    for tag in (
        *(0x00080016, 0x00100020, 0x00200032, 0x00200037, 0x00200052, 0x00280030, 0x00281052, 0x00281053, 0x00281054),
        *(0x00541001, 0x00620002, 0x52009229, 0x52009230),
    )
]
"""SOP Class, patient, position, orientation, frame of reference, spacing, rescale and its type, units, segments, functional
groups: equal bits can still be another patient's, other values, or belong to other segments or slices."""

_WRITTEN = {file_tag(tag) for tag in (0x00020000, 0x00020003, 0x00020012, 0x00020013, 0x00020016)}
_WRITTEN |= {file_tag(tag) for tag in (0x00080012, 0x00080013, 0x00080023, 0x00080033, 0x04000561)}
"""When and by what a file was written or changed."""

_ENCODING = {file_tag(tag) for tag in (0x00080005, 0x7FE00001, 0x7FE00002)}
_COLOURS = {file_tag(tag) for tag in (0x00280004, 0x00280006)}
"""What says how a data set is encoded (character set, offset tables), and how its pixels are where they are compressed."""

_BULK = re.compile(rb'"BulkDataURI": ?"\?offset=(\d+)&length=(\d+)"')


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

        A file that shows what the current one does (pixels, and what and where they are) is a copy: it becomes current itself.
        One that shows something else is a ``conflict`` where the current one is labelled; else the latest counts and a note
        says so, as where the current one has gone or was written over, and its pixels were never hashed.
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
        pairs: list[tuple[str, Sequence[_File], _File]] = []
        for sop, files in new.items():
            earlier = current.get(sop, [])
            for number, file in enumerate(files):
                before = [known for known in earlier if known.path != file.path]
                written_over = [known for known in earlier if known.path == file.path]
                if others := before or files[:number] or written_over:
                    pairs.append((sop, others, file))
        return self._judged(pairs)

    def _judged(self, pairs: Sequence[tuple[str, Sequence[_File], _File]]) -> dict[str, dict[str, Any]]:
        before = {file.path: file for _, others, new in pairs for file in others if file.path != new.path}
        seen = shown(list(before.values()), self.spark)
        compared = {new.path: new for _, others, new in pairs if any(seen.get(file.path) or file.pixel_hash for file in others)}
        seen |= shown([file for path, file in compared.items() if path not in seen], self.spark)
        labelled, changes = self._labelled(), {}
        for sop, others, new in pairs:
            first = next((file for file in others if file.path != new.path and seen.get(file.path)), others[0])
            one, two = (seen.get(first.path) if first.path != new.path else None), seen.get(new.path)
            change: dict[str, Any] = {"pixel_hash": two.pixels} if two and two.decoded else {}
            if one is None or two is None:
                same = None if not (first.pixel_hash and two and two.decoded) else first.pixel_hash == two.pixels
            else:
                same = one == two
            if same is False and {first.series, sop} & labelled:
                self.conflicts += 1
                change |= {"status": "conflict", "error": f"shows something else than {first.path}, which has a label"}
            elif not same:
                told = "could not be compared with" if same is None else "shows something else than"
                change["note"] = f"{told} {first.path}: the file that was read last counts"
            changes[new.path] = change
        return changes

    def _labelled(self) -> set[str]:
        """Series that have a label revision, and the objects that hold one."""
        found = self.archive.labels.scan(("series_uid", "seg_uid")).read_all()
        return {*found["series_uid"].to_pylist(), *found["seg_uid"].to_pylist()}


def resolve(archive: "Archive", path: str, *, accept: bool) -> str:
    """Decide over a file in conflict: make it the current one of its object, or reject it for good; its status then.

    The decision is a row of its own, with the same key: the latest counts. CatalogError where the file is not in conflict.
    """
    objects = archive.objects
    rows = objects.dataset().filter(pc.field("path") == located(path)).to_table() if objects.version() >= 0 else pa.table({})
    rows = rows.sort_by("ingested_at") if rows.num_rows else rows
    if not rows.num_rows or rows["status"][-1].as_py() != "conflict":
        raise CatalogError("not in conflict", about=path, remedy="see voxloop catalog conflicts")
    (row,) = rows.slice(rows.num_rows - 1).to_pylist()
    status, error = ("ok", None) if accept else ("rejected", f"rejected: it {row['error']}")
    when = max(datetime.now(UTC), row["ingested_at"] + timedelta(microseconds=1))  # the worker's clock may be ahead
    decided = {**row, "status": status, "error": error, "ingested_at": when}
    part = write_part(pa.Table.from_pylist([decided], schema=rows.schema), objects.path)
    objects.commit([part], writer=f"resolve/{uuid.uuid4()}", batch=0)
    return status


@dataclass(frozen=True)
class Shown:
    """What a file shows: sha256 of its ``pixels``, or, unless ``decoded``, of the bytes that encode them; and of the ``header``
    that says what and where they are, or, where there are no pixels, of all of it."""

    pixels: str
    header: str
    decoded: bool = field(compare=False)


def shown(files: Sequence[_File], spark: "SparkSession | None" = None) -> dict[str, Shown | None]:
    """What each file shows, by its path; None where it cannot be read."""
    if spark is None or len(files) < 16:
        return {file.path: _shown(file) for file in files}
    context = spark.sparkContext
    tasks = min(len(files), 8 * context.defaultParallelism)
    return dict(context.parallelize(files, tasks).map(lambda file: (file.path, _shown(file))).collect())


def differing(first: str, second: str, *, but: Collection[int] = ()) -> list[int]:
    """The tags of the attributes, but those in ``but``, in which the data sets of two files differ, however they are encoded,
    first of those that say what is shown; PIXEL_DATA where their pixels alone do.

    Raises OSError, or CatalogError where one cannot be read.
    """
    one, two = walk(first), walk(second)
    left_out = _ENCODING | {file_tag(tag) for tag in but}
    if one.first(_SYNTAX) != two.first(_SYNTAX):
        left_out |= _COLOURS
    theirs, ours = _values(first, one), _values(second, two)
    unlike = [tag for tag in {**theirs, **ours} if tag not in left_out and theirs.get(tag) != ours.get(tag)]
    tags = [file_tag(tag) for tag in sorted(unlike, key=lambda tag: (tag not in _PLACE, file_tag(tag)))]
    pixels = [] if tags else [found.pixels if (found := _shown(_File(path, "", None))) else path for path in (first, second)]
    return [PIXEL_DATA] if len(set(pixels)) > 1 else tags


def _values(path: str, header: Header) -> dict[int, Any]:
    """The attributes of the data set; of a large value, which lies at another place in each file, its hash."""
    found = {}
    with open_binary(path) as opened:
        file: BinaryIO = io.BytesIO(b"".join(inflated(opened))) if header.first(_SYNTAX) == DEFLATED else opened
        for tag, text in header.elements.items():
            if tag & 0xFFFF != 2 and tag >> 16:  # neither of the file meta group nor a group's length
                hashed = _BULK.sub(lambda bulk: b'"hash":"%b"' % _hash(file, int(bulk[1]), int(bulk[2])).encode(), text)
                told = json.loads((b"{%b}" % hashed).decode("utf-8", "surrogateescape"))
                found[tag] = next(iter(told.values()))
    return found


def _shown(file: _File) -> Shown | None:
    from catalog.pixels import pixel_facts

    try:
        header = walk(file.path)
        if header.pixels is None:
            return Shown("", _digest(text for tag, text in header.elements.items() if tag not in _WRITTEN), False)
        place = _digest(header.elements.get(tag, b"") for tag in _PLACE)
        try:
            facts = pixel_facts(file.path)
            return Shown(facts.hash if facts else "", place, True)
        except CatalogError:
            with open_binary(file.path) as opened:
                return Shown(_hash(opened, header.pixels.offset, header.pixels.length), place, False)
    except (OSError, CatalogError):
        return None


def _digest(texts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def _hash(file: BinaryIO, offset: int, length: int) -> str:
    digest = hashlib.sha256()
    file.seek(offset)
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
    rows = [_with(row, changes.get(row["path"], {})) for row in stored.to_pylist()]
    (folder / part.name).unlink(missing_ok=True)
    return write_part(pa.Table.from_pylist(rows, schema=stored.schema), folder)


def _with(row: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    notes = [*(row["notes"] or ()), change["note"]] if "note" in change else row["notes"]
    return {**row, **{name: value for name, value in change.items() if name != "note"}, "notes": notes}
