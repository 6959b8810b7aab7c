"""Files here and at URLs: each listed once with its reason if it has one, read by few requests, told what it is."""

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import highdicom as hd
import numpy as np
import pydicom
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from catalog import Archive, CatalogError
from catalog.content import archive_kind, describe
from catalog.files import Listed, exists, is_url, list_files, listed, located, open_binary
from catalog.nifti import is_nifti, nifti_header
from catalog.objects import commit_absent, rows
from catalog.series import write_series
from catalog.sources import read_dataset
from catalog.table import write_part
from catalog.walk import BrokenHeader, Header, NotDicom, walk

Data = Callable[[str], Path]
Noise = Callable[..., hd.Volume]


class Counted(MemoryFileSystem):
    """A storage that counts what it is asked, writes its times as S3 does, and has a folder that nobody may list."""

    protocol = "counted"
    store: dict[str, Any] = {}  # noqa: RUF012 (as in its parent)
    pseudo_dirs = [""]  # noqa: RUF012
    asked: Counter[str] = Counter()  # noqa: RUF012
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(str(path).replace("counted://", "memory://")))

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        self.asked["ls"] += 1
        if path.endswith("locked"):
            raise PermissionError(13, "Access Denied")
        if path.endswith("failing"):
            raise RuntimeError("a library's own error")
        when = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
        return [{**entry, "LastModified": when} for entry in super().ls(path, detail=True, **options)]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self.asked["range"] += 1
        assert end is not None and start is not None and end - start < 1 << 20
        return bytes(super().cat_file(path, start=start, end=end, **options))

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self.asked["info"] += 1
        return dict(super().info(path, **options))


@pytest.fixture
def storage() -> Counted:
    """The counted storage, empty."""
    fsspec.register_implementation("counted", Counted, clobber=True)
    Counted.store, Counted.pseudo_dirs = {}, [""]
    Counted.asked.clear()
    return Counted()


def content(path: str) -> bytes:
    with open_binary(path) as file:
        return file.read()


def names(found: Iterator[Listed], root: str | Path) -> list[str]:
    return sorted(os.path.relpath(file.path, root) for file in found)


# -- local folders


def test_every_file_is_listed_once_whatever_links_there_are(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "1.dcm").write_bytes(b"1")
    (tmp_path / "a" / "b" / "2").write_bytes(b"22")
    (tmp_path / "a" / "b" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "twice").symlink_to(tmp_path / "a" / "b")
    (tmp_path / "file").symlink_to(tmp_path / "a" / "1.dcm")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".tmp-1-x").write_bytes(b"being written")
    os.mkfifo(tmp_path / "pipe")
    found = {os.path.relpath(file.path, tmp_path): file for file in list_files(tmp_path)}
    assert sorted(file.length for name, file in found.items() if name.rpartition("/")[2] in ("1.dcm", "2", "file")) == [1, 1, 2]
    assert len(found) == 5
    assert "leads nowhere" in found["lost"].problem and found["pipe"].problem == "not a regular file"
    assert [file.problem for file in list_files(tmp_path / "pipe")] == ["not a regular file"]
    assert names(list_files(tmp_path, skip={str(tmp_path / "a" / "b")}), tmp_path) == ["a/1.dcm", "file", "lost", "pipe"]
    assert found["file"].modified == (tmp_path / "file").stat().st_mtime_ns // 1000
    assert list(list_files(tmp_path / "a" / "1.dcm")) == [listed(tmp_path / "a" / "1.dcm")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_read_is_listed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0)
    (found,) = list_files(tmp_path, pattern="*.dcm")
    assert "cannot be read" in found.problem


def test_a_folder_that_goes_while_it_is_listed_is_listed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "file").write_bytes(b"1")
    found = list_files(tmp_path)
    assert next(found).path == str(tmp_path / "file")
    (tmp_path / "a").rmdir()
    (gone,) = found
    assert gone.path == str(tmp_path / "a") and "cannot be read" in gone.problem


@pytest.mark.parametrize("where", ["local", "url"])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["IM1", "IM10", "a.dcm", "b.DCM", "c.ima", "x[1]", "x{1}"]),
        ("*.dcm", ["a.dcm"]),
        ("*.{dcm,DCM,i{m,n}a}", ["a.dcm", "b.DCM", "c.ima"]),
        ("IM?", ["IM1"]),
        ("IM[0-9]*", ["IM1", "IM10"]),
        ("[^Ixb]*", ["a.dcm", "c.ima"]),
        ("[!Ixb]*", ["a.dcm", "c.ima"]),
        ("x\\[1\\]", ["x[1]"]),
        ("x\\{1\\}", ["x{1}"]),
        ("a,*", []),
    ],
)
def test_names_are_chosen_as_spark_chooses_them(
    tmp_path: Path, storage: Counted, where: str, pattern: str, expected: list[str]
) -> None:
    for name in ("a.dcm", "b.DCM", "c.ima", "IM1", "IM10", "x[1]", "x{1}"):
        (tmp_path / name).write_bytes(b"1")
        storage.pipe_file(f"/in/{name}", b"1")
    root = str(tmp_path) if where == "local" else "counted://in"
    assert sorted(file.path.rpartition("/")[2] for file in list_files(root, pattern=pattern)) == expected


def test_without_recursion_only_the_folder_itself(tmp_path: Path, storage: Counted) -> None:
    (tmp_path / "a").mkdir()
    for name in ("1", "a/2"):
        (tmp_path / name).write_bytes(b"1")
        storage.pipe_file(f"/in/{name}", b"1")
    assert names(list_files(tmp_path, recurse=False), tmp_path) == ["1"]
    assert [file.path for file in list_files("counted://in", recurse=False)] == ["counted://in/1"]


def test_a_name_that_is_not_utf_8_is_found_again_by_what_the_catalog_writes(tmp_path: Path) -> None:
    odd = os.path.join(os.fsencode(tmp_path), b"caf\xe9.dcm")
    with open(odd, "wb") as file:
        file.write(b"1")
    (tmp_path / "a\\xe9").write_bytes(b"22")  # so is really its name
    written = {file.key[0] for file in list_files(tmp_path)}
    assert written == {f"{tmp_path}/caf\\xe9.dcm", f"{tmp_path}/a\\xe9"}
    assert all(exists(path) for path in written) and not exists(f"{tmp_path}/no\\xe9")
    assert {content(path) for path in written} == {b"1", b"22"}


@pytest.mark.parametrize("root", ["{tmp}/nowhere", "counted://nowhere", "file://{tmp}/nowhere"])
def test_what_is_not_there_says_so(tmp_path: Path, storage: Counted, root: str) -> None:
    with pytest.raises(CatalogError, match=r"no such folder or file \(check"):
        list(list_files(root.format(tmp=tmp_path)))


# -- URLs


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("s3a://bucket/a b", "s3://bucket/a b"),
        ("S3://bucket/a", "s3://bucket/a"),
        ("abfss://box@account.dfs.core.windows.net/a", "abfs://box@account.dfs.core.windows.net/a"),
        ("hdfs://host:8020/a", "hdfs://host:8020/a"),
        ("file:///data/../a", "/a"),
        ("file:/data/a", "/data/a"),
        ("/data//a/", "/data/a"),
        ("zip://in::s3://bucket/a.zip", "zip://in::s3://bucket/a.zip"),
    ],
)
def test_one_place_is_written_one_way(given: str, written: str) -> None:
    assert located(given) == written and is_url(written) == ("://" in written)


def test_a_local_name_is_not_taken_for_a_url(tmp_path: Path) -> None:
    assert not any(map(is_url, [tmp_path / "s3:" / "a", "/s3://a", "C:\\a", "./s3:a", "study::1"]))


def test_a_url_is_listed_with_times_and_lengths(storage: Counted) -> None:
    for name in ("1.dcm", "a/b/2", "a/.tmp-3-x", "locked/4", "failing/5"):
        storage.pipe_file(f"/in/{name}", b"12")
    found = {file.path: file for file in list_files("counted://in/")}
    when = round(datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC).timestamp() * 1_000_000)
    assert found["counted://in/a/b/2"] == Listed("counted://in/a/b/2", when, 2)
    assert "Access Denied" in found["counted://in/locked"].problem
    assert "a library's own error" in found["counted://in/failing"].problem
    assert sorted(found) == [f"counted://in/{name}" for name in ("1.dcm", "a/b/2", "failing", "locked")]
    assert next(list_files("counted://in/1.dcm")).path == "counted://in/1.dcm"
    assert len(list(list_files("counted://"))) == 4
    assert len(list(list_files("counted://in", skip={"counted://in/a"}))) == 3


def test_chained_urls_are_listed_and_read(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/1.dcm", b"one")
    (file,) = list_files(f"zip://in::file://{tmp_path}/a.zip")
    assert file.path == f"zip://in/1.dcm::file://{tmp_path}/a.zip" and file.length == 3
    assert content(file.path) == b"one" and exists(file.path)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    for call in (lambda: list(list_files("s3a://bucket/a")), lambda: walk("s3://bucket/a"), lambda: exists("s3://bucket/a")):
        with pytest.raises(CatalogError, match=r"s3://bucket/a: s3:// needs a package .*pip install s3fs"):
            call()
    with pytest.raises(CatalogError, match="nonsense"):
        list(list_files("nonsense://a"))


def outcome(path: str | Path, **options: Any) -> Any:
    try:
        found = walk(path, **options)
    except BrokenHeader as problem:
        return type(problem), problem.problem, problem.header.text
    except NotDicom:
        return NotDicom
    return found.text, found.pixels, found.notes


def test_a_header_is_the_same_by_url_and_takes_few_requests(data: Data, storage: Counted) -> None:
    folder, ranges = data("transfer_syntaxes"), Counter[int]()
    for path in sorted(folder.rglob("*.dcm")):
        content = path.read_bytes()
        storage.pipe_file("/in/a", content)
        storage.asked.clear()
        assert outcome("counted://in/a", length=len(content)) == outcome(path), path
        assert storage.asked["info"] == 0
        ranges[storage.asked["range"]] += 1
        storage.pipe_file("/in/a", content[: len(content) // 2])
        path_cut = outcome("counted://in/a")
        assert path_cut[0] is not NotDicom
    assert max(ranges) <= 3 and ranges[1] > ranges[2] + ranges[3]  # the others' pixels are encapsulated and long


def test_what_is_no_dicom_is_told_by_url_too(storage: Counted) -> None:
    for content in (b"", b"text", b"\0" * 400):
        storage.pipe_file("/in/a", content)
        assert outcome("counted://in/a") is NotDicom
    with pytest.raises(FileNotFoundError):
        walk("counted://in/nothing")


def test_a_folder_of_a_web_server_that_knows_no_ranges(data: Data) -> None:
    folder = data("transfer_syntaxes") / "nema_wg04"

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder.parent)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            found = list(list_files(f"http://127.0.0.1:{server.server_port}/nema_wg04/"))
            assert {(file.path.rpartition("/")[2], file.length, file.problem) for file in found} == {
                (path.name, path.stat().st_size, "") for path in folder.iterdir()
            }
            for name in ("CT1_UNC.dcm", "MR1_JPLL.dcm", "US1_UNC.dcm"):
                (one,) = [file for file in found if file.path.endswith(name)]
                assert outcome(one.path, length=one.length) == outcome(folder / name)
        finally:
            server.shutdown()
            thread.join()


# -- series that lie elsewhere


def catalogued(archive: Archive, files: list[Listed], root: str) -> None:
    """What ingest does, in this process."""
    archive.objects.create()
    part = write_part(rows(files, root), archive.objects.path)
    commit_absent(archive.objects, [part], writer=os.urandom(8).hex(), read=archive.objects.version())


def test_a_series_of_files_without_preamble_is_read(noise: Noise, tmp_path: Path, home: Path) -> None:
    uid = write_series(noise(), tmp_path / "in", patient_id="p", case="c")
    expected = read_volume(tmp_path / "in", home / "first", uid)
    for number, path in enumerate(sorted((tmp_path / "in").iterdir())):
        dataset = pydicom.dcmread(path)
        explicit = not dataset.original_encoding[0]
        del dataset.file_meta, dataset.preamble
        odd = os.fsdecode(os.path.join(os.fsencode(tmp_path / "in"), b"IM\xe9%d" % number))
        dataset.save_as(odd, implicit_vr=not explicit, little_endian=True)
        path.unlink()
    assert not any(path.read_bytes()[128:132] == b"DICM" for path in (tmp_path / "in").iterdir())
    found = read_volume(tmp_path / "in", home / "second", uid)
    assert np.array_equal(found.array, expected.array) and np.allclose(found.affine, expected.affine)


def read_volume(folder: Path, home: Path, uid: str) -> hd.Volume:
    archive = Archive(home)
    catalogued(archive, list(list_files(folder)), str(folder))
    assert len(archive.sources(uid)) == 6
    return archive.volume(uid)


def test_a_data_set_is_read_from_a_url(noise: Noise, tmp_path: Path, storage: Counted) -> None:
    write_series(noise(), tmp_path / "in", patient_id="p", case="c")
    path = sorted((tmp_path / "in").iterdir())[0]
    storage.pipe_file("/in/a", path.read_bytes())
    assert read_dataset("counted://in/a") == read_dataset(path) == pydicom.dcmread(path)
    assert "PixelData" not in read_dataset("counted://in/a", pixels=False)
    with pytest.raises(CatalogError, match=r"counted://in/b: the file has gone"):
        read_dataset("counted://in/b")
    storage.pipe_file("/in/c", b"text")
    with pytest.raises(NotDicom):
        read_dataset("counted://in/c")


# -- what a file is

KINDS = {
    "a.png": (b"\x89PNG\r\n\x1a\n\0\0", "a PNG image"),
    "a.jpg": (b"\xff\xd8\xff\xe0", "a JPEG image"),
    "a.pdf": (b"%PDF-1.7", "a PDF document"),
    "a.csv": (b"a,b\n1,2", "a CSV file"),
    "README.md": ("# Ü".encode(), "a Markdown file"),
    "a.json": (b'{"a": 1}', "a JSON file"),
    "json": (b' [{"a": 1}]', "a JSON file"),
    "a.xml": (b"\xef\xbb\xbf<?xml version", "an XML file"),
    "notes": (b"hello", "a text file"),
    "a.docx": (b"PK\3\4" + bytes(22) + b"\x13\0\0\0[Content_Types].xml", "a document, a program or data in a zip"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive, which is not unpacked"),
    "a.img": (bytes(400), "the voxels to a header"),
    "a.hdr": (b"\x5c\1\0\0" + bytes(344), "an Analyze 7.5 header"),
    "a.mp4": (b"\0\0\0\x18ftypmp42", "a video"),
    "IM1": (b"\x9f\x03\0\xff" * 99, "a file of unknown kind"),
}


@pytest.mark.parametrize("name", list(KINDS))
def test_what_is_skipped_is_named(tmp_path: Path, name: str) -> None:
    content, kind = KINDS[name]
    (tmp_path / name).write_bytes(content)
    assert describe(tmp_path / name).startswith(kind) and describe(tmp_path / name).endswith(", not DICOM")
    assert not archive_kind(tmp_path / name) and not is_nifti(tmp_path / name)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert describe(tmp_path / "a") == "the file is empty"


def accounted(file: Listed) -> tuple[str, str]:
    """(what a file is, the reason where it is not usable)."""
    if file.problem or not file.length:
        return "other", file.problem or describe(file.path)
    try:
        return "dicom", "" if isinstance(walk(file.path), Header) else "?"
    except BrokenHeader as problem:
        return "dicom", problem.problem
    except NotDicom:
        if is_nifti(file.path):
            nifti_header(file.path)
            return "nifti", ""
        return (archive_kind(file.path), "archive") if archive_kind(file.path) else ("other", describe(file.path))


def test_all_of_the_real_data_is_accounted_for(data: Data) -> None:
    root = data(".")
    found = {file.path: accounted(file) for file in list_files(root)}
    assert len(found) == sum(len(files) for _, _, files in os.walk(root))
    kinds = Counter(kind for kind, _ in found.values())
    assert kinds["nifti"] == sum(path.endswith(".nii.gz") for path in found) and kinds["dicom"] > 400
    others = {os.path.relpath(path, root): reason for path, (kind, reason) in found.items() if kind == "other"}
    assert all(reason.endswith("not DICOM") or reason == "the file is empty" for reason in others.values())
    assert others["README.md"] == "a Markdown file, not DICOM"
    assert others["hippocampus/index.csv"] == "a CSV file, not DICOM"
    assert {kind for kind, _ in found.values()} <= {"dicom", "nifti", "other", "zip", "tar", "gzip"}
