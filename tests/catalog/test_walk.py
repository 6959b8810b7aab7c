"""The direct walk gives what pydicom gives, says what it left out, and survives any bytes."""

import io
import math
import os
import random
import re
import struct
import time
import tracemalloc
import warnings
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import config
from pydicom.data import get_testdata_files
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_fragments
from pydicom.tag import BaseTag
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from catalog.walk import INLINE, BrokenHeader, Header, NotDicom, Truncated, walk

SHARED = Path(__file__).parents[3] / "shared" / "data"
DEFLATED = str(DeflatedExplicitVRLittleEndian)


# -- what pydicom says


def by_pydicom(path: Path) -> dict[str, Any]:
    """The file meta group and the data set as pydicom converts them, None for each element that it cannot convert."""
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        return {**_model(dataset.file_meta), **_model(dataset)}


def _model(dataset: Dataset) -> dict[str, Any]:
    return {f"{tag:08X}": _attribute(dataset, tag) for tag in dataset.keys()}  # noqa: SIM118


def _attribute(dataset: Dataset, tag: BaseTag) -> Any:
    try:
        element = dataset[tag]
        if element.VR == "SQ":
            return {"vr": "SQ", "Value": [_model(item) for item in element.value]}
        return _finite(element.to_json_dict(None, 0))
    except Exception:
        return None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def inlined(attributes: dict[str, Any], path: Path) -> dict[str, Any]:
    """The walk's JSON with each value that it names by reference put in its place."""
    content = path.read_bytes()
    if attributes.get("00020010", {}).get("Value") == [DEFLATED]:
        start = 144 + attributes["00020000"]["Value"][0]
        content = content[:start] + zlib.decompress(content[start:], -zlib.MAX_WBITS)
    return {tag: _inlined(attribute, content) for tag, attribute in attributes.items()}


def _inlined(attribute: dict[str, Any], content: bytes) -> dict[str, Any]:
    if "BulkDataURI" in attribute:
        (found,) = re.findall(r"^\?offset=(\d+)&length=(\d+)$", attribute["BulkDataURI"])
        offset, length = map(int, found)
        assert length > INLINE
        return {"vr": attribute["vr"], "InlineBinary": b64encode(content[offset : offset + length]).decode()}
    if attribute["vr"] == "SQ":
        return {
            "vr": "SQ",
            "Value": [{tag: _inlined(inner, content) for tag, inner in item.items()} for item in attribute["Value"]],
        }
    assert len(b64decode(attribute.get("InlineBinary", ""))) <= INLINE
    return attribute


def differences(ours: dict[str, Any], theirs: dict[str, Any], where: str = "") -> Iterator[str]:
    """Where the two differ; what pydicom cannot convert may be absent, or have null for its empty values."""
    if list(ours) != [tag for tag in theirs if tag in ours]:
        yield f"{where}: order {list(ours)} {list(theirs)}"[:300]
    for tag, right in theirs.items():
        left = ours.get(tag)
        if left == right or (right is None and None in (left or {}).get("Value", [None])):
            continue
        if left and right and left["vr"] == right["vr"] == "SQ" and len(left["Value"]) == len(right["Value"]):
            for number, items in enumerate(zip(left["Value"], right["Value"], strict=True)):
                yield from differences(*items, f"{where}/{tag}[{number}]")
        else:
            yield f"{where}/{tag}: {str(left)[:150]} is not {str(right)[:150]}"


def check(path: Path) -> str:
    """Walk ``path`` and compare with pydicom; what became of it."""
    try:
        header, outcome = walk(path), "read"
    except NotDicom:
        return "not DICOM"
    except BrokenHeader as problem:
        header, outcome = problem.header, type(problem).__name__
    ours = inlined(header.json, path)
    try:
        theirs = by_pydicom(path)
    except Exception:
        return f"{outcome}, not by pydicom"
    if outcome != "read":  # pydicom goes on where the walk stops
        theirs = {tag: theirs[tag] for tag in ours}
    found = list(differences(ours, theirs))
    assert not found, found
    return outcome


# -- real files


@pytest.mark.parametrize(
    "name", [n for n in get_testdata_files() if Path(n).is_file() and "/test_files/" in n], ids=lambda n: Path(n).name
)
def test_pydicoms_own_files_read_as_pydicom_reads_them(name: str) -> None:
    outcome = check(Path(name))
    assert outcome == "read" or not name.endswith(".dcm") or "truncated" in name or "no_meta.dcm" in name


FOLDERS = (
    "acrin_nsclc_petct_seg",
    "totalsegmentator_ct",
    "covid_ct_axial_5pat",
    "transfer_syntaxes",
    "odd_dicom",
    "burned_in_text",
)


@pytest.mark.parametrize("folder", [*FOLDERS, "hippocampus", "dicom_standard"])
def test_real_files_read_as_pydicom_reads_them(folder: str) -> None:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"{SHARED / folder} is not there")
    outcomes = [check(path) for path in sorted((SHARED / folder).rglob("*")) if path.is_file()]
    assert ("read" in outcomes) == (folder in FOLDERS)


# -- made files


def made(
    path: Path,
    dataset: Dataset | None = None,
    syntax: str = ExplicitVRLittleEndian,
    *,
    pixels: bytes | None = b"",
    **attributes: Any,
) -> Path:
    """A file of ``dataset`` (a 4×4 CT image unless given) with ``attributes`` set, written by pydicom."""
    if dataset is None:
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.PatientName = CTImageStorage, "1.2.3", "Doe^Jane"
        dataset.Rows = dataset.Columns = 4
        dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.PixelRepresentation = 1, 16, 0
    with config.disable_value_validation():
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
    if pixels is not None:
        dataset.PixelData = pixels or bytes(32 * int(dataset.get("NumberOfFrames", 1)))
        dataset["PixelData"].VR = "OB" if syntax == JPEGBaseline8Bit else "OW"
        dataset["PixelData"].is_undefined_length = syntax == JPEGBaseline8Bit
    _keep_raw(dataset, syntax == ImplicitVRLittleEndian)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = CTImageStorage, "1.2.3", syntax
    dataset.file_meta = meta
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


TAGS: dict[str, list[int]] = {}
for _tag, _entry in DicomDictionary.items():
    if 0x00080000 < _tag < 0x7FE00000 and _tag not in (0x00080005, 0x00280103) and _tag >> 16 not in (0x0028, 0x5400):
        TAGS.setdefault(_entry[0], []).append(_tag)
for _vr in ("OB", "OD", "OF", "OL", "OV", "OW", "UN", "UC", "UR", "UV", "SV", "SS"):
    TAGS.setdefault(_vr, []).extend((0x00091000 + len(_vr), 0x00431010))
TAGS = {vr: tags for vr, tags in TAGS.items() if len(vr) == 2}
NUMBERS = {"US": 2, "SS": 2, "UL": 4, "SL": 4, "FL": 4, "FD": 8, "UV": 8, "SV": 8, "AT": 4}
CHARSETS = [
    "",
    "ISO_IR 100",
    "ISO_IR 192",
    "ISO_IR 13",
    "GB18030",
    "ISO_IR 144",
    "\\ISO 2022 IR 87",
    "ISO 2022 IR 6\\ISO 2022 IR 149",
]


def values(vr: str) -> st.SearchStrategy[bytes]:
    """Encoded values, mostly such as the VR has, some that it cannot have."""
    if vr in NUMBERS:
        return st.integers(0, 3).flatmap(lambda count: st.binary(min_size=count * NUMBERS[vr], max_size=count * NUMBERS[vr]))
    if vr in ("DS", "IS"):
        number = st.one_of(
            st.integers(-(10**11), 10**20).map(str), st.floats().map(repr), st.sampled_from(["", " ", " 7 ", "x", "1.0"])
        )
        return st.lists(number, max_size=4).map(lambda parts: "\\".join(parts).encode())
    if vr in ("OB", "OD", "OF", "OL", "OV", "OW", "UN"):
        return st.one_of(st.binary(max_size=40), st.integers(INLINE - 2, INLINE + 8).map(bytes))
    text = st.text(st.sampled_from("AZaz09 .^=\\\n\t\0é山"), max_size=12)
    return st.one_of(
        text.map(lambda part: part.encode("utf-8")), st.sampled_from([b"\x1b$B;3ED\x1b(B^A=B", b"\xc4\xe3^\xff", b"\x1b-Lab"])
    )


@st.composite
def data_sets(draw: st.DrawFn, depth: int = 2) -> Dataset:
    """Data sets of elements in ascending order, of any VR, some private, some nested."""
    dataset = Dataset()
    if draw(st.booleans()):
        _add(dataset, 0x00080005, "CS", draw(st.sampled_from(CHARSETS)).encode())
    for creator in draw(
        st.lists(st.sampled_from(["SIEMENS CT VA0  COAD", "GEMS_PARM_01", "UNKNOWN"]), max_size=2, unique=True)
    ):
        group = 0x0019 if creator.startswith("S") else 0x0043
        _add(dataset, group << 16 | 0x10, "LO", creator.encode())
        for element in draw(st.lists(st.integers(0x1000, 0x10FF), max_size=3)):
            vr = draw(st.sampled_from(["UN", "LO", "DS", "SS"]))
            _add(dataset, group << 16 | element, vr, draw(values(vr)))
    if draw(st.booleans()):
        _add(dataset, 0x00280103, "US", draw(st.sampled_from([b"\0\0", b"\1\0"])))
        for tag in draw(st.lists(st.sampled_from([0x00280106, 0x00280120, 0x00281101, 0x00283002]), max_size=2)):
            _add(dataset, tag, draw(st.sampled_from(["US", "SS"])), draw(values("US")))
    for vr in draw(st.lists(st.sampled_from(sorted(TAGS)), max_size=6)):
        tag = draw(st.sampled_from(TAGS[vr]))
        if vr == "SQ":
            items = draw(st.lists(data_sets(depth - 1), max_size=2)) if depth else []
            dataset.add_new(tag, "SQ", items)
            dataset[tag].is_undefined_length = draw(st.booleans())
            for item in items:
                item.is_undefined_length_sequence_item = draw(st.booleans())
        else:
            _add(dataset, tag, vr, draw(values(vr)))
    return dataset


def _keep_raw(dataset: Dataset, implicit: bool) -> None:
    """Let pydicom write raw elements as they are, not as it understands them."""
    dataset.set_original_encoding(implicit, True, dataset._character_set)
    for element in dataset._dict.values():
        for item in element.value if element.VR == "SQ" else ():
            _keep_raw(item, implicit)


def _add(dataset: Dataset, tag: int, vr: str, raw: bytes) -> None:
    dataset._dict[BaseTag(tag)] = RawDataElement(BaseTag(tag), vr, len(raw), raw, 0, False, True)


@settings(max_examples=150, deadline=None)
@given(dataset=data_sets(), syntax=st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, DEFLATED]))
def test_any_data_set_reads_as_pydicom_reads_it(
    dataset: Dataset, syntax: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.dcm"
    made(path, dataset, syntax, pixels=None)
    assert check(path).startswith("read")
    assert check(path).startswith("read")  # the second time from what is remembered


def test_a_file_without_preamble_or_file_meta_is_read(tmp_path: Path) -> None:
    whole = made(tmp_path / "a.dcm").read_bytes()
    for start in (132, 144 + int.from_bytes(whole[140:144], "little")):
        (tmp_path / "b.dcm").write_bytes(whole[start:])
        assert walk(tmp_path / "b.dcm").first(0x00100010) == {"Alphabetic": "Doe^Jane"}
        assert check(tmp_path / "b.dcm") == "read"


def test_what_is_not_dicom_is_refused_by_name(tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"\0" * 4000, b"%PDF-1.7" * 99, b"\x08\0 is no tag at all", os.urandom(500))):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(content)
        with pytest.raises(NotDicom, match=path.name):
            walk(path)


# -- what is left out, and said


def test_one_bad_element_costs_that_element(tmp_path: Path) -> None:
    dataset = Dataset()
    _add(dataset, 0x00080018, "UI", b"1.2.3\0")
    _add(dataset, 0x00180050, "DS", b"thick ")
    _add(dataset, 0x00280010, "US", b"\1\2\3\4\5\6\7\x08"[:3])
    _add(dataset, 0x00280011, "US", b"\4\0")
    header = walk(made(tmp_path / "a.dcm", dataset, pixels=None))
    assert header.first(0x00280011) == 4
    assert not {"00180050", "00280010"} & header.json.keys()
    assert [note[:11] for note in header.notes] == ["(0018,0050)", "(0028,0010)"]


def test_empty_values_among_several_are_null(tmp_path: Path) -> None:
    dataset = Dataset()
    _add(dataset, 0x00080018, "UI", b"1.2.3\0")
    _add(dataset, 0x00200032, "DS", b"1\\\\3 ")
    _add(dataset, 0x00281050, "DS", b"\\")
    header = walk(made(tmp_path / "a.dcm", dataset, pixels=None)).json
    assert header["00200032"]["Value"] == [1.0, None, 3.0]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DEFLATED])
def test_large_binary_values_are_named_by_where_they_lie(tmp_path: Path, syntax: str) -> None:
    icon = Dataset()
    icon.add_new(0x00090010, "LO", "MINE")
    icon.add_new(0x00091001, "OB", bytes(range(256)) * 5)
    path = made(tmp_path / "a.dcm", None, syntax, IconImageSequence=[icon], RedPaletteColorLookupTableData=b"ab" * INLINE)
    header = walk(path).json
    assert "BulkDataURI" in header["00281201"]
    assert "BulkDataURI" in header["00880200"]["Value"][0]["00091001"]
    assert check(path).startswith("read")


# -- pixels


def stored(path: Path, span: tuple[int, int]) -> bytes:
    return path.read_bytes()[span[0] : sum(span)]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_native_frames_follow_from_the_header(tmp_path: Path, syntax: str) -> None:
    content = os.urandom(96)
    path = made(tmp_path / "a.dcm", None, syntax, pixels=content, NumberOfFrames=3)
    pixels = walk(path).pixels
    assert pixels is not None
    assert (pixels.tag, pixels.vr, pixels.encapsulated, pixels.length) == ("7FE00010", "OW", False, 96)
    assert [stored(path, frame) for frame in pixels.frames or ()] == [content[:32], content[32:64], content[64:]]


@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_encapsulated_frames_are_found(tmp_path: Path, table: str, fragments: int) -> None:
    frames = [os.urandom(30 + 6 * number) for number in range(4)]
    if table == "extended":
        content, offsets, lengths = encapsulate_extended(frames)
        attributes = {"ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
        fragments = 1
    else:
        content, attributes = encapsulate(frames, fragments_per_frame=fragments, has_bot=table == "basic"), {}
    path = made(tmp_path / "a.dcm", None, JPEGBaseline8Bit, pixels=content, NumberOfFrames=4, **attributes)
    pixels = walk(path).pixels
    assert pixels is not None
    assert pixels.encapsulated
    assert pixels.offset + pixels.length == path.stat().st_size
    if table == "none" and fragments > 1:
        assert pixels.frames is None  # where one ends is in the code stream
    else:
        assert pixels.frames is not None
        assert [b"".join(generate_fragments(stored(path, frame))) for frame in pixels.frames] == frames


def test_one_frame_is_all_its_fragments(tmp_path: Path) -> None:
    frame = os.urandom(90)
    content = encapsulate([frame], fragments_per_frame=3, has_bot=False)
    path = made(tmp_path / "a.dcm", None, JPEGBaseline8Bit, pixels=content)
    pixels = walk(path).pixels
    assert pixels is not None
    assert pixels.frames is not None
    assert b"".join(generate_fragments(stored(path, pixels.frames[0]))) == frame


def test_the_pixels_are_not_read(tmp_path: Path) -> None:
    native = made(tmp_path / "a.dcm", pixels=bytes(8 << 20), Rows=2048, Columns=2048)
    coded = made(
        tmp_path / "b.dcm", None, JPEGBaseline8Bit, pixels=encapsulate([bytes(1 << 20)] * 8, has_bot=False), NumberOfFrames=8
    )
    assert walk(native).bytes_read <= 65_536
    assert walk(coded).bytes_read <= 65_536


def test_a_long_header_is_read_on_to_its_end(tmp_path: Path) -> None:
    items = []
    for number in range(3_000):
        item = Dataset()
        item.ReferencedSOPInstanceUID = f"1.2.{number}"
        items.append(item)
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        path = made(tmp_path / "a.dcm", None, syntax, ReferencedImageSequence=items, StudyComments="long " * 9_000)
        assert path.stat().st_size > 110_000
        assert check(path) == "read"
        assert walk(path).bytes_read < 2 * path.stat().st_size


# -- broken and hostile files


def test_a_file_cut_anywhere_is_truncated_or_shorter_never_worse(tmp_path: Path) -> None:
    item = Dataset()
    item.CodeValue, item.CodeMeaning = "T-1", "Chest"
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DEFLATED, JPEGBaseline8Bit):
        pixels = encapsulate([bytes(30)]) if syntax == JPEGBaseline8Bit else b""
        whole = made(tmp_path / "a.dcm", None, syntax, pixels=pixels, ProcedureCodeSequence=[item]).read_bytes()
        full = walk(tmp_path / "a.dcm").json
        for length in range(len(whole)):
            (tmp_path / "b.dcm").write_bytes(whole[:length])
            header = survived(tmp_path / "b.dcm")
            left = header.json if header else {}
            assert all(full[tag] == attribute for tag, attribute in left.items())
        (tmp_path / "b.dcm").write_bytes(whole[:-12])
        with pytest.raises(Truncated, match=r"b\.dcm: the file ends"):
            walk(tmp_path / "b.dcm")


def survived(path: Path) -> Header | None:
    """The header of ``path``, or what was read of it; no error but ours, no long wait."""
    start = time.process_time()
    try:
        header: Header | None = walk(path)
    except BrokenHeader as problem:
        header = problem.header
    except NotDicom:
        header = None
    assert time.process_time() - start < 2
    if header:
        assert isinstance(header.json, dict)
    return header


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, DEFLATED])
def test_flipped_bytes_do_no_harm(tmp_path: Path, syntax: str) -> None:
    item = Dataset()
    item.CodeValue, item.CodeMeaning = "T-1", "Chest"
    pixels = encapsulate([bytes(30)] * 2) if syntax == JPEGBaseline8Bit else b""
    whole = made(tmp_path / "a.dcm", None, syntax, pixels=pixels, ProcedureCodeSequence=[item], NumberOfFrames=2).read_bytes()
    dice = random.Random(7)
    for _ in range(400):
        broken = bytearray(whole)
        for _ in range(dice.choice((1, 1, 2, 8))):
            broken[dice.randrange(128, len(broken))] = dice.choice((0, 1, 0x7F, 0xFE, 0xFF, dice.randrange(256)))
        (tmp_path / "b.dcm").write_bytes(broken)
        survived(tmp_path / "b.dcm")


HEAD = b"\0" * 128 + b"DICM\2\0\0\0UL\4\0\x1c\0\0\0\2\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0"


@pytest.mark.parametrize(
    "body",
    [
        b"\x08\0\x18\0UN\0\0\xf0\xff\xff\xff1.2.3",
        b"\x08\0\x40\x11SQ\0\0\xf0\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 20,
        b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xf0\xff\xff\xff",
        b"\x08\0\x18\0??\x18\xff1.2.3" * 3,
        b"\xe0\x7f\x10\0OW\0\0\xf0\xff\xff\xff",
        b"\x28\0\x08\0IS\x0a\x002000000000\x28\0\x10\0US\2\0\1\0\x28\0\x11\0US\2\0\1\0\x28\0\0\1US\2\0\1\0\xe0\x7f\x10\0OB\0\0\2\0\0\0\0\0",
        b"\x28\0\x08\0IS\x0a\x002000000000\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\0\0\0\0"
        + b"\xfe\xff\0\xe0\0\0\0\0" * 9,
        b"\x09\0\x10\x10OB\0\0\xff\xff\xff\xff" * 50,
        b"\x08\0\x18\0" + b"\0" * 100_000,
    ],
    ids=["value", "sequence", "item", "VR", "pixels", "frames", "coded frames", "unending", "zeros"],
)
def test_declared_lengths_cost_no_memory_and_no_time(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "a.dcm").write_bytes(HEAD + body)
    survived(tmp_path / "a.dcm")
    tracemalloc.start()
    survived(tmp_path / "a.dcm")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_sequences_without_end_have_one(tmp_path: Path) -> None:
    for count in (60, 100, 5_000):
        (tmp_path / "a.dcm").write_bytes(HEAD + b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * count)
        survived(tmp_path / "a.dcm")
    with pytest.raises(BrokenHeader, match=r"\(0008,1140\) nests sequences deeper than 64"):
        walk(tmp_path / "a.dcm")


def test_a_deflated_bomb_is_not_inflated(tmp_path: Path) -> None:
    head = HEAD.replace(
        b"\x1c\0\0\0\2\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0", b"\x1e\0\0\0\2\0\x10\0UI\x16\x001.2.840.10008.1.2.1.99"
    )
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = io.BytesIO()
    body.write(stream.compress(b"\x08\0\x18\0UI\6\x001.2.3\0" + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 1 << 30)))
    for _ in range(128):
        body.write(stream.compress(bytes(1 << 20)))
    body.write(stream.flush())
    (tmp_path / "a.dcm").write_bytes(head + body.getvalue())
    tracemalloc.start()
    assert walk(tmp_path / "a.dcm").first(0x00080018) == "1.2.3"
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()
