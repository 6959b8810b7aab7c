"""A folder of NIfTI files says which cases, channels, structures and classes it has, by names alone."""

import json
from pathlib import Path

import pytest

from catalog import CatalogError
from catalog.nifti_folder import NiftiFolder


def folder(tmp_path: Path, images: list[str], labels: list[str], dataset: dict[str, object] | None = None) -> NiftiFolder:
    for kind, names in (("imagesTr", images), ("labelsTr", labels)):
        (tmp_path / kind).mkdir()
        for name in names:
            (tmp_path / kind / f"{name}.nii.gz").touch()
    if dataset is not None:
        (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    return NiftiFolder(tmp_path)


def test_nnunets_endings_are_channels(tmp_path: Path) -> None:
    said = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "tumour": 2, "oedema": 1}}
    found = folder(tmp_path, ["a_0000", "a_0001", "b_0001", "b_0000"], ["a", "b"], said)
    assert [[path.name for path in case.images] for case in found.cases] == [
        ["a_0000.nii.gz", "a_0001.nii.gz"],
        ["b_0000.nii.gz", "b_0001.nii.gz"],
    ]
    assert found.channels == ("T1", "FLAIR")
    labels = found.label_set(())
    assert labels is not None
    assert [(structure.name, structure.value) for structure in labels.structures] == [("oedema", 1), ("tumour", 2)]


def test_numbers_that_the_labels_share_are_names(tmp_path: Path) -> None:
    found = folder(tmp_path, ["case_0001", "case_0002"], ["case_0001"])
    assert [case.case for case in found.cases] == ["case_0001", "case_0002"]
    assert found.channels == ("image",)
    assert found.cases[1].label is None


def test_a_missing_channel_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"b_0000.*1 channels, a has 2"):
        _ = folder(tmp_path, ["a_0000", "a_0001", "b_0000"], ["a", "b"]).cases


def test_classes_are_a_label_set_without_outlines(tmp_path: Path) -> None:
    found = folder(tmp_path, ["a", "b", "c"], [])
    (tmp_path / "classes.csv").write_text("case,class\na,knee\nb,hip\n")
    assert found.classes() == {"a": "knee", "b": "hip"}
    classes = found.class_set()
    assert classes is not None
    assert [structure.name for structure in classes.structures] == ["hip", "knee"]


@pytest.mark.parametrize(
    ("text", "said"), [("x,y\n", "columns"), ("case,class\nz,hip\n", "z"), ("case,class\na,\n", "no class")]
)
def test_classes_that_do_not_fit_are_refused(tmp_path: Path, text: str, said: str) -> None:
    found = folder(tmp_path, ["a"], [])
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(CatalogError, match=said):
        found.classes()
