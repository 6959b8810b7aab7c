from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from catalog import Archive, Case, CatalogError, LabelSet, Project, Split, freeze
from catalog.split import units

Stored = Callable[..., tuple[Archive, str]]

TEXT = """
key: abdomen
cohort: SELECT SeriesInstanceUID, StudyInstanceUID, PatientID FROM series
label_set:
  name: abdomen
  structures:
    - {name: Liver, value: 1, code: [SCT, "10200004", Liver], color: [200, 80, 60]}
plan: {steps: 5}
split: {validation: 0.1, holdout: 0.25, seed: fixed}
model: abdomen
margin: 0.02
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "project.yaml").write_text(TEXT)
    return Project.load(tmp_path / "project.yaml")


def cohort(project: Project, *cases: Case) -> Project:
    """The project with these cases, by the SQL that gives them."""
    rows = ", ".join(f"('{case.series_uid}', '{case.study_uid}', '{case.patient_id}')" for case in cases)
    sql = f"SELECT * FROM (VALUES {rows}) AS v(SeriesInstanceUID, StudyInstanceUID, PatientID)"
    return Project(project.key, sql, project.label_set, {}, project.split, project.model, project.margin)


class Given(Project):
    """A project whose cases are given, so that a split of hundreds needs no files."""

    def cases(self, archive: Archive) -> list[Case]:
        return self.plan["cases"]  # type: ignore[no-any-return]


def given(*cases: Case, labels: LabelSet, seed: str = "s") -> Given:
    return Given("p", "", labels, {"cases": list(cases)}, Split(0.1, 0.25, seed), "m", 0.02)


def patients(count: int, series: int = 2) -> list[Case]:
    return [Case(f"1.{p}.{s}", f"1.{p}", f"P{p}") for p in range(count) for s in range(series)]


def roles(archive: Archive, cases: list[Case], labels: LabelSet, seed: str = "s") -> dict[str, str]:
    return dict(freeze(archive, given(*cases, labels=labels, seed=seed)))


def test_a_project_file_is_read(project: Project) -> None:
    assert project.key == "abdomen" and project.split == Split(0.1, 0.25, "fixed")
    assert project.label_set.structures[0].code == ("SCT", "10200004", "Liver")
    assert project.plan == {"steps": 5}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("margin: 0.02", "margin: much"), "margin"),
        (("key: abdomen", "key: a b"), "key"),
        (("holdout: 0.25", "holdout: 0.95"), "split"),
        (("value: 1", "value: 0"), "label_set.structures.0.value"),
        (("model: abdomen", "models: abdomen"), "model"),
        (("model: abdomen", "model: it's"), "model"),
        (("model: abdomen", "model: ../abdomen"), "model"),
        (("model: abdomen", "model: .."), "model"),
        (("key: abdomen", "{"), "YAML"),
    ],
)
def test_a_field_that_does_not_fit_is_named(change: tuple[str, str], field: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(TEXT.replace(*change, 1))
    with pytest.raises(CatalogError, match=field) as caught:
        Project.load(tmp_path / "p.yaml")
    assert "\n" not in str(caught.value) and "p.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((TEXT, ""), "the file: no fields and values (docs/project.md"),
        (("key: abdomen", "kee: abdomen"), "kee: there is no such field (did you mean key?)"),
        (("margin: 0.02", "foo: 1"), "foo: there is no such field (the fields are key, cohort, label_set, plan, split"),
        (("color: [", "colour: ["), "label_set.structures.0.colour: there is no such field (did you mean color?)"),
        (("key: abdomen\n", ""), "key: is missing (add it"),
        (('"10200004"', "10200004"), "label_set.structures.0.code.1: 10200004 is no text (put it in quotes)"),
        (("key: abdomen", "key: a b"), "key: 'a b' is no name (letters"),
        (("value: 1", "value: x"), "label_set.structures.0.value: 'x' should be a valid integer (mend"),
        (("    - {", "    - {name: b, value: 2, code: [a, b, c], color: [1, 2, 3]}\n    - {"), "label_set: structures need"),
    ],
)
def test_what_does_not_fit_is_said_in_plain_words_with_the_remedy(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(TEXT.replace(*change, 1))
    with pytest.raises(CatalogError) as caught:
        Project.load(tmp_path / "p.yaml")
    assert f"p.yaml: {said}" in str(caught.value)


def test_sql_that_is_refused_is_said_to_be_the_cohorts(project: Project, home: Path) -> None:
    wrong = Project("k", "SELECT a\nFROM nowhere", project.label_set, {}, project.split, "m", 0.1)
    with pytest.raises(CatalogError, match=r"^project k: cohort: .*nowhere"):
        wrong.cases(Archive(home))


def test_cases_are_the_image_series_of_the_cohort(project: Project, stored: Stored) -> None:
    archive, uid = stored()
    assert [(case.series_uid, case.patient_id) for case in project.cases(archive)] == [(uid, "P1")]
    assert cohort(project, Case("1.2", "1", "x")).cases(archive) == []
    without = Project("k", "SELECT SeriesInstanceUID FROM series", project.label_set, {}, project.split, "m", 0.1)
    with pytest.raises(CatalogError, match="StudyInstanceUID"):
        without.cases(archive)


def test_quotas_are_exact_and_a_patient_is_never_torn(home: Path, labels: LabelSet) -> None:
    cases = patients(40)
    found = roles(Archive(home), cases, labels)
    by_patient = {case.patient_id: found[case.series_uid] for case in cases}
    assert Counter(by_patient.values()) == {"train": 26, "holdout": 10, "validation": 4}
    assert all(found[case.series_uid] == by_patient[case.patient_id] for case in cases)


def test_a_role_is_for_ever_and_newcomers_join_by_the_same_rule(home: Path, labels: LabelSet) -> None:
    archive = Archive(home)
    first = roles(archive, patients(10), labels)
    second = roles(archive, patients(40), labels)
    assert second.items() >= first.items()
    assert Counter(second.values()) == {"train": 52, "holdout": 20, "validation": 8}
    assert roles(archive, patients(40), labels, seed="another") == second
    version = archive.splits.version()
    roles(archive, patients(3), labels)
    assert archive.splits.version() == version


def test_the_key_decides(home: Path, tmp_path: Path, labels: LabelSet) -> None:
    here = roles(Archive(home), patients(40), labels)
    assert roles(Archive(tmp_path / "b"), patients(40)[::-1], labels) == here
    assert roles(Archive(tmp_path / "c"), patients(40), labels, seed="other") != here


def test_without_a_patient_id_the_study_is_the_unit_and_flagged(home: Path, labels: LabelSet) -> None:
    archive = Archive(home)
    cases = [Case("1.1", "1", ""), Case("1.2", "1", " "), Case("2.1", "2", ""), Case("3.1", "3", "P")]
    assert list(units(cases).values()) == [("1", "study"), ("1", "study"), ("2", "study"), ("P", "patient")]
    found = roles(archive, cases, labels)
    assert found["1.1"] == found["1.2"] and Counter(found[c.series_uid] for c in cases[1:])["holdout"] == 1
    kinds = archive.sql("SELECT unit_kind, count(*)::INT n FROM splits GROUP BY 1 ORDER BY 1").to_pylist()
    assert kinds == [{"unit_kind": "patient", "n": 1}, {"unit_kind": "study", "n": 2}]


def test_a_study_is_never_torn_apart(labels: LabelSet, home: Path) -> None:
    half = [Case("1.1", "1", "P"), Case("1.2", "1", " ")]
    assert set(units(half).values()) == {("P", "patient")}
    several = [Case("2.1", "2", "P"), Case("2.2", "2", "Q"), Case("2.3", "2", "")]
    assert set(units(several).values()) == {("2", "study")}
    assert set(units(half, held={("1", "study")}).values()) == {("1", "study")}
    for number in range(8):  # whatever the order: a patient of two units has one role, at once or later
        found = roles(Archive(home / str(number)), [*half, *several, *patients(9)], labels, seed=str(number))
        assert len({found[case.series_uid] for case in (*half, *several)}) == 1
        later = Archive(home / f"later {number}")
        first = roles(later, [*half[1:], *patients(9)], labels, seed=str(number))
        then = roles(later, [*half, *several, *patients(9)], labels, seed=str(number))
        assert then.items() >= first.items() and len({then[case.series_uid] for case in (*half, *several)}) == 1


def test_two_who_freeze_at_once_agree(home: Path, labels: LabelSet) -> None:
    cohorts = [patients(20), patients(30)]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda cases: roles(Archive(home), cases, labels), cohorts)
    assert second.items() >= first.items()
    (counted,) = Archive(home).sql("SELECT count(*) n, count(DISTINCT unit) units FROM splits").to_pylist()
    assert counted == {"n": 30, "units": 30}
