"""The pixels' hash and extent: the same for one image in every lossless syntax, with a reason where they cannot be read."""

import hashlib
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import pixel_array
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from catalog import CatalogError
from catalog.pixels import PixelFacts, pixel_facts

Data = Callable[[str], Path]


def image(path: Path, values: np.ndarray, *, planar: int = 0, syntax: str = ExplicitVRLittleEndian, **changed: object) -> Path:
    """A DICOM file of ``values``: (rows, columns), or with frames before, or samples (3) after them."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.StudyInstanceUID = CTImageStorage, "1.2.3", "1.2"
    colour = values.ndim > 2 and values.shape[-1] == 3
    rows, columns = values.shape[-3:-1] if colour else values.shape[-2:]
    dataset.Rows, dataset.Columns = rows, columns
    dataset.NumberOfFrames = values.size // (rows * columns * (3 if colour else 1))
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        dataset.PlanarConfiguration = planar
        values = np.moveaxis(values, -1, -3) if planar else values
    if values.dtype.kind == "f":
        dataset.BitsAllocated, dataset.FloatPixelData = 32, values.tobytes()
    else:
        dataset.BitsAllocated = dataset.BitsStored = values.dtype.itemsize * 8
        dataset.HighBit, dataset.PixelRepresentation = dataset.BitsAllocated - 1, int(values.dtype.kind == "i")
        dataset.PixelData = values.tobytes()
        dataset["PixelData"].VR = "OW" if values.dtype.itemsize > 1 or syntax == ImplicitVRLittleEndian else "OB"
    for name, value in changed.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def facts(path: str | Path) -> PixelFacts:
    found = pixel_facts(path)
    assert found is not None
    return found


def test_the_facts_are_those_of_the_array(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(-2000, 3000, (5, 12, 9), dtype=np.int16)
    found = facts(image(tmp_path / "a.dcm", values))
    assert found == PixelFacts(
        hashlib.sha256(values.tobytes()).hexdigest(),
        float(values.min()),
        float(values.max()),
        pytest.approx(values.mean(dtype=np.float64)),
        (5, 12, 9),
    )


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_how_the_data_set_is_written_does_not_matter(tmp_path: Path, syntax: str) -> None:
    values = np.arange(96, dtype=np.uint16).reshape(8, 12)
    assert facts(image(tmp_path / "b.dcm", values, syntax=syntax)) == facts(image(tmp_path / "a.dcm", values))


def test_a_file_without_preamble_has_the_same_pixels(tmp_path: Path) -> None:
    values = np.arange(96, dtype=np.uint16).reshape(8, 12)
    path = image(tmp_path / "a.dcm", values, syntax=ImplicitVRLittleEndian)
    dataset = pydicom.dcmread(path)
    del dataset.file_meta, dataset.preamble
    dataset.save_as(tmp_path / "bare", implicit_vr=True, little_endian=True)
    assert (tmp_path / "bare").read_bytes()[128:132] != b"DICM"
    assert facts(tmp_path / "bare") == facts(path)


def test_the_planar_configuration_does_not_matter(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 255, (2, 8, 6, 3), dtype=np.uint8)
    by_pixel, by_plane = (facts(image(tmp_path / f"{planar}.dcm", values, planar=planar)) for planar in (0, 1))
    assert by_pixel == by_plane and by_pixel.shape == (2, 8, 6, 3)


def test_float_pixels_and_what_is_not_finite(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0], [np.nan, np.inf]], np.float32)
    found = facts(image(tmp_path / "a.dcm", values))
    assert found == PixelFacts(hashlib.sha256(values.tobytes()).hexdigest(), -2.0, 1.5, -0.25, (2, 2))
    nothing = facts(image(tmp_path / "b.dcm", np.full((2, 2), np.nan, np.float32)))
    assert (nothing.min, nothing.max, nothing.mean) == (None, None, None)


def test_an_object_without_pixels_has_no_facts() -> None:
    assert pixel_facts(get_testdata_file("reportsi.dcm")) is None


def test_one_frame_is_held_at_a_time(tmp_path: Path) -> None:
    path = image(tmp_path / "a.dcm", np.zeros((200, 128, 128), np.uint16))
    pixel_facts(path)
    tracemalloc.start()
    pixel_facts(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"NumberOfFrames": 7}, "decoded"),
        ({"Rows": 65535, "Columns": 65535, "SamplesPerPixel": 3}, "too large"),
        ({"BitsAllocated": 12}, "decoded"),
    ],
)
def test_what_cannot_be_decoded_says_why(tmp_path: Path, changed: dict[str, object], why: str) -> None:
    with pytest.raises(CatalogError, match=rf"a\.dcm: .*{why}"):
        pixel_facts(image(tmp_path / "a.dcm", np.zeros((2, 8, 8), np.uint16), **changed))


def test_damaged_and_cut_files_say_why(tmp_path: Path) -> None:
    path = image(tmp_path / "a.dcm", np.arange(6400, dtype=np.uint16).reshape(80, 80))
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "rle.dcm")
    content = (tmp_path / "rle.dcm").read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00")
    (tmp_path / "rle.dcm").write_bytes(content[: at + 40] + b"\xff" * 40 + content[at + 80 :])
    (tmp_path / "cut.dcm").write_bytes(path.read_bytes()[:-20])
    (tmp_path / "text.dcm").write_text("no image")
    for name in ("rle", "cut", "text", "gone"):
        with pytest.raises(CatalogError, match=rf"{name}\.dcm: "):
            pixel_facts(tmp_path / f"{name}.dcm")


@pytest.mark.parametrize("name", ["CT1", "CT2", "MR1", "NM1", "US1"])
def test_lossless_syntaxes_give_one_hash(data: Data, name: str) -> None:
    folder = data("transfer_syntaxes") / "nema_wg04"
    lossless = [path for path in folder.glob(f"{name}_*.dcm") if path.stem[-3:] in ("UNC", "RLE", "PLL", "LSL", "2KR")]
    assert len(lossless) >= 3
    assert len({facts(path) for path in lossless}) == 1
    others = {facts(path).hash for path in folder.glob(f"{name}_J2KI.dcm")}
    assert facts(folder / f"{name}_UNC.dcm").hash not in others


def test_big_endian_deflated_and_bit_packed_are_alike(data: Data) -> None:
    folder = data("transfer_syntaxes")
    one = facts(folder / "ct_one_slice_13_syntaxes" / "CTImage.dcm")
    alike = [
        path
        for path in (folder / "ct_one_slice_13_syntaxes").glob("CTImage.dcm_*.dcm")
        if path.stem.endswith((".1.2", ".1.2.1", ".1.2.2", ".1.99", ".5", ".57", ".70", ".80", ".90"))
    ]
    assert len(alike) == 9 and ExplicitVRBigEndian in {path.stem.partition("_")[2].partition("_")[2] for path in alike}
    assert {facts(path) for path in alike} == {one}
    packed, bytewise = (facts(folder / "ljpeg_jls_rgb" / f"{name}.dcm") for name in ("liver", "liver_j2k"))
    assert packed.hash == bytewise.hash and packed.shape == (3, 512, 512)


@pytest.mark.skipif(sys.byteorder == "big", reason="the hash is of little-endian values")
def test_the_hash_can_be_had_otherwise_and_every_file_gets_it_or_a_reason(data: Data) -> None:
    """As the docstring says, by pydicom alone; and no file of the transfer syntaxes raises anything else."""
    reasons = {}
    for path in sorted(data("transfer_syntaxes").rglob("*.dcm")):
        try:
            found = facts(path)
        except CatalogError as problem:
            reasons[path.name] = problem.problem
            continue
        if "BigEndian" not in path.name and "Deflated" not in path.name:
            values = pixel_array(path, raw=True)
            assert (found.hash, found.shape) == (hashlib.sha256(values.tobytes()).hexdigest(), values.shape), path
    assert all(reason.startswith("the pixels cannot be decoded: ") for reason in reasons.values())
    assert len(reasons) < 15 and "transfer syntax" in reasons["monochrome_jpeg_xl.dcm"]
