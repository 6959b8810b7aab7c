"""The cohort that is made up: always the same, and not to be guessed from position."""

import json
from pathlib import Path

import numpy as np
from pydicom import dcmread

from catalog.labelset import LabelSet
from catalog.seg import decode
from catalog.sources import FileVolumes
from experiments.synthetic import LABEL_SET, PATIENTS, cases, write


def test_it_is_the_same_every_time_and_no_two_patients_are() -> None:
    first, again, longer = list(cases(2)), list(cases(2)), list(cases(3))
    for (name, image, mask), (name_2, image_2, mask_2), (name_3, image_3, _) in zip(first, again, longer, strict=False):
        assert name == name_2 == name_3
        assert np.array_equal(image.array, image_2.array)
        assert np.array_equal(image.array, image_3.array)
        assert np.array_equal(mask.array, mask_2.array)
    assert not np.array_equal(first[0][1].array, first[1][1].array)
    assert first[0][1].spacing != first[1][1].spacing
    assert not np.array_equal(next(cases(1, seed=1))[1].array, first[0][1].array)


def test_every_patient_has_both_organs() -> None:
    for _, image, mask in cases(PATIENTS):
        assert set(np.unique(mask.array)) == {0, 1, 2}
        assert mask.geometry_equal(image)
        assert np.linalg.det(mask.affine[:3, :3]) != 0


def test_position_alone_does_not_find_the_organs() -> None:
    masks = np.stack([mask.array for _, _, mask in cases(PATIENTS)])
    train, rest = masks[:24], masks[24:]
    best = []
    for structure in LABEL_SET.structures:
        often = (train == structure.value).mean(0)
        guesses = [often > share for share in np.arange(0.1, 0.7, 0.05)]
        truth = rest == structure.value
        best.append(max(np.mean([2 * (g & t).sum() / (g.sum() + t.sum()) for t in truth]) for g in guesses))
    assert np.mean(best) < 0.6


def test_it_is_written_as_dicom_and_read_back(tmp_path: Path) -> None:
    seen: list[int] = []
    write(tmp_path, 2, progress=lambda done, total: seen.append(done))
    assert seen == [1, 2]
    labels = LabelSet.from_dict(json.loads((tmp_path / "label_set.json").read_text()))
    assert labels == LABEL_SET
    rows = [line.split(",") for line in (tmp_path / "index.csv").read_text().splitlines()[1:]]
    for (case, series_uid, label), (name, image, mask) in zip(rows, cases(2), strict=True):
        assert case == name
        read = FileVolumes().volume(str(tmp_path / "images" / case))
        assert np.array_equal(read.array, image.array)
        assert np.allclose(read.affine, image.affine, atol=1e-4)
        assert np.array_equal(decode(tmp_path / label, read, labels).array, mask.array)
        assert dcmread(next((tmp_path / "images" / case).iterdir())).SeriesInstanceUID == series_uid
