"""Archives become files: all of them, none elsewhere, none half, and what attacks is refused before it does harm."""

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog import CatalogError
from catalog.disk import TEMPORARY
from catalog.files import Listed, list_files, listed
from catalog.unpack import Limits, archive_kind, unpacked

FILES = {"a/1.dcm": b"one" * 100, "a/2.dcm": b"two", "b/IM0001": b"", "leer zeichen/ä.dcm": b"three"}


def zipped(path: Path, files: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name) if not method else name, content)
    return path


def tarred(path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]], mode: str = "w", **options: Any) -> Path:
    with tarfile.open(path, mode, **options) as archive:  # type: ignore[call-overload]
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def regular(files: dict[str, bytes]) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(tarfile.TarInfo(name), content) for name, content in files.items()]


def contents(found: list[Listed], archive: Path) -> dict[str, bytes]:
    """What was unpacked: member → bytes."""
    return {file.original.removeprefix(f"{archive}!"): Path(file.path).read_bytes() for file in found if not file.problem}


def problems(found: list[Listed], archive: Path) -> dict[str, str]:
    return {file.original.removeprefix(f"{archive}!"): file.problem for file in found if file.problem}


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "volume" / "unzipped"


Unpack = Callable[..., list[Listed]]


@pytest.fixture
def unpack(into: Path) -> Unpack:
    def call(path: Path, **limits: Any) -> list[Listed]:
        return unpacked(listed(path), into, Limits(**limits))

    return call


def nothing_is_left(into: Path) -> bool:
    return not into.exists() or not os.listdir(into)


# -- what an archive is


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: zipped(path, FILES), "zip"),
        (lambda path: zipped(path, {}), "zip"),
        (lambda path: tarred(path, regular(FILES)), "tar"),
        (lambda path: tarred(path, regular(FILES), "w:gz"), "tar"),
        (lambda path: tarred(path, regular(FILES), "w:bz2"), "tar"),
        (lambda path: tarred(path, regular(FILES), "w:xz"), "tar"),
        (lambda path: tarred(path, regular(FILES), format=tarfile.GNU_FORMAT), "tar"),
        (lambda path: path.write_bytes(gzip.compress(b"one")), "gzip"),
        (lambda path: path.write_bytes(bz2.compress(b"one")), "bzip2"),
        (lambda path: path.write_bytes(lzma.compress(b"one")), "xz"),
        (lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(900)), ""),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(124) + b"DICM"), ""),
        (lambda path: path.write_bytes(bytes(10240)), ""),
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: zipped(path, {"[Content_Types].xml": b"<"}), ""),
        (lambda path: zipped(path, {"arr_0.npy": b"\x93NUMPY"}), ""),
    ],
)
def test_an_archive_is_what_its_content_says(tmp_path: Path, make: Callable[[Path], object], kind: str) -> None:
    path = tmp_path / "IM0001.dcm"
    make(path)
    assert archive_kind(path) == kind


def test_a_compressed_nifti_is_no_archive(data: Callable[[str], Path]) -> None:
    path = next((data("hippocampus") / "images").iterdir())
    assert path.name.endswith(".nii.gz") and archive_kind(path) == ""


# -- what comes out


@pytest.mark.parametrize("mode", ["zip", "stored", "w", "w:gz", "w:bz2", "w:xz"])
def test_every_member_becomes_a_file_with_its_origin(tmp_path: Path, into: Path, unpack: Unpack, mode: str) -> None:
    path = tmp_path / "study"
    if mode.startswith("w"):
        tarred(path, regular({f"./{name}": content for name, content in FILES.items()}), mode)
    else:
        zipped(path, FILES, method=zipfile.ZIP_DEFLATED if mode == "zip" else zipfile.ZIP_STORED)
    found = unpack(path)
    assert {name.removeprefix("./"): content for name, content in contents(found, path).items()} == FILES
    assert all(file.modified == listed(path).modified and file.length == Path(file.path).stat().st_size for file in found)
    assert {file.key for file in found} == {listed(file.path).key for file in found}  # as an ingest of the folder would see it
    assert all(Path(file.path).is_relative_to(into) for file in found)


def test_a_single_compressed_file_loses_its_suffix(tmp_path: Path, unpack: Unpack) -> None:
    path = tmp_path / "IM1.dcm.gz"
    path.write_bytes(gzip.compress(b"one"))
    (file,) = unpack(path)
    assert file.original == f"{path}!IM1.dcm" and Path(file.path).name == "IM1.dcm" and Path(file.path).read_bytes() == b"one"


def test_archives_in_archives_come_out_too(tmp_path: Path, unpack: Unpack) -> None:
    inner = zipped(tmp_path / "inner", {"1.dcm": b"one"}).read_bytes()
    middle = tarred(tmp_path / "middle", regular({"b/in.zip": inner, "2.dcm": b"two"}), "w:gz").read_bytes()
    path = zipped(tmp_path / "outer.zip", {"m.tgz": middle, "3.dcm.gz": gzip.compress(b"three")})
    found = contents(unpack(path), path)
    assert found == {
        "m.tgz": middle,
        "m.tgz!b/in.zip": inner,
        "m.tgz!b/in.zip!1.dcm": b"one",
        "m.tgz!2.dcm": b"two",
        "3.dcm.gz": found["3.dcm.gz"],
        "3.dcm.gz!3.dcm": b"three",
    }


def test_an_archive_may_lie_at_a_url(tmp_path: Path, into: Path) -> None:
    import fsspec

    content = zipped(tmp_path / "a.zip", FILES).read_bytes()
    fsspec.filesystem("memory").pipe_file("/unpack/a.zip", content)
    found = unpacked(Listed("memory://unpack/a.zip", 7_000_000, len(content)), into)
    assert {file.original for file in found} == {f"memory://unpack/a.zip!{name}" for name in FILES}


# -- once


def test_an_unchanged_archive_is_not_opened_again_and_a_changed_one_gets_its_own_folder(
    tmp_path: Path, into: Path, unpack: Unpack
) -> None:
    path = zipped(tmp_path / "a.zip", FILES)
    first, state = unpack(path), path.stat()
    path.write_bytes(b"x" * state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # unchanged by its key: to open it would show
    assert unpack(path) == first
    zipped(path, {"new.dcm": b"new"})
    assert contents(unpack(path), path) == {"new.dcm": b"new"}
    assert len(os.listdir(into)) == 2 and contents(first, path) == FILES


def test_two_at_once_unpack_it_once(tmp_path: Path, into: Path, unpack: Unpack) -> None:
    path = zipped(tmp_path / "a.zip", {f"{n}.dcm": bytes(1000) for n in range(200)})
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: unpack(path), range(4)))
    assert results[1:] == results[:-1] and len(results[0]) == 200
    assert len(os.listdir(into)) == 1


def test_what_was_interrupted_is_not_there_and_is_done_again(
    tmp_path: Path, into: Path, unpack: Unpack, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "a.zip", FILES)
    with monkeypatch.context() as patched:
        patched.setattr("catalog.unpack.sync_files", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            unpack(path)
    assert nothing_is_left(into)
    (into / f"{TEMPORARY}999999999-x").mkdir(parents=True)  # what a killed process leaves
    assert contents(unpack(path), path) == FILES
    assert not [name for name in os.listdir(into) if name.startswith(TEMPORARY)]


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_full_disk_leaves_nothing(tmp_path: Path, into: Path, unpack: Unpack, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "a.zip", FILES)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("catalog._members.os.utime", full)  # the disk is played: no test fills the machine's
    with pytest.raises(CatalogError, match=r"the disk is full .*free some space"):
        unpack(path)
    assert nothing_is_left(into)


# -- names

ODD = [
    "../../evil.dcm",
    "/etc/evil.dcm",
    "C:\\evil.dcm",
    "c:evil.dcm",
    "..\\..\\evil.dcm",
    "a/../../evil.dcm",
    "-/000001-x",
    f"{TEMPORARY}x/a.dcm",
    "n" * 300 + ".dcm",
    "/".join(["d" * 200] * 20) + "/a.dcm",
    "a\nb.dcm",
    "manifest.json",
]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_no_name_leads_out_and_no_file_is_lost(tmp_path: Path, into: Path, unpack: Unpack, kind: str) -> None:
    files = {name: str(number).encode() for number, name in enumerate(ODD)}
    path = zipped(tmp_path / "a", files) if kind == "zip" else tarred(tmp_path / "a", regular(files))
    before = set(tmp_path.rglob("*"))
    found = unpack(path)
    assert contents(found, path) == files
    assert all(new.is_relative_to(into) or new == into.parent for new in set(tmp_path.rglob("*")) - before)
    assert {file.path for file in found} <= {file.path for file in list_files(into)}  # none by a name that is left out


def test_names_that_are_not_utf_8_and_names_twice_or_in_other_case(tmp_path: Path, unpack: Unpack) -> None:
    latin = os.fsdecode(b"caf\xe9.dcm")
    path = tarred(
        tmp_path / "a", regular({latin: b"latin", "x.dcm": b"1"}) + regular({"x.dcm": b"2", "X.dcm": b"3", "x.dcm/y": b"4"})
    )
    found = unpack(path)
    assert [Path(file.path).read_bytes() for file in found] == [b"latin", b"1", b"2", b"3", b"4"]
    assert [file.original.partition("!")[2] for file in found] == [latin, "x.dcm", "x.dcm", "X.dcm", "x.dcm/y"]
    assert len({file.path for file in found}) == 5 and all(file.path.isascii() for file in found)


# -- members that are not unpacked


def test_links_and_devices_are_refused_and_nothing_is_written_through_them(tmp_path: Path, into: Path, unpack: Unpack) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()

    def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        return info, b""

    members = [
        special("out", tarfile.SYMTYPE, str(outside)),
        *regular({"out/through.dcm": b"t", "a.dcm": b"a"}),
        special("hard", tarfile.LNKTYPE, "a.dcm"),
        special("null", tarfile.CHRTYPE),
        special("pipe", tarfile.FIFOTYPE),
        special("folder", tarfile.DIRTYPE),
        special("out", tarfile.SYMTYPE, "again"),
    ]
    path = tarred(tmp_path / "a.tar", members)
    found = unpack(path)
    assert contents(found, path) == {"out/through.dcm": b"t", "a.dcm": b"a"} and not os.listdir(outside)
    assert problems(found, path) == {
        "out": "a symbolic link, which is not followed",
        "out#2": "a symbolic link, which is not followed",
        "hard": "a hard link to a.dcm, which is a member of its own",
        "null": "a device or a pipe",
        "pipe": "a device or a pipe",
    }
    assert len({file.key for file in found}) == len(found)
    assert not [name for name in into.rglob("*") if name.is_symlink()]


def test_a_symbolic_link_in_a_zip_is_refused(tmp_path: Path, unpack: Unpack) -> None:
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("link/x.dcm", b"x")
    found = unpack(tmp_path / "a.zip")
    assert contents(found, tmp_path / "a.zip") == {"link/x.dcm": b"x"}
    assert problems(found, tmp_path / "a.zip") == {"link": "a symbolic link, which is not followed"}


def test_encrypted_damaged_and_unknown_members_are_refused_one_by_one(tmp_path: Path, unpack: Unpack) -> None:
    path = zipped(tmp_path / "a.zip", {"good": b"good", "secret": b"s" * 50, "rotten": b"r" * 50, "modern": b"m" * 50})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        places = {info.filename: info.header_offset for info in archive.infolist()}
    table = {name: content.rindex(name.encode()) - 46 for name in places}
    for at in (places["secret"] + 6, table["secret"] + 8):
        content[at] |= 1
    content[table["rotten"] + 16] ^= 0xFF  # its CRC
    for at in (places["modern"] + 8, table["modern"] + 10):
        content[at] = 93
    path.write_bytes(content)
    found = unpack(path)
    assert contents(found, path) == {"good": b"good"}
    told = problems(found, path)
    assert told["secret"] == "the member is encrypted: unpack the archive with its password, and ingest the folder"
    assert "Bad CRC-32" in told["rotten"] and "compression method" in told["modern"]


def test_what_follows_a_tar_is_told(tmp_path: Path, unpack: Unpack) -> None:
    path = tarred(tmp_path / "a.tar", regular({"1": b"1"}))
    path.write_bytes(path.read_bytes() * 2)
    assert problems(unpack(path), path) == {"(after its end)": "what follows the mark of the archive's end is not read"}


# -- damage


@pytest.mark.parametrize("kind", ["zip", "tar", "w:gz", "w:bz2", "w:xz", "gzip"])
@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_a_damaged_archive_is_refused_as_a_whole_or_member_by_member(
    tmp_path: Path, into: Path, unpack: Unpack, kind: str, harm: str
) -> None:
    path, files = tmp_path / "a", {f"{n}.dcm": os.urandom(3000) for n in range(30)}
    if kind == "zip":
        zipped(path, files)
    elif kind == "gzip":
        path.write_bytes(gzip.compress(os.urandom(90_000)))
    else:
        tarred(path, regular(files), "w" if kind == "tar" else kind)
    content = bytearray(path.read_bytes())
    content[40_192 : 40_192 + 512] = os.urandom(512)
    path.write_bytes(content if harm == "flipped" else content[:40_000])
    if (kind, harm) == ("zip", "flipped"):
        told = problems(unpack(path), path)
        assert 1 <= len(told) <= 2 and all("damaged" in problem for problem in told.values())
        return
    if (kind, harm) == ("tar", "flipped"):
        content[512 * 7 : 512 * 8] = b"x" * 512  # the second header: 3000 bytes take six blocks after the first
        path.write_bytes(content)
    with pytest.raises(CatalogError, match=r"the archive is damaged: .*copy or send it again"):
        unpack(path)
    assert nothing_is_left(into)


def test_a_tar_cut_between_members_is_damaged(tmp_path: Path, unpack: Unpack) -> None:
    path = tarred(tmp_path / "a.tar", regular({"1": b"1", "2": b"2"}))
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(CatalogError, match="the mark of its end"):
        unpack(path)


def test_a_damaged_archive_in_a_good_one_says_so_itself(tmp_path: Path, unpack: Unpack) -> None:
    inner = zipped(tmp_path / "inner", {"1.dcm": b"one"}).read_bytes()
    path = zipped(tmp_path / "outer.zip", {"in.zip": inner[:-10], "2.dcm": b"two"})
    found = unpack(path)
    assert contents(found, path) == {"2.dcm": b"two"}
    assert problems(found, path).keys() == {"in.zip"} and "damaged" in problems(found, path)["in.zip"]


@pytest.mark.parametrize("seed", range(60))
def test_no_bytes_raise_anything_else(tmp_path: Path, unpack: Unpack, seed: int) -> None:
    random = np.random.default_rng(seed)
    path, files = tmp_path / "a", {f"{n}.dcm": bytes(random.integers(0, 9, 200, dtype=np.uint8)) for n in range(5)}
    kind = ["zip", "w", "w:gz", "w:xz", "w:bz2"][seed % 5]
    zipped(path, files) if kind == "zip" else tarred(path, regular(files), kind)
    content = bytearray(path.read_bytes())
    for at in random.integers(12, len(content), 1 + seed // 6):
        content[at] = random.integers(256)
    path.write_bytes(content[: len(content) - (seed % 7) * 13])
    try:
        found = unpack(path)
    except CatalogError:
        assert nothing_is_left(tmp_path / "volume" / "unzipped")
    else:
        assert all(file.problem or Path(file.path).exists() for file in found)


# -- attacks


def bomb(size: int) -> bytes:
    """A zip of one member of ``size`` zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(size))
    return stream.getvalue()


def refused(path: Path, unpack: Unpack, into: Path, why: str, **limits: Any) -> None:
    with pytest.raises(CatalogError, match=why) as caught:
        unpack(path, **limits)
    assert str(path) in str(caught.value) and nothing_is_left(into)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"bytes": 10_000}, "holds more than 10000 bytes.*limit of bytes"),
        ({"member_bytes": 10_000}, "a member has more than 10000 bytes.*limit of member_bytes"),
        ({"ratio": 50, "ratio_from": 10_000}, "more than 50 times its length.*limit of ratio"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar", "gzip", "nested"])
def test_a_bomb_is_refused(tmp_path: Path, into: Path, unpack: Unpack, kind: str, limits: dict[str, int], why: str) -> None:
    path = tmp_path / "bomb"
    if kind == "tar":
        tarred(path, regular({"zeros": bytes(3_000_000)}), "w:gz")
    else:
        made = {"zip": bomb, "gzip": lambda size: gzip.compress(bytes(size)), "nested": lambda size: bomb_in_zip(size)}
        path.write_bytes(made[kind](3_000_000))
    refused(path, unpack, into, why, **limits)
    assert len(unpack(path)) == (2 if kind == "nested" else 1)  # within the limits that there are, it is only small


def bomb_in_zip(size: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.zip", bomb(size))
    return stream.getvalue()


def test_members_made_of_the_same_bytes_are_refused(tmp_path: Path, into: Path, unpack: Unpack) -> None:
    """Each local header is quoted by the one before: all share the last one's compressed bytes (Fifield 2019)."""
    kernel, count = zlib.compressobj(9, wbits=-15), 20
    packed = kernel.compress(bytes(1_000_000)) + kernel.flush()
    crc, size, local, table = zlib.crc32(bytes(1_000_000)), 1_000_000, b"", b""
    for number in range(count):
        name = b"%03d" % number
        quoted = (count - 1 - number) * 33
        common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, crc, len(packed) + quoted, size, 3, 0)
        table += b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, len(local)) + name
        local += b"PK\3\4" + common + name
    start = len(local + packed)
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(table), start, 0)
    path = tmp_path / "overlap.zip"
    path.write_bytes(local + packed + table + end)
    assert len(zipfile.ZipFile(path).infolist()) == count
    refused(path, unpack, into, "over one another")


def test_an_archive_that_holds_itself_ends(tmp_path: Path, into: Path, unpack: Unpack) -> None:
    """A quine is one more archive at every depth: here as many as there must be."""
    content = bomb(10)
    for _ in range(6):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("r.zip", content)
        content = stream.getvalue()
    path = tmp_path / "r.zip"
    path.write_bytes(content)
    refused(path, unpack, into, "nests archives deeper than 4.*limit of depth")
    assert len(unpack(path, depth=7)) == 7


def test_too_many_members_are_refused_before_they_are_unpacked(tmp_path: Path, into: Path, unpack: Unpack) -> None:
    many = {f"{n}": b"" for n in range(300)}
    for path in (zipped(tmp_path / "a.zip", many), tarred(tmp_path / "a.tar", regular(many), "w:gz")):
        refused(path, unpack, into, "more than 299 members", members=299)
        assert len(unpack(path, members=300)) == 300
        for folder in into.iterdir():
            folder.rename(tmp_path / folder.name)


def test_a_table_of_contents_without_end_is_not_read(tmp_path: Path, into: Path, unpack: Unpack) -> None:
    entry = b"PK\1\2" + bytes(24) + struct.pack("<HHHHHII", 0, 0, 0, 0, 0, 0, 0)
    table = entry * 60_000
    path = tmp_path / "a.zip"
    local = b"PK\3\4" + bytes(26)
    path.write_bytes(local + table + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(table), len(local), 0))  # says one
    refused(path, unpack, into, "table of contents has 2760000 bytes", members=1000)


def header(name: str, kind: bytes, size: int) -> bytes:
    """A tar header that declares ``size`` bytes, whatever follows."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "members",
    [
        header("a", tarfile.REGTYPE, 1 << 62),
        header("a", tarfile.REGTYPE, 1 << 35),
        header("a", b"Z", 1 << 62),
        header("a", b"Z", 1 << 35),
        header("a", tarfile.XHDTYPE, 1 << 40),
        header("a", tarfile.GNUTYPE_LONGNAME, 1 << 34),
        header("a", tarfile.GNUTYPE_SPARSE, 512),
        header("a", tarfile.XGLTYPE, 0) * 5000,
        header("a", tarfile.XHDTYPE, 18) + b"18 path=aaaaaaaaaaa\n".ljust(512, b"\0"),
    ],
)
def test_sizes_and_headers_that_a_tar_only_declares(tmp_path: Path, into: Path, unpack: Unpack, members: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(members + bytes(2048)))
    refused(path, unpack, into, "a\\.tar\\.gz")  # and soon: to skip what is declared would take years


def test_the_hole_of_a_sparse_file_counts(tmp_path: Path, into: Path, unpack: Unpack) -> None:
    info = tarfile.TarInfo("sparse")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "50000000", "GNU.sparse.name": "sparse"}
    path = tarred(tmp_path / "a.tar", [(info, b"x")], format=tarfile.PAX_FORMAT)
    refused(path, unpack, into, "times its length", ratio_from=1_000_000)


def test_the_manifest_says_what_became_of_each_member(tmp_path: Path, into: Path, unpack: Unpack) -> None:
    path = zipped(tmp_path / "a.zip", FILES)
    unpack(path)
    (folder,) = into.iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["archive"] == str(path) and manifest["length"] == path.stat().st_size
    assert {name for _, _, _, name in manifest["members"]} == {f"{path}!{name}" for name in FILES}
