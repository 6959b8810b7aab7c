"""Volumes, archives and real data for the catalog's tests."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import sqlalchemy as sa

from catalog import Archive, LabelSet, Structure
from catalog.series import write_series

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """A folder of the real data; skips the test where it is absent."""

    def find(name: str) -> Path:
        if not (DATA / name).exists():
            pytest.skip(f"no {name} in ../shared/data: real data is not shipped with the code")
        return DATA / name

    return find


@pytest.fixture(scope="session")
def labels() -> LabelSet:
    """Two structures whose values are not their segment numbers."""
    liver = Structure("Liver", 1, ("SCT", "10200004", "Liver"), (200, 80, 60))
    return LabelSet("abdomen", (liver, Structure("Spleen", 7, ("SCT", "78961009", "Spleen"), (90, 80, 200))))


def turned(axes: str, degrees: float = 0.0) -> np.ndarray:
    """An affine (LPS mm) whose slices, rows and columns run along ``axes`` (as "zyx", capital: backwards), then turned."""
    spacing = {"x": 0.7812345678, "y": 0.9, "z": 2.5}
    affine = np.eye(4)
    for column, axis in enumerate(axes):
        affine[:3, column] = 0
        affine["xyz".index(axis.lower()), column] = spacing[axis.lower()] * (-1 if axis.isupper() else 1)
    a = np.radians(degrees)
    first = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    second = np.array([[np.cos(a / 2), -np.sin(a / 2), 0], [np.sin(a / 2), np.cos(a / 2), 0], [0, 0, 1]])
    affine[:3, :3] = first @ second @ affine[:3, :3]
    affine[:3, 3] = [-123.4567891, 57.1, -1020.3333333]
    return affine


GEOMETRIES = {
    "axial": turned("Zyx"),  # downwards, as highdicom orders an axial series
    "upwards": turned("zyx"),
    "flipped": turned("zYX"),
    "sagittal": turned("xZy"),
    "coronal": turned("yZx"),
    "oblique": turned("zyx", 17.3),
    "oblique and flipped": turned("XzY", -33.9),
}


def image(affine: np.ndarray, shape: tuple[int, int, int] = (6, 9, 11), scale: float = 500.0) -> hd.Volume:
    """A volume of noise."""
    values = np.random.default_rng(4).normal(0, scale, shape).astype(np.float32)
    return hd.Volume(values, affine, "PATIENT")


@pytest.fixture(params=list(GEOMETRIES))
def affine(request: pytest.FixtureRequest) -> np.ndarray:
    """Each kind of geometry in turn."""
    return GEOMETRIES[str(request.param)]


@pytest.fixture(scope="session")
def noise() -> Callable[..., hd.Volume]:
    """Makes a volume of noise on an affine, axial if none is given."""

    def make(affine: np.ndarray = GEOMETRIES["axial"], **changed: Any) -> hd.Volume:
        return image(affine, **changed)

    return make


@pytest.fixture
def folder(noise: Callable[..., hd.Volume], tmp_path: Path) -> Path:
    """Two series and a text."""
    for case in ("a", "b"):
        write_series(noise(), tmp_path / "in" / case, patient_id=case, case=case)
    (tmp_path / "in" / "readme.txt").write_text("hello" * 100)
    return tmp_path / "in"


@pytest.fixture
def stored(home: Path, tmp_path: Path) -> Callable[..., tuple[Archive, str]]:
    """Put a volume into an archive, without Spark: (archive, SeriesInstanceUID)."""

    def put(affine: np.ndarray | None = None, case: str = "one", patient: str = "P1") -> tuple[Archive, str]:
        archive, folder = Archive(home), tmp_path / "made" / case
        uid = write_series(image(GEOMETRIES["axial"] if affine is None else affine), folder, patient_id=patient, case=case)
        archive.store([pydicom.dcmread(file) for file in sorted(folder.iterdir())], folder="stow", writer=case)
        return archive, uid

    return put


@pytest.fixture
def dicom_file(tmp_path: Path) -> Callable[..., Path]:
    """Write pixels (rows, columns), (frames, rows, columns) or (rows, columns, 3) as a DICOM file, attributes as given."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    def write(pixels: np.ndarray, name: str = "image.dcm", **attributes: Any) -> Path:
        colour = pixels.ndim == 3 and pixels.shape[-1] == 3 and "NumberOfFrames" not in attributes
        made = pydicom.Dataset()
        made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", generate_uid()
        made.SeriesInstanceUID, made.StudyInstanceUID = "1.2.3", "1.2"
        made.Modality, made.PhotometricInterpretation = "OT", "RGB" if colour else "MONOCHROME2"
        made.SamplesPerPixel = 3 if colour else 1
        if colour:
            made.PlanarConfiguration = 0
        made.Rows, made.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
        made.BitsAllocated = made.BitsStored = 8 * pixels.itemsize
        made.HighBit, made.PixelRepresentation = made.BitsAllocated - 1, int(pixels.dtype.kind == "i")
        keyword = {"f4": "FloatPixelData", "f8": "DoubleFloatPixelData"}.get(pixels.dtype.str[1:], "PixelData")
        setattr(made, keyword, pixels.tobytes())
        for attribute, value in attributes.items():
            setattr(made, attribute, value)
        if keyword == "PixelData":
            made["PixelData"].VR = "OW" if made.BitsAllocated > 8 else "OB"
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], sa.URL]]:
    """Makes empty databases on a real Postgres of its own, on a Unix socket in a temporary folder."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(found[-1]) if found else "")
    if not initdb:
        pytest.skip("no Postgres server on this machine: apt install postgresql")
    # Postgres refuses to run as root.
    owner = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    user: dict[str, Any] = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has 107 bytes at most
    os.chown(folder, owner.pw_uid, owner.pw_gid)
    data = str(folder / "data")

    def run(program: str, *arguments: str) -> None:
        command = [str(Path(initdb).with_name(program)), "-D", data, *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, **user)

    try:
        run("initdb", "-U", "voxloop", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        run("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -c listen_addresses='' -c fsync=off")
        try:
            yield _databases(sa.URL.create("postgresql+psycopg", "voxloop", database="postgres", query={"host": str(folder)}))
        finally:
            run("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder)


def _databases(server: sa.URL) -> Callable[[], sa.URL]:
    engine, numbers = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool), count()

    def make() -> sa.URL:
        name = f"empty{next(numbers)}"
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        return server.set(database=name)

    return make
