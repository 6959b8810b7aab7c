"""Files that others send, taken into HOME/volume/stow: each checked, repaired where its fault is known, stored, catalogued.

One bad file spoils no other. What is here already is not stored again and is never written over. Order of writing: journal →
files in place → ``object_catalog``; a crash leaves nothing half visible, and the next command finishes it.
"""

import fcntl
import filecmp
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.conflicts import PIXEL_DATA, differing
from catalog.deflated import DEFLATED, check
from catalog.disk import make_folder, sync_files, sync_folder
from catalog.errors import CatalogError
from catalog.files import exists, is_url, listed
from catalog.repair import faults, mends, repair
from catalog.store import Journal, catalogue
from catalog.walk import BrokenHeader, Header, NotDicom, walk

if TYPE_CHECKING:
    from catalog.archive import Archive

__all__ = ["FOLDER", "Deposited", "Reason", "deposit", "is_uid"]

FOLDER = "stow"
_UIDS = {"StudyInstanceUID": 0x0020000D, "SeriesInstanceUID": 0x0020000E, "SOPInstanceUID": 0x00080018}
_SYNTAX, _CLASS, _ORIGINAL = 0x00020010, 0x00080016, 0x04000561
_COMMENT, _KEYWORD = 64, 25  # characters: of an Error Comment (LO), and of a keyword that fits into it
_HEADER = 1 << 26  # bytes: the frames of the largest segmentations need a tenth of it
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*")


class Reason(IntEnum):
    """Why a file was not stored, or what is to be said of one that was (PS3.4 Table B.2-1, PS3.7 Annex C)."""

    COERCED = 0xB000
    DOES_NOT_FIT_CLASS = 0xB007
    PROCESSING = 0x0110
    DUPLICATE = 0x0111
    CLASS_NOT_SUPPORTED = 0x0122
    OUT_OF_RESOURCES = 0xA700
    DOES_NOT_MATCH_CLASS = 0xA900
    OTHER_STUDY = 0xA901
    NOT_UNDERSTOOD = 0xC000


@dataclass(frozen=True)
class Deposited:
    """What became of one file: stored (or here already) where ``failure`` is None; ``warning`` where it is to be known.

    ``told`` says why in words. The UIDs are empty where the file does not tell them: it is no DICOM object.
    """

    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    sop_class: str = ""
    failure: Reason | None = None
    warning: Reason | None = None
    told: str = ""

    def failed(self, reason: Reason, told: str) -> "Deposited":
        """The same, not stored."""
        return replace(self, failure=reason, warning=None, told=told)


def is_uid(text: str) -> bool:
    """Whether it has the form of a UID (PS3.5 §9.1): components of digits, 64 characters at most."""
    return _UID.fullmatch(text) is not None


def deposit(archive: "Archive", files: Sequence[Path], *, study: str = "") -> list[Deposited]:
    """Store ``files``, which lie below HOME/volume and are moved from there; what became of each, in their order.

    Files are kept byte by byte but for those that ``catalog.repair`` mends. With ``study`` those of other studies are refused.
    An object that is here already is not stored again where it says the same, and refused where it does not.
    """
    taken = [_taken(archive, file, study) for file in files]
    good = [one for one in taken if one.told.failure is None]
    try:
        sync_files([one.mended or one.file for one in good])
        if good:
            with archive.writing(), _alone(archive):
                _Placing(archive).place(good)
    except (OSError, CatalogError) as problem:
        for one in good:
            one.told = one.told.failed(Reason.OUT_OF_RESOURCES, _line(problem))
    return [one.told for one in taken]


@dataclass
class _Taken:
    """A file that was sent, what is known of it, and beside it the file that was mended, where one was."""

    file: Path
    told: Deposited
    mended: Path | None = None


def _taken(archive: "Archive", file: Path, study: str) -> _Taken:
    try:
        header = walk(file, most=_HEADER)
    except NotDicom:
        told = "the part is empty" if not file.stat().st_size else "not a DICOM file"
        return _Taken(file, Deposited().failed(Reason.NOT_UNDERSTOOD, told))
    except BrokenHeader as problem:
        return _Taken(file, _named(problem.header).failed(Reason.NOT_UNDERSTOOD, problem.problem))
    except OSError as problem:
        return _Taken(file, Deposited().failed(Reason.PROCESSING, _line(problem)))
    one = _Taken(file, _checked(file, header, study))
    try:
        with file.open("rb") as opened:
            check(opened)
    except CatalogError as problem:
        return _Taken(file, one.told.failed(Reason.NOT_UNDERSTOOD, problem.problem))
    if one.told.failure is None and mends(one.told.sop_class) and header.first(_SYNTAX) != DEFLATED:
        _mend(archive, one)
    return one


def _named(header: Header) -> Deposited:
    study, series, sop, sop_class = (str(header.first(tag) or "") for tag in (*_UIDS.values(), _CLASS))
    return Deposited(study, series, sop, sop_class)


def _checked(file: Path, header: Header, study: str) -> Deposited:
    told = _named(header)
    with file.open("rb") as opened:
        if opened.read(132)[128:] != b"DICM":
            return told.failed(Reason.NOT_UNDERSTOOD, "no preamble: not a file as PS3.10 has it")
    if not header.first(_SYNTAX):
        return told.failed(Reason.NOT_UNDERSTOOD, "its file meta group names no transfer syntax")
    named = (told.study_uid, told.series_uid, told.sop_uid, told.sop_class)
    for name, uid in zip((*_UIDS, "SOPClassUID"), named, strict=True):
        if not is_uid(uid):
            return told.failed(Reason.DOES_NOT_MATCH_CLASS, f"{name} is {'no UID' if uid else 'missing'}")
    if not _is_stored(told.sop_class):
        return told.failed(Reason.CLASS_NOT_SUPPORTED, "not a class of objects that are stored")
    if study and study != told.study_uid:
        return told.failed(Reason.OTHER_STUDY, "belongs to another study than the one addressed")
    return told


def _is_stored(sop_class: str) -> bool:
    """Whether objects of the class are stored: of the standard's those for storage, and all that others have defined."""
    from pydicom.uid import UID, UID_dictionary

    return sop_class not in UID_dictionary or "Storage" in UID(sop_class).name


def _mend(archive: "Archive", one: _Taken) -> None:
    """Repair the object into a file of its own. One that cannot be looked at is kept as it came: nothing is lost."""
    target = one.file.with_name(f"{one.file.name}-mended")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the file's own peculiarities
            changed, left = _rewritten(archive, one.file, target)
    except Exception as problem:  # pydicom raises whatever its parsers raise
        target.unlink(missing_ok=True)
        one.told = replace(one.told, warning=Reason.DOES_NOT_FIT_CLASS, told=f"stored as it came: {_line(problem)}")
        return
    one.mended = target if target.exists() else None
    if left:
        one.told = replace(one.told, warning=Reason.DOES_NOT_FIT_CLASS, told=left[0])
    elif changed:
        one.told = replace(one.told, warning=Reason.COERCED, told=f"coerced: {', '.join(changed)}")


def _rewritten(archive: "Archive", file: Path, target: Path) -> tuple[list[str], list[str]]:
    """(what was changed in ``target``, what cannot be mended: then nothing is). The pixels, and what follows, are copied."""
    from pydicom import config, dcmread

    with config.disable_value_validation(), file.open("rb") as source:
        dataset = dcmread(source, stop_before_pixels=True)
        header_ends, version = source.tell(), dataset.file_meta.get("FileMetaInformationVersion")
        changed = repair(dataset, archive)
        if left := faults(dataset):
            return [], left
        if changed or dataset.file_meta.get("FileMetaInformationVersion") != version:
            with target.open("wb") as out:
                dataset.save_as(out, enforce_file_format=True)
                source.seek(header_ends)
                shutil.copyfileobj(source, out, 1 << 20)
        return changed, []


class _Placing:
    """Puts files that are in order into their places, for one who has the lock."""

    def __init__(self, archive: "Archive") -> None:
        self.archive, self.root = archive, archive.volume_folder / FOLDER
        self.grown = set[Path]()  # folders in which others were made
        self.put: dict[str, Path] = {}  # what this request has brought: the index does not know it yet

    def place(self, good: Sequence[_Taken]) -> None:
        """Move what is not here, catalogue it, and let the index follow."""
        archive, journal = self.archive, Journal(self.archive.home, f"stow/{uuid.uuid4()}")
        archive.index.follow(archive.objects)
        targets = [self._target(one.told) for one in good]
        journal.open(targets)
        there = [target for one, target in zip(good, targets, strict=True) if self._tried(one, target)]
        for folder in self.grown | {target.parent for target in there}:
            sync_folder(folder)
        catalogue(archive, [listed(path) for path in dict.fromkeys(there)])
        journal.close()
        archive.index.follow(archive.objects)

    def _target(self, told: Deposited) -> Path:
        return self.root / told.study_uid / told.series_uid / f"{told.sop_uid}.dcm"

    def _tried(self, one: _Taken, target: Path) -> bool:
        """As ``_put``; what the system refuses of one spoils no other."""
        try:
            return self._put(one, target)
        except OSError as problem:
            one.told = one.told.failed(Reason.PROCESSING, _line(problem))
            return False

    def _put(self, one: _Taken, target: Path) -> bool:
        """Whether the object is at ``target``, put there now or before."""
        if self.put.get(one.told.sop_uid, target) != target:
            one.told = one.told.failed(Reason.DUPLICATE, "sent in another series, too (give it a UID of its own)")
            return False
        here = str(target) if target.exists() else self._elsewhere(one)
        if one.told.failure is not None:
            return False
        if not here:
            self.grown |= make_folder(target.parent)
            os.replace(one.mended or one.file, target)
            self.put[one.told.sop_uid] = target
            return True
        if not is_url(here) and filecmp.cmp(one.file, here, shallow=False):
            if one.mended:
                one.told = replace(one.told, warning=Reason.DOES_NOT_FIT_CLASS, told="stored before, as it came")
        elif told := _unlike(one, here):
            one.told = one.told.failed(Reason.DUPLICATE, told)
            return False
        return here == str(target)

    def _elsewhere(self, one: _Taken) -> str:
        """Where the catalog has the object, if that is still there; one of another series is another object."""
        found = self.archive.index.instance(one.told.sop_uid)
        if found is None or not exists(found.path):
            return ""
        if (found.study_uid, found.series_uid) != (one.told.study_uid, one.told.series_uid):
            one.told = one.told.failed(Reason.DUPLICATE, "stored in another series (give it a UID of its own)")
        return found.path


def _unlike(one: _Taken, here: str) -> str:
    """What makes the file another object than the one of its UID that is ``here``; empty where both say the same."""
    try:
        tags = differing(str(one.mended or one.file), here, but=[_ORIGINAL] if one.mended else ())
    except (OSError, CatalogError):
        tags = [PIXEL_DATA]
    return "stored with other content (give it a UID of its own)" if tags == [PIXEL_DATA] else _differs(tags)


def _differs(tags: Sequence[int]) -> str:
    """In words: as many of the attributes as an Error Comment has room for, one without a short keyword by its tag."""
    from pydicom.datadict import keyword_for_tag

    words = [keyword_for_tag(tag) or "" for tag in tags]
    pairs = zip(words, tags, strict=True)
    names = [word if 0 < len(word) <= _KEYWORD else f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for word, tag in pairs]
    told = ""
    for count in range(1, len(names) + 1):
        more = f", {len(names) - count} more" if count < len(names) else ""
        longer = f"differs in {', '.join(names[:count])}{more}: give it a new UID"
        if told and len(longer) > _COMMENT:
            break
        told = longer
    return told


@contextmanager
def _alone(archive: "Archive") -> Iterator[None]:
    """One at a time, of all processes: who finds an object absent is the one to store it."""
    with (archive.home / ".stowing").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _line(problem: Any) -> str:
    if isinstance(problem, CatalogError):
        return problem.problem
    return " ".join(str(problem).split())[:200] or type(problem).__name__
