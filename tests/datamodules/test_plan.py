"""A plan says everything, and takes nothing it does not know."""

import json

import pytest

from datamodules import DataError, Fingerprint, Plan
from experiments.synthetic import LABEL_SET, cases

FINGERPRINT = Fingerprint((5.0, 3.4, 3.4), (28, 48, 48))


def test_it_is_readable_json_both_ways() -> None:
    plan = Plan.make({}, LABEL_SET, FINGERPRINT)
    stored = json.loads(json.dumps(plan.to_dict()))
    assert Plan.from_dict(stored) == plan
    assert Plan.from_dict(stored).digest() == plan.digest()


def test_defaults_follow_the_cohort() -> None:
    plan = Plan.make({}, LABEL_SET, FINGERPRINT)
    assert plan.spacing == FINGERPRINT.spacing
    assert plan.structures == ("liver", "spleen")
    assert plan.values == (1, 2)
    assert all(size % 8 == 0 for size in plan.patch)
    assert Plan.make({}, LABEL_SET, Fingerprint((1, 1, 1), (400, 500, 500), ("CT",))).normalization == ("ct",)


def test_overrides_win_and_change_the_digest() -> None:
    default, changed = (Plan.make(given, LABEL_SET, FINGERPRINT) for given in ({}, {"steps": 7, "patch": [16, 16, 16]}))
    assert (changed.steps, changed.patch) == (7, (16, 16, 16))
    assert changed.digest() != default.digest()
    assert changed.preparation() == default.preparation()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"stpes": 3}, "stpes"),
        ({"spacing": "thin"}, "spacing"),
        ({"steps": 0}, "steps"),
        ({"normalization": "none"}, "none"),
        ({"overlap": 1.0}, "overlap"),
        ({"structures": ["x"]}, "structures"),
    ],
)
def test_what_it_cannot_take_is_refused_by_name(given: dict[str, object], named: str) -> None:
    with pytest.raises(DataError, match=named):
        Plan.make(given, LABEL_SET, FINGERPRINT)


def test_the_fingerprint_is_of_reoriented_volumes() -> None:
    image = next(cases(1))[1]
    upright, turned = (Fingerprint.of([volume]) for volume in (image, image.permute_spatial_axes([2, 0, 1])))
    assert upright == turned
    with pytest.raises(DataError, match="no volumes"):
        Fingerprint.of([])
