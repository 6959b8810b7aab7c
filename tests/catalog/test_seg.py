from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from catalog import Algorithm, Archive, CatalogError, LabelSet, seg
from catalog.uids import deterministic_uid

Stored = Callable[..., tuple[Archive, str]]


def blob(shape: tuple[int, ...]) -> np.ndarray:
    """Both structures somewhere, most slices empty."""
    mask = np.zeros(shape, np.uint8)
    mask[2, 1:5, 3:9] = 1
    mask[3, 2:4, 1:10] = 7
    mask[3, 6, 6] = 1
    return mask


def encoded(archive: Archive, uid: str, mask: hd.Volume, labels: LabelSet, **given: Algorithm) -> hd.seg.Segmentation:
    sop, series = deterministic_uid("t", "sop"), deterministic_uid("t", "series")
    told = {"sop_uid": sop, "series_uid": series, "description": "a test", "author": "Anna^Lee"}
    return seg.encode(mask, archive.sources(uid), labels, **told, **given)


def written(segmentation: hd.seg.Segmentation, folder: Path) -> Path:
    segmentation.save_as(folder / "seg.dcm")
    return folder / "seg.dcm"


def test_every_voxel_comes_back(stored: Stored, labels: LabelSet, affine: np.ndarray, tmp_path: Path) -> None:
    archive, uid = stored(affine)
    like = archive.volume(uid)
    mask = like.with_array(blob(like.spatial_shape))
    found = seg.decode(written(encoded(archive, uid, mask, labels), tmp_path), like, labels)
    assert found.array.dtype == np.uint8
    np.testing.assert_array_equal(found.array, mask.array)
    np.testing.assert_allclose(found.affine, like.affine)


@pytest.mark.parametrize("drawn", ["nothing", "one voxel at a corner", "everything"])
def test_extremes_come_back(drawn: str, stored: Stored, labels: LabelSet, tmp_path: Path) -> None:
    archive, uid = stored()
    like = archive.volume(uid)
    array = np.zeros(like.spatial_shape, np.uint8)
    if drawn == "everything":
        array[...] = 7
    elif drawn != "nothing":
        array[-1, -1, -1] = 7
    found = seg.decode(written(encoded(archive, uid, like.with_array(array), labels), tmp_path), like, labels)
    np.testing.assert_array_equal(found.array, array)


def test_a_mask_with_reversed_axes_comes_back_in_place(stored: Stored, labels: LabelSet, tmp_path: Path) -> None:
    archive, uid = stored()
    like = archive.volume(uid)
    mask = like.with_array(blob(like.spatial_shape)).flip_spatial(0)
    found = seg.decode(written(encoded(archive, uid, mask, labels), tmp_path), like, labels)
    np.testing.assert_array_equal(found.array, blob(like.spatial_shape))
    turned = like.flip_spatial([0, 2]).permute_spatial_axes([2, 0, 1])
    elsewhere = seg.decode(tmp_path / "seg.dcm", turned, labels)
    np.testing.assert_array_equal(elsewhere.array, np.flip(blob(like.spatial_shape), (0, 2)).transpose(2, 0, 1))


def test_it_says_who_made_it(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    like = archive.volume(uid)
    mask = like.with_array(blob(like.spatial_shape))
    manual = encoded(archive, uid, mask, labels)
    assert [manual.get_segment_description(n).algorithm_type.value for n in manual.segment_numbers] == ["MANUAL"] * 2
    assert [manual.get_segment_description(n).segment_label for n in manual.segment_numbers] == ["Liver", "Spleen"]
    machine = encoded(archive, uid, mask, labels, algorithm=Algorithm("abdomen", "3", "ab" * 32))
    segment = machine.get_segment_description(2)
    assert segment.algorithm_type.value == "AUTOMATIC"
    assert (segment.algorithm_identification.name, segment.algorithm_identification.version) == ("abdomen", "3")
    assert "receipt sha256:" + "ab" * 32 in [item.ContributionDescription for item in machine.ContributingEquipmentSequence]
    assert machine.PatientID == "P1" and machine.ReferencedSeriesSequence[0].SeriesInstanceUID == uid


def test_a_value_without_structure_is_refused(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    like = archive.volume(uid)
    with pytest.raises(CatalogError, match="value 3"):
        encoded(archive, uid, like.with_array(np.full(like.spatial_shape, 3, np.uint8)), labels)


def test_another_grid_is_refused(stored: Stored, labels: LabelSet, noise: Callable[..., hd.Volume], tmp_path: Path) -> None:
    archive, uid = stored()
    like = archive.volume(uid)
    path = written(encoded(archive, uid, like.with_array(blob(like.spatial_shape)), labels), tmp_path)
    moved, coarse = like.affine.copy(), like.affine.copy()
    moved[0, 3] += 0.4
    coarse[:3, 0] /= 2
    for other in (moved, coarse):
        with pytest.raises(CatalogError, match="grid"):
            seg.decode(path, noise(other, shape=(12, 9, 11)), labels)
    with pytest.raises(CatalogError, match="image"):
        seg.decode(path, like[:3], labels)


def test_a_file_that_is_no_segmentation_is_refused(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    with pytest.raises(CatalogError, match="cannot be read"):
        seg.decode(Path(archive.series_files(uid)[0]), archive.volume(uid), labels)


def test_segments_of_other_names_are_found_by_code_or_refused(stored: Stored, labels: LabelSet, tmp_path: Path) -> None:
    archive, uid = stored()
    like = archive.volume(uid)
    path = written(encoded(archive, uid, like.with_array(blob(like.spatial_shape)), labels), tmp_path)
    foreign = pydicom.dcmread(path)
    foreign.SegmentSequence[0].SegmentLabel = "Segment 1"
    np.testing.assert_array_equal(seg.decode(foreign, like, labels).array, blob(like.spatial_shape))
    foreign.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = "85756007"
    with pytest.raises(CatalogError, match="no structure"):
        seg.decode(foreign, like, labels)


@pytest.mark.slow
def test_real_segmentations_lie_on_their_series(data: Callable[[str], Path], home: Path) -> None:
    """The study's own SEG of the PET: decoding and encoding it again changes no voxel."""
    folder = data("acrin_nsclc_petct_seg")
    pet = [pydicom.dcmread(file) for file in sorted((folder / "PT_PET-AC_61081015").rglob("*.dcm"))]
    theirs = pydicom.dcmread(next((folder / "SEG_PT-Segmentation_7.504365").rglob("*.dcm")))
    archive = Archive(home)
    archive.store(pet, folder="stow", writer="test")
    like = archive.volume(str(pet[0].SeriesInstanceUID))
    structures = tuple(
        seg.Structure(str(s.SegmentLabel), i, ("SCT", str(i), "part"), (1, 2, 3))
        for i, s in enumerate(theirs.SegmentSequence, 1)
    )
    found = seg.decode(theirs, like, LabelSet("theirs", structures))
    frames = theirs.pixel_array
    assert np.count_nonzero(found.array) == np.count_nonzero(frames) > 0
    again = encoded(archive, str(pet[0].SeriesInstanceUID), found, LabelSet("theirs", structures))
    np.testing.assert_array_equal(seg.decode(again, like, LabelSet("theirs", structures)).array, found.array)
