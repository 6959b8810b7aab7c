"""A NIfTI file's header as a row holds it: what nibabel says of it, as JSON, or why it is broken."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from catalog import CatalogError
from catalog.nifti import is_nifti, nifti_header

AFFINE = np.array([[-0.8, 0.0, 0.1, 90.0], [0.0, 0.9, 0.0, -126.0], [0.0, 0.05, 2.5, -72.0], [0, 0, 0, 1]])


def written(path: Path, kind: type = nibabel.Nifti1Image, **fields: Any) -> Path:
    image = kind(np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def like_nibabel(path: Path, found: dict[str, Any]) -> None:
    image = nibabel.load(path)
    assert np.array_equal(np.array(found["affine"]), image.affine)
    assert (tuple(found["shape"]), np.dtype(found["dtype"])) == (image.shape, image.get_data_dtype().newbyteorder("="))
    assert tuple(found["units"]) == image.header.get_xyzt_units()
    assert found["pixdim"] == image.header["pixdim"].tolist() and found["dim"] == image.header["dim"].tolist()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(("kind", "version"), [(nibabel.Nifti1Image, "NIfTI-1"), (nibabel.Nifti2Image, "NIfTI-2")])
def test_the_header_is_what_nibabel_says(tmp_path: Path, name: str, kind: type, version: str) -> None:
    path = written(tmp_path / name, kind, descrip=b"by hand", cal_max=7)
    assert is_nifti(path)
    found = nifti_header(path)
    like_nibabel(path, found)
    assert (found["format"], found["descrip"], found["cal_max"]) == (version, "by hand", 7)
    assert (found["affine_from"], found["pair"], found["byte_order"]) == ("sform", False, "little")


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii.gz").rename(tmp_path / "IM0001.dcm")
    assert is_nifti(path) and nifti_header(path)["shape"] == [2, 3, 4]


def test_the_affine_falls_back_as_nibabel_does(tmp_path: Path) -> None:
    path = written(tmp_path / "q.nii")
    image = nibabel.load(path)
    image.header.set_sform(None, code=0)
    image.header.set_qform(np.diag([1, 2, 3, 1]), code=1)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), tmp_path / "qform.nii")
    image.header.set_qform(None, code=0)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), tmp_path / "pixdim.nii")
    for name in ("qform", "pixdim"):
        found = nifti_header(tmp_path / f"{name}.nii")
        like_nibabel(tmp_path / f"{name}.nii", found)
        assert found["affine_from"] == name


def test_big_endian_and_numbers_that_json_has_not(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_shape((2, 2, 2))
    header.set_data_dtype(np.float32)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header["scl_slope"], header["cal_max"], header["cal_min"] = np.nan, np.inf, -np.inf
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4 + 32))
    found = nifti_header(tmp_path / "a.nii")
    assert (found["byte_order"], found["shape"], found["dtype"]) == ("big", [2, 2, 2], "float32")
    assert (found["scl_slope"], found["cal_max"], found["cal_min"]) == ("NaN", "Infinity", "-Infinity")
    json.dumps(found, allow_nan=False)


def test_of_a_pair_the_header_is_the_nifti(tmp_path: Path) -> None:
    written(tmp_path / "a.img", nibabel.Nifti1Pair)
    assert is_nifti(tmp_path / "a.hdr") and not is_nifti(tmp_path / "a.img")
    assert nifti_header(tmp_path / "a.hdr")["pair"]
    nibabel.save(nibabel.AnalyzeImage(np.zeros((2, 2, 2), np.int16), np.eye(4)), tmp_path / "old.img")
    assert not is_nifti(tmp_path / "old.hdr")


def test_only_the_first_block_is_inflated(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii.gz")
    whole = gzip.decompress(path.read_bytes()) + np.random.default_rng(1).bytes(100_000)
    path.write_bytes(gzip.compress(whole)[:20_000])
    assert nifti_header(path)["shape"] == [2, 3, 4]


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (40, struct.pack("<h", 9), "broken NIfTI header"),
        (42, struct.pack("<h", -5), "broken NIfTI header: dimensions"),
        (70, struct.pack("<h", 12345), "broken NIfTI header"),
        (42, struct.pack("<h", 500), "the file ends 11952 bytes before its voxels do"),
        (344, b"abc", "not a NIfTI file"),
    ],
)
def test_a_broken_header_says_why(tmp_path: Path, at: int, value: bytes, why: str) -> None:
    path = written(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[at : at + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(CatalogError, match=rf"a\.nii: {why}"):
        nifti_header(path)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08", b"\x1f\x8b\x08" + b"x" * 600, b"\x5c\1\0\0", bytes(600)])
def test_what_is_no_nifti(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert not is_nifti(tmp_path / "a.nii.gz")
    with pytest.raises(CatalogError, match="not a NIfTI file"):
        nifti_header(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("seed", range(40))
def test_no_header_raises_anything_else(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    path = written(tmp_path / "a.nii", [nibabel.Nifti1Image, nibabel.Nifti2Image][seed % 2])
    content = bytearray(path.read_bytes())
    content[12:344] = bytes(random.integers(0, 256, 332, dtype=np.uint8)) if seed % 3 else content[12:344]
    content[random.integers(40, 340)] ^= 0xFF
    path.write_bytes(content)
    try:
        json.dumps(nifti_header(path), allow_nan=False)
    except CatalogError as problem:
        assert path.name in str(problem)


def test_real_files(data: Callable[[str], Path]) -> None:
    files = [*sorted((data("hippocampus") / "images").iterdir())[:10], *data("totalsegmentator_ct").glob("*.nii.gz")]
    assert len(files) > 10
    for path in files:
        assert is_nifti(path)
        like_nibabel(path, nifti_header(path))
