"""The request schema: what it admits, and what it refuses by name."""

import pytest

from serving.errors import ServingError
from serving.request import answer, parse


def test_a_series_with_defaults() -> None:
    item = parse({"reference": {"series": "1.2.3"}, "prompts": float("nan"), "outputs": None})
    assert (item.reference.kind, item.reference.value) == ("series", "1.2.3")
    assert item.prompts.classes == [] and item.outputs == ["volumes"]


def test_everything_that_is_built() -> None:
    item = parse(
        {
            "reference": {"dicom": "/data/case"},
            "prompts": {"classes": ["liver"]},
            "outputs": ["seg", "nifti", "labelmap", "volumes", "uncertainty"],
        }
    )
    assert item.prompts.classes == ["liver"] and len(item.outputs) == 5


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"reference": {"series": "1", "pixels": [1]}}, ["reference.pixels", "series, dicom, nifti, upload"]),
        ({"reference": {"series": "1"}, "prompt": {}}, ["prompt is not supported", "reference, prompts, outputs"]),
        ({"reference": {"series": "1"}, "prompts": {"boxes": []}}, ["prompts.boxes", "classes, points"]),
        ({"reference": {"series": "1"}, "outputs": ["mesh"]}, ["'mesh'", "seg, nifti, labelmap, volumes, uncertainty"]),
        ({"reference": {"series": "1", "dicom": "/x"}}, ["exactly one of"]),
        ({"reference": {}}, ["exactly one of"]),
        ({"reference": {"series": ""}}, ["exactly one of"]),
        ({"reference": {"series": 7}}, ["reference.series", "string"]),
        ({"reference": {"series": "1"}, "outputs": []}, ["outputs"]),
        ({"prompts": {}}, ["reference", "required"]),
        ({"reference": {"dicom": "https://pacs/studies/1"}}, ["URL in reference.dicom is not built yet"]),
        (
            {"reference": {"series": "1"}, "prompts": {"points": [{"position": [1.0, 2.0, 3.0], "structure": "liver"}]}},
            ["prompts.points is not built yet"],
        ),
        ({"reference": {"nifti": "/a.nii.gz"}, "outputs": ["seg"]}, ["DICOM SEG needs DICOM images"]),
        ({"reference": {"upload": "0a.nii"}, "outputs": ["seg"]}, ["DICOM SEG needs DICOM images"]),
    ],
)
def test_refused_by_name(row: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ServingError) as refusal:
        parse(row)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_answer_names_the_version() -> None:
    assert answer({"volumes": {}}, None, model="organs", version="3") == {
        "result": {"volumes": {}},
        "error": None,
        "model": "organs",
        "version": "3",
    }
    refused = answer(None, ServingError("no", remedy="do"), model="organs", version="3")
    assert refused["error"] == {"kind": "ServingError", "message": "no (do)"}
