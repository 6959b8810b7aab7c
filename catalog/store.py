"""Objects into a home, in the order file → ``object_catalog`` → ``labels``, ``predictions`` → ``features``.

A journal says what a crash has interrupted.
"""

import io
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.conflicts import Settler
from catalog.disk import TEMPORARY, atomic_file, remove_leftovers
from catalog.errors import CatalogError
from catalog.files import Listed, listed
from catalog.objects import commit_absent, known, rows
from catalog.sources import gone
from catalog.table import write_part
from catalog.uids import deterministic_uid

if TYPE_CHECKING:
    from pydicom import Dataset

    from catalog.archive import Archive

__all__ = ["Journal", "adopt", "catalogue", "finish", "label_rows", "put"]


class Journal:
    """What is being written, in a file of HOME/journal that is there exactly while it is being written.

    ``label`` is the event to follow the files; ``measured`` are the segmentations (SOPInstanceUIDs) whose features are.
    """

    def __init__(self, home: Path, work: str, *, label: Mapping[str, Any] | None = None, measured: Sequence[str] = ()) -> None:
        self._file = home / "journal" / f"{deterministic_uid('journal', work, str(uuid.uuid4()))}.json"
        self._label = label
        self._measured = [*measured, *([label["seg_uid"]] if label else [])]

    def open(self, paths: Iterable[Path]) -> None:
        """Say which files are about to be written."""
        entry = {"paths": [str(path) for path in paths], "label": self._label, "measured": self._measured}
        with atomic_file(self._file) as file:
            file.write(json.dumps(entry).encode())

    def close(self) -> None:
        """Everything is in the tables."""
        self._file.unlink(missing_ok=True)


def put(archive: "Archive", datasets: "Iterable[Dataset]", *, folder: str, journal: Journal) -> list[Path]:
    """Write the files that are not there, then their rows; the journal stays open for the caller where it has a label."""
    placed = [(dataset, _place(archive.volume_folder / folder, dataset)) for dataset in datasets]
    paths = [path for _, path in placed]
    journal.open(paths)
    for dataset, path in placed:
        if path.exists() and not _same_pixels(path, dataset):
            journal.close()
            problem = "already stored with other pixels"
            raise CatalogError(problem, about=dataset.SOPInstanceUID, remedy="give the new object a SOPInstanceUID of its own")
    for dataset, path in placed:
        if not path.exists():
            with atomic_file(path) as file:
                dataset.save_as(file, enforce_file_format=True)
    catalogue(archive, [listed(path) for path in paths])
    if journal._label is None:
        journal.close()
    return paths


def adopt(archive: "Archive", paths: Sequence[Path], *, journal: Journal) -> int:
    """Rows for files that are in place; how many."""
    for path in paths:
        if not path.is_relative_to(archive.volume_folder):
            remedy = f"write it below {archive.home / 'volume'}, or ingest it"
            raise CatalogError("does not lie in the home's volume", about=str(path), remedy=remedy)
        if not path.is_file():
            raise gone(path)
    journal.open(paths)
    added = catalogue(archive, [listed(path) for path in paths])
    journal.close()
    return added


def catalogue(archive: "Archive", files: list[Listed]) -> int:
    """Rows for those of ``files`` that ``object_catalog`` does not have as they are; how many."""
    if not files:
        return 0
    table, root = archive.objects, archive.volume_folder
    read = table.version()
    present = known(table, read, files)
    new = [file for file in files if file.key not in present]
    if not new:
        return 0
    table.create()
    part = write_part(rows(new, root), table.path)
    settle = Settler(archive).settle
    _, committed = commit_absent(table, [part], writer=f"store/{uuid.uuid4()}", read=max(read, 0), settle=settle)
    return sum(part.rows for part in committed)


def finish(archive: "Archive") -> list[str]:
    """Work off the journal; the caller holds the lock that no writer holds."""
    done = []
    for file in sorted((archive.home / "journal").glob("*.json")):
        entry = json.loads(file.read_text())
        paths = [Path(path) for path in entry["paths"]]
        there = [path for path in paths if path.exists()]
        added = catalogue(archive, [listed(path) for path in there])
        if added:
            done.append(f"catalogued {added} stored files that a crash had left out")
        done += _finish_label(archive, entry["label"], bool(there))
        done += _finish_features(archive, entry.get("measured", ()))
        for folder in {path.parent for path in paths}:
            for left in folder.glob(f"{TEMPORARY}*"):
                left.unlink(missing_ok=True)
                done.append(f"removed the half-written {left.name}")
            with suppress(OSError):
                folder.rmdir()  # refused where something is in it
        file.unlink()
    for left in (archive.home / "journal").glob(f"{TEMPORARY}*"):
        left.unlink(missing_ok=True)
    remove_leftovers(archive.volume_folder / "stow")  # what an interrupted upload had brought
    return done


def _finish_label(archive: "Archive", label: Mapping[str, Any] | None, there: bool) -> list[str]:
    if label is None:
        return []
    if not there:
        return [f"dropped label {label['label_id']}, whose segmentation was never written"]
    archive.labels.append(label_rows(label), writer=f"label/{label['label_id']}", batch=0)
    return [f"completed label {label['label_id']}"]


def _finish_features(archive: "Archive", uids: Sequence[str]) -> list[str]:
    """What is measured of those that have become a label or a prediction."""
    from catalog import features

    todo = features.lacking(archive, uids)
    for subject, structures in todo:
        rows = features.of_files(archive, subject, structures)
        features.append(archive, rows, writer=features.writer(subject.source_uid))
    later = {subject.source_uid for subject, _ in features.lacking(archive, uids)}
    return [f"measured {subject.source} {subject.source_uid}" for subject, _ in todo if subject.source_uid not in later]


def label_rows(label: Mapping[str, Any]) -> Any:
    """One row of ``labels`` from its JSON form."""
    import pyarrow as pa

    from catalog.schemas import LABELS

    row = {**label, "states": list(label["states"].items())}
    return pa.Table.from_pylist([row], schema=LABELS)


def _place(folder: Path, dataset: "Dataset") -> Path:
    uids = [str(dataset.get(name) or "") for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    if not all(uid and set(uid) <= set("0123456789.") and uid.strip(".") for uid in uids):
        raise CatalogError(
            "a UID is missing or is not one", about=" / ".join(uids), remedy="mend the object and store it again"
        )
    return folder / uids[0] / uids[1] / f"{uids[2]}.dcm"


_SHOWN = ("SOPClassUID", "PixelData", "PerFrameFunctionalGroupsSequence", "SegmentSequence", "ImagePositionPatient")


def _same_pixels(path: Path, dataset: "Dataset") -> bool:
    """Whether both show the same; dates and times of writing may differ."""
    from pydicom import dcmread

    written = io.BytesIO()
    dataset.save_as(written, enforce_file_format=True)
    written.seek(0)
    ours, theirs = dcmread(path), dcmread(written)
    # The frames of two masks can be equal bit for bit and still belong to other segments or slices.
    return all(ours.get(name) == theirs.get(name) for name in _SHOWN)
