import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
import pytest

from catalog import CatalogError, FileVolumes, LabelSet, seg
from catalog.disk import TEMPORARY
from catalog.files import list_files
from catalog.importing import import_nifti
from catalog.testing import VolumeSourceTests

Data = Callable[[str], Path]


def nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Two labelled cases and one without a label."""
    random, folder = np.random.default_rng(0), tmp_path / "cohort"
    for number in range(3):
        array = random.normal(100, 30, (7, 8, 5)).astype(np.float32)
        affine = np.diag([0.7, -0.7, 3.0, 1.0])
        affine[:3, 3] = 10 * number
        nifti(folder / "images" / f"case{number}.nii.gz", array, affine)
        if number < 2:
            label = np.zeros(array.shape, np.uint8)
            label[2:4, 2:5, 1:3] = number + 1
            nifti(folder / "labels" / f"case{number}.nii.gz", label, affine)
    return folder


class TestNifti(VolumeSourceTests):
    @pytest.fixture
    def source(self) -> FileVolumes:
        return FileVolumes()

    @pytest.fixture
    def ref(self, cohort: Path) -> str:
        return str(cohort / "images" / "case0.nii.gz")

    @pytest.fixture
    def other(self, tmp_path: Path) -> str:
        return str(tmp_path / "nothing.nii.gz")


def lps(path: Path) -> hd.Volume:
    """The NIfTI as highdicom reads it, by no code of ours."""
    return hd.Volume.from_nibabel(nibabel.load(path), "PATIENT")


def check(out: Path, case: str, image: Path, label: Path | None) -> None:
    """Image and label are, voxel for voxel and millimetre for millimetre, where the NIfTI has them."""
    theirs = lps(image)
    ours = FileVolumes().volume(str(out / "images" / case)).match_geometry(theirs)
    np.testing.assert_allclose(ours.affine, theirs.affine, rtol=0, atol=1e-4)
    spread = float(theirs.array.max()) - float(theirs.array.min())
    assert np.abs(ours.array.astype(np.float64) - theirs.array).max() <= spread / 65_530 / 2 * 1.01 + 1e-6
    if label is not None:
        labels = LabelSet.from_dict(json.loads((out / "label_set.json").read_text()))
        mask = seg.decode(out / "labels" / f"{case}.dcm", theirs, labels)
        np.testing.assert_array_equal(mask.array, lps(label).array)


def test_a_cohort_becomes_series_and_segmentations(cohort: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out"
    report = import_nifti(cohort, out, progress=lambda done, total: seen.append((done, total)))
    assert report.as_json() == {"images": 3, "labels": 2, "written": 3, "modality": "MR", "out": str(out)}
    assert seen == [(n, 6) for n in range(1, 7)]
    for number in range(3):
        label = cohort / "labels" / f"case{number}.nii.gz"
        check(out, f"case{number}", cohort / "images" / f"case{number}.nii.gz", label if number < 2 else None)
    labels = LabelSet.from_dict(json.loads((out / "label_set.json").read_text()))
    assert [(s.name, s.value, s.code[1]) for s in labels.structures] == [
        ("structure_1", 1, "85756007"),
        ("structure_2", 2, "85756007"),
    ]
    lines = (out / "index.csv").read_text().splitlines()
    assert lines[0] == "case,series_uid,label" and lines[1].endswith(",labels/case0.dcm") and lines[3].endswith(",")


def test_names_come_from_the_cohorts_own_description(cohort: Path, tmp_path: Path) -> None:
    described = {"name": "Belly", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "spleen"}}
    (cohort / "dataset.json").write_text(json.dumps(described))
    report = import_nifti(cohort, tmp_path / "out")
    labels = LabelSet.from_dict(json.loads((tmp_path / "out" / "label_set.json").read_text()))
    assert report.modality == "CT" and labels.name == "Belly"
    assert [(s.name, s.value) for s in labels.structures] == [("liver", 1), ("spleen", 2)]


def test_an_interrupted_import_goes_on(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupt(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_nifti(cohort, out, progress=interrupt)
    first = {file: file.stat().st_mtime_ns for file in out.rglob("*.dcm")}
    (out / "labels" / "case0.dcm").unlink()
    assert import_nifti(cohort, out).written == 3
    assert all(file.stat().st_mtime_ns == time for file, time in first.items() if "images" in file.parts)
    assert import_nifti(cohort, out).written == 0
    assert not [file for file in out.rglob("*") if file.name.startswith(".")]
    import_nifti(cohort, tmp_path / "again")
    for file in (out / "images").rglob("*.dcm"):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(out)).read_bytes()


def test_what_a_killed_import_left_is_removed_and_never_listed(cohort: Path, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    out = tmp_path / "out"
    left = {number: out / "images" / f"{TEMPORARY}{number}-case0" for number in (ended.pid, os.getpid(), os.getppid())}
    for folder in left.values():
        folder.mkdir(parents=True)
        (folder / "0001.dcm").write_bytes(b"half")
    assert list(list_files(out)) == []
    assert import_nifti(cohort, out).written == 3
    assert [folder for folder in left.values() if folder.exists()] == [left[os.getppid()]]  # it may still be writing


def _changed(what: str, cohort: Path) -> None:
    label = cohort / "labels" / "case1.nii.gz"
    match what:
        case "image":
            image = nibabel.load(cohort / "images" / "case1.nii.gz")
            nifti(cohort / "images" / "case1.nii.gz", image.get_fdata().astype(np.float32) + 1, image.affine)
        case "label":
            found = nibabel.load(label)
            nifti(label, (found.get_fdata() > 0).astype(np.uint8), found.affine)
        case "cohort":
            (cohort / "dataset.json").write_text('{"name": "another"}')
        case "label_set":
            (cohort / "dataset.json").write_text('{"labels": {"1": "liver", "2": "spleen"}}')


@pytest.mark.parametrize("what", ["image", "label", "cohort", "label_set"])
@pytest.mark.parametrize("killed", [False, True])
def test_what_is_there_from_another_source_is_refused(what: str, killed: bool, cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_nifti(cohort, out)
    if killed:  # before the last files were written
        (out / "index.csv").unlink()
    before = {file: file.read_bytes() for file in out.rglob("*.*") if file.is_file()}
    _changed(what, cohort)
    with pytest.raises(CatalogError, match=r"label_set\.json|case case[01]: .*another " + what) as caught:
        import_nifti(cohort, out)
    assert "another folder" in caught.value.remedy and "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in out.rglob("*.*") if file.is_file()} == before
    assert import_nifti(cohort, tmp_path / "other").written == 3


def test_a_label_may_come_later(cohort: Path, tmp_path: Path) -> None:
    label = cohort / "labels" / "case0.nii.gz"
    label.rename(tmp_path / "later.nii.gz")
    (cohort / "dataset.json").write_text('{"labels": {"1": "liver", "2": "spleen"}}')
    import_nifti(cohort, tmp_path / "out")
    (tmp_path / "later.nii.gz").rename(label)
    assert import_nifti(cohort, tmp_path / "out").written == 1
    assert import_nifti(cohort, tmp_path / "out").written == 0


def _shear(affine: np.ndarray) -> np.ndarray:
    affine[0, 2] += 0.2
    return affine


def _spoil(what: str, folder: Path) -> None:
    image, label = folder / "images" / "case1.nii.gz", folder / "labels" / "case1.nii.gz"
    array, mask, affine = (nibabel.load(image).get_fdata(), nibabel.load(label).get_fdata(), nibabel.load(image).affine)
    match what:
        case "no images":
            shutil.rmtree(folder / "images")
        case "label without image":
            image.unlink()
        case "shape":
            nifti(label, mask[1:].astype(np.uint8), affine)
        case "affine":
            nifti(label, mask.astype(np.uint8), affine + np.eye(4)[:, [3, 0, 1, 2]] * 0)
            moved = affine.copy()
            moved[1, 3] += 2
            nifti(label, mask.astype(np.uint8), moved)
        case "cut":
            image.write_bytes(image.read_bytes()[:-200])
        case "text":
            image.write_text("not a NIfTI")
        case "4-D":
            nifti(image, np.stack([array, array], axis=-1), affine)
        case "shear":
            nifti(image, array, _shear(affine.copy()))
        case "nan":
            array[0, 0, 0] = np.nan
            nifti(image, array, affine)
        case "value":
            (folder / "dataset.json").write_text('{"labels": {"1": "liver"}}')
        case "fraction":
            nifti(label, mask.astype(np.float32) / 4, affine)


@pytest.mark.parametrize(
    ("what", "file", "why"),
    [
        ("no images", "cohort", "no images"),
        ("label without image", "labels/case1.nii.gz", "without its image"),
        ("shape", "labels/case1.nii.gz", "shape"),
        ("affine", "labels/case1.nii.gz", "2.00 mm off"),
        ("cut", "images/case1.nii.gz", "cannot be read"),
        ("text", "images/case1.nii.gz", "not a NIfTI"),
        ("4-D", "images/case1.nii.gz", "4 dimensions"),
        ("shear", "images/case1.nii.gz", "sheared"),
        ("nan", "images/case1.nii.gz", "1 voxels are not finite"),
        ("value", "labels/case1.nii.gz", "value 2"),
        ("fraction", "labels/case1.nii.gz", "0.5"),
    ],
)
def test_bad_input_is_one_line_that_names_file_and_remedy(what: str, file: str, why: str, cohort: Path, tmp_path: Path) -> None:
    _spoil(what, cohort)
    with pytest.raises(CatalogError, match=why) as caught:
        import_nifti(cohort, tmp_path / "out")
    said = str(caught.value)
    assert file in said and caught.value.remedy and "\n" not in said
    assert not (tmp_path / "out").exists()


def test_real_images_with_turned_grids_come_back(data: Data, tmp_path: Path) -> None:
    """Images and label maps as people have them: oblique or flipped affines in float32."""
    folder = data("totalsegmentator_ct")
    for case, image, label in (
        ("ct", "example_ct_sm.nii.gz", "example_seg.nii.gz"),
        ("mr", "example_mr_sm.nii.gz", "example_seg_mr.nii.gz"),
    ):
        given = tmp_path / case
        for kind, name in (("images", image), ("labels", label)):
            (given / kind).mkdir(parents=True)
            shutil.copy(folder / name, given / kind / f"{case}.nii.gz")
        if nibabel.load(folder / image).shape != nibabel.load(folder / label).shape:
            shutil.rmtree(given / "labels")
        out = tmp_path / "out" / case
        import_nifti(given, out)
        check(out, case, folder / image, folder / label if (given / "labels").exists() else None)


def test_real_hippocampi_come_back(data: Data, tmp_path: Path) -> None:
    folder, given = data("hippocampus"), tmp_path / "given"
    names = sorted(file.name for file in (folder / "images").iterdir())[::40]
    for kind in ("images", "labels"):
        (given / kind).mkdir(parents=True)
        for name in names:
            (given / kind / name).symlink_to(folder / kind / name)
    assert import_nifti(given, tmp_path / "out").labels == len(names) == 5
    for name in names:
        check(tmp_path / "out", name.removesuffix(".nii.gz"), folder / "images" / name, folder / "labels" / name)
