"""STOW-RS against a real server on a real archive: what is stored, what is refused and why, and what no client can break."""

import io
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import highdicom as hd
import httpx
import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from pydicom.sr.codedict import codes
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless, generate_uid
from starlette.applications import Starlette
from starlette.routing import Mount

from catalog import Archive, LabelSet, seg
from catalog.dicomweb import application, stow
from catalog.dicomweb._parts import Parts
from catalog.disk import sync_folder
from catalog.problem import HANDLERS, Refused
from catalog.repair import faults, repair
from catalog.testing import serving
from catalog.walk import BrokenHeader, walk

pytestmark = pytest.mark.slow

Stored = Callable[..., tuple[Archive, str]]
DicomFile = Callable[..., Path]
TYPE = 'multipart/related; type="application/dicom"; boundary=XX'
FAILED, STORED, OTHER = "00081198", "00081199", "0008119A"


def mounted(archive: Archive, **limits: Any) -> Starlette:
    app = Starlette(routes=[*stow.routes(archive, **limits)], exception_handlers=HANDLERS)
    return Starlette(routes=[Mount("/dicomweb", app)])


@pytest.fixture
def archive(home: Path) -> Archive:
    return Archive(home)


@pytest.fixture
def studies(archive: Archive) -> Iterator[str]:
    """The URL of /studies of a server on an archive, empty unless the test stores into it."""
    with serving(Starlette(routes=[Mount("/dicomweb", application(archive))])) as url:
        yield f"{url}/dicomweb/studies"


@pytest.fixture
def image(dicom_file: DicomFile) -> Callable[..., bytes]:
    """Makes a small image object, as its file's bytes."""

    def make(name: str = "image.dcm", seed: int = 1, **attributes: Any) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 4000, (16, 16), dtype=np.uint16)
        with pydicom.config.disable_value_validation():
            return dicom_file(pixels, name, **attributes).read_bytes()

    return make


def body(parts: Sequence[bytes], head: bytes = b"Content-Type: application/dicom\r\n", end: bytes = b"\r\n--XX--\r\n") -> bytes:
    return b"\r\n".join(b"--XX\r\n" + head + b"\r\n" + part for part in parts) + end


def post(url: str, parts: Sequence[bytes], **headers: str) -> httpx.Response:
    return httpx.post(url, content=body(parts), headers={"Content-Type": TYPE, **headers}, timeout=60)


def files(archive: Archive) -> list[Path]:
    """Everything below HOME/volume/stow, hidden or not."""
    return sorted(path for path in (archive.volume_folder / "stow").rglob("*") if path.is_file())


def rows(archive: Archive) -> int:
    return archive.objects.scan(["path"]).read_all().num_rows


def values(item: dict[str, Any], tag: str) -> Any:
    return item[tag]["Value"][0]


def reason(item: dict[str, Any]) -> tuple[int, str]:
    """(failure or warning reason, in words) of an item of the answer."""
    return values(item, "00081197" if "00081197" in item else "00081196"), values(item, "00000902")


# --- what is stored -----------------------------------------------------------------------------------------------------


def test_what_dicomweb_client_stores_lies_on_disk_byte_for_byte(studies: str, archive: Archive, image: Any) -> None:
    sent = [image(f"{number}.dcm", number) for number in range(3)]
    datasets = [pydicom.dcmread(io.BytesIO(one)) for one in sent]
    answer = DICOMwebClient(studies.removesuffix("/studies")).store_instances(datasets)
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [d.SOPInstanceUID for d in datasets]
    assert {path.read_bytes() for path in files(archive)} == set(sent)
    assert {path.name for path in files(archive)} == {f"{d.SOPInstanceUID}.dcm" for d in datasets}


def test_the_answer_says_where_to_retrieve_it(studies: str, image: Any) -> None:
    uid = generate_uid()
    answer = post(studies, [image(SOPInstanceUID=uid)]).json()
    assert values(answer, "00081190") == f"{studies}/1.2"
    (item,) = answer[STORED]["Value"]
    assert values(item, "00081190") == f"{studies}/1.2/series/1.2.3/instances/{uid}"


def test_the_next_search_finds_it(studies: str, archive: Archive, image: Any) -> None:
    assert post(studies, [image(PatientID="P7")]).status_code == 200
    (found,) = archive.index.studies({"PatientID": "P7"})
    assert (found["StudyInstanceUID"], found["NumberOfStudyRelatedInstances"]) == ("1.2", 1)


def test_what_is_stored_outlives_a_power_cut(
    studies: str, archive: Archive, image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, volume = list[Path](), archive.volume_folder
    for module in ("catalog.deposit", "catalog.dicomweb.stow"):
        monkeypatch.setattr(f"{module}.sync_folder", lambda folder: (synced.append(folder), sync_folder(folder)))
    post(studies, [image()])
    assert {volume, volume / "stow", volume / "stow/1.2", volume / "stow/1.2/1.2.3"} <= set(synced)
    synced.clear()
    post(studies, [image("second.dcm")])
    assert synced == [volume / "stow/1.2/1.2.3"]


def test_storing_again_adds_nothing(studies: str, archive: Archive, image: Any) -> None:
    one = image()
    assert post(studies, [one, one]).status_code == 200
    version = archive.objects.version()
    again = post(studies, [one])
    assert again.status_code == 200
    assert len(again.json()[STORED]["Value"]) == 1
    assert archive.objects.version() == version
    assert len(files(archive)) == rows(archive) == 1


@pytest.mark.parametrize(
    ("corrected", "told"),
    [
        ({"PatientName": "Corrected^Name"}, "differs in PatientName: give it a new UID"),
        ({"FrameOfReferenceUID": "1.2.99"}, "differs in FrameOfReferenceUID: give it a new UID"),
        ({"Units": "GML"}, "differs in Units: give it a new UID"),
        ({"ContentDate": "20240203"}, "differs in ContentDate: give it a new UID"),
        (
            {"PatientID": "P9", "PatientName": "N", "StudyDate": "20240203", "StudyDescription": "new"},
            "differs in PatientID, StudyDate, 2 more: give it a new UID",
        ),
    ],
)
def test_a_corrected_header_is_refused_and_says_what_differs(
    corrected: dict[str, str], told: str, studies: str, archive: Archive, image: Any
) -> None:
    uid = generate_uid()
    first = image(SOPInstanceUID=uid)
    post(studies, [first])
    answer = post(studies, [image(SOPInstanceUID=uid, **corrected)])
    assert answer.status_code == 409
    (failed,) = answer.json()[FAILED]["Value"]
    assert reason(failed) == (0x0111, told)
    assert [path.read_bytes() for path in files(archive)] == [first]


def test_a_large_value_that_differs_is_refused(studies: str, image: Any) -> None:
    uid = generate_uid()
    first, other = (image(SOPInstanceUID=uid, RedPaletteColorLookupTableData=bytes(4999) + end) for end in (b"1", b"2"))
    assert [post(studies, [one]).status_code for one in (first, first)] == [200, 200]
    (failed,) = post(studies, [other]).json()[FAILED]["Value"]
    assert reason(failed) == (0x0111, "differs in (0028,1201): give it a new UID")


def test_the_same_in_another_encoding_is_the_same_object(studies: str, archive: Archive, image: Any) -> None:
    table = {"SpecificCharacterSet": "ISO_IR 192", "RedPaletteColorLookupTableData": bytes(range(256)) * 20}
    first = image(PatientName="M\u00fcller", **table)
    post(studies, [first])
    for syntax in (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless):
        other, encoded = pydicom.dcmread(io.BytesIO(first)), io.BytesIO()
        other.PatientName, other.SpecificCharacterSet = str(other.PatientName), "ISO_IR 100"
        if syntax == RLELossless:
            other.compress(syntax, generate_instance_uid=False)
        other.file_meta.TransferSyntaxUID, other.file_meta.SourceApplicationEntityTitle = syntax, "SENDER"
        pydicom.dcmwrite(encoded, other, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
        answer = post(studies, [encoded.getvalue()])
        assert answer.status_code == 200, (syntax, answer.text)
    assert [path.read_bytes() for path in files(archive)] == [first]


def test_other_pixels_under_the_same_uid_are_refused_and_the_first_stay(studies: str, archive: Archive, image: Any) -> None:
    uid = generate_uid()
    first, other, third = image(SOPInstanceUID=uid), image(SOPInstanceUID=uid, seed=2), image("third.dcm")
    post(studies, [first])
    answer = post(studies, [other, third])
    assert answer.status_code == 202
    (failed,) = answer.json()[FAILED]["Value"]
    assert values(failed, "00081155") == uid
    assert reason(failed) == (0x0111, "stored with other content (give it a UID of its own)")
    assert sorted(path.read_bytes() for path in files(archive)) == sorted([first, third])
    assert post(studies, [other]).status_code == 409


def test_what_deflates_to_more_than_is_taken_fails_alone(
    studies: str, archive: Archive, image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.deflated.LARGEST", 1 << 20)
    bomb = pydicom.dcmread(io.BytesIO(image(SOPInstanceUID=generate_uid())))
    bomb.PixelData = bytes(3 << 20)
    bomb.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    written = io.BytesIO()
    bomb.save_as(written, enforce_file_format=True)
    assert len(written.getvalue()) < 1 << 14
    good = image()
    answer = post(studies, [written.getvalue(), good])
    assert answer.status_code == 202
    assert reason(answer.json()[FAILED]["Value"][0])[0] == 0xC000
    assert [path.read_bytes() for path in files(archive)] == [good]


def test_one_uid_in_two_series_of_a_request_is_stored_once(studies: str, archive: Archive, image: Any) -> None:
    uid = generate_uid()
    first = image(SOPInstanceUID=uid)
    answer = post(studies, [first, image(SOPInstanceUID=uid, SeriesInstanceUID="1.2.4")])
    assert answer.status_code == 202
    (failed,) = answer.json()[FAILED]["Value"]
    assert reason(failed) == (0x0111, "sent in another series, too (give it a UID of its own)")
    assert [path.read_bytes() for path in files(archive)] == [first]


def test_a_uid_that_another_series_has_is_refused(studies: str, archive: Archive, image: Any) -> None:
    uid = generate_uid()
    post(studies, [image(SOPInstanceUID=uid)])
    (failed,) = post(studies, [image(SOPInstanceUID=uid, SeriesInstanceUID="1.2.4")]).json()[FAILED]["Value"]
    assert reason(failed) == (0x0111, "stored in another series (give it a UID of its own)")
    assert len(files(archive)) == 1


def test_what_was_ingested_from_elsewhere_is_not_stored_again(studies: str, archive: Archive, image: Any) -> None:
    one = image()
    elsewhere = archive.volume_folder / "imported" / "a.dcm"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_bytes(one)
    archive.adopt([elsewhere], writer="test")
    assert post(studies, [one]).status_code == 200
    assert files(archive) == [] and rows(archive) == 1


def test_two_clients_with_the_same_object_make_one_row(studies: str, archive: Archive, image: Any) -> None:
    one = image()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(studies, [one]), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert len(files(archive)) == rows(archive) == 1


def test_two_clients_with_other_pixels_under_one_uid_one_wins(studies: str, archive: Archive, image: Any) -> None:
    uid = generate_uid()
    sent = [image(f"{seed}.dcm", seed, SOPInstanceUID=uid) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda one: post(studies, [one]), sent))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    won = sent[[answer.status_code for answer in answers].index(200)]
    assert [path.read_bytes() for path in files(archive)] == [won]
    assert rows(archive) == 1


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_encoding_is_kept_as_it_came(syntax: str, studies: str, archive: Archive, image: Any) -> None:
    dataset = pydicom.dcmread(io.BytesIO(image()))
    dataset.PixelData = dataset.pixel_array.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    encoded = io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = syntax
    little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    pydicom.dcmwrite(encoded, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    assert post(studies, [encoded.getvalue()]).status_code == 200
    assert [path.read_bytes() for path in files(archive)] == [encoded.getvalue()]
    (found,) = archive.index.instances()
    assert found["TransferSyntaxUID"] == syntax


@pytest.mark.parametrize(
    ("content_type", "head", "end"),
    [
        ('multipart/related; type="application/dicom"; boundary="XX"', b"", b"\r\n--XX--\r\n"),
        ("Multipart/Related;boundary=XX;type=application/dicom", b"Content-Type: application/dicom\r\n", b"\r\n--XX--"),
        (TYPE, b"Content-Type: application/dicom; transfer-syntax=1.2.840.10008.1.2.1\r\n", b"\r\n--XX--\r\nan epilogue"),
        (TYPE, b"content-type: application/dicom\r\nContent-Length: 12\r\nContent-Location: a\r\n", b"\r\n--XX--\r\n"),
        ("multipart/related; boundary=XX", b"Content-Type: application/dicom\r\n", b"\r\n--XX--\r\n"),
    ],
    ids=["no part headers", "no last line end", "transfer syntax, epilogue", "more part headers", "no type"],
)
def test_multiparts_are_written_in_many_ways(
    content_type: str, head: bytes, end: bytes, studies: str, archive: Archive, image: Any
) -> None:
    one = image()
    answer = httpx.post(studies, content=body([one], head, end), headers={"Content-Type": content_type})
    assert answer.status_code == 200, answer.text
    assert [path.read_bytes() for path in files(archive)] == [one]


def cut(whole: bytes, size: int, folder: Path) -> list[bytes]:
    """The parts of a body that comes in pieces of ``size``."""
    folder.mkdir()
    parts = Parts(folder, boundary=b"XX", largest=1000, most=10)
    for start in range(0, len(whole), size):
        parts.write(whole[start : start + size])
    return [part.path.read_bytes() for part in parts.finish()]


@pytest.mark.parametrize(
    "preamble", [b"", b"\r\n", b"This is a multipart message.\r\n", b"--XY\r\n--X\r\n" * 99, b"text--XX\r\n\r\n"]
)
@pytest.mark.parametrize("blanks", [b"", b" \t"])
def test_a_preamble_and_blanks_after_a_boundary_are_no_content(preamble: bytes, blanks: bytes, tmp_path: Path) -> None:
    sent = [b"a", b"\r\n--XX-\r\n", b"--XX"]
    whole = preamble + body(sent, b"").replace(b"--XX\r\n\r\n", b"--XX%b\r\n\r\n" % blanks) + b"an epilogue"
    for size in (1, 7, len(whole)):
        assert cut(whole, size, tmp_path / str(size)) == sent


def test_a_preamble_is_skipped_by_the_server(studies: str, archive: Archive, image: Any) -> None:
    one = image()
    content = b"This is a multipart message.\r\n\r\n" + body([one]).replace(b"--XX\r\n", b"--XX \r\n", 1)
    assert httpx.post(studies, content=content, headers={"Content-Type": TYPE}).status_code == 200
    assert [path.read_bytes() for path in files(archive)] == [one]


def test_one_object_needs_no_multipart(studies: str, archive: Archive, image: Any) -> None:
    one = image()
    assert httpx.post(f"{studies}/1.2", content=one, headers={"Content-Type": "application/dicom"}).status_code == 200
    assert [path.read_bytes() for path in files(archive)] == [one]


def test_parts_are_the_same_however_the_stream_is_cut(tmp_path: Path) -> None:
    sent = [b"a", b"", b"\r\n--X", b"one\r\n--XY\r\n\r\ntwo--XX\r\n--X-\r\n", b"\r\n", b"last\r"]
    whole = body(sent, b"")
    for size in range(1, len(whole) + 1):
        assert cut(whole, size, tmp_path / str(size)) == sent


# --- one bad part spoils no other ---------------------------------------------------------------------------------------


def test_each_bad_part_is_told_its_reason(studies: str, archive: Archive, image: Any) -> None:
    good, page, cut = image(), b"<html><body>Not found</body></html>", image("cut.dcm")[:-100]
    traversing = image("t.dcm", SOPInstanceUID="../../x")
    nameless = image("n.dcm", SeriesInstanceUID="")
    echo = image("e.dcm", SOPClassUID="1.2.840.10008.1.1")
    answer = post(studies, [page, good, b"", cut, traversing, nameless, echo])
    assert answer.status_code == 202
    assert answer.headers["Content-Type"] == "application/dicom+json"
    told = answer.json()
    assert len(told[STORED]["Value"]) == 1
    assert list(map(reason, told[OTHER]["Value"])) == [(0xC000, "not a DICOM file"), (0xC000, "the part is empty")]
    cut_short, *others = map(reason, told[FAILED]["Value"])
    assert cut_short[0] == 0xC000 and "ends" in cut_short[1]
    assert others == [
        (0xA900, "SOPInstanceUID is no UID"),
        (0xA900, "SeriesInstanceUID is missing"),
        (0x0122, "not a class of objects that are stored"),
    ]
    assert [path.read_bytes() for path in files(archive)] == [good]
    assert not (archive.home.parent / "x").exists() and rows(archive) == 1


@pytest.mark.parametrize("uid", ["../../x", "/etc/x", "1.2.3/4", "1..2", ".", "..", "1.2.", "9" * 65, "1.2\n3"])
def test_no_uid_leads_out_of_the_store(uid: str, studies: str, archive: Archive, image: Any) -> None:
    before = sorted(archive.home.parent.rglob("x*"))
    answer = post(studies, [image(**{"SOPInstanceUID": uid}), image(**{"StudyInstanceUID": uid})])
    assert answer.status_code == 409
    assert {values(item, "00081197") for item in answer.json()[FAILED]["Value"]} == {0xA900}
    assert files(archive) == [] and sorted(archive.home.parent.rglob("x*")) == before


def test_an_object_of_another_study_than_the_addressed_one_is_refused(studies: str, archive: Archive, image: Any) -> None:
    mine, other = image(), image("other.dcm", StudyInstanceUID="1.9")
    answer = post(f"{studies}/1.2", [mine, other])
    assert answer.status_code == 202
    (failed,) = answer.json()[FAILED]["Value"]
    assert reason(failed) == (0xA901, "belongs to another study than the one addressed")
    assert answer.json()["00081190"]["Value"] == [f"{studies}/1.2"]
    assert len(files(archive)) == 1


def test_what_is_no_file_of_its_own_is_refused_with_the_reason(studies: str, archive: Archive, image: Any) -> None:
    one = image()
    no_preamble = one[132:]
    dataset = pydicom.dcmread(io.BytesIO(one))
    encoded = io.BytesIO()
    pydicom.dcmwrite(encoded, pydicom.Dataset(dataset), implicit_vr=False, little_endian=True, enforce_file_format=False)
    answer = post(studies, [no_preamble, encoded.getvalue(), b"\0" * 128 + b"DICM" + encoded.getvalue()])
    assert answer.status_code == 409
    assert list(map(reason, answer.json()[FAILED]["Value"])) == [
        (0xC000, "no preamble: not a file as PS3.10 has it"),
        (0xC000, "no preamble: not a file as PS3.10 has it"),
        (0xC000, "its file meta group names no transfer syntax"),
    ]
    assert "Value" not in answer.json()["00081190"]
    assert files(archive) == []


def test_a_part_over_its_cap_is_dropped_and_the_others_are_kept(archive: Archive, image: Any) -> None:
    small = image()
    with serving(mounted(archive, largest_part=10_000)) as url:
        answer = post(f"{url}/dicomweb/studies", [b"x" * 50_000, small])
    assert answer.status_code == 202
    assert list(map(reason, answer.json()[OTHER]["Value"])) == [(0xA700, "larger than 10000 bytes")]
    assert [path.read_bytes() for path in files(archive)] == [small]


def test_a_part_that_the_disk_has_no_room_for_is_dropped(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    parts = Parts(tmp_path, boundary=b"XX", largest=1 << 30, most=10)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        parts.write(body([b"small", b"x" * (1 << 18), b"small too"]))
        found = parts.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [bool(part.problem) for part in found] == [False, True, False]
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"small", b"small too"]


def test_a_part_whose_file_cannot_be_made_is_dropped(tmp_path: Path) -> None:
    before, whole = resource.getrlimit(resource.RLIMIT_NOFILE), body([b"one", b"two", b"three"])
    first, second = whole.index(b"one") + 3, whole.index(b"two") + 3
    parts = Parts(tmp_path, boundary=b"XX", largest=1 << 30, most=10)
    os.close(free := os.open(tmp_path, os.O_RDONLY))
    parts.write(whole[:first])
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        parts.write(whole[first:second])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    parts.write(whole[second:])
    assert [part.problem for part in parts.finish()] == ["", "Too many open files", ""]
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"one", b"three"]


def test_an_object_whose_file_cannot_be_made_is_out_of_resources(
    studies: str, image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def full(path: Path, *how: Any, **more: Any) -> Any:
        if path.name == "000001":
            raise OSError(28, "No space left on device")
        return opened(path, *how, **more)

    monkeypatch.setattr(Path, "open", full)
    answer = post(studies, [image(), image("second.dcm")])
    assert answer.status_code == 202
    assert list(map(reason, answer.json()[OTHER]["Value"])) == [(0xA700, "No space left on device")]


# --- requests that are refused whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "content", "told"),
    [
        (415, {"Content-Type": "text/html"}, b"<html>", "not a type that is stored"),
        (415, {"Content-Type": "multipart/form-data; boundary=XX"}, body([b"x"]), "not a type that is stored"),
        (415, {"Content-Type": TYPE.replace("dicom", "dicom+json")}, body([b"x"]), "not a type that is stored"),
        (415, {}, b"", "not a type that is stored"),
        (415, {"Content-Type": TYPE, "Content-Encoding": "gzip"}, body([b"x"]), "the body is compressed"),
        (406, {"Content-Type": TYPE, "Accept": "application/dicom+xml"}, body([b"x"]), "the answer is application/dicom+json"),
        (400, {"Content-Type": "multipart/related; type=application/dicom"}, body([b"x"]), "names no boundary"),
        (400, {"Content-Type": TYPE.replace("XX", "Y" * 300)}, body([b"x"]), "Boundary length"),
        (400, {"Content-Type": TYPE.replace("XX", "YY")}, body([b"x"]), "malformed"),
        (400, {"Content-Type": TYPE}, b"", "ends before its closing boundary"),
        (400, {"Content-Type": TYPE}, b"--XX--\r\n", "has no parts"),
        (400, {"Content-Type": TYPE}, body([b"x"])[:-8], "ends before its closing boundary"),
        (400, {"Content-Type": TYPE}, body([b"x"], b"A: " + b"b" * 100_000 + b"\r\n"), "malformed"),
        (400, {"Content-Type": TYPE}, body([b"x"], b"A: b\r\n" * 10_000), "malformed"),
        (400, {"Content-Type": TYPE}, body([b"x"], b"no colon\r\n"), "malformed"),
    ],
)
def test_a_request_that_cannot_be_taken_says_why(
    status: int, headers: dict[str, str], content: bytes, told: str, studies: str, archive: Archive, image: Any
) -> None:
    answer = httpx.post(studies, content=content, headers=headers)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert told in answer.json()["detail"] and answer.json()["remedy"]
    assert files(archive) == []
    assert post(studies, [image()]).status_code == 200


@pytest.mark.parametrize("name", ["not-a-uid", "1.\u0662", "1..2", "1" * 65])
def test_a_study_is_addressed_by_a_uid(name: str, studies: str, image: Any) -> None:
    answer = post(f"{studies}/{name}", [image()])
    assert (answer.status_code, answer.json()["about"]) == (400, name[:64])


def test_a_truncated_multipart_stores_nothing(studies: str, archive: Archive, image: Any) -> None:
    whole = body([image(), image("second.dcm")])
    for cut in (len(whole) - 3, len(whole) - 200, len(whole) // 2 + 60, 30):
        answer = httpx.post(studies, content=whole[:cut], headers={"Content-Type": TYPE})
        assert answer.status_code == 400 and "send it again" in answer.json()["detail"]
    assert files(archive) == [] and archive.objects.version() < 0


@pytest.mark.parametrize("announced", [True, False])
def test_a_request_over_the_cap_is_413_with_the_cap(announced: bool, archive: Archive, image: Any) -> None:
    sent = body([b"x" * 3_000_000])
    pieces = sent if announced else (sent[start : start + 65536] for start in range(0, len(sent), 65536))
    with serving(mounted(archive, largest=2_000_000)) as url:
        answer = httpx.post(f"{url}/dicomweb/studies", content=pieces, headers={"Content-Type": TYPE})
        assert answer.status_code == 413 and "2000000 bytes" in answer.json()["detail"]
        assert post(f"{url}/dicomweb/studies", [image()]).status_code == 200
    assert len(files(archive)) == 1


def test_a_hundred_thousand_parts_are_too_many(studies: str, archive: Archive, image: Any) -> None:
    answer = post(studies, [b"x"] * 100_000)
    assert answer.status_code == 413 and "20000 parts" in answer.json()["detail"]
    assert files(archive) == []
    assert post(studies, [image()]).status_code == 200


def test_thousands_of_bad_parts_are_each_told(studies: str, archive: Archive) -> None:
    answer = post(studies, [b"x"] * 3_000)
    assert answer.status_code == 409 and len(answer.json()[OTHER]["Value"]) == 3_000
    assert files(archive) == []


def halfway(url: str, content: bytes, archive: Archive) -> socket.socket:
    """A client that has sent half of what it announced; the half is on the server's disk."""
    host, port = url.removeprefix("http://").split("/")[0].split(":")
    client = socket.create_connection((host, int(port)))
    head = f"POST /dicomweb/studies HTTP/1.1\r\nHost: h\r\nContent-Type: {TYPE}\r\nContent-Length: {len(content)}\r\n\r\n"
    client.sendall(head.encode() + content[: len(content) // 2])
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size for path in files(archive)):
        assert time.monotonic() < deadline, "nothing arrived"
        os.sched_yield()
    return client


def test_a_client_that_goes_away_midway_leaves_nothing(archive: Archive, image: Any) -> None:
    with serving(mounted(archive)) as url:
        halfway(url, body([b"x" * 8_000_000]), archive).close()
        assert post(f"{url}/dicomweb/studies", [image()]).status_code == 200
    assert len(files(archive)) == rows(archive) == 1
    assert not list((archive.volume_folder / "stow").glob(".tmp-*"))


def test_a_client_that_falls_silent_is_given_up(archive: Archive, image: Any) -> None:
    with serving(mounted(archive, patience=0.2)) as url:
        client = halfway(url, body([b"x" * 8_000_000]), archive)
        assert client.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert post(f"{url}/dicomweb/studies", [image()]).status_code == 200
        client.close()
    assert len(files(archive)) == 1


def test_a_header_without_end_is_refused_before_it_fills_the_memory(image: Any, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(io.BytesIO(image()))
    dataset.ContentSequence = [pydicom.Dataset() for _ in range(50_000)]
    dataset.save_as(tmp_path / "many.dcm", enforce_file_format=True)
    assert walk(tmp_path / "many.dcm").pixels
    with pytest.raises(BrokenHeader, match="the header has more than 200000 bytes"):
        walk(tmp_path / "many.dcm", most=200_000)


def test_other_methods_are_not_allowed(studies: str) -> None:
    for path, method, allowed in (
        ("", "PUT", "GET, HEAD, POST"),
        ("/1.2", "DELETE", "GET, HEAD, POST"),
        ("/1.2/series", "POST", "GET, HEAD"),
        ("/1.2/metadata", "PATCH", "GET, HEAD"),
    ):
        reply = httpx.request(method, studies + path)
        assert (reply.status_code, reply.headers["allow"]) == (405, allowed), path


SERVER = """
import socket, sys, uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from catalog import Archive
from catalog.dicomweb import application
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
app = Starlette(routes=[Mount("/dicomweb", application(Archive(sys.argv[1])))])
uvicorn.Server(uvicorn.Config(app, log_level="error")).run([listener])
"""


def test_memory_does_not_grow_with_the_body(home: Path, image: Any) -> None:
    pixels, frames = b"\7" * (1 << 20), 200
    dataset = pydicom.dcmread(io.BytesIO(image(Rows=1024, Columns=512, NumberOfFrames=frames)), stop_before_pixels=True)
    header = io.BytesIO()
    dataset.save_as(header, enforce_file_format=True)
    element = b"\xe0\x7f\x10\x00OW\0\0" + (frames << 20).to_bytes(4, "little")

    def stream() -> Iterator[bytes]:
        yield b"--XX\r\nContent-Type: application/dicom\r\n\r\n" + header.getvalue() + element
        yield from (pixels for _ in range(frames))
        yield b"\r\n--XX--\r\n"

    with subprocess.Popen([sys.executable, "-c", SERVER, str(home)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        url = f"http://127.0.0.1:{child.stdout.readline().strip()}/dicomweb/studies"
        try:
            assert post(url, [image("warm.dcm")]).status_code == 200
            before = peak(child.pid)
            answer = httpx.post(url, content=stream(), headers={"Content-Type": TYPE}, timeout=120)
            assert answer.status_code == 200, answer.text
            grown = peak(child.pid) - before
            assert grown < 30 << 20
        finally:
            child.terminate()
    assert max(path.stat().st_size for path in files(Archive(home))) > frames << 20


def peak(pid: int) -> int:
    """The most bytes that the process ever had resident."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


CRASH = """
import os, sys
from pathlib import Path
import catalog.deposit
from catalog import Archive
catalog.deposit.catalogue = lambda *_: os._exit(9)
archive = Archive(sys.argv[1])
staged = archive.volume_folder / "stow" / f".tmp-{os.getpid()}-crash" / "000000"
staged.parent.mkdir(parents=True)
staged.write_bytes(Path(sys.argv[2]).read_bytes())
catalog.deposit.deposit(archive, [staged])
"""


def test_what_a_crash_interrupts_is_finished_by_the_next_command(archive: Archive, image: Any, tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(image())
    ended = subprocess.run([sys.executable, "-c", CRASH, str(archive.home), str(tmp_path / "sent")], check=False)
    assert ended.returncode == 9
    assert archive.objects.version() < 0
    archive.finish()
    assert rows(archive) == 1 and len(files(archive)) == 1
    assert not list((archive.volume_folder / "stow").glob(".tmp-*"))


# --- what is repaired ----------------------------------------------------------------------------------------------------


def as_dcmjs(dataset: pydicom.Dataset, *, version: bytes | None = None) -> bytes:
    """The file's bytes with the marks of OHIF's writer: a wrong file meta version, or none, and no character set."""
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    for name in ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID"):
        setattr(dataset.file_meta, name, dataset[name.removeprefix("MediaStorage")].value)
    dataset.file_meta.pop("FileMetaInformationVersion", None)
    if version is not None:
        dataset.file_meta.FileMetaInformationVersion = version
    dataset.preamble = b"\0" * 128
    dataset.Manufacturer = "Unspecified"
    encoded = io.BytesIO()
    pydicom.dcmwrite(encoded, dataset, enforce_file_format=False)
    return encoded.getvalue()


def ohif_seg(archive: Archive, uid: str, labels: LabelSet) -> tuple[pydicom.Dataset, np.ndarray]:
    """A segmentation as OHIF 3.12 exports it, and the mask that was drawn."""
    like = archive.volume(uid)
    mask = np.zeros(like.spatial_shape, np.uint8)
    mask[2, 1:5, 3:9], mask[3, 2:4, 1:10] = 1, 7
    told = {"sop_uid": generate_uid(), "series_uid": generate_uid(), "description": "drawn", "author": "Anna"}
    made = seg.encode(like.with_array(mask), archive.sources(uid), labels, **told)
    dataset = pydicom.Dataset(made)
    dataset.file_meta = made.file_meta
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [pydicom.Dataset()]
    dataset.StudyID = "No Study ID"
    return dataset, mask


@pytest.fixture
def drawn(stored: Stored, labels: LabelSet) -> tuple[Archive, str, bytes, np.ndarray]:
    """A series and OHIF's segmentation of it: (archive, SeriesInstanceUID, file, mask)."""
    archive, uid = stored()
    dataset, mask = ohif_seg(archive, uid, labels)
    return archive, uid, as_dcmjs(dataset), mask


def verified(path: Path) -> None:
    """dciodvfy finds no error."""
    if not shutil.which("dciodvfy"):
        pytest.skip("no dciodvfy on this machine: apt install dicom3tools")
    said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
    assert not [line for line in said.splitlines() if line.startswith("Error")], said


def test_the_viewers_faulty_segmentation_is_repaired_and_says_so(
    drawn: tuple[Archive, str, bytes, np.ndarray], studies: str, labels: LabelSet
) -> None:
    archive, uid, sent, mask = drawn
    with pytest.raises((AttributeError, KeyError, ValueError, IndexError)):
        hd.seg.segread(io.BytesIO(sent)).get_volume()
    answer = post(studies, [sent])
    assert answer.status_code == 202
    (item,) = answer.json()[STORED]["Value"]
    assert reason(item) == (0xB000, "coerced: StudyID, SharedFunctionalGroupsSequence")
    path = archive.volume_folder / "stow" / values(item, "00081190").split("/studies/")[1]
    path = Path(str(path).replace("/series/", "/").replace("/instances/", "/") + ".dcm")
    verified(path)
    like = archive.volume(uid)
    np.testing.assert_array_equal(seg.decode(path, like, labels).array, mask)
    repaired = pydicom.dcmread(path)
    measures = repaired.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    np.testing.assert_allclose([measures.SpacingBetweenSlices, *measures.PixelSpacing], like.spacing)
    (changed,) = repaired.OriginalAttributesSequence
    assert (changed.ReasonForTheAttributeModification, changed.ModifyingSystem) == ("COERCE", "Voxloop")
    assert changed.ModifiedAttributesSequence[0].StudyID == "No Study ID"
    assert repaired.StudyID != "No Study ID"
    assert repaired.PixelData == pydicom.dcmread(io.BytesIO(sent)).PixelData


def test_a_repaired_object_may_be_sent_again(drawn: tuple[Archive, str, bytes, np.ndarray], studies: str) -> None:
    archive, _, sent, _ = drawn
    post(studies, [sent])
    before = rows(archive)
    assert post(studies, [sent]).json()[STORED]["Value"]
    assert rows(archive) == before


def test_a_segmentation_whose_series_is_not_here_is_kept_as_it_came(
    drawn: tuple[Archive, str, bytes, np.ndarray], tmp_path: Path
) -> None:
    archive, uid, sent, _ = drawn
    elsewhere = Archive(tmp_path / "elsewhere")
    with serving(mounted(elsewhere)) as url:
        answers = [post(f"{url}/dicomweb/studies", [sent]) for _ in range(2)]
        for answer in answers:
            assert answer.status_code == 202
            (item,) = answer.json()[STORED]["Value"]
            assert reason(item) == (0xB007, "no pixel measures, and its series is not here to take them from")
        assert [path.read_bytes() for path in files(elsewhere)] == [sent]
        post(f"{url}/dicomweb/studies", [Path(path).read_bytes() for path in archive.series_files(uid)])
        (item,) = post(f"{url}/dicomweb/studies", [sent]).json()[STORED]["Value"]
        assert reason(item) == (0xB007, "stored before, as it came")
    assert rows(elsewhere) == len(files(elsewhere)) == 7


def test_a_segmentation_in_order_is_kept_byte_for_byte(stored: Stored, studies: str, labels: LabelSet) -> None:
    archive, uid = stored()
    dataset, _ = ohif_seg(archive, uid, labels)
    repair(dataset, archive)
    encoded = io.BytesIO()
    dataset.save_as(encoded, enforce_file_format=True)
    assert post(studies, [encoded.getvalue()]).status_code == 200
    path = archive.volume_folder / "stow" / dataset.StudyInstanceUID / dataset.SeriesInstanceUID
    assert [file.read_bytes() for file in path.iterdir()] == [encoded.getvalue()]


def test_a_dataset_is_repaired_in_memory_too(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    dataset, _ = ohif_seg(archive, uid, labels)
    assert faults(dataset)
    assert repair(dataset, archive) == ["StudyID", "SharedFunctionalGroupsSequence"]
    assert faults(dataset) == [] and repair(dataset, archive) == []


def test_measures_are_not_guessed_for_frames_of_another_size(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    dataset, _ = ohif_seg(archive, uid, labels)
    dataset.Rows = 99
    assert repair(dataset, archive) == ["StudyID"]
    assert faults(dataset)


def test_text_in_utf8_that_names_no_character_set_is_named(drawn: tuple[Archive, str, bytes, np.ndarray], studies: str) -> None:
    archive, _, sent, _ = drawn
    dataset = pydicom.dcmread(io.BytesIO(sent))
    dataset.pop("SpecificCharacterSet", None)
    dataset.PatientName = "M\u00fcller^Jos\u00e9".encode().decode("latin-1")
    dataset.SegmentSequence[0].SegmentLabel = "L\u00e9sion".encode().decode("latin-1")
    answer = post(studies, [as_dcmjs(dataset)])
    told = values(answer.json()[STORED]["Value"][0], "00000902")
    assert told.startswith("coerced: SpecificCharacterSet, ")
    (found,) = archive.index.studies({"PatientName": "m\u00fcller*"})
    assert found["PatientName"] == "M\u00fcller^Jos\u00e9"
    kept = pydicom.dcmread(archive.index.instance(dataset.SOPInstanceUID).path)  # type: ignore[union-attr]
    assert kept.SegmentSequence[0].SegmentLabel == "L\u00e9sion"


def report(archive: Archive, uid: str) -> pydicom.Dataset:
    """A TID 1500 report with one measurement."""
    (source, *_) = archive.sources(uid)
    observer = hd.sr.ObserverContext(codes.DCM.Person, hd.sr.PersonObserverIdentifyingAttributes(name="unknown^unknown"))
    length = hd.sr.Measurement(name=codes.SCT.Length, value=43.0, unit=codes.UCUM.Millimeter)
    image = hd.sr.SourceImageForMeasurementGroup.from_source_image(source)
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=generate_uid(), identifier="one"),
        measurements=[length],
        source_images=[image],
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_person_context=observer),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=[group],
    )
    source.PatientName = f"{source.PatientName}^"
    made = hd.sr.EnhancedSR(
        evidence=[source],
        content=content[0],
        series_number=3100,
        series_instance_uid=generate_uid(),
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Unspecified",
        is_complete=True,
    )
    dataset = pydicom.Dataset(made)
    dataset.file_meta = made.file_meta
    return dataset


def test_the_viewers_report_is_kept_and_passes(stored: Stored, studies: str) -> None:
    archive, uid = stored()
    sent = as_dcmjs(report(archive, uid), version=b"\0\2")
    assert post(studies, [sent]).status_code == 200
    assert post(studies, [sent]).status_code == 200
    dataset = pydicom.dcmread(io.BytesIO(sent))
    path = Path(archive.index.instance(dataset.SOPInstanceUID).path)  # type: ignore[union-attr]
    verified(path)
    assert pydicom.dcmread(path) == dataset
    assert path.read_bytes() == sent.replace(b"OB\0\0\2\0\0\0\0\2", b"OB\0\0\2\0\0\0\0\1", 1)
    assert hd.sr.srread(path).content


def test_what_cannot_be_repaired_for_its_own_faults_is_kept(stored: Stored, studies: str, labels: LabelSet) -> None:
    archive, uid = stored()
    dataset, _ = ohif_seg(archive, uid, labels)
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].add_new("PixelSpacing", "LO", ["wide", "high"])
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = ""
    answer = post(studies, [as_dcmjs(dataset)])
    assert answer.status_code == 202
    assert archive.index.instance(dataset.SOPInstanceUID)


def test_the_answer_is_json_that_pydicom_reads(studies: str, image: Any) -> None:
    answer = post(studies, [image(), b"x"])
    read = pydicom.Dataset.from_json(json.dumps(answer.json()))
    assert read.OtherFailuresSequence[0].FailureReason == 0xC000
    assert read.ReferencedSOPSequence[0].ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.7"


def test_a_body_without_end_is_refused_by_the_parser(tmp_path: Path) -> None:
    parts = Parts(tmp_path, boundary=b"XX", largest=10, most=1)
    parts.write(b"--XX\r\n\r\nabc")
    with pytest.raises(Refused, match="closing boundary"):
        parts.finish()


def test_odd_files_are_each_stored_as_they_are_or_refused_with_a_reason(
    studies: str, archive: Archive, data: Callable[[str], Path]
) -> None:
    found = sorted(path for name in ("odd_dicom", "transfer_syntaxes") for path in data(name).rglob("*") if path.is_file())
    sent = [path.read_bytes() for path in found if path.stat().st_size < 20_000_000]
    answer = post(studies, sent)
    told = answer.json()
    assert answer.status_code == 202
    items = [item for tag in (STORED, FAILED, OTHER) for item in told[tag]["Value"]]
    assert len(items) == len(sent)
    assert all("00081190" in item or (values(item, "00081197") and values(item, "00000902")) for item in items)
    assert {path.read_bytes() for path in files(archive)} <= set(sent)
    assert archive.index.count("instances") == rows(archive) == len(files(archive))
