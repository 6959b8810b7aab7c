"""SQL over a home: the views, attributes by name, nothing but questions; by DuckDB and by Spark alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pydicom
import pytest
from pydicom.dataset import Dataset

from catalog import Archive, CatalogError
from catalog.files import list_files
from catalog.objects import commit_absent, rows
from catalog.schemas import OBJECTS
from catalog.table import write_part

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Ask = Callable[[Archive, str], list[dict[str, Any]]]
META = {
    "00080008": {"vr": "CS", "Value": ["ORIGINAL", None, "AXIAL"]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane", "Ideographic": "ドウ^ジェーン"}]},
    "00181210": {"vr": "SH", "Value": ["B30f"]},
    "00180081": {"vr": "DS", "Value": [4.6]},
    "00081140": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3"]}}, {}]},
    "00280030": {"vr": "DS", "Value": [0.5, 0.75]},
    "00200012": {"vr": "IS"},
    "0019100C": {"vr": "UN", "InlineBinary": "MTAwMA=="},
}

TOLD = {
    "ConvolutionKernel": ("B30f", ["B30f"]),
    "00181210": ("B30f", ["B30f"]),
    "(0018,1210)": ("B30f", ["B30f"]),
    "0018,1210": ("B30f", ["B30f"]),
    "ImageType": ("ORIGINAL", ["ORIGINAL", None, "AXIAL"]),
    "PixelSpacing": ("0.5", ["0.5", "0.75"]),
    "EchoTime": ("4.6", ["4.6"]),
    "PatientName": ("Doe^Jane", ["Doe^Jane"]),
    "AcquisitionNumber": (None, None),
    "SliceThickness": (None, None),
    "0019100c": ("MTAwMA==", None),
}
OLD = {"path": "/old.dcm", "modificationTime": 0, "length": 1, "ingested_at": 0}


@pytest.fixture
def ask() -> Ask:
    return lambda archive, query: archive.sql(query).to_pylist()


@pytest.fixture
def archive(home: Path) -> Archive:
    """One object with the header META, a NIfTI file, a broken file."""
    archive = Archive(home)
    common = {"modificationTime": 0, "length": 1, "ingested_at": 0, "meta": json.dumps(META)}
    uids = {"StudyInstanceUID": "1", "SeriesInstanceUID": "1.1", "SOPInstanceUID": "1.1.1", "PatientID": "P"}
    typed = {"Modality": "CT", "Rows": 4, "SeriesDate": "20240229", "Manufacturer": "ACME", "file_type": "dicom"}
    told = [
        {**common, **uids, **typed, "path": "/a.dcm", "status": "ok"},
        {**common, "path": "/b.nii.gz", "file_type": "nifti", "status": "ok"},
        {**common, "path": "/c", "file_type": "other", "status": "broken"},
    ]
    archive.objects.append(pa.Table.from_pylist(told, schema=OBJECTS), writer="w", batch=0)
    return archive


class Answers:
    """What every engine gives."""

    def test_any_attribute_by_its_name(self, archive: Archive, ask: Ask) -> None:
        columns = ", ".join(f"dicom_tag(meta, '{n}') AS a{i}, dicom_tags(meta, '{n}') AS b{i}" for i, n in enumerate(TOLD))
        (found,) = ask(archive, f"SELECT {columns} FROM instances")
        assert {name: (found[f"a{i}"], found[f"b{i}"]) for i, name in enumerate(TOLD)} == TOLD

    def test_the_name_may_be_a_column(self, archive: Archive, ask: Ask) -> None:
        names = "(VALUES ('Modality'), ('ConvolutionKernel'), ('00180081')) AS v(name)"
        found = ask(archive, f"SELECT dicom_tag(meta, name) AS a FROM instances, {names} ORDER BY name")
        assert [row["a"] for row in found] == ["4.6", "B30f", None]

    def test_a_sequence_is_json_that_can_be_asked_again(self, archive: Archive, ask: Ask) -> None:
        item = "dicom_tag(meta, 'ReferencedImageSequence')"
        (found,) = ask(archive, f"SELECT {item} AS a, dicom_tag({item}, 'ReferencedSOPInstanceUID') AS b FROM instances")
        assert json.loads(found["a"]) == {"00081155": {"vr": "UI", "Value": ["1.2.3"]}}
        assert found["b"] == "1.2.3"

    def test_an_unknown_attribute_is_named(self, archive: Archive, ask: Ask) -> None:
        with pytest.raises(CatalogError, match=r"no DICOM attribute ConvolutionKernl .*00181210") as caught:
            ask(archive, "SELECT dicom_tag(meta, 'ConvolutionKernl') FROM instances")
        assert "\n" not in str(caught.value)

    def test_the_views_hold_what_is_an_instance(self, archive: Archive, ask: Ask) -> None:
        assert ask(archive, "SELECT path FROM instances") == [{"path": "/a.dcm"}]
        (series,) = ask(archive, "SELECT * FROM series")
        assert series["SeriesDate"] == "20240229" and series["Manufacturer"] == "ACME"
        assert (series["instances"], series["frames"], series["is_image"]) == (1, 1, True)
        (study,) = ask(archive, "SELECT * FROM studies")
        assert study["ModalitiesInStudy"] == ["CT"] and study["series"] == 1
        assert ask(archive, "SELECT count(*) AS n FROM object_catalog") == [{"n": 3}]
        assert ask(archive, "SELECT * FROM labels") == []

    @pytest.mark.parametrize(
        "query",
        [
            "DROP VIEW instances",
            "CREATE TABLE t AS SELECT 1",
            "INSERT INTO labels SELECT * FROM labels",
            "SET threads = 1",
            "SELECT 1; SELECT 2",
            "SELECT 1; DROP VIEW instances",
            "",
            "SELECT * FROM nothing",
            "selekt 1",
        ],
    )
    def test_only_one_question_is_taken(self, archive: Archive, ask: Ask, query: str) -> None:
        with pytest.raises(CatalogError) as caught:
            ask(archive, query)
        assert "\n" not in str(caught.value)
        assert ask(archive, "SELECT count(*) AS n FROM instances") == [{"n": 1}]

    @pytest.mark.parametrize("query", ["SELECT 1 AS n", "WITH a AS (SELECT 1 AS n) SELECT * FROM a;", "VALUES (1)"])
    def test_every_form_of_a_question_is(self, archive: Archive, ask: Ask, query: str) -> None:
        assert [list(row.values()) for row in ask(archive, query)] == [[1]]

    def test_a_home_may_have_any_name(self, archive: Archive, ask: Ask, tmp_path: Path) -> None:
        odd = tmp_path / "Ünal's [a-z] #1? *{b} 50% new"
        shutil.copytree(archive.home, odd)
        assert ask(Archive(odd), "SELECT path FROM instances") == [{"path": "/a.dcm"}]


class TestDuckDB(Answers):
    @pytest.mark.parametrize(
        "query",
        [
            "COPY (SELECT 1) TO '{out}'",
            "SELECT * FROM read_text('{secret}')",
            "SELECT * FROM '{secret}'",
            "SELECT * FROM glob('{secret}')",
            "ATTACH '{out}'",
            "INSTALL httpfs",
            "EXPORT DATABASE '{out}'",
            "SET VARIABLE x = 1",
        ],
    )
    def test_no_other_file_is_reached(self, archive: Archive, query: str, tmp_path: Path) -> None:
        (tmp_path / "secret.csv").write_text("a\n1\n")
        with pytest.raises(CatalogError):
            archive.sql(query.format(out=tmp_path / "out", secret=tmp_path / "secret.csv"))
        assert not (tmp_path / "out").exists()

    def test_columns_that_files_of_earlier_days_lack_are_null(self, archive: Archive) -> None:
        early = pa.schema([field for field in OBJECTS if field.name not in ("pixel_hash", "notes")])
        table = pa.Table.from_pylist([{**OLD, "SOPInstanceUID": "9", "status": "ok"}], schema=early)
        archive.objects.commit([write_part(table, archive.objects.path)], writer="old", batch=0)
        found = archive.sql("SELECT pixel_hash, notes FROM instances ORDER BY path").to_pylist()
        assert found == [{"pixel_hash": None, "notes": None}] * 2

    def test_rows_come_as_they_are_asked_for(self, archive: Archive) -> None:
        reader = archive.query("SELECT i FROM range(1000000) AS r(i)")
        assert reader.read_next_batch().num_rows < 100_000
        reader.close()

    def test_what_goes_wrong_while_rows_are_read_is_a_line_too(self, archive: Archive) -> None:
        query = "SELECT CASE WHEN i = 999999 THEN error('late') ELSE 'x' END AS v FROM range(1000000) AS r(i)"
        with pytest.raises(CatalogError, match="late"):
            for _ in archive.query(query):
                pass


@pytest.mark.slow
class TestSpark(Answers):
    @pytest.fixture
    def ask(self, spark: "SparkSession") -> Ask:
        return lambda archive, query: archive.query(query, spark=spark).read_all().to_pylist()

    def test_variants(self, archive: Archive, ask: Ask) -> None:
        kernel = "variant_get(meta_variant, '$.00181210.Value[0]', 'string')"
        parsed = "parse_json(meta):`00181210`.Value[0]::string"
        assert ask(archive, f"SELECT {kernel} AS a, {parsed} AS b FROM instances") == [{"a": "B30f", "b": "B30f"}]
        (found,) = ask(archive, "SELECT * FROM instances")
        assert json.loads(found["meta_variant"]) == json.loads(found["meta"])

    @pytest.mark.parametrize(
        "query",
        [
            "SELECT * FROM csv.`{secret}`",
            "SELECT reflect('java.lang.System', 'getProperty', 'user.home')",
            "SELECT TRANSFORM(path) USING 'tee {out}' FROM instances",
            "SELECT (SELECT max(a) FROM (SELECT TRANSFORM(path) USING 'tee {out}' AS (a) FROM instances))",
            "INSERT OVERWRITE DIRECTORY '{out}' USING csv SELECT path FROM instances",
            "FROM instances INSERT OVERWRITE DIRECTORY '{out}' USING csv SELECT path",
            "EXECUTE IMMEDIATE 'DROP VIEW instances'",
            "BEGIN DROP VIEW instances; END",
            "ADD JAR '{secret}'",
        ],
    )
    def test_no_other_file_is_reached(self, archive: Archive, ask: Ask, query: str, tmp_path: Path) -> None:
        (tmp_path / "secret.csv").write_text("a\n1\n")
        with pytest.raises(CatalogError):
            ask(archive, query.format(out=tmp_path / "out", secret=tmp_path / "secret.csv"))
        assert not (tmp_path / "out").exists()

    def test_the_session_stays_as_it_was(self, archive: Archive, ask: Ask, spark: "SparkSession") -> None:
        ask(archive, "SELECT * FROM studies")
        assert not spark.catalog.tableExists("studies")
        assert spark.sql("SELECT reflect('java.lang.Math', 'abs', -1) AS n").collect()[0].n == "1"

    def test_order_survives(self, archive: Archive, ask: Ask) -> None:
        found = ask(archive, "SELECT id FROM range(0, 100000, 1, 8) ORDER BY id DESC")
        assert [row["id"] for row in found] == list(range(99_999, -1, -1))

    def test_both_engines_read_the_same_of_odd_files(self, home: Path, ask: Ask, data: Callable[[str], Path]) -> None:
        archive, folder = Archive(home), data("odd_dicom")
        archive.objects.create()
        part = write_part(rows(list(list_files(folder)), folder), archive.objects.path)
        commit_absent(archive.objects, [part], writer="w", read=archive.objects.version())
        names = ("PatientName", "ImageType", "SOPClassUID", "StudyDate", "Rows", "PixelSpacing", "WindowCenter")
        columns = ", ".join(f"dicom_tag(meta, '{name}') AS {name}, dicom_tags(meta, '{name}') AS {name}s" for name in names)
        query = f"SELECT path, {columns} FROM object_catalog WHERE meta IS NOT NULL ORDER BY path"
        assert ask(archive, query) == archive.sql(query).to_pylist() != []


def test_of_copies_the_latest_good_one_counts(home: Path) -> None:
    archive = Archive(home)
    common = {
        "modificationTime": 0,
        "length": 1,
        "StudyInstanceUID": "1",
        "SeriesInstanceUID": "1.1",
        "SOPInstanceUID": "1.1.1",
    }
    states = [("/a", 1, "ok"), ("/b", 2, "ok"), ("/c", 3, "conflict"), ("/b", 4, "broken")]
    for batch, (path, at, status) in enumerate(states):
        row = {**common, "path": path, "ingested_at": at, "length": at, "status": status}
        archive.objects.append(pa.Table.from_pylist([row], schema=OBJECTS), writer="w", batch=batch)
    assert archive.sql("SELECT path FROM instances").to_pylist() == [{"path": "/a"}]


def test_a_header_as_pydicom_writes_it(stored: Callable[..., tuple[Archive, str]]) -> None:
    archive, uid = stored()
    first: Dataset = pydicom.dcmread(archive.series_files(uid)[0])
    names = ("PatientID", "Rows", "RescaleSlope", "PatientName")
    columns = ", ".join(f"dicom_tag(meta, '{name}') AS {name}" for name in names)
    (found,) = archive.sql(f"SELECT {columns} FROM instances WHERE InstanceNumber = 1").to_pylist()
    assert found["PatientID"] == "P1" == found["PatientName"]
    assert int(found["Rows"]) == first.Rows and float(found["RescaleSlope"]) == float(first.RescaleSlope)
