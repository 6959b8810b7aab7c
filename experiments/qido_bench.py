"""`voxloop bench qido`: the searches of DICOMweb from the query index, against DuckDB over the live Delta files; then the same
by HTTP."""

import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pyarrow as pa
import sqlalchemy as sa

from catalog import Archive, DeltaTable
from catalog.index import Index, Level
from catalog.schemas import OBJECTS
from catalog.table import write_part
from experiments.baselines.qido_duckdb import Baseline
from experiments.bench import BenchResult, compare
from experiments.dicomweb_bench import served

__all__ = ["SEARCHES", "Cohort", "Search", "bench", "cohort"]

REPEATS = 200
"""How often each search is timed, each time with other values."""

_PART = 50_000  # rows a parquet file
_FAMILIES = ["Müller", "Smith", "Doe", "Yamada", "López", "Kim", "Nguyen", "Rossi", "Novák", "Silva", "O'Neill", "Haddad"]
_GIVEN = ["Anna", "Johanna", "Taro", "John", "Joanne", "Marianne", "Luis", "Minh", "Petr", "Olga", "Sean", "Leila", "Diana"]
_MODALITIES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4", "PT": "1.2.840.10008.5.1.4.1.1.128"}


@dataclass(frozen=True)
class Cohort:
    """What the searches take their values from."""

    studies: list[dict[str, str]] = field(default_factory=list)
    series: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Search:
    """One search with its values."""

    level: Level
    match: Mapping[str, str]
    limit: int | None = None
    offset: int = 0


def _years(draw: random.Random) -> str:
    first = draw.randint(2010, 2022)
    return f"{first}0101-{first + draw.randint(0, 2)}1231"


def _of(draw: random.Random, cohort: Cohort, name: str) -> dict[str, str]:
    return {name: draw.choice(cohort.studies)[name]}


def _one_series(draw: random.Random, cohort: Cohort) -> dict[str, str]:
    return dict(zip(("StudyInstanceUID", "SeriesInstanceUID"), draw.choice(cohort.series), strict=True))


def _named(draw: random.Random, pattern: str) -> dict[str, str]:
    family, given = draw.choice(_FAMILIES), draw.choice(_GIVEN)
    return {"PatientName": pattern.format(family=family[:3], family_2=family[:1] + "?" + family[2:3], given=given[:3])}


SEARCHES: dict[str, Callable[[random.Random, Cohort], Search]] = {
    "studies": lambda d, c: Search("studies", {}, 100, d.choice([0, 100, 500])),
    "name_prefix": lambda d, c: Search("studies", {**_named(d, "{family}*"), "StudyDate": _years(d)}, 100),
    "name_wildcard": lambda d, c: Search("studies", {**_named(d, "{family_2}*^{given}*"), "StudyDate": _years(d)}, 100),
    "name_infix": lambda d, c: Search("studies", {"PatientName": f"*{d.choice(['ANNA', 'taro', 'ohn', 'ill', '^di'])}*"}, 100),
    "patient": lambda d, c: Search("studies", _of(d, c, "PatientID"), 100),
    "accession": lambda d, c: Search("studies", _of(d, c, "AccessionNumber"), 100),
    "modality": lambda d, c: Search(
        "studies", {"ModalitiesInStudy": d.choice(["CT", "MR", "PT"]), "StudyDate": _years(d)}, 100
    ),
    "series": lambda d, c: Search("series", _of(d, c, "StudyInstanceUID")),
    "instances": lambda d, c: Search("instances", _one_series(d, c)),
}
"""By name; each takes its values from a cohort by a random generator."""


def bench(folder: Path, *, n: int = 1_000_000, index_url: str = "", rounds: int = 3) -> BenchResult:
    """Index ``n`` made-up instances and search them.

    ``p50_ms`` and ``p95_ms`` are the slowest search's (name_infix is in ``queries`` only), ``index_s`` is a first follow,
    ``append_s`` one of 1,000 more rows; ``ours`` and ``baseline`` are the seconds of all searches, each once.
    """
    shutil.rmtree(folder, ignore_errors=True)
    table = Archive(folder).objects
    made = cohort(table, n)
    with _place(index_url, folder) as url:
        index = Index(url)
        started = time.perf_counter()
        index.follow(table)
        index_s = time.perf_counter() - started
        more = _rows(random.Random(1), n, 1000, Cohort())
        table.append(more, writer="bench", batch=1_000_000)
        started = time.perf_counter()
        index.follow(table)
        append_s = time.perf_counter() - started
        baseline = Baseline(table.dataset().files)
        _check(index, baseline, made)
        turns = {"ours": random.Random(3), "baseline": random.Random(3)}
        result = compare(
            "qido",
            lambda: [_ask(index, find(turns["ours"], made)) for find in SEARCHES.values()],
            lambda: [_ask(baseline, find(turns["baseline"], made)) for find in SEARCHES.values()],
            n=n,
            rounds=rounds,
        )
        queries = {name: _timed(index, find, made) for name, find in SEARCHES.items()}
        place = url.render_as_string(hide_password=False) if isinstance(url, sa.URL) else url
        http = _over_http(Archive(folder, index_url=place), made)
    worst = [found for name, found in queries.items() if name != "name_infix"]
    figures = {name: max(found[name] for found in worst) for name in ("p50_ms", "p95_ms")}
    figures |= {f"http_{name}": max(found[name] for found in http.values()) for name in ("p50_ms", "p95_ms")}
    figures |= {"index_s": index_s, "rows_per_s": n / index_s, "append_s": append_s}
    return replace(result, figures={**result.figures, **figures, "queries": queries, "http_queries": http})


def cohort(table: DeltaTable, n: int) -> Cohort:
    """``n`` rows of ``object_catalog`` in ``table``, as if ingested: about 50 instances a series (from 1 to some hundreds), 4
    series a study. No files are made."""
    made, draw = Cohort(), random.Random(0)
    table.create()
    parts = [write_part(_rows(draw, start, min(_PART, n - start), made), table.path) for start in range(0, n, _PART)]
    table.commit(parts, writer="bench", batch=0)
    return made


def _rows(draw: random.Random, start: int, count: int, made: Cohort) -> pa.Table:
    """``count`` rows, whole studies but for the last; what they are is added to ``made``."""
    sizes = np.random.default_rng(start).lognormal(np.log(50) - 0.32, 0.8, count).astype(int) + 1
    columns: dict[str, list[Any]] = {name: [] for name in ("study", "series", "number")}
    studies, done = list[dict[str, Any]](), 0
    series = list[dict[str, Any]]()
    while done < count:
        studies.append(_study(draw, start, len(studies)))
        for number in range(1, draw.randint(1, 7) + 1):
            size = min(int(sizes[len(series)]), count - done)
            if size:
                columns["study"] += [len(studies) - 1] * size
                columns["series"] += [len(series)] * size
                columns["number"] += range(1, size + 1)
                series.append(_series(draw, studies[-1]["StudyInstanceUID"], number))
                made.series.append((studies[-1]["StudyInstanceUID"], series[-1]["SeriesInstanceUID"]))
                done += size
    made.studies.extend(studies)
    return _table(studies, series, columns, start)


def _study(draw: random.Random, start: int, number: int) -> dict[str, Any]:
    patient = draw.randint(1, 10**8)
    at = datetime(2010, 1, 1, tzinfo=UTC) + timedelta(seconds=draw.randint(0, 15 * 365 * 86400))
    return {
        "StudyInstanceUID": f"1.2.826.0.1.3680043.8.498.{start}.{number}.{draw.randint(10**20, 10**21)}",
        "PatientID": f"P{patient:08d}",
        "PatientName": f"{draw.choice(_FAMILIES)}^{draw.choice(_GIVEN)}^{chr(65 + patient % 26)}",
        "PatientSex": draw.choice("FM"),
        "PatientBirthDate": f"{draw.randint(1930, 2010)}0{draw.randint(1, 9)}{draw.randint(10, 28)}",
        "StudyDate": f"{at:%Y%m%d}",
        "StudyTime": f"{at:%H%M%S}",
        "StudyID": f"{number}",
        "StudyDescription": draw.choice(["CT Abdomen", "MR Brain", "PET/CT whole body", "CT Thorax"]),
        "AccessionNumber": f"A{start + number:010d}",
        "ReferringPhysicianName": f"{draw.choice(_FAMILIES)}^{draw.choice(_GIVEN)}",
    }


def _series(draw: random.Random, study: str, number: int) -> dict[str, Any]:
    modality = draw.choice(list(_MODALITIES))
    return {
        "SeriesInstanceUID": f"{study[:45]}.{number}.{draw.randint(10**12, 10**13)}",
        "Modality": modality,
        "SOPClassUID": _MODALITIES[modality],
        "SeriesNumber": number,
        "SeriesDescription": draw.choice(["axial", "coronal", "localizer", "portal venous", "T1 TSE"]),
        "BodyPartExamined": "ABDOMEN",
        "Manufacturer": draw.choice(["ACME", "Initech"]),
    }


def _table(studies: list[dict[str, Any]], series: list[dict[str, Any]], columns: dict[str, list[int]], start: int) -> pa.Table:
    of_study, of_series = pa.array(columns["study"]), pa.array(columns["series"])
    count, at = len(of_study), datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=start)
    uids = [series[n]["SeriesInstanceUID"] for n in columns["series"]]
    patients = [studies[n]["PatientID"] for n in columns["study"]]
    each = list(zip(patients, uids, columns["number"], strict=True))
    paths = [f"/archive/{patient}/{uid}/IM{number:06d}.dcm" for patient, uid, number in each]
    whole = pa.array([512] * count, pa.int64())
    made = {
        **{name: pa.Table.from_pylist(studies)[name].combine_chunks().take(of_study) for name in studies[0]},
        **{name: pa.Table.from_pylist(series)[name].combine_chunks().take(of_series) for name in series[0]},
        "SOPInstanceUID": [f"{uid}.{number}" for _, uid, number in each],
        "TransferSyntaxUID": ["1.2.840.10008.1.2.1"] * count,
        "InstanceNumber": columns["number"],
        **dict.fromkeys(("path", "original_path", "local_path"), paths),
        "modificationTime": [at] * count,
        "ingested_at": [at] * count,
        "length": [526_336] * count,
        "status": ["ok"] * count,
        **{"Rows": whole, "Columns": whole},
    }
    arrays = [pa.array(made[f.name], f.type) if f.name in made else pa.nulls(count, f.type) for f in OBJECTS]
    return pa.Table.from_arrays([a.cast(f.type) for a, f in zip(arrays, OBJECTS, strict=True)], schema=OBJECTS)


def _ask(place: Index | Baseline | httpx.Client, search: Search) -> list[dict[str, Any]]:
    if isinstance(place, httpx.Client):
        paging = {name: value for name, value in (("limit", search.limit), ("offset", search.offset)) if value is not None}
        match, path = dict(search.match), ""
        for part, uid in (("studies", "StudyInstanceUID"), ("series", "SeriesInstanceUID")):  # below them, as viewers ask
            path += f"/{part}/{match.pop(uid)}" if uid in match else ""
        reply = place.get(f"{path}/{search.level}", params={**match, **paging})
        return list(orjson.loads(reply.raise_for_status().content))
    if isinstance(place, Baseline):
        return place.search(search.level, search.match, search.limit, search.offset)
    find = {"studies": place.studies, "series": place.series, "instances": place.instances}[search.level]
    return find(search.match, limit=search.limit, offset=search.offset)


def _check(index: Index, baseline: Baseline, made: Cohort) -> None:
    """Both say the same of what both know."""
    draw = random.Random(2)
    for find in SEARCHES.values():
        for _ in range(3):
            search = find(draw, made)
            ours, theirs = _ask(index, search), _ask(baseline, search)
            told = [{name: row[name] for name in theirs[0]} for row in ours] if theirs else ours
            assert told == theirs, f"{search}: {len(ours)} answers, {len(theirs)} by the baseline"


def _timed(index: Index | httpx.Client, find: Any, made: Cohort) -> dict[str, float]:
    """Milliseconds of one search, over REPEATS with other values; ``rows`` is how many answers it has on average."""
    draw, times, rows = random.Random(4), list[float](), 0
    for turn in range(REPEATS + 10):
        search = find(draw, made)
        started = time.perf_counter()
        answers = len(_ask(index, search))
        if turn >= 10:  # warm
            times.append((time.perf_counter() - started) * 1000)
            rows += answers
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50_ms": float(p50), "p95_ms": float(p95), "rows": rows / REPEATS}


def _over_http(archive: Archive, made: Cohort) -> dict[str, dict[str, float]]:
    """The same searches as QIDO-RS, by one client over a connection that stays; name infix left out, as above."""
    with served(archive) as address, httpx.Client(base_url=f"{address}/dicomweb", timeout=60) as client:
        finds = {name: find for name, find in SEARCHES.items() if name != "name_infix"}
        return {name: _timed(client, find, made) for name, find in finds.items()}


@contextmanager
def _place(url: str, folder: Path) -> Iterator[str | sa.URL]:
    """An empty place for an index, never the one in use: a file of its own, or a schema of its own on ``url``'s server."""
    if not url or sa.make_url(url).get_backend_name() != "postgresql":
        yield sa.URL.create("sqlite", database=str(folder / "index.db"))
        return
    server = sa.create_engine(url, poolclass=sa.NullPool)
    drop = "DROP SCHEMA IF EXISTS voxloop_bench CASCADE"
    for statement in (drop, "CREATE SCHEMA voxloop_bench"):
        with server.begin() as connection:
            connection.exec_driver_sql(statement)
    try:
        yield sa.make_url(url).update_query_dict({"options": "-csearch_path=voxloop_bench"})
    finally:
        with server.begin() as connection:
            connection.exec_driver_sql(drop)
