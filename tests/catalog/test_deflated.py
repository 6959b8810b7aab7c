"""Deflated files that stand for more than a memory holds: refused by whatever reads them, with the reason."""

import copy
import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from catalog import Archive, CatalogError, deflated
from catalog.frames import ImageFile
from catalog.sources import read_dataset

UID = "1.2.3.4.5"
REASON = "its deflated data set has more than 512 MiB"


def image(syntax: str, pixels: bytes = bytes(64 * 64 * 2)) -> pydicom.Dataset:
    made = pydicom.Dataset()
    made.preamble = bytes(128)
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", UID
    made.StudyInstanceUID, made.SeriesInstanceUID, made.Modality = "1.2.3", "1.2.3.4", "CT"
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.Rows, made.Columns, made.BitsAllocated, made.BitsStored, made.HighBit = 64, 64, 16, 16, 15
    made.add_new("PixelData", "OW", pixels)
    return made


def written(made: pydicom.Dataset) -> bytes:
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT image as it should be, but for 600 MiB of pixels, in 600 kB."""
    whole = written(image(DeflatedExplicitVRLittleEndian, b""))
    start = 144 + int.from_bytes(whole[140:144], "little")
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    header = zlib.decompress(whole[start:], -zlib.MAX_WBITS)[:-12]
    path = tmp_path_factory.mktemp("bomb") / "bomb.dcm"
    with path.open("wb") as file:
        file.write(whole[:start])
        file.write(stream.compress(header + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 600 << 20)))
        for _ in range(600):
            file.write(stream.compress(bytes(1 << 20)))
        file.write(stream.flush())
    assert path.stat().st_size < 700_000
    return path


def test_ingest_gives_it_a_row_with_the_reason(bomb: Path, tmp_path: Path) -> None:
    archive = Archive(tmp_path / "home")
    folder = archive.volume_folder / "imported"
    folder.mkdir(parents=True)
    os.utime(shutil.copy(bomb, folder), (1e9, 1e9))  # not one that is still being written
    good = folder / "good.dcm"
    good.write_bytes(written(image(DeflatedExplicitVRLittleEndian)))
    archive.adopt(sorted(folder.iterdir()), writer="test")
    rows = archive.sql("select path, status, error, SOPInstanceUID from object_catalog order by path").to_pylist()
    told = {Path(row["path"]).name: (row["status"], row["error"], row["SOPInstanceUID"]) for row in rows}
    assert told == {"bomb.dcm": ("broken", REASON, UID), "good.dcm": ("ok", None, UID)}
    archive.index.follow(archive.objects)
    assert archive.index.instance(UID).path == str(good)  # type: ignore[union-attr]


def test_no_reader_takes_the_memory_for_it(bomb: Path) -> None:
    code = """
import resource, sys
from catalog import CatalogError
from catalog.files import listed
from catalog.frames import ImageFile
from catalog.objects import rows
from catalog.pixels import pixel_facts
from catalog.sources import FileVolumes, read_dataset
from catalog.thumbnail import thumbnail
import highdicom, pydicom.pixels, PIL.Image

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

path, before = sys.argv[1], peak()
assert rows([listed(path)], "/", deep=True, settled=0)["status"].to_pylist() == ["broken"]
for read in (read_dataset, ImageFile, pixel_facts, thumbnail, lambda path: read_dataset(path, pixels=False)):
    try:
        read(path)
    except CatalogError as problem:
        assert "its deflated data set has more than 512 MiB" in str(problem) and path in str(problem), problem
    else:
        raise AssertionError(read)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(bomb)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300, "MiB; 600 is what is in it"


def test_the_bound_holds_wherever_the_header_names_the_syntax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.deflated.LARGEST", 1 << 20)
    made = image(DeflatedExplicitVRLittleEndian, bytes(2 << 20))
    made.file_meta.add_new(0x00020001, "OB", bytes(100_000))  # before the transfer syntax
    (tmp_path / "a.dcm").write_bytes(written(made))
    for read in (read_dataset, ImageFile):
        with pytest.raises(CatalogError, match="has more than 1 MiB"):
            read(tmp_path / "a.dcm")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_other_files_are_read_as_ever(syntax: str, tmp_path: Path) -> None:
    pixels = bytes(range(256)) * 32
    (tmp_path / "a.dcm").write_bytes(written(image(syntax, pixels)))
    assert read_dataset(tmp_path / "a.dcm") == pydicom.dcmread(tmp_path / "a.dcm")
    assert ImageFile(tmp_path / "a.dcm").frame(0).tobytes() == pixels


def test_a_stream_that_is_damaged_says_so() -> None:
    whole = written(image(DeflatedExplicitVRLittleEndian))
    start = 144 + int.from_bytes(whole[140:144], "little")
    with pytest.raises(CatalogError, match=r"a\.dcm: its deflated data set is broken"):
        deflated.read(io.BytesIO(whole[:start] + b"\xff" * 100), about="a.dcm")


def test_what_was_read_can_be_copied(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(written(image(DeflatedExplicitVRLittleEndian)))
    assert copy.deepcopy(read_dataset(path)) == read_dataset(path)
