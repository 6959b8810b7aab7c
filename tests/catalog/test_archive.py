import os
import shutil
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from catalog import Archive, CatalogError
from catalog.files import list_files, listed
from catalog.index import Index
from catalog.objects import commit_absent, rows
from catalog.schemas import OBJECTS
from catalog.series import write_series
from catalog.table import write_part
from catalog.testing import VolumeSourceTests

Noise = Callable[..., hd.Volume]
Stored = Callable[..., tuple[Archive, str]]


class TestArchiveVolumes(VolumeSourceTests):
    @pytest.fixture
    def source(self, stored: Stored) -> Archive:
        return stored()[0]

    @pytest.fixture
    def ref(self, stored: Stored) -> str:
        return stored()[1]

    @pytest.fixture
    def other(self) -> str:
        return "1.2.3"


def add(archive: Archive, *paths: Path) -> None:
    """What ingest does, in this process."""
    archive.objects.create()
    root = os.path.commonpath([path.parent for path in paths])
    part = write_part(rows([listed(path) for path in paths], root), archive.objects.path)
    commit_absent(archive.objects, [part], writer=os.urandom(8).hex(), read=archive.objects.version())


def paths_of(archive: Archive, uid: str) -> list[Path]:
    """The local files of a series."""
    return [Path(path) for path in archive.series_files(uid)]


def test_a_stored_series_is_found_and_read(stored: Stored, affine: np.ndarray) -> None:
    archive, uid = stored(affine)
    volume, headers = archive.volume(uid), archive.sources(uid)
    assert len(paths_of(archive, uid)) == 6
    np.testing.assert_allclose(abs(np.linalg.det(volume.affine)), abs(np.linalg.det(affine)), rtol=1e-9)
    for number, header in enumerate(headers):
        corner = volume.affine @ [number, 0, 0, 1]
        np.testing.assert_allclose(corner[:3], np.array(header.ImagePositionPatient, dtype=float), atol=1e-6)
    assert archive.geometry(uid).geometry_equal(volume)


def test_a_home_may_have_any_name(noise: Noise, tmp_path: Path) -> None:
    archive, folder = Archive(tmp_path / "Ünal's #1? 50% new"), tmp_path / "made"
    uid = write_series(noise(), folder, patient_id="p", case="c")
    for batch, file in enumerate(sorted(folder.iterdir())):
        archive.store([pydicom.dcmread(file)], folder="stow", writer="w", batch=batch)
    assert archive.volume(uid).spatial_shape == (6, 9, 11)
    assert archive.sql("SELECT instances FROM series")["instances"].to_pylist() == [6]
    assert (archive.home / "index.db").exists()


def test_storing_again_adds_nothing(stored: Stored) -> None:
    archive, uid = stored()
    before = archive.objects.version()
    stored()
    assert archive.objects.version() == before
    assert len(paths_of(archive, uid)) == 6
    assert archive.finish() == []


def test_files_that_others_put_in_place_are_adopted_once(noise: Noise, home: Path, tmp_path: Path) -> None:
    archive, folder = Archive(home), home / "volume" / "predictions" / "s"
    uid = write_series(noise(), folder, patient_id="p", case="c")
    files = sorted(folder.iterdir())
    for wrong, why in ((tmp_path / "elsewhere.dcm", "does not lie in"), (folder / "nothing.dcm", "gone")):
        with pytest.raises(CatalogError, match=why):
            archive.adopt([*files, wrong], writer="w")
    assert archive.objects.version() == -1
    assert [archive.adopt(found, writer="w") for found in (files[:2], files, files, [])] == [2, 4, 0, 0]
    assert paths_of(archive, uid) == files and archive.finish() == []


def test_files_whose_adoption_a_crash_broke_off_are_finished(noise: Noise, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, folder = Archive(home), home / "volume" / "predictions" / "s"
    uid = write_series(noise(), folder, patient_id="p", case="c")
    with monkeypatch.context() as patched:
        patched.setattr("catalog.store.catalogue", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            archive.adopt(folder.iterdir(), writer="w")
    assert archive.finish() == ["catalogued 6 stored files that a crash had left out"]
    assert len(paths_of(archive, uid)) == 6


def _interrupted(*_: object) -> int:
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_other_pixels_under_a_stored_uid_are_refused_and_the_first_stays(stored: Stored) -> None:
    archive, uid = stored()
    path = paths_of(archive, uid)[0]
    before, changed = path.read_bytes(), pydicom.dcmread(path)
    changed.PixelData = bytes(len(changed.PixelData))
    with pytest.raises(CatalogError, match="other pixels"):
        archive.store([changed], folder="stow", writer="late")
    assert path.read_bytes() == before
    changed.SOPInstanceUID = "1.2/../../escape"
    with pytest.raises(CatalogError, match="UID"):
        archive.store([changed], folder="stow", writer="late")


def test_a_copy_does_not_double_an_image(stored: Stored, tmp_path: Path) -> None:
    archive, uid = stored()
    first = paths_of(archive, uid)
    copies = [tmp_path / "copy" / path.name for path in first]
    (tmp_path / "copy").mkdir()
    for path, copy in zip(first, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    add(archive, *copies)
    assert paths_of(archive, uid) == copies  # the latest
    (counted,) = archive.sql("SELECT instances, frames FROM series").to_pylist()
    assert counted == {"instances": 6, "frames": 6}
    assert archive.sql("SELECT path FROM instances ORDER BY InstanceNumber")["path"].to_pylist() == [str(c) for c in copies]
    assert archive.sql("SELECT count(*) n FROM object_catalog")["n"][0].as_py() == 12
    copies[0].write_bytes(b"no longer DICOM")
    add(archive, copies[0])
    assert paths_of(archive, uid) == [first[0], *copies[1:]]  # the latest that is good
    assert archive.sql("SELECT instances FROM series")["instances"].to_pylist() == [6]


def test_where_a_copy_has_gone_the_original_is_served(stored: Stored, tmp_path: Path) -> None:
    archive, uid = stored()
    first, headers = paths_of(archive, uid), archive.sources(uid)
    shutil.copytree(first[0].parent, tmp_path / "copy")
    copies = sorted((tmp_path / "copy").iterdir())
    add(archive, *copies)
    copies[0].unlink()
    assert len(set(paths_of(archive, uid)) & set(copies)) == 5
    shutil.rmtree(tmp_path / "copy")
    assert paths_of(archive, uid) == first
    assert archive.index.instance(headers[0].SOPInstanceUID).path in map(str, first)
    shutil.rmtree(first[0].parent)
    with pytest.raises(CatalogError, match=r"gone .*ingest its folder again"):
        archive.volume(uid)
    with pytest.raises(CatalogError, match="gone"):
        archive.sources(uid)


def test_the_index_catches_up_and_can_be_rebuilt(stored: Stored) -> None:
    archive, uid = stored()
    files = paths_of(archive, uid)
    _, second = stored(case="two")
    assert Archive(archive.home).index.files(second) == []  # not yet followed
    assert len(paths_of(archive, second)) == 6
    (archive.home / "index.db").unlink()
    assert paths_of(Archive(archive.home), uid) == files
    fresh = Index(f"sqlite:///{archive.home / 'other.db'}")
    fresh.rebuild(archive.objects)
    assert [Path(found.path) for found in fresh.files(uid)] == files


def test_unknown_series_and_bad_sql_say_what_to_do(stored: Stored) -> None:
    archive, _ = stored()
    with pytest.raises(CatalogError, match=r"1\.2\.3: no such series .*ingest"):
        archive.volume("1.2.3")
    with pytest.raises(CatalogError, match="views are files, instances"):
        archive.sql("SELECT * FROM nothing")


@pytest.mark.parametrize("query", ["COPY (SELECT 1) TO '{out}'", "SELECT * FROM read_text('/etc/hostname')", "ATTACH '{out}'"])
def test_sql_reaches_nothing_but_the_views(query: str, stored: Stored, tmp_path: Path) -> None:
    archive, _ = stored()
    with pytest.raises(CatalogError):
        archive.sql(query.format(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_empty_home_answers(home: Path) -> None:
    archive = Archive(home)
    assert archive.sql("SELECT * FROM series").num_rows == 0
    assert archive.sql("SELECT * FROM labels").num_rows == 0
    assert archive.finish() == []
    with pytest.raises(CatalogError):
        archive.series_files("1.2.3")


def test_every_file_is_listed_once_through_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / b"\xff.dcm".decode("utf-8", "surrogateescape")).write_text("y")
    os.mkfifo(tmp_path / "a" / "pipe")
    found = list(list_files(tmp_path))
    assert sorted(os.path.basename(file.key[0]) for file in found) == ["\\xff.dcm", "file", "gone", "pipe"]
    table = rows(found, tmp_path)
    assert table.schema == OBJECTS
    errors = dict(zip([os.path.basename(path) for path in table["path"].to_pylist()], table["error"].to_pylist(), strict=True))
    assert "leads nowhere" in errors["gone"] and errors["pipe"] == "not a regular file"


def test_broken_files_become_rows_with_the_reason(noise: Noise, tmp_path: Path) -> None:
    write_series(noise(), tmp_path / "s", patient_id="p", case="c")
    whole = (tmp_path / "s" / "0001.dcm").read_bytes()
    nameless = pydicom.dcmread(tmp_path / "s" / "0001.dcm")
    del nameless.SOPInstanceUID
    nameless.save_as(tmp_path / "nameless")
    (tmp_path / "short").write_bytes(whole[:-10])
    (tmp_path / "cut in the header").write_bytes(whole[:500])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello" * 200)
    (tmp_path / "bare").write_bytes(whole[int.from_bytes(whole[140:144], "little") + 144 :])
    names = ["bare", "cut in the header", "empty", "nameless", "short", "text"]
    for name in names:
        os.utime(tmp_path / name, (0, 0))  # written long ago
    found = rows([listed(tmp_path / name) for name in names], tmp_path).select(["status", "error"]).to_pylist()
    states = dict(zip(names, [(row["status"], row["error"]) for row in found], strict=True))
    assert states["short"] == ("broken", "the file ends 10 bytes before its pixels do")
    assert states["cut in the header"][0] in ("broken", "incomplete") and states["cut in the header"][1]
    assert states["empty"] == ("not_dicom", "the file is empty")
    assert states["text"] == ("not_dicom", "a text file, not DICOM")
    assert states["nameless"] == ("incomplete", "SOPInstanceUID missing")


def test_odd_files_each_get_a_row(data: Callable[[str], Path]) -> None:
    folder = data("odd_dicom")
    files = list(list_files(folder))
    table = rows(files, folder)
    assert table["path"].to_pylist() == [file.path for file in files]
    for row in table.select(["relative_path", "status", "error", "meta"]).to_pylist():
        assert (row["status"] == "ok") == (row["error"] is None), row
        assert row["meta"] is not None or row["status"] in ("broken", "not_dicom"), row
