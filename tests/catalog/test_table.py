import multiprocessing
import os
import pickle
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest

from catalog import CatalogError, DeltaTable, MemoryTable
from catalog.table import Conflict, write_part
from catalog.testing import TableTests


class TestDeltaTable(TableTests):
    @pytest.fixture
    def table(self, tmp_path: Path) -> DeltaTable:
        return DeltaTable(tmp_path / "table", self.schema)


class TestMemoryTable(TableTests):
    @pytest.fixture
    def table(self) -> MemoryTable:
        return MemoryTable(self.schema)


SCHEMA = pa.schema([("name", pa.string())])


def rows(*names: str) -> pa.Table:
    return pa.table({"name": list(names)}, schema=SCHEMA)


def names(table: DeltaTable) -> list[str]:
    return sorted(table.scan(["name"]).read_all()["name"].to_pylist())


def _write(path: str, writer: int) -> None:
    table = DeltaTable(path, SCHEMA)
    for batch in range(5):
        table.append(rows(f"{writer}.{batch}"), writer=f"w{writer}", batch=batch)
        table.append(rows("shared"), writer="shared", batch=batch)


@pytest.mark.parametrize("name", ["a b", "Ünal", "a#b", "a?b", "50% of it", "it's", "[a]*"])
def test_any_folder_will_do(name: str, tmp_path: Path) -> None:
    table = DeltaTable(tmp_path / name / "t", SCHEMA)
    first = table.append(rows("a"), writer="w", batch=0)
    table.append(rows("b"), writer="w", batch=1)
    assert names(table) == ["a", "b"] and table.added(["name"], since=first, version=2).read_all().num_rows == 1
    assert [folder.name for folder in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a%20b", "a\\b"])
def test_a_folder_that_delta_would_take_for_another_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="another home"):
        DeltaTable(tmp_path / name, SCHEMA).append(rows("a"), writer="w", batch=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_concurrent_writers_lose_and_double_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(tmp_path / "t"), number)) for number in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(120)
    assert [process.exitcode for process in writers] == [0, 0, 0]
    found = names(DeltaTable(tmp_path / "t", SCHEMA))
    assert [name for name in found if name != "shared"] == [f"{w}.{b}" for w in range(3) for b in range(5)]
    assert found.count("shared") == 5


def test_commit_is_refused_where_the_version_read_has_aged(tmp_path: Path) -> None:
    table = DeltaTable(tmp_path, SCHEMA)
    read = table.append(rows("a"), writer="w", batch=0)
    part = write_part(rows("b"), tmp_path)
    table.append(rows("c"), writer="w", batch=1)
    with pytest.raises(Conflict):
        table.commit([part], writer="late", batch=0, read=read)
    assert names(table) == ["a", "c"]
    table.commit([part], writer="late", batch=0, read=table.version())
    assert names(table) == ["a", "b", "c"]


def test_a_part_that_no_commit_names_is_nowhere_to_be_seen(tmp_path: Path) -> None:
    table = DeltaTable(tmp_path, SCHEMA)
    table.append(rows("a"), writer="w", batch=0)
    write_part(rows("orphan"), tmp_path)
    assert names(table) == ["a"]


def test_any_delta_reader_reads_it_and_it_keeps_its_log(tmp_path: Path) -> None:
    table = DeltaTable(tmp_path, SCHEMA)
    table.append(rows("a"), writer="w", batch=0)
    delta = deltalake.DeltaTable(tmp_path)
    assert delta.to_pyarrow_table().to_pylist() == [{"name": "a"}]
    settings = delta.metadata().configuration
    assert settings["delta.logRetentionDuration"] == "interval 36500 days"
    assert settings["delta.deletedFileRetentionDuration"] == "interval 36500 days"
    assert settings["delta.appendOnly"] == "true"


def test_added_gives_what_came_after_a_version(tmp_path: Path) -> None:
    for table in (DeltaTable(tmp_path, SCHEMA), MemoryTable(SCHEMA)):
        first = table.append(rows("a"), writer="w", batch=0)
        second = table.append(rows("b"), writer="w", batch=1)
        assert table.added(["name"], since=first, version=second).read_all()["name"].to_pylist() == ["b"]


def test_travels_to_another_process(tmp_path: Path) -> None:
    table = DeltaTable(tmp_path, SCHEMA)
    table.append(rows("a"), writer="w", batch=0)
    assert names(pickle.loads(pickle.dumps(table))) == ["a"]


def test_an_error_travels_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(CatalogError("is broken", about="1.2.3", remedy="mend it")))
    assert type(error) is CatalogError and str(error) == "1.2.3: is broken (mend it)"


def test_a_table_that_needs_newer_delta_features_is_refused(tmp_path: Path) -> None:
    deltalake.DeltaTable.create(tmp_path, SCHEMA, configuration={"delta.enableDeletionVectors": "true"})
    with pytest.raises(CatalogError, match="deletion vectors"):
        DeltaTable(tmp_path, SCHEMA).version()


def test_scans_cannot_reach_other_files(tmp_path: Path) -> None:
    table = DeltaTable(tmp_path / "t", SCHEMA)
    table.append(rows("a"), writer="w", batch=0)
    (tmp_path / "secret.csv").write_text("x\n1\n")
    with pytest.raises(CatalogError):
        table.scan(["name"], where=f"EXISTS (FROM '{tmp_path / 'secret.csv'}')")


def filled(path: Path, *appended: str) -> DeltaTable:
    table = DeltaTable(path / "t", SCHEMA)
    for batch, name in enumerate(appended):
        table.append(rows(name), writer="w", batch=batch)
    return table


def test_merging_changes_files_and_nothing_else(tmp_path: Path) -> None:
    table = filled(tmp_path, "a", "b", "c")
    assert table.optimize() == 4 and len(table.files()) == 1
    assert names(table) == ["a", "b", "c"]
    table.append(rows("d"), writer="w", batch=3)
    assert table.added(["name"], since=2, version=table.version()).read_all()["name"].to_pylist() == ["c", "d"]


def test_z_order_lays_like_near_like(tmp_path: Path) -> None:
    table = filled(tmp_path, *"dbca")
    table.optimize(["name"])
    assert table.dataset().to_table()["name"].to_pylist() == list("abcd")


def test_clearing_away_keeps_every_version(tmp_path: Path) -> None:
    table = filled(tmp_path, "a", "b")
    merged = table.optimize()
    (first,) = table.files()
    table.append(rows("c"), writer="w", batch=2)
    table.optimize(["name"])
    orphan = write_part(rows("never committed"), table.path)
    young = write_part(rows("being written"), table.path)
    os.utime(table.path / orphan.name, (0, 0))
    before = {version: sorted(table.dataset(version).to_table()["name"].to_pylist()) for version in range(1, 6)}
    assert table.vacuum() == [str(table.path / orphan.name)], "what is younger than a day may be in use"
    assert table.vacuum(hours=0) == sorted([first, str(table.path / young.name)]) and not Path(first).exists()
    assert before == {version: sorted(table.dataset(version).to_table()["name"].to_pylist()) for version in range(1, 6)}
    assert before[merged] == ["a", "b"]


def test_a_table_of_fewer_columns_grows(tmp_path: Path) -> None:
    filled(tmp_path, "a")
    wider = DeltaTable(tmp_path / "t", pa.schema([("name", pa.string()), ("age", pa.int64())]))
    assert wider.scan(["name", "age"]).read_all().to_pylist() == [{"name": "a", "age": None}]
    wider.append(pa.table({"name": ["b"], "age": [7]}), writer="w", batch=9)
    assert sorted(wider.scan(["age"]).read_all()["age"].to_pylist(), key=str) == [7, None]
    assert names(DeltaTable(tmp_path / "t", SCHEMA)) == ["a", "b"]


def test_columns_of_the_users_own_are_seen(tmp_path: Path) -> None:
    table = filled(tmp_path, "a")
    table.grow([pa.field("note", pa.string()), pa.field("name", pa.string())])
    table.grow([pa.field("note", pa.string())])
    assert table.dataset().to_table().to_pylist() == [{"name": "a", "note": None}]


@pytest.mark.slow
def test_merging_does_not_disturb_writers(tmp_path: Path) -> None:
    table = filled(tmp_path, "a", "b")
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(table.path), writer)) for writer in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        table.optimize()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(names(table)) == len({*names(table)}) + 4 == 17
