"""The index says what object_catalog says: followed bit by bit or built at once, in SQLite and in Postgres."""

import json
import multiprocessing
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite

from catalog import CatalogError, DeltaTable, MemoryTable
from catalog._index_search import Search
from catalog.index import ATTRIBUTES, MODALITIES, Index
from catalog.schemas import OBJECTS, TYPED, TYPED_LATER

START = datetime(2024, 2, 29, tzinfo=UTC)


def row(path: str, seen: int = 0, **changed: Any) -> dict[str, Any]:
    """A row of object_catalog as ingest makes it: a CT instance of study 1, series 1.1 unless ``changed``."""
    at = START + timedelta(seconds=seen)
    uids = {"StudyInstanceUID": "1", "SeriesInstanceUID": "1.1", "SOPInstanceUID": f"1.1.{path.strip('/')}"}
    typed = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT", "PatientID": "P1"}
    made = {"path": path, "modificationTime": at, "length": 1, "status": "ok", "ingested_at": at, **uids, **typed, **changed}
    groups = dict(zip(("Alphabetic", "Ideographic", "Phonetic"), (made.get("PatientName") or "").split("="), strict=False))
    header = json.dumps({"00100010": {"vr": "PN", "Value": [groups]}}, ensure_ascii=False)
    return {**made, "PatientName": groups["Alphabetic"] or None, "meta": header}


def table(*batches: Sequence[Mapping[str, Any]]) -> MemoryTable:
    """The batches as versions of a table."""
    made = MemoryTable(OBJECTS)
    for batch in batches:
        add(made, *batch)
    return made


def add(made: MemoryTable | DeltaTable, *rows: Mapping[str, Any]) -> None:
    made.append(pa.Table.from_pylist(list(rows), schema=OBJECTS), writer="w", batch=made.version() + 1)


# What the index should say, from all rows, by the words of schemas.OBJECTS.


def current(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each path the latest row; of those that are good, of each SOPInstanceUID the latest."""
    paths = {r["path"]: r for r in sorted(rows, key=lambda r: (r["ingested_at"], r["modificationTime"], r["length"]))}
    good = [r for r in paths.values() if r["status"] == "ok"]
    return list({r["SOPInstanceUID"]: r for r in sorted(good, key=lambda r: (r["ingested_at"], r["path"]))}.values())


def expected(rows: Sequence[Mapping[str, Any]], level: str) -> list[dict[str, Any]]:
    """What a level lists, with the attributes of the levels above."""
    uids = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")[: list(ATTRIBUTES).index(level) + 1]
    now = sorted(current(rows), key=lambda r: r["ingested_at"])
    return sorted(
        (_entity(now, level, key) for key in {tuple(r[uid] for uid in uids) for r in now}),
        key=lambda found: _position(found, level),
    )


def _entity(now: Sequence[Mapping[str, Any]], level: str, key: tuple[str, ...]) -> dict[str, Any]:
    study = [r for r in now if r["StudyInstanceUID"] == key[0]]
    told = {name: _latest(study, name) for name in ATTRIBUTES["studies"]}
    told["ModalitiesInStudy"] = sorted(_modalities(study))
    told["NumberOfStudyRelatedSeries"] = len({r["SeriesInstanceUID"] for r in study})
    told["NumberOfStudyRelatedInstances"] = len(study)
    if level == "studies":
        return told
    series = [r for r in study if r["SeriesInstanceUID"] == key[1]]
    told |= {name: _latest(series, name) for name in ATTRIBUTES["series"]}
    told["NumberOfSeriesRelatedInstances"] = len(series)
    if level == "series":
        return told
    return told | {name: next(r.get(name) for r in series if r["SOPInstanceUID"] == key[2]) for name in ATTRIBUTES["instances"]}


def _latest(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    if name == "PatientName":
        names = ["=".join(json.loads(r["meta"])["00100010"]["Value"][0].values()) for r in rows]
        return next(filter(None, reversed(names)), None)
    return next((r[name] for r in reversed(rows) if r.get(name) is not None), None)


def _modalities(study: Sequence[Mapping[str, Any]]) -> set[str]:
    series = {r["SeriesInstanceUID"] for r in study}
    each = {_latest([r for r in study if r["SeriesInstanceUID"] == uid], "Modality") for uid in series}
    return {modality for modality in each if modality}


def _position(found: Mapping[str, Any], level: str) -> tuple[Any, ...]:
    def newest(text: str | None) -> tuple[bool, list[int]]:
        return text is None, [-ord(letter) for letter in (text or "")] + [0]

    def number(value: int | None) -> tuple[bool, int]:
        return value is None, value or 0

    if level == "studies":
        return (*newest(found["StudyDate"]), *newest(found["StudyTime"]), found["StudyInstanceUID"])
    if level == "series":
        return (found["StudyInstanceUID"], *number(found["SeriesNumber"]), found["SeriesInstanceUID"])
    return (found["SeriesInstanceUID"], *number(found["InstanceNumber"]), found["SOPInstanceUID"])


def said(index: Index, level: str, match: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """All that the index knows of a level."""
    if level == "studies":
        return index.studies(match)
    above = list(dict.fromkeys([*ATTRIBUTES["studies"], *(ATTRIBUTES["series"] if level == "instances" else ())]))
    return index.series(match, include=above) if level == "series" else index.instances(match, include=above)


# Rows that collide in every way: few paths, few objects, two studies of which one shares a series' UID with the other.

NAMES = ["Doe^Jane", "DOE^JANE^^^", "Döner^Ünal", "doe", "a%b_c^[x]*", 'O"Neil^/?', "山田^太郎", "straße^x"]
NAMES += ["Yamada^Tarou=山田^太郎=やまだ^たろう", "=山田^花子", "Doe^Jane==ドウ"]
DATES = ["19991231", "20200101", "20200229", "20241231"]
TIMES = ["10", "1015", "101530", "101530.25", "235959", "000000"]


@st.composite
def rows(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """A few versions of object_catalog."""
    seen = iter(draw(st.permutations(range(12))))  # each row at a time of its own, not in the order of the versions
    return [[draw(_one(next(seen))) for _ in range(draw(st.integers(1, 4)))] for _ in range(draw(st.integers(1, 3)))]


def _one(seen: int) -> st.SearchStrategy[dict[str, Any]]:
    study = st.sampled_from(["1", "2"])
    texts: dict[str, Any] = {
        "PatientName": st.sampled_from([None, *NAMES]),
        "PatientID": st.sampled_from([None, "P1", "p1", "P%", "P_1"]),
        "StudyDate": st.sampled_from([None, *DATES]),
        "StudyTime": st.sampled_from([None, *TIMES]),
        "Modality": st.sampled_from([None, "CT", "SEG", "CR"]),
        "SeriesNumber": st.sampled_from([None, 1, 2, 10]),
        "SeriesDescription": st.sampled_from([None, "Head", "head", "Head *"]),
        "InstanceNumber": st.sampled_from([None, -1, 1, 2, 10]),
        "Rows": st.sampled_from([None, 512]),
        "StudyInstanceUID": study,
        "SeriesInstanceUID": st.sampled_from(["1.1", "1.2", "2.1"]),
        "SOPInstanceUID": st.sampled_from(["9.1", "9.2", "9.3", "9.10"]),
        "status": st.sampled_from(["ok", "ok", "ok", "ok", "conflict", "incomplete", "broken", "archive", "not_dicom"]),
        "length": st.integers(1, 2),
    }
    return st.tuples(st.sampled_from(["/a", "/b", "/c", "/d"]), st.fixed_dictionaries(texts)).map(
        lambda made: row(made[0], seen, **made[1])
    )


TEXTS = [
    "doe*",
    "DOE^JANE",
    "*NE",
    "*öner*",
    "d?e",
    "doe^*",
    "*%*",
    "a%b_c^[x]?",
    "*[x]*",
    'o"*',
    "=山田*",
    "山田^*",
    "*花*",
    "*た?う",
    "yamada*=山田*",
    "doe*=山田*",
    "*=*子",
    "==ドウ",
    "=",
    "STRASSE*",
    "*o?ne*",
    "?",
]
MATCHES = st.fixed_dictionaries(
    {},
    optional={
        "PatientName": st.sampled_from([*TEXTS, *NAMES, "", "*"]),
        "PatientID": st.sampled_from(["P1", "p1", "P*", "P%", "P_1", "?1", "*1", "P_*", "*_1", "*p*", "**"]),
        "StudyDate": st.sampled_from(["", *DATES, "20200101-", "-20200101", "20200101-20200229", "20200102-20200201"]),
        "StudyTime": st.sampled_from(["10", "1015", "10-1015", "1000-", "-101530", "101530.00-101531", "0000-2400"]),
        "ModalitiesInStudy": st.sampled_from(
            ["CT", "ct", "C*", "SEG", "?R", "CT,SEG", "MR\\SEG", "MR, C*", "MR,*", ",", ",CT"]
        ),
        "StudyInstanceUID": st.sampled_from(["1", "2", "1,2", "1\\2", "3"]),
    },
)
DEEPER = {
    "studies": {},
    "series": {"Modality": st.sampled_from(["CT", "C?", "SEG,CT", "MR\\PT"]), "SeriesNumber": st.sampled_from(["1", "010"])},
    "instances": {
        "SeriesDescription": st.sampled_from(["Head", "Head*", "head"]),
        "InstanceNumber": st.sampled_from(["1", "-1"]),
        "SOPInstanceUID": st.sampled_from(["9.1", "9.1,9.10", "9.4"]),
    },
}


def matches(found: Mapping[str, Any], match: Mapping[str, str]) -> bool:
    """PS3.4 §C.2.2.2, by the letter and slowly."""
    return all(_universal(name, value) or _fits(name, found[name], value) for name, value in match.items())


def _several(name: str, value: str) -> list[str]:
    listed = value.strip("*") and name in MODALITIES
    return [one.strip() for one in re.split(r"[,\\]", value) if one] if listed else [value]


def _universal(name: str, value: str) -> bool:
    return not all(one.strip("*=" if name == "PatientName" else "*") for one in _several(name, value))


def _fits(name: str, held: Any, value: str) -> bool:
    if held is None:
        return False
    if name in MODALITIES:
        return any(
            _wild(one, wanted) for one in (held if name == "ModalitiesInStudy" else [held]) for wanted in _several(name, value)
        )
    if isinstance(held, int):
        return held == int(value)
    if name.endswith("UID"):
        return held in re.split(r"[,\\]", value)
    if name.endswith("Date"):
        first, dash, last = value.partition("-")
        return first <= held <= (last or ("9" if dash else first))
    if name.endswith("Time"):
        first, dash, last = value.partition("-")
        return _clock(first, "0") <= _clock(held, "0") <= _clock(last or ("99" if dash else first), "9")
    if name.endswith("Name"):
        wanted = [group if group.endswith("*") else _name(group) for group in value.casefold().split("=") if group.strip("*")]
        return all(any(_wild(_name(group), one) for group in held.split("=") if group) for one in wanted)
    return _wild(held, value)


def _name(text: str) -> str:
    return text.casefold().rstrip("^") + "^"


def _clock(text: str, fill: str) -> str:
    whole, _, part = text.partition(".")
    return whole.ljust(6, fill) + part.ljust(6, fill)


def _wild(held: str, value: str) -> bool:
    return re.fullmatch("".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in value), held) is not None


class IndexTests:
    """An ``url`` fixture makes URLs of empty databases."""

    def test_follows_as_if_it_were_built_at_once(self, url: Callable[[], str | sa.URL]) -> None:
        place = url()

        @given(rows())
        @self.examples
        def check(versions: list[list[dict[str, Any]]]) -> None:
            index = Index(place)
            index.rebuild(MemoryTable(OBJECTS))
            objects = MemoryTable(OBJECTS)
            for batch in versions:
                add(objects, *batch)
                assert index.follow(objects) == objects.version()
            every = [one for batch in versions for one in batch]
            followed = {level: said(index, level) for level in ATTRIBUTES}
            assert followed == {level: expected(every, level) for level in ATTRIBUTES}
            index.rebuild(objects)
            assert {level: said(index, level) for level in ATTRIBUTES} == followed

        check()

    def test_matches_as_the_standard_says(self, url: Callable[[], str | sa.URL]) -> None:
        place = url()

        @given(rows(), st.sampled_from(sorted(ATTRIBUTES)), st.data())
        @self.examples
        def check(versions: list[list[dict[str, Any]]], level: Any, data: st.DataObject) -> None:
            index, objects = Index(place), table(*versions)
            index.rebuild(objects)
            everything = expected([one for batch in versions for one in batch], level)
            for _ in range(5):
                match = {**data.draw(MATCHES), **data.draw(st.fixed_dictionaries({}, optional=DEEPER[level]))}
                wanted = [found for found in everything if matches(found, match)]
                assert said(index, level, match) == wanted, match
                assert index.count(level, match) == len(wanted)

        check()

    def test_a_path_that_holds_another_object_gives_up_the_first(self, url: Callable[[], str | sa.URL]) -> None:
        index, objects = Index(url()), table([row("/a", StudyInstanceUID="1"), row("/b", StudyInstanceUID="1")])
        index.follow(objects)
        add(objects, row("/a", 1, StudyInstanceUID="2", SOPInstanceUID="9"), row("/b", 1, status="incomplete"))
        index.follow(objects)
        assert [found["StudyInstanceUID"] for found in index.studies()] == ["2"]
        assert index.instance("1.1.a") is None and index.instance("9").path == "/a"
        add(objects, row("/a", 0, SOPInstanceUID="8"))  # of a slower writer
        index.follow(objects)
        assert [found["SOPInstanceUID"] for found in index.instances()] == ["9"]

    @pytest.mark.parametrize("status", ["conflict", "incomplete", "broken", "archive", "not_dicom"])
    def test_a_copy_counts_once_and_an_earlier_one_steps_in(self, status: str, url: Callable[[], str | sa.URL]) -> None:
        index, objects = Index(url()), table([row("/a", SOPInstanceUID="9", SeriesInstanceUID="1.1")])
        add(objects, row("/b", 1, SOPInstanceUID="9", SeriesInstanceUID="1.2"))
        index.follow(objects)
        assert [found["SeriesInstanceUID"] for found in index.series()] == ["1.2"]
        assert index.count("instances") == 1
        add(objects, row("/b", 2, SOPInstanceUID="9", SeriesInstanceUID="1.2", status=status), row("/c", 3, status=status))
        index.follow(objects)
        assert [found["SeriesInstanceUID"] for found in index.series()] == ["1.1"]
        assert index.studies()[0]["NumberOfStudyRelatedInstances"] == 1

    def test_matches_case_wildcards_and_times_to_the_letter(self, url: Callable[[], str | sa.URL]) -> None:
        held = {"StudyTime": "10", "PatientID": "P_1", "StudyDescription": "Head", "PatientName": "Doe^JANE^^^"}
        other = {"StudyTime": "1030", "PatientID": "PX1", "StudyDescription": "hEAD", "PatientName": "Doerr^J"}
        index = Index(url())
        index.follow(table([row("/a", StudyInstanceUID="1", **held), row("/b", StudyInstanceUID="2", **other)]))
        fit = {"StudyTime": "1000-1029", "PatientID": "*_1", "StudyDescription": "*ead", "PatientName": "DOE^*"}
        fit_too = {"StudyTime": "10", "PatientID": "?_1", "StudyDescription": "H*d", "PatientName": "*^jane"}
        for name, value in [*fit.items(), *fit_too.items(), ("StudyTime", "-1015"), ("StudyTime", "100000.000")]:
            both = (name, value) == ("StudyTime", "10")  # the whole hour
            wanted = {"1", "2"} if both else {"1"}
            assert {found["StudyInstanceUID"] for found in index.studies({name: value})} == wanted, (name, value)

    def test_changes_only_what_is_touched(self, url: Callable[[], str | sa.URL]) -> None:
        index, objects = Index(url()), table([row(f"/{n}/{i}", StudyInstanceUID=f"{n}") for n in range(4) for i in range(3)])
        index.follow(objects)
        before = numbers(index)
        add(objects, row("/2/0", 1, StudyInstanceUID="2", PatientID="P2"))
        index.follow(objects)
        after = numbers(index)
        assert {uid for uid in before if before[uid] != after[uid]} <= {"2"}
        assert [found["PatientID"] for found in index.studies({"StudyInstanceUID": "1,2,3"})] == ["P1", "P2", "P1"]

    def test_takes_in_more_rows_than_a_batch(self, url: Callable[[], str | sa.URL]) -> None:
        first = [row(f"/{n}", InstanceNumber=n, SeriesInstanceUID=f"1.{n % 7}") for n in range(12_000)]
        copies = [row(f"/copy/{n}", 1, SOPInstanceUID=f"1.1.{n}", SeriesInstanceUID="1.8") for n in range(11_000)]
        index, objects = Index(url()), table(first)
        index.follow(objects)
        assert [found["NumberOfStudyRelatedSeries"] for found in index.studies()] == [7]
        add(objects, *copies)
        index.follow(objects)
        assert index.count("instances") == 12_000
        assert index.count("instances", {"SeriesInstanceUID": "1.8"}) == 11_000
        numbers = [found["NumberOfSeriesRelatedInstances"] for found in index.series()]
        assert sum(numbers) == 12_000 and len(numbers) == 8

    def test_a_crash_in_the_middle_leaves_it_as_it_was(self, url: Callable[[], str | sa.URL]) -> None:
        index, objects = Index(url()), table([row("/a")])
        index.follow(objects)
        add(objects, row("/b"), row("/a", 1, status="broken"))
        with pytest.raises(KeyboardInterrupt):
            index.follow(Interrupted(objects, lambda: said(Index(index.url), "instances")))
        assert [found["SOPInstanceUID"] for found in index.instances()] == ["1.1.a"]
        assert index.follow(objects) == 1
        assert [found["SOPInstanceUID"] for found in index.instances()] == ["1.1.b"]

    def test_answers_while_another_follows(self, url: Callable[[], str | sa.URL]) -> None:
        index, objects, seen = Index(url()), table([row("/a")]), []
        index.follow(objects)
        add(objects, row("/b"))
        index.follow(Watched(objects, lambda: seen.append(Index(index.url).count("instances"))))
        assert seen == [1] and index.count("instances") == 2

    @pytest.mark.slow
    def test_many_may_follow_at_once(self, url: Callable[[], str | sa.URL], tmp_path: Path) -> None:
        objects, place = DeltaTable(tmp_path / "table", OBJECTS), url()
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_append_and_follow, args=(objects.path, place, n)) for n in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0] * 4
        index, fresh = Index(place), Index(url())
        assert index.follow(objects) == fresh.rebuild(objects) == objects.version()
        every = objects.scan(OBJECTS.names).read_all().to_pylist()
        for level in ATTRIBUTES:
            assert said(index, level) == said(fresh, level) == expected(every, level)

    def test_an_index_of_another_shape_is_built_anew(self, url: Callable[[], str | sa.URL]) -> None:
        place, objects = url(), table([row("/a", PatientName="=山田^花子")])
        Index(place).follow(objects)
        execute(place, "UPDATE index_state SET shape = 'older'")
        execute(place, 'ALTER TABLE index_series RENAME COLUMN "Modality" TO modality')
        index = Index(place)
        assert index.studies() == []
        index.follow(objects)
        assert [found["Modality"] for found in index.series()] == ["CT"]
        assert [found["PatientName"] for found in index.studies({"PatientName": "山田*"})] == ["=山田^花子"]

    def test_a_table_that_begins_again_is_followed_from_its_beginning(self, url: Callable[[], str | sa.URL]) -> None:
        index = Index(url())
        index.follow(table([row("/a")], [row("/b")]))
        index.follow(table([row("/c")]))
        assert [found.path for found in index.files("1.1")] == ["/c"]
        index.follow(MemoryTable(OBJECTS))
        assert index.studies() == [] and index.count("instances") == 0

    def test_pages_are_parts_of_the_whole(self, url: Callable[[], str | sa.URL]) -> None:
        index = Index(url())
        index.follow(table([row(f"/{n}", StudyInstanceUID=f"{n}", StudyDate=f"2020010{n % 4}") for n in range(9)]))
        whole = index.studies()
        assert [found["StudyInstanceUID"] for found in whole] == ["3", "7", "2", "6", "1", "5", "0", "4", "8"]
        assert [one for start in range(0, 12, 2) for one in index.studies(limit=2, offset=start)] == whole
        assert index.studies(offset=7) == whole[7:] and index.studies(limit=0) == []
        with pytest.raises(CatalogError, match="negative"):
            index.studies(limit=-1)

    def test_takes_what_a_broken_header_holds(self, url: Callable[[], str | sa.URL]) -> None:
        index, long = Index(url()), "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(3000))
        texts = {name: long for name, (_, kind) in {**TYPED, **TYPED_LATER}.items() if kind == pa.string()}
        index.follow(table([row("/a\x01" + long, PatientID="P\x001", Rows=2**63 - 1), row("/b", **texts)], [row("/a", 1)]))
        assert index.count("instances") == 3
        assert [found.path for found in index.files(long)] == ["/b"]
        assert index.instance(long) == index.files(long)[0]
        assert index.files("1\0") == [] and index.instance("\0") is None
        assert index.count("instances", {"SOPInstanceUID": long, "PatientID": long, "PatientName": f"{long[:99]}*"}) == 1
        assert index.count("instances", {"PatientID": "P1"}) == 2

    def test_values_stay_values(self, url: Callable[[], str | sa.URL]) -> None:
        index = Index(url())
        index.follow(table([row("/a", PatientName='O\'Neil^"x" OR 1', StudyDescription="100% [a-z] _ \\")]))
        for name in ["PatientName", "PatientID", "StudyDescription", "Modality", "SOPInstanceUID"]:
            for value in [
                "' OR '1'='1",
                "'; DROP TABLE index_files; --",
                '" OR "',
                "%",
                "_",
                "%(x)s",
                ":x",
                "\\",
                "[a-z]",
                "\0",
            ]:
                assert index.count("instances", {name: value}) == (value == "\0"), (name, value)
        for name in ["*'NEIL*", '*"x" or*', 'o\'neil^"x" or 1']:
            assert index.count("studies", {"PatientName": name}) == 1
        assert index.count("studies", {"StudyDescription": "*% [a-z] _*"}) == 1
        assert index.count("studies", {"StudyDescription": "* [b-z] _*"}) == 0

    @pytest.mark.parametrize(
        ("match", "said"),
        [
            ({"PatientWeight": "70"}, r"PatientWeight: no attribute of studies .*there are StudyInstanceUID, PatientID"),
            ({"Modality": "CT"}, r"Modality: no attribute of studies"),
            ({"PatientName_alphabetic": "x"}, r"no attribute"),
            ({"StudyDate": "2020"}, r"StudyDate=2020: not a date .*YYYYMMDD"),
            ({"StudyDate": "20200101-2020"}, "not a date"),
            ({"StudyTime": "1-2"}, "not a time"),
            ({"StudyTime": "-"}, "not a time"),
            ({"StudyInstanceUID": "1.2.*"}, "without wildcards"),
            ({"NumberOfStudyRelatedSeries": "two"}, "not a whole number"),
            ({"PatientID": "*" + "a?" * 30_000}, "PatientID: too long .*4096 characters"),
            ({"PatientName": "a=" * 5_000}, "too long"),
            ({"StudyInstanceUID": ",".join(["1.2"] * 40_000)}, "too many UIDs"),
            ({"ModalitiesInStudy": ",".join(map(str, range(999)))}, "ModalitiesInStudy: too many modalities .*100"),
        ],
    )
    def test_what_cannot_be_asked_says_what_can(
        self, match: dict[str, str], said: str, url: Callable[[], str | sa.URL]
    ) -> None:
        with pytest.raises(CatalogError, match=said):
            Index(url()).studies(match)


class TestSQLite(IndexTests):
    examples = settings(max_examples=40, deadline=None)

    @pytest.fixture
    def url(self, tmp_path: Path) -> Callable[[], str | sa.URL]:
        made = iter(range(100))
        return lambda: f"sqlite:///{tmp_path / f'{next(made)}.db'}"

    def test_a_file_that_is_no_database_says_what_to_do(self, tmp_path: Path) -> None:
        (tmp_path / "index.db").write_text("this is no database, however long one looks at it" * 99)
        with pytest.raises(CatalogError, match=r"not a database .*can be deleted"):
            Index(f"sqlite:///{tmp_path / 'index.db'}").studies()

    @pytest.mark.parametrize(
        ("level", "match", "used"),
        [
            ("studies", {}, "index_studies_newest"),
            ("studies", {"PatientName": "doe*"}, "index_studies_by_alphabetic"),
            ("studies", {"PatientName": "doe*"}, "index_studies_by_ideographic"),
            ("studies", {"PatientName": "doe*"}, "index_studies_by_phonetic"),
            ("studies", {"PatientName": "*doe*"}, "index_names VIRTUAL TABLE"),
            ("studies", {"PatientID": "P1"}, "index_studies_by_patient"),
            ("series", {"StudyInstanceUID": "1"}, "index_series USING"),
            ("instances", {"StudyInstanceUID": "1", "SeriesInstanceUID": "1.1"}, "index_files_by_series"),
            ("instances", {"SOPInstanceUID": "1.1.1"}, "index_files_by_sop"),
        ],
    )
    def test_searches_use_an_index(self, level: Any, match: dict[str, str], used: str, url: Callable[[], str | sa.URL]) -> None:
        index = Index(url())
        index.follow(table([row(f"/{n}", StudyInstanceUID=f"{n % 99}", StudyDate="20200101") for n in range(1000)]))
        query = Search(level, match, (), sqlite=True).rows(100, 0)
        told = query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
        plan = " ".join(str(step[-1]) for step in execute(index.url, f"EXPLAIN QUERY PLAN {told}"))
        assert used in plan, plan


class TestPostgres(IndexTests):
    examples = settings(max_examples=10, deadline=None)

    @pytest.fixture
    def url(self, postgres: Callable[[], sa.URL]) -> Callable[[], sa.URL]:
        return postgres

    def test_names_are_found_where_the_extension_may_not_be_made(self, postgres: Callable[[], sa.URL]) -> None:
        place = postgres()
        execute(place, f"CREATE ROLE {place.database}_guest LOGIN")
        execute(place, f"CREATE SCHEMA guest AUTHORIZATION {place.database}_guest")
        guest = place.set(username=f"{place.database}_guest").update_query_dict({"options": "-csearch_path=guest"})
        index = Index(guest)
        index.follow(table([row("/a", PatientName="Doe^Jane")]))
        assert index.count("studies", {"PatientName": "*jan*"}) == 1

    def test_a_server_that_is_not_there_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(CatalogError, match=r"postgres.*:\*\*\*@.*cannot be used: .*VOXLOOP_INDEX_URL"):
            Index(f"postgresql+psycopg://me:secret@/index?host={tmp_path}").studies()


@pytest.mark.parametrize("url", ["no url", "mysql://x/y", "sqlite:////nowhere/at/all/index.db"])
def test_a_url_that_cannot_be_says_what_to_do(url: str) -> None:
    with pytest.raises(CatalogError, match="VOXLOOP_INDEX_URL"):
        Index(url).studies()


class Watched:
    """A table that calls ``meanwhile`` between its rows and their end."""

    def __init__(self, objects: MemoryTable, meanwhile: Callable[[], Any]) -> None:
        self.objects, self.meanwhile = objects, meanwhile
        self.version, self.append, self.scan = objects.version, objects.append, objects.scan
        self.identity = objects.identity

    def added(self, columns: Sequence[str], *, since: int, version: int) -> pa.RecordBatchReader:
        def batches() -> Iterator[pa.RecordBatch]:
            yield from found
            self.meanwhile()

        found = self.objects.added(columns, since=since, version=version)
        return pa.RecordBatchReader.from_batches(found.schema, batches())


class Interrupted(Watched):
    """One whose reader is stopped after its rows."""

    def __init__(self, objects: MemoryTable, meanwhile: Callable[[], Any]) -> None:
        def stop() -> None:
            meanwhile()
            raise KeyboardInterrupt

        super().__init__(objects, stop)


def numbers(index: Index) -> dict[str, int]:
    """The row numbers of the studies in the database: a study that is written anew gets another, unless it is the last."""
    return dict(execute(index.url, 'SELECT "StudyInstanceUID", id FROM index_studies'))


def execute(url: str | sa.URL, statement: str) -> Sequence[Any]:
    """Ask the database itself."""
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        found = connection.exec_driver_sql(statement)
        return found.all() if found.returns_rows else []


def _append_and_follow(path: Path, url: str | sa.URL, writer: int) -> None:
    objects, index = DeltaTable(path, OBJECTS), Index(url)
    for batch in range(5):
        seen = batch * 10 + writer
        rows = [row(f"/{batch}", seen, SOPInstanceUID=f"9.{writer}"), row(f"/{writer}/{batch}", seen, StudyInstanceUID="2")]
        objects.append(pa.Table.from_pylist(rows, schema=OBJECTS), writer=f"w{writer}", batch=batch)
        index.follow(objects)
