"""The gate's verdict from Dice alone: pairing, the bound, few patients, what counts."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from serving import gate
from serving.gate import FEW_PATIENTS, Evidence, compare, judge, patient_means

LABELS = {f"l{i}": {"series": f"s{i}", "patient": f"p{i}"} for i in range(12)}


def verdict(
    own: Sequence[float], champion: Sequence[float] = (), best: Sequence[float] = (), *, margin: float = 0.01
) -> Evidence:
    scores = {"3": own, **({"2": champion} if champion else {}), **({"1": best} if best else {})}
    return judge(
        "organs",
        "3",
        {v: {f"l{i}": {"liver": dice} for i, dice in enumerate(values)} for v, values in scores.items()},
        {label: LABELS[label] for label in list(LABELS)[: len(own)]},
        champion="2" if champion else None,
        best="1" if best else None,
        margin=margin,
    )


def test_the_first_candidate_with_any_evidence_becomes_champion() -> None:
    evidence = verdict([0.2])
    assert evidence.verdict == "champion" and evidence.unproven and evidence.patients == 1
    assert "First champion" in evidence.reason


def test_without_a_labelled_holdout_patient_nothing_becomes_champion() -> None:
    evidence = verdict([])
    assert evidence.verdict == "rejected" and "No holdout patient has a label" in evidence.reason


def test_a_better_candidate_passes_with_a_bound() -> None:
    evidence = verdict([0.9, 0.88, 0.91, 0.9, 0.87, 0.9], [0.8, 0.81, 0.79, 0.82, 0.8, 0.8])
    assert evidence.verdict == "champion" and not evidence.unproven
    [comparison] = evidence.comparisons
    assert comparison.lower is not None and 0.07 < comparison.lower < comparison.mean_difference


def test_a_worse_candidate_is_rejected() -> None:
    evidence = verdict([0.7] * 6, [0.8] * 6)
    assert evidence.verdict == "rejected"
    assert evidence.comparisons[0].lower == pytest.approx(-0.1)
    assert "Not shown to be as good as version 2 (champion)" in evidence.reason


def test_equal_means_but_large_spread_is_not_shown_to_be_as_good() -> None:
    evidence = verdict([0.9, 0.5, 0.95, 0.45, 0.9, 0.5], [0.7] * 6)
    assert evidence.comparisons[0].mean_difference == pytest.approx(0)
    assert evidence.verdict == "rejected"


@pytest.mark.parametrize("patients", [FEW_PATIENTS, 7, 9, 20])
def test_a_candidate_worse_by_the_margin_passes_one_time_in_twenty(patients: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "RESAMPLES", 1999)
    rng, trials, champion = np.random.default_rng(0), 1000, dict.fromkeys(map(str, range(patients)), 0.8)
    passed = 0
    for _ in range(trials):
        own = dict(zip(champion, 0.8 - 0.02 + rng.normal(0, 0.05, patients), strict=True))
        passed += compare(own, champion, version="2", role="champion", margin=0.02).passed
    assert 0.03 < passed / trials < 0.07


def test_pairing_removes_the_spread_between_patients() -> None:
    hard_and_easy = [0.3, 0.9, 0.5, 0.95, 0.4, 0.85]
    assert verdict([dice + 0.001 for dice in hard_and_easy], hard_and_easy).verdict == "champion"


def test_the_margin_is_the_projects() -> None:
    own, champion = [0.79] * 6, [0.8] * 6
    assert verdict(own, champion, margin=0.02).verdict == "champion"
    assert verdict(own, champion, margin=0.005).verdict == "rejected"


def test_the_best_ever_counts_where_it_is_not_the_champion() -> None:
    evidence = verdict([0.8] * 6, [0.79] * 6, [0.9] * 6)
    assert evidence.verdict == "rejected" and "version 1 (best)" in evidence.reason


def test_with_few_patients_the_mean_decides_and_the_version_is_unproven() -> None:
    few = FEW_PATIENTS - 1
    evidence = verdict([0.9, 0.5, 0.95, 0.7][:few], [0.7] * few)
    assert evidence.verdict == "champion" and evidence.unproven
    assert evidence.comparisons[0].lower is None and "unproven" in evidence.reason
    assert verdict([0.5] * few, [0.7] * few).verdict == "rejected"


def test_a_patient_counts_once_and_what_is_not_annotated_not_at_all() -> None:
    labels = {"a": {"patient": "p"}, "b": {"patient": "p"}, "c": {"patient": "q"}}
    scores = {"a": {"liver": 1.0, "cyst": None}, "b": {"liver": 0.5, "cyst": 0.5}, "c": {"liver": None, "cyst": None}}
    assert patient_means(scores, labels) == {"p": 0.75}


def test_evidence_survives_json_and_its_digest_tells_a_change() -> None:
    evidence = verdict([0.9] * 6, [0.8] * 6)
    stored = json.loads(json.dumps(evidence.to_dict()))
    assert Evidence.from_dict(stored) == evidence and Evidence.from_dict(stored).digest == evidence.digest
    stored["means"]["3"] = 0.99
    assert Evidence.from_dict(stored).digest != evidence.digest
