"""What a training learns from: the roles of a split, folds, a folder's labels, classes; never the holdout."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from datamodules.fingerprint import Fingerprint
from training import TrainingError, TrainingSet
from training.training_set import FOLDS

FINGERPRINT = Fingerprint((2.0, 1.0, 1.0), (32, 64, 64))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten cases, the last without a label."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for index in range(10):
        array = np.zeros((4, 5, 6), np.uint8)
        array[1:3, 1:3, 1:3] = 1 + index % 2
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "images" / f"case_{index}.nii.gz")
        if index < 9:
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "labels" / f"case_{index}.nii.gz")
    return tmp_path


def test_a_fifth_validates_and_each_case_once_over_the_folds(folder: Path) -> None:
    validating = []
    for fold in range(FOLDS):
        found = TrainingSet.of_folder(folder, fold=fold)
        roles = [case.role for case in found.cases]
        assert len(roles) == 9 and 1 <= roles.count("validation") <= 2
        validating += [case.case for case in found.cases if case.role == "validation"]
    assert sorted(validating) == [f"case_{index}" for index in range(9)]
    assert TrainingSet.of_folder(folder).cases == TrainingSet.of_folder(folder, fold=0).cases
    with pytest.raises(TrainingError, match="fold 5"):
        TrainingSet.of_folder(folder, fold=5)


def test_structures_come_from_the_labels(folder: Path) -> None:
    found = TrainingSet.of_folder(folder)
    assert [structure.name for structure in found.label_set.structures] == ["structure_1", "structure_2"]
    assert found.plan(FINGERPRINT, {}).structures == ("structure_1", "structure_2")


def test_classes_make_a_classification(folder: Path) -> None:
    (folder / "classes.csv").write_text("case,class\ncase_0,hip\ncase_1,knee\ncase_2,hip\n")
    found = TrainingSet.of_folder(folder)
    assert [dict(case.states) for case in found.cases[:2]] == [
        {"hip": "present", "knee": "absent"},
        {"hip": "absent", "knee": "present"},
    ]
    plan = found.plan(FINGERPRINT, {"steps": 3})
    assert (plan.task, plan.exclusive, plan.network, plan.steps) == ("classification", True, "DenseNet121", 3)


def test_nothing_labelled_is_said(folder: Path) -> None:
    for path in (folder / "labels").iterdir():
        path.unlink()
    (folder / "dataset.json").write_text(json.dumps({"labels": {"1": "liver"}}))
    with pytest.raises(TrainingError, match="0 labelled cases"):
        TrainingSet.of_folder(folder)


def test_what_a_carried_dataset_fixed_cannot_be_planned_anew(folder: Path) -> None:
    plan = TrainingSet.of_folder(folder).plan(FINGERPRINT, {})
    carried = replace(TrainingSet.of_folder(folder), planned=plan)
    assert carried.plan(None, {"steps": 9}).steps == 9
    with pytest.raises(TrainingError, match=r"plan: spacing.*was fixed"):
        carried.plan(None, {"spacing": [1, 1, 1]})


def test_a_carried_dataset_keeps_what_was_chosen_and_leaves_the_rest_to_the_device(folder: Path) -> None:
    found = TrainingSet.of_folder(folder)
    chosen = {"learning_rate": 2e-3, "patience": 4, "network": "SegResNet", "network_args": {"init_filters": 8}, "batch": 1}
    carried = replace(found, planned=found.plan(FINGERPRINT, chosen))
    assert carried.plan(None, {}) == carried.planned
    assert carried.plan(None, {"network": "UNet"}).batch == 2
    own = found.plan(FINGERPRINT, {"learning_rate": 2e-3})
    elsewhere = replace(own, network="DynUNet", network_args={}, deep_supervision=True, ema=0.999, batch=8, patience=4)
    here = replace(found, planned=elsewhere).plan(None, {})
    assert here == replace(own, patience=4)
