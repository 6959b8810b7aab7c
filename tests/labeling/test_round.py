"""Rounds on a real Spark and a real MLflow server: what a round leaves, that it may be repeated, and that labels matter."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import highdicom as hd
import pytest

from catalog import Archive, LabelSet, Submission, current, freeze, mask
from labeling import Round, SimulatedReader, Workplace
from training import LocalLauncher

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.slow


class MistakenReader(SimulatedReader):
    """Gives every training series the truth of another patient: labels that say nothing about the image they are on."""

    def __init__(self, archive: Archive, labels: LabelSet, truth: dict[str, Path], mistaken: list[str]) -> None:
        super().__init__(archive, labels, truth)
        self._other = dict(zip(mistaken, mistaken[1:] + mistaken[:1], strict=True))

    def label(self, series: str, suggestion: hd.Volume | None) -> Submission:
        told = super().label(series, suggestion)
        if series not in self._other:
            return told
        other = super().label(self._other[series], None)
        return replace(told, mask=told.mask.with_array(other.mask.array), states=other.states)


def at_once(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A step without a memory."""
    assert name
    return work()


@pytest.fixture
def place(clinic: Any, spark: "SparkSession", mlflow_server: str) -> Workplace:
    return Workplace(
        archive=clinic.archive,
        spark=spark,
        project=clinic.project,
        tracking_uri=mlflow_server,
        reader=SimulatedReader(clinic.archive, clinic.project.label_set, clinic.truth),
        launcher=lambda report: LocalLauncher(progress=report),
        code_revision="test",
    )


def test_a_round_labels_trains_judges_promotes_and_scores(place: Workplace) -> None:
    result = Round(place, 1, 4)(at_once)
    roles = freeze(place.archive, place.project)
    known = current(place.archive, place.project.key)
    assert result["labels"] == 4
    assert result["promoted"]
    assert result["champion"] == result["version"]
    assert {roles[uid] for uid in roles if uid not in known} == {"train"}
    assert set(result["structures"]) == {"liver", "spleen"}
    scored = place.archive.scores.scan(["series_uid"], where=f"project = '{place.project.key}'").read_all()
    assert set(scored["series_uid"].to_pylist()) == {uid for uid in roles if uid not in known}

    other = Round(replace(place, project=replace(place.project, key="another")), 1, 1)
    other._label(other._next()["choices"])  # others go on labelling, and a round that is repeated is still the same
    again = Round(place, 1, 4)(at_once)
    for name in ("labels", "dice", "version", "run_id", "champion"):
        assert again[name] == result[name], name
    assert current(place.archive, place.project.key) == known


def test_the_first_round_says_how_many_labels_are_the_reference(place: Workplace) -> None:
    titles: list[str] = []

    def watch(title: str) -> AbstractContextManager[Callable[[int, int], None]]:
        titles.append(title)
        return nullcontext(lambda done, total: None)

    project = replace(place.project, key="told")  # nobody labelled for it yet
    first = Round(replace(place, project=project, watch=watch), 1, 4)
    first._label(first._next()["choices"])
    apart = sum(role != "train" for role in freeze(place.archive, project).values())
    assert titles == [f"label {4 + apart} series, {apart} of them the reference (validation and holdout)"]


def test_the_next_round_takes_the_series_of_most_doubt(place: Workplace) -> None:
    Round(place, 1, 4)(at_once)
    before = current(place.archive, place.project.key)
    scored = place.archive.scores.scan(["series_uid", "value"], where=f"project = '{place.project.key}'").read_all()
    doubt = sorted(scored.to_pylist(), key=lambda row: -row["value"])
    chosen = Round(place, 2, 2)._next()["choices"]
    assert [choice["series_uid"] for choice in chosen] == [row["series_uid"] for row in doubt[:2]]
    assert not {choice["series_uid"] for choice in chosen} & set(before)


def test_permuted_labels_gain_nothing(place: Workplace, clinic: Any) -> None:
    project = replace(place.project, key="permuted", model="permuted")
    roles = freeze(place.archive, project)
    training = sorted(uid for uid, role in roles.items() if role == "train")
    reader = MistakenReader(place.archive, project.label_set, clinic.truth, training)
    wrong = replace(place, project=project, reader=reader)
    first, last = (Round(wrong, number, k)(at_once) for number, k in ((1, 3), (2, 5)))
    known = current(place.archive, "permuted")
    shown = mask(place.archive, known[training[0]], project.label_set) if training[0] in known else None
    if shown is not None:
        truth = SimulatedReader(place.archive, project.label_set, clinic.truth).label(training[0], None).mask
        assert (shown.array != truth.array).any()
    assert last["labels"] == 8
    assert last["dice"] - first["dice"] < 0.03
    assert last["dice"] < 0.6
    right = Round(place, 1, 4)(at_once)
    assert right["dice"] > last["dice"] + 0.1, "half as many labels that are right teach more"
