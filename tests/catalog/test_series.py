import errno
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from catalog import CatalogError, FileVolumes
from catalog.series import write_series
from catalog.testing import VolumeSourceTests

Noise = Callable[..., hd.Volume]


def read(folder: Path) -> hd.Volume:
    return FileVolumes().volume(str(folder))


class TestFolders(VolumeSourceTests):
    @pytest.fixture
    def source(self) -> FileVolumes:
        return FileVolumes()

    @pytest.fixture
    def ref(self, noise: Noise, tmp_path: Path) -> str:
        write_series(noise(), tmp_path / "series", patient_id="p", case="c")
        return str(tmp_path / "series")

    @pytest.fixture
    def other(self, tmp_path: Path) -> str:
        return str(tmp_path / "not there")


def test_the_grid_comes_back(noise: Noise, affine: np.ndarray, tmp_path: Path) -> None:
    given = noise(affine)
    write_series(given, tmp_path / "s", patient_id="p", case="c")
    found = read(tmp_path / "s")
    same = found.match_geometry(given)
    np.testing.assert_allclose(same.affine, given.affine, rtol=0, atol=1e-6)
    step = float(pydicom.dcmread(tmp_path / "s" / "0001.dcm").RescaleSlope)
    assert np.abs(same.array - given.array).max() <= step / 2 * 1.001


@pytest.mark.parametrize("top", [1e-3, 0.7, 112.0, 2252.490724, 1.7e6, 3e30])
def test_any_scale_comes_back_within_half_a_step(top: float, noise: Noise, tmp_path: Path) -> None:
    given = noise()
    spread = given.array - given.array.min()
    given = given.with_array((spread / spread.max() * top).astype(np.float32))
    write_series(given, tmp_path / "s", patient_id="p", case="c")
    step = float(pydicom.dcmread(tmp_path / "s" / "0001.dcm").RescaleSlope)
    assert step <= top / 65_000
    assert np.abs(read(tmp_path / "s").array.astype(np.float64) - given.array).max() <= step / 2 * 1.01


@pytest.mark.parametrize("values", [(-1024, 3071), (0, 65_535), (5, 5), (-32_768, 32_767)])
@pytest.mark.parametrize("dtype", [np.int32, np.float64])
def test_whole_numbers_are_stored_as_they_are(values: tuple[int, int], dtype: type, noise: Noise, tmp_path: Path) -> None:
    given = noise()
    array = np.random.default_rng(1).integers(*values, given.spatial_shape, endpoint=True).astype(dtype)
    write_series(given.with_array(array), tmp_path / "s", patient_id="p", case="c", modality="CT")
    np.testing.assert_array_equal(read(tmp_path / "s").array, array.astype(np.float32))
    assert float(pydicom.dcmread(tmp_path / "s" / "0001.dcm").RescaleSlope) == 1


def test_a_constant_and_a_single_slice_come_back(noise: Noise, tmp_path: Path) -> None:
    given = noise(shape=(1, 4, 5))
    write_series(given.with_array(np.full((1, 4, 5), 0.25, np.float32)), tmp_path / "s", patient_id="p", case="c")
    found = read(tmp_path / "s")
    np.testing.assert_allclose(found.array, 0.25)
    np.testing.assert_allclose(found.affine, given.affine, atol=1e-6)


def test_the_stack_is_what_highdicom_makes_of_it(noise: Noise, affine: np.ndarray, tmp_path: Path) -> None:
    write_series(noise(affine), tmp_path / "s", patient_id="p", case="c")
    theirs = hd.get_volume_from_series([pydicom.dcmread(f) for f in (tmp_path / "s").iterdir()], dtype=np.float32)
    ours = read(tmp_path / "s")
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    np.testing.assert_allclose(ours.array, theirs.array, rtol=1e-6, atol=1e-4)


def test_files_are_the_same_on_every_machine(noise: Noise, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_series(noise(), tmp_path / name, patient_id="p", case="c", cohort="k")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    other = write_series(noise(), tmp_path / "c", patient_id="p", case="c", cohort="l")
    assert other != pydicom.dcmread(tmp_path / "a" / "0001.dcm").SeriesInstanceUID


def test_pydicom_reads_and_writes_the_same_header(noise: Noise, tmp_path: Path) -> None:
    write_series(noise(), tmp_path / "s", patient_id="Ünal", case="c")
    read = pydicom.dcmread(tmp_path / "s" / "0002.dcm")
    read.save_as(tmp_path / "again.dcm", enforce_file_format=True)
    assert pydicom.dcmread(tmp_path / "again.dcm") == read
    assert read.PatientID == "Ünal" and list(read.keys()) == sorted(read.keys())


def test_a_full_disk_leaves_nothing(noise: Noise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is the one thing that is played: no test fills the machine's."""

    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CatalogError, match="disk is full"):
        write_series(noise(), tmp_path / "s", patient_id="p", case="c")
    assert list(tmp_path.iterdir()) == []


def test_uneven_slices_and_mixed_series_are_refused(noise: Noise, tmp_path: Path) -> None:
    write_series(noise(), tmp_path / "s", patient_id="p", case="c")
    (tmp_path / "s" / "0003.dcm").unlink()
    with pytest.raises(CatalogError, match="unevenly"):
        read(tmp_path / "s")
    write_series(noise(), tmp_path / "s" / "other", patient_id="p", case="d")
    with pytest.raises(CatalogError, match="several series"):
        read(tmp_path / "s")


@pytest.mark.slow
def test_real_series_are_read(data: Callable[[str], Path]) -> None:
    folder = data("acrin_nsclc_petct_seg")
    ct = read(folder / "CT_CT-IMAGES_94858561")
    assert ct.spatial_shape == (135, 512, 512)
    assert -1100 < float(np.median(ct.array)) < 100


def test_a_slightly_tilted_gantry_is_refused(noise: Noise, tmp_path: Path) -> None:
    write_series(noise(), tmp_path / "s", patient_id="p", case="c")
    for index, path in enumerate(sorted((tmp_path / "s").iterdir())):
        dataset = pydicom.dcmread(path)
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, float(y) + 0.03 * index, z]  # 0.7 degrees
        dataset.save_as(path)
    with pytest.raises(CatalogError, match=r"the gantry was tilted: slices lie up to 0\.15 mm beside"):
        FileVolumes().volume(str(tmp_path / "s"))
