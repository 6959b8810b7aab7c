"""Files by local path or by the URL of any storage that fsspec knows: listed, opened, read here and there.

Hadoop's schemes are taken too (``s3a`` is fsspec's ``s3``, ``abfss`` its ``abfs``, ``file`` this machine). Credentials are
fsspec's affair: its own configuration and the storage's environment variables. What a storage raises becomes an OSError.
"""

import os
import re
import stat
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, cast

from catalog.disk import TEMPORARY
from catalog.errors import CatalogError

__all__ = ["Key", "Listed", "exists", "is_url", "list_files", "listed", "located", "on_disk", "open_binary", "ranged", "utf8"]

Key = tuple[str, int, int]
"""(path, modificationTime in µs since 1970, length): the key of ``object_catalog``."""

_BLOCK = 1 << 20
"""Bytes that an opened URL is read in."""

_RANGE = 1 << 17
"""Bytes of a URL's file that are asked for at least: what comes cheaply with one request."""

_SCHEMES = {"s3a": "s3", "s3n": "s3", "abfss": "abfs"}
_PACKAGES = {"smbclient": "smbprotocol"}
_HADOOP = "install Java and Hadoop's client and set JAVA_HOME, HADOOP_HOME and CLASSPATH, or give a webhdfs:// URL"
_CREDENTIALS = "check the address, and the storage's credentials in fsspec's configuration or the environment"


@dataclass(frozen=True)
class Listed:
    """One file as its storage shows it; ``problem`` says why it cannot be opened.

    ``modified`` is in µs since 1970, 0 where the storage does not tell it. ``original`` is ``archive!member`` where the file
    was in an archive.
    """

    path: str
    modified: int
    length: int
    problem: str = ""
    original: str = ""

    @property
    def key(self) -> Key:
        """What makes it the same file as before."""
        return utf8(self.path), self.modified, self.length


def utf8(name: str) -> str:
    """``name`` as UTF-8 can hold it: bytes of a file name that are not UTF-8 are written ``\\xNN``."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a URL (``s3://bucket/key``, ``zip://member::hdfs://host/file``) and not a local path."""
    return "://" in (text := os.fspath(path)) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)", text) is not None


def located(path: str | os.PathLike[str]) -> str:
    """``path`` as the catalog writes it: absolute where it is local (or ``file://``), by fsspec's scheme where it is a URL."""
    text = os.fspath(path)
    if local := re.match(r"(?:file|local):(?://)?(/.*)", text, re.DOTALL):
        return os.path.abspath(local[1])
    if not is_url(text):
        return os.path.abspath(text)
    scheme, colon, rest = text.partition(":")
    return _SCHEMES.get(scheme.lower(), scheme.lower()) + colon + rest


def listed(path: str | os.PathLike[str]) -> Listed:
    """The state of one file that is there, here or at a URL. Raises OSError."""
    if not is_url(path):
        there = on_disk(path)
        return _listed(os.path.abspath(there), os.stat(there))
    storage, name = _storage(path)
    with _answering(path):
        return _remote(storage, storage.info(name), located(path))


def list_files(
    root: str | os.PathLike[str], *, skip: Collection[str] = (), pattern: str = "*", recurse: bool = True
) -> Iterator[Listed]:
    """Every file under ``root`` (or ``root`` itself) whose name fits ``pattern``; without ``recurse`` those directly in it.

    Through symbolic links, each folder once however often it is linked. Left out are folders whose real path is in ``skip``,
    and what is still being written (``disk.TEMPORARY``). What cannot be opened is listed with its problem, and so is a folder
    that cannot be read. ``pattern`` is Hadoop's as in Spark's ``pathGlobFilter``: ``* ? [a-z] [^a] {a,b} \\c``. No more is
    held than one folder's entries. CatalogError where ``root`` is not there, or its storage does not answer.
    """
    start, fits = located(root), _glob(pattern)
    walk = _list_url if is_url(start) else _list_local
    return (file for file, name in walk(start, skip, recurse) if name is None or fits(name))


Found = Iterator[tuple[Listed, str | None]]
"""Files with their names; a folder with its problem has none."""


def _list_local(start: str, skip: Collection[str], recurse: bool) -> Found:
    if not os.path.isdir(start):
        try:
            yield listed(start), os.path.basename(start)
        except FileNotFoundError:
            raise CatalogError("no such folder or file", about=utf8(start), remedy="check the path") from None
        return
    folders, entered = [start], {os.path.realpath(start)}
    while folders:
        folder = folders.pop()
        try:
            entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(TEMPORARY)), key=lambda entry: entry.name)
        except OSError as problem:
            yield Listed(folder, 0, 0, f"the folder cannot be read: {problem.strerror}"), None
            continue
        for entry in entries:
            if not _is_folder(entry):
                yield _entry(entry), entry.name
                continue
            real = os.path.realpath(entry.path)
            if recurse and real not in entered and real not in skip:
                entered.add(real)
                folders.append(entry.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entry(entry: "os.DirEntry[str]") -> Listed:
    try:
        found = entry.stat()
    except OSError as problem:
        there = entry.stat(follow_symlinks=False)
        return Listed(entry.path, there.st_mtime_ns // 1000, there.st_size, f"the link leads nowhere: {problem.strerror}")
    return _listed(entry.path, found)


def _listed(path: str, found: os.stat_result) -> Listed:
    problem = "" if stat.S_ISREG(found.st_mode) else "not a regular file"
    return Listed(path, found.st_mtime_ns // 1000, found.st_size, problem)


def _list_url(start: str, skip: Collection[str], recurse: bool) -> Found:
    storage, base = _storage(start)
    # a storage may write a file's name otherwise than its URL did: only what follows the root's is taken from it
    head, chain, tail = start.partition("::")
    head, base = (head if head.endswith("://") else head.rstrip("/")), base.rstrip("/")

    def url(name: str) -> str:
        return head + name.rstrip("/")[len(base) :] + chain + tail

    try:
        with _answering(start):
            storage.invalidate_cache()
            folder = head.endswith("://") or (one := storage.info(base))["type"] == "directory"
            # a web server's folder is a page like any other: a slash at the end tells that the listing is meant
            if not folder and not (start.endswith("/") and storage.isdir(base)):
                yield _remote(storage, one, start), _name(base)
                return
    except OSError as problem:
        missing = isinstance(problem, FileNotFoundError)
        said = "no such folder or file" if missing else f"cannot be read: {_line(problem)}"
        raise CatalogError(said, about=start, remedy="check the address" if missing else _CREDENTIALS) from None
    folders = [base]
    while folders:
        folder = folders.pop()
        try:
            with _answering(start):
                entries = sorted(storage.ls(folder, detail=True), key=lambda entry: str(entry["name"]))
            storage.invalidate_cache(folder)  # it would keep every listing
        except OSError as problem:
            yield Listed(url(folder), 0, 0, f"the folder cannot be read: {_line(problem)}"), None
            continue
        for entry in entries:
            name = entry["name"].rstrip("/")
            if name == folder or _name(name).startswith(TEMPORARY):
                continue
            if entry["type"] != "directory":
                yield _remote(storage, entry, url(name)), _name(name)
            elif recurse and url(name) not in skip:
                folders.append(name)


def _remote(storage: Any, entry: dict[str, Any], url: str) -> Listed:
    problem, length = "", entry.get("size")
    if entry["type"] != "file":
        problem = "not a regular file"
    elif length is None:
        try:
            with _answering(url):
                length = storage.size(entry["name"])
            problem = "" if length is not None else "the storage does not tell its length"
        except OSError as unanswered:
            problem = f"its length cannot be asked for: {_line(unanswered)}"
    return Listed(url, _modified(storage, entry), length or 0, problem)


def _modified(storage: Any, entry: dict[str, Any]) -> int:
    """When a file was last written, by the names and in the units that fsspec's storages use."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "modified", "modify"):
        if entry.get(name) is not None:
            return _microseconds(entry[name])
    if "modificationTime" in entry:  # WebHDFS, in milliseconds
        return int(entry["modificationTime"]) * 1000
    try:
        return _microseconds(storage.modified(entry["name"]))
    except (NotImplementedError, AttributeError, KeyError, OSError):
        return 0


def _microseconds(when: Any) -> int:
    if isinstance(when, (int, float)):
        return round(when * 1_000_000)
    if isinstance(when, str):
        compact = re.match(r"\d{14}", when)  # FTP's
        when = datetime.strptime(compact[0], "%Y%m%d%H%M%S") if compact else datetime.fromisoformat(when)
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return int((when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file or folder at ``path``; of a URL one question to its storage."""
    if not is_url(path):
        return os.path.exists(on_disk(path))
    storage, name = _storage(path)
    with _answering(path):
        return bool(storage.exists(name))


def open_binary(path: str | os.PathLike[str]) -> BinaryIO:
    """``path`` opened to read bytes, seekable. Raises OSError, CatalogError where its storage's package is missing."""
    if not is_url(path):
        return open(on_disk(path), "rb")
    storage, name = _storage(path)
    with _answering(path):
        file = storage.open(name, "rb", block_size=_BLOCK)
    weakref.finalize(file, id, storage)  # an archive's storage closes it when it goes itself
    return cast(BinaryIO, file)


def ranged(url: str | os.PathLike[str], length: int | None = None) -> tuple[Callable[[int, int], bytes], int]:
    """(a function from (length, offset) to the bytes there, as ``os.pread``; the file's length) of a URL.

    By one request each _RANGE bytes or more, none for what came with the last. ``length``, where it is known, saves one.
    """
    storage, name = _storage(url)
    with _answering(url):
        size = int(storage.size(name) if length is None else length)
    held, begins = b"", 0

    def read(length: int, at: int) -> bytes:
        nonlocal held, begins
        end = min(at + length, size)
        if at < end and not begins <= at <= end <= begins + len(held):
            until = min(max(end, at + _RANGE), size)
            with _answering(url):
                held = storage.cat_file(name, start=at, end=until)
            begins = at if len(held) <= until - at else 0  # some web servers know no ranges and send all of it
        return held[at - begins : end - begins] if at < end else b""

    return read, size


def _storage(url: str | os.PathLike[str]) -> tuple[Any, str]:
    """(fsspec's file system, the name in it) of a URL."""
    from fsspec.core import url_to_fs

    text = located(url)
    try:
        storage, name = url_to_fs(text)
    except ImportError as problem:
        needed = str(getattr(problem.__cause__, "name", None) or problem.name or "").partition(".")[0]
        remedy = f"pip install {_PACKAGES.get(needed, needed)}" if needed else _line(problem)
        raise CatalogError(
            f"{text.partition(':')[0]}:// needs a package that is not installed", about=text, remedy=remedy
        ) from None
    except ValueError as problem:  # fsspec's word for a scheme that nobody has registered
        raise CatalogError(_line(problem), about=text, remedy="give a local path or a URL that fsspec knows") from None
    except Exception as problem:  # what its library raises
        remedy = _HADOOP if "libjvm" in str(problem) or "libhdfs" in str(problem) else _CREDENTIALS
        raise CatalogError(f"its storage cannot be reached: {_line(problem)}", about=text, remedy=remedy) from None
    return storage, str(name)


@contextmanager
def _answering(url: str | os.PathLike[str]) -> Iterator[None]:
    """Storages raise their libraries' errors: make them one kind."""
    try:
        yield
    except (OSError, CatalogError):
        raise
    except Exception as problem:
        raise OSError(f"{os.fspath(url)}: {type(problem).__name__}: {_line(problem)}") from problem


def on_disk(path: str | os.PathLike[str]) -> str:
    """What the system calls the local file that the catalog writes as ``path``: ``utf8`` undone where it must be."""
    text = os.fspath(path)
    if "\\x" not in text or os.path.lexists(text):
        return text
    return os.fsdecode(re.sub(rb"\\x([0-9a-f]{2})", lambda byte: bytes.fromhex(byte[1].decode()), os.fsencode(text)))


def _glob(pattern: str) -> Callable[[str], object]:
    """Whether a name fits a Hadoop glob."""
    out, depth, at = "", 0, 0
    while at < len(pattern):
        character, at = pattern[at], at + 1
        end = pattern.find("]", at + 1)
        if character == "\\" and at < len(pattern):
            out, at = out + re.escape(pattern[at]), at + 1
        elif character == "[" and end > 0:
            inside = pattern[at:end].replace("\\", "\\\\").replace("[", "\\[")
            out, at = f"{out}[{'^' if inside[0] in '^!' else ''}{inside[1:] if inside[0] in '^!' else inside}]", end + 1
        elif character == "{":
            out, depth = out + "(?:", depth + 1
        elif depth and character in ",}":
            out, depth = out + ("|" if character == "," else ")"), depth - (character == "}")
        else:
            out += {"*": ".*", "?": "."}.get(character, re.escape(character))
    try:
        return re.compile(out, re.DOTALL).fullmatch
    except re.error:
        raise CatalogError("not a file name pattern", about=pattern, remedy="as in *.dcm, IM[0-9]* or *.{dcm,ima}") from None


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _line(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:200] or type(problem).__name__
