"""Archives unpacked into files of their own: zip, tar (also gzipped, bzip2ed, xzed), a single compressed file, one in another.

An archive is what its content says, whatever its name. It is read in this process, into a folder that appears whole or not at
all, by names that lead nowhere else; what it takes is counted while it is read and never believed beforehand.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections import deque
from dataclasses import replace
from pathlib import Path

from catalog._members import Budget, Damaged, Into, Limits, Member
from catalog.content import archive_kind
from catalog.disk import TEMPORARY, full_disk, remove_leftovers, sync_files, sync_folder
from catalog.errors import CatalogError
from catalog.files import Listed, utf8

__all__ = ["Limits", "archive_kind", "unpacked"]

_MANIFEST = "manifest.json"
_LIMITS = Limits()


def unpacked(archive: Listed, into: Path, limits: Limits = _LIMITS) -> list[Listed]:
    """What ``archive`` holds, unpacked below the folder ``into``, at once where that was done before.

    An archive is the same while path, modification time and length are, and keeps its folder; a changed one gets a new folder.
    Of each file ``original`` is ``archive!member``, and ``modified`` the archive's. Nested archives are listed, and what they
    hold as ``archive!nested!member``: none of it is to be unpacked again. A member that is a link or a device, encrypted or
    damaged is listed with its ``problem``, ``path`` being its ``original``. A name that is no plain relative path, or that is
    there twice, is kept in ``original`` only: no member lies outside its folder, none is written over another.

    Raises CatalogError, with nothing left behind, where the archive is damaged, holds more than ``limits``, or the disk is
    full; OSError where it cannot be read.
    """
    key = "\0".join(map(str, archive.key))
    folder = into / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not (folder / _MANIFEST).exists():
        with full_disk(into):
            into.mkdir(parents=True, exist_ok=True)
            remove_leftovers(into)
            _appear(archive, folder, limits)
    members = json.loads((folder / _MANIFEST).read_text())["members"]
    return [
        Listed(str(folder / path) if path else name, archive.modified, length, problem, name)
        for path, length, problem, name in members
    ]


def _appear(archive: Listed, folder: Path, limits: Limits) -> None:
    """Make ``folder``, which is there when all is in it."""
    partial = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{os.getpid()}-", dir=folder.parent))
    try:
        members = _unpack(archive, partial, limits)
        listing = [(str(m.path.relative_to(partial)) if m.path else "", m.length, m.problem, m.name) for m in members]
        manifest = {"archive": archive.path, "modified": archive.modified, "length": archive.length, "members": listing}
        (partial / _MANIFEST).write_text(json.dumps(manifest))
        sync_files([partial / _MANIFEST, *(member.path for member in members if member.path)])
        partial.chmod(0o755)
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / _MANIFEST).exists():  # else another process was faster
                raise
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack(archive: Listed, folder: Path, limits: Limits) -> list[Member]:
    """Unpack ``archive`` and the archives in it, each into a numbered folder."""
    budget, done = Budget(archive, limits), list[Member]()
    members = _members(archive.path, Into(budget, folder / "0", archive.path))
    if isinstance(members, str):
        raise CatalogError(members, about=utf8(archive.path), remedy="copy or send it again")
    waiting = deque((member, 1) for member in members)
    number = 0
    while waiting:
        member, depth = waiting.popleft()
        if member.path and archive_kind(member.path):
            number += 1
            budget.nest(depth + 1)
            members = _members(str(member.path), Into(budget, folder / str(number), member.name))
            if isinstance(members, str):
                member = replace(member, problem=members)
            else:
                waiting.extend((inner, depth + 1) for inner in members)
        done.append(member)
    return done


def _members(path: str, into: Into) -> list[Member] | str:
    """The members of one archive; what is wrong with it where it is damaged, and nothing of it is kept."""
    try:
        return list(into.unpack(path))
    except Damaged as problem:
        shutil.rmtree(into.folder, ignore_errors=True)
        return f"the archive is damaged: {problem}"
