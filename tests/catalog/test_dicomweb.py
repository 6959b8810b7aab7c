"""DICOMweb as its clients meet it: a real server on a real archive, by httpx, dicomweb-client and schemathesis."""

import io
import json
import os
import re
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import hypothesis
import numpy as np
import pydicom
import pytest
import schemathesis
from dicomweb_client import DICOMwebClient
from hypothesis import HealthCheck
from PIL import Image
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless
from starlette.applications import Starlette
from starlette.routing import Mount

from catalog import Archive
from catalog.dicomweb import application, qido
from catalog.testing import serving

pytestmark = pytest.mark.slow
STORED = "multipart/related; type=application/octet-stream; transfer-syntax=*"
OBJECTS = 'multipart/related; type="application/dicom"; transfer-syntax=*'


class Server(NamedTuple):
    archive: Archive
    url: str
    client: httpx.Client
    study: str
    series: dict[str, str]
    pixels: dict[str, np.ndarray]

    def instance(self, kind: str, number: int = 1) -> str:
        return f"/studies/{self.study}/series/{self.series[kind]}/instances/{self.series[kind]}.{number}"


KINDS = {"native": "", "rle": RLELossless, "jls": JPEGLSLossless, "j2k": JPEG2000Lossless}


def image(study: str, series: str, number: int, *, frames: int = 1, rows: int = 48) -> pydicom.Dataset:
    """A CT object whose pixels say which it is; a header with a large private-free value (bulk data)."""
    made = pydicom.Dataset()
    made.preamble = bytes(128)
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"{series}.{number}"
    made.StudyInstanceUID, made.SeriesInstanceUID, made.InstanceNumber = study, series, number
    made.SpecificCharacterSet = "ISO_IR 192"
    made.PatientID, made.PatientName, made.Modality = "P1", 'Müller^"BulkDataURI":"?', "CT"
    made.StudyDate, made.StudyTime, made.AccessionNumber, made.StudyDescription = "20240203", "101500", "A1", "Chest"
    made.SeriesNumber, made.SeriesDescription = int(series.rsplit(".", 1)[1]), "axial"
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.Rows, made.Columns, made.BitsAllocated, made.BitsStored, made.HighBit = rows, 64, 16, 16, 15
    made.add_new(0x00281201, "OW", bytes(range(256)) * 20)
    if frames > 1:
        made.NumberOfFrames = frames
    noise = np.random.default_rng(number).integers(0, 4000, (frames, rows, 64), np.uint16)
    made.PixelData = noise.tobytes()
    made["PixelData"].VR = "OW"
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A study with a series of one multi-frame object for each way of storing pixels, and one of three single frames."""
    archive, study = Archive(tmp_path_factory.mktemp("dicomweb")), "1.2.3"
    folder, pixels, series = archive.volume_folder / "imported", dict[str, np.ndarray](), dict[str, str]()
    folder.mkdir(parents=True)
    for index, (kind, syntax) in enumerate(KINDS.items(), start=1):
        series[kind] = f"1.2.3.{index}"
        made = image(study, series[kind], 1, frames=3)
        pixels[kind] = made.pixel_array
        if syntax:
            made.compress(syntax, generate_instance_uid=False)
        made.save_as(folder / f"{kind}.dcm", enforce_file_format=True)
    series["many"], series["big"] = "1.2.3.8", "1.2.3.9"
    for number in (1, 2, 3):
        image(study, series["many"], number).save_as(folder / f"many-{number}.dcm", enforce_file_format=True)
    big = image(study, series["big"], 1)
    pixels["big"] = big.pixel_array
    big.PixelData = big.pixel_array.astype(">u2").tobytes()
    big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(folder / "big.dcm", big, implicit_vr=False, little_endian=False, enforce_file_format=True)
    archive.adopt(sorted(folder.iterdir()), writer="test")
    with serving(Starlette(routes=[Mount("/dicomweb", application(archive))])) as url:
        base = f"{url}/dicomweb"
        with httpx.Client(base_url=base, timeout=30) as client:
            yield Server(archive, base, client, study, series, pixels)


def adopted(home: Path, *made: pydicom.Dataset) -> Archive:
    """An archive of these objects."""
    archive = Archive(home)
    folder = archive.volume_folder / "imported"
    folder.mkdir(parents=True)
    for number, one in enumerate(made):
        one.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    archive.adopt(sorted(folder.iterdir()), writer="test")
    return archive


def picture(server: Server, resource: str, **parameters: str) -> Image.Image:
    """The first frame's ``resource`` of the object that is not compressed, as a PNG."""
    path = f"{server.instance('native')}/frames/1{resource}"
    reply = server.client.get(path, params=parameters, headers={"Accept": "image/png"})
    assert reply.status_code == 200, reply.text
    return Image.open(io.BytesIO(reply.content))


@pytest.fixture
def dicomweb(server: Server) -> DICOMwebClient:
    return DICOMwebClient(url=server.url)


def parts(reply: httpx.Response) -> list[tuple[str, bytes]]:
    """The (content type, body) of each part."""
    mark = re.search(r"boundary=([^;]+)", reply.headers["content-type"])
    assert mark is not None
    found = []
    for part in reply.content.split(f"--{mark[1]}".encode())[1:-1]:
        head, _, body = part.partition(b"\r\n\r\n")
        found.append((head.decode().split(": ", 1)[1].strip(), body.removesuffix(b"\r\n")))
    return found


class TestSearches:
    def test_every_attribute_of_the_statement_is_matched_by_keyword_and_by_tag(self, server: Server) -> None:
        statement = (Path(__file__).parents[2] / "docs" / "dicomweb.md").read_text()
        for level in ("studies", "series", "instances"):
            told = re.search(rf"^\| {level} \| (.+) \|$", statement, re.MULTILINE)
            assert told is not None
            assert re.findall(r"\w+", told[1]) == qido.attributes(level)
            for keyword in qido.attributes(level):
                for name in (keyword, f"{tag_for_keyword(keyword):08x}"):
                    reply = server.client.get(f"/{level}", params={name: ""})
                    assert (reply.status_code, bool(reply.json())) == (200, True), (level, name)

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("PatientName=mü*", 1),
            ("PatientName=MULLER*", 0),
            ("PatientID=P1&AccessionNumber=A1", 1),
            ("PatientID=P2", 0),
            ("StudyDate=20240101-20241231", 1),
            ("StudyDate=-20240202", 0),
            ("StudyTime=1015", 1),
            ("ModalitiesInStudy=CT", 1),
            ("ModalitiesInStudy=MR,CT", 1),
            ("ModalitiesInStudy=CT%5CMR", 1),
            ("ModalitiesInStudy=MR&ModalitiesInStudy=CT", 1),
            ("ModalitiesInStudy=MR,PT", 0),
            ("StudyInstanceUID=1.2.3,9.9", 1),
            ("StudyInstanceUID=1.2.3&StudyInstanceUID=9.9", 1),
            ("StudyDescription=Ch?st", 1),
            ("StudyDescription=ch*", 0),
            ("limit=0", 0),
            ("offset=1", 0),
        ],
    )
    def test_studies(self, server: Server, query: str, found: int) -> None:
        reply = server.client.get(f"/studies?{query}")
        assert reply.status_code == 200
        assert len(reply.json()) == found

    @pytest.mark.parametrize("asked", ["1.2.3,9.9", "9.9%5C1.2.3", "9.9,%201.2.3", "1.2.3", "*", ""])
    def test_the_study_of_the_path_may_be_named_again(self, server: Server, asked: str) -> None:
        assert len(server.client.get(f"/studies/1.2.3/series?StudyInstanceUID={asked}").json()) == 6
        assert server.client.get("/studies/1.2.3/series?StudyInstanceUID=9.9%5C9.8").json() == []

    @pytest.mark.parametrize("name", ["AvailableTransferSyntaxUID", "00083002", "TransferSyntaxUID"])
    def test_objects_are_found_by_how_they_are_stored(self, server: Server, name: str) -> None:
        (found,) = server.client.get(f"/instances?{name}={JPEGLSLossless}").json()
        assert found["00083002"] == {"vr": "UI", "Value": [JPEGLSLossless]}
        assert "warning" not in server.client.get(f"/instances?includefield={name}").headers

    def test_what_is_told_of_a_study(self, server: Server) -> None:
        (study,) = server.client.get("/studies").json()
        assert study["0020000D"] == {"vr": "UI", "Value": ["1.2.3"]}
        assert study["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": 'Müller^"BulkDataURI":"?'}]}
        assert study["00201206"]["Value"] == [6]
        assert study["00201208"]["Value"] == [8]
        assert study["00081190"]["Value"] == [f"{server.url}/studies/1.2.3"]

    def test_names_are_told_and_found_by_all_their_groups(self, tmp_path: Path) -> None:
        names = {"8.1": "Yamada^Tarou=山田^太郎=やまだ^たろう", "8.2": "=山田^花子"}
        made = [image(study, f"{study}.1", 1) for study in names]
        for one, name in zip(made, names.values(), strict=True):
            one.PatientName = name
        with serving(application(adopted(tmp_path, *made))) as url, httpx.Client(base_url=url) as client:
            told = {one["0020000D"]["Value"][0]: one["00100010"]["Value"] for one in client.get("/studies").json()}
            assert told["8.1"] == [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}]
            assert told["8.2"] == [{"Ideographic": "山田^花子"}]
            asked = {
                "山田*": 2,
                "*花*": 1,
                "yamada*": 1,
                "やまだ*": 1,
                "=山田*": 2,
                "Yamada^Tarou=山田^太郎": 1,
                "Yamada*=鈴木*": 0,
            }
            assert {name: len(client.get("/studies", params={"PatientName": name}).json()) for name in asked} == asked

    def test_levels_below_tell_of_those_above_where_that_is_asked(self, server: Server) -> None:
        below = server.client.get("/studies/1.2.3/series").json()
        assert len(below) == 6
        assert all("00100020" not in one and one["0020000D"]["Value"] == ["1.2.3"] for one in below)
        assert all(one["00100020"]["Value"] == ["P1"] for one in server.client.get("/series").json())
        with_id = server.client.get("/studies/1.2.3/series?includefield=PatientID,00081030").json()[0]
        assert (with_id["00100020"]["Value"], with_id["00081030"]["Value"]) == (["P1"], ["Chest"])
        assert "00100010" in server.client.get("/studies/1.2.3/instances?includefield=all").json()[0]

    def test_what_is_not_supported_is_said(self, server: Server) -> None:
        wrong = server.client.get("/studies?Manufacturer=x")
        assert wrong.status_code == 400
        assert wrong.headers["content-type"] == "application/problem+json"
        assert "AccessionNumber" in wrong.json()["remedy"]
        warned = server.client.get("/studies?fuzzymatching=true&includefield=PixelData")
        assert "fuzzymatching" in warned.headers["warning"]
        assert "PixelData" in warned.headers["warning"]
        assert server.client.get("/studies", headers={"Accept": "application/dicom+xml"}).status_code == 406

    @pytest.mark.parametrize("query", ["limit=-1", "limit=x", "offset=1.5", "StudyDate=yesterday", "PatientID=a&PatientID=b"])
    def test_a_wrong_value_is_named(self, server: Server, query: str) -> None:
        reply = server.client.get(f"/studies?{query}")
        assert reply.status_code == 400
        assert query.partition("=")[0] in reply.json()["about"]

    def test_what_was_stored_is_found_by_the_next_search(self, server: Server, tmp_path: Path) -> None:
        held = application(Archive(tmp_path))
        with serving(Starlette(routes=[Mount("/dicomweb", held)])) as url:
            client = DICOMwebClient(url=f"{url}/dicomweb")
            for number in (1, 2):
                client.store_instances([image("7.7", "7.7.1", number)])
                found = client.search_for_instances("7.7", "7.7.1")
                assert [one["00080018"]["Value"] for one in found] == [[f"7.7.1.{n}"] for n in range(1, number + 1)]
                assert len(client.retrieve_series_metadata("7.7", "7.7.1")) == number


class TestFrames:
    @pytest.mark.parametrize("kind", [*KINDS, "big"])
    def test_are_the_pixels_whatever_they_are_stored_as(self, server: Server, kind: str) -> None:
        truth = server.pixels[kind].reshape(-1, 48, 64)
        reply = server.client.get(server.instance(kind) + "/frames/1", headers={"Accept": "application/octet-stream"})
        assert reply.headers["content-type"] == "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
        assert reply.content == truth[0].tobytes()
        several = server.client.get(server.instance(kind) + f"/frames/{len(truth)},1")
        assert [body for _, body in parts(several)] == [truth[-1].tobytes(), truth[0].tobytes()]

    @pytest.mark.parametrize(("kind", "media"), [("rle", "dicom-rle"), ("jls", "jls"), ("j2k", "jp2")])
    def test_are_sent_as_stored_where_that_is_accepted(self, server: Server, kind: str, media: str) -> None:
        stored = pydicom.dcmread(server.archive.volume_folder / "imported" / f"{kind}.dcm")
        frame = list(pydicom.encaps.generate_frames(stored.PixelData, number_of_frames=3))[1]
        for accept in (STORED, f'multipart/related; type="image/{media}"'):
            ((told, body),) = parts(server.client.get(server.instance(kind) + "/frames/2", headers={"Accept": accept}))
            assert told == f"image/{media}; transfer-syntax={KINDS[kind]}"
            assert body == frame
        alone = server.client.get(server.instance(kind) + "/frames/2", headers={"Accept": f"image/{media}"})
        assert alone.content == frame

    def test_are_kept_by_a_client(self, server: Server) -> None:
        first = server.client.get(server.instance("native") + "/frames/1")
        assert "immutable" in first.headers["cache-control"]
        again = server.client.get(server.instance("native") + "/frames/1", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")

    @pytest.mark.parametrize(
        ("frames", "status"), [("0", 400), ("abc", 400), ("1,", 400), ("-1", 400), ("4", 404), ("999999999", 404)]
    )
    @pytest.mark.parametrize("kind", ["native", "jls"])
    def test_that_are_not_there(self, server: Server, kind: str, frames: str, status: int) -> None:
        reply = server.client.get(f"{server.instance(kind)}/frames/{frames}")
        assert reply.status_code == status
        assert reply.json()["title"]

    @pytest.mark.parametrize("planes", [0, 1])
    def test_of_colours_lie_as_the_metadata_say(self, tmp_path: Path, planes: int) -> None:
        made = image("6.6", "6.6.1", 1)
        pixels = np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)
        made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
        made.BitsAllocated = made.BitsStored = 8
        made.HighBit = 7
        made.PixelData = pixels.tobytes()
        made["PixelData"].VR = "OB"
        made.compress(RLELossless, generate_instance_uid=False)
        made.PlanarConfiguration = planes
        lies = pixels.transpose(2, 0, 1) if planes else pixels
        with serving(application(adopted(tmp_path, made))) as url:
            frame = f"{url}/studies/6.6/series/6.6.1/instances/6.6.1.1/frames/1"
            assert httpx.get(frame, headers={"Accept": "application/octet-stream"}).content == lies.tobytes()

    def test_of_jpeg_lie_as_the_metadata_say(self, tmp_path: Path, data: Any) -> None:
        shown = pydicom.dcmread(next(data("odd_dicom").rglob("Lena-cyrillic.dcm")))  # baseline JPEG, told to be YBR_FULL_422
        jfif = pydicom.dcmread(next(data("odd_dicom").rglob("GH195.dcm")))  # told to be RGB, YBR within its JPEG
        with serving(application(adopted(tmp_path, shown, jfif))) as url, httpx.Client(base_url=url) as client:

            def frame(of: pydicom.Dataset) -> np.ndarray:
                path = f"/studies/{of.StudyInstanceUID}/series/{of.SeriesInstanceUID}/instances/{of.SOPInstanceUID}/frames/1"
                return np.frombuffer(client.get(path, headers={"Accept": "application/octet-stream"}).content, np.uint8)

            assert np.array_equal(frame(jfif), jfif.pixel_array.reshape(-1))
            native = pydicom.Dataset()
            for keyword in ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"):
                setattr(native, keyword, shown[keyword].value)
            native.BitsAllocated, native.BitsStored, native.HighBit, native.PixelRepresentation = 8, 8, 7, 0
            native.PixelData = frame(shown).tobytes()
            native["PixelData"].VR = "OB"
            native.file_meta = pydicom.dataset.FileMetaDataset()
            native.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            assert len(native.PixelData) == 2 * shown.Rows * shown.Columns
            assert np.abs(native.pixel_array.astype(int) - shown.pixel_array).mean() < 3

    def test_are_told_apart_by_their_representation(self, server: Server) -> None:
        frame = server.instance("jls") + "/frames/1"
        stored, plain = (server.client.get(frame, headers={"Accept": a}) for a in ("image/jls", "application/octet-stream"))
        held = {"If-None-Match": stored.headers["etag"]}
        assert server.client.get(frame, headers={"Accept": "image/jls", **held}).status_code == 304
        other = server.client.get(frame, headers={"Accept": "application/octet-stream", **held})
        assert (other.status_code, other.content) == (200, plain.content)

    def test_may_be_asked_for_by_a_link(self, server: Server) -> None:
        reply = server.client.get(server.instance("jls") + "/frames/1?accept=image/jls")
        assert reply.headers["content-type"].startswith("image/jls")
        assert server.client.get(server.instance("jls") + "?accept=application/dicom").content[128:132] == b"DICM"
        assert server.client.get("/studies?accept=application/dicom%2Bxml").status_code == 406

    def test_do_not_wait_for_the_index(self, tmp_path: Path) -> None:
        archive = adopted(tmp_path, image("5.5", "5.5.1", 1))
        with serving(application(archive)) as url, httpx.Client(base_url=url, timeout=1) as client:
            frame = "/studies/5.5/series/5.5.1/instances/5.5.1.1/frames/1"
            assert client.get(frame).status_code == 200
            with closing(sqlite3.connect(tmp_path / "index.db", isolation_level=None)) as busy:
                busy.execute("BEGIN IMMEDIATE")
                archive.store([image("5.5", "5.5.1", 2)], folder="stow", writer="test")
                with pytest.raises(httpx.ReadTimeout):
                    client.get("/studies")
                assert client.get(frame).status_code == 200
                busy.execute("ROLLBACK")
            assert len(httpx.get(f"{url}/instances", timeout=30).json()) == 2

    def test_cannot_be_had_in_any_form(self, server: Server) -> None:
        reply = server.client.get(server.instance("jls") + "/frames/1", headers={"Accept": "image/jp2"})
        assert reply.status_code == 406
        assert "image/jls" in reply.json()["remedy"]

    @pytest.mark.parametrize("syntax", ["", JPEGLSLossless])
    def test_of_a_file_that_changed_are_never_given(self, tmp_path: Path, syntax: str) -> None:
        archive = Archive(tmp_path)
        file = archive.volume_folder / "imported" / "one.dcm"
        file.parent.mkdir(parents=True)
        made = image("5.5", "5.5.1", 1)
        if syntax:
            made.compress(syntax, generate_instance_uid=False)
        made.save_as(file, enforce_file_format=True)
        archive.adopt([file], writer="test")
        with serving(application(archive)) as url:
            instance = f"{url}/studies/5.5/series/5.5.1/instances/5.5.1.1"
            explicit = {"Accept": "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"}
            asked = [(f"{instance}/frames/1", {}), (f"{instance}/rendered", {}), (instance, explicit)]
            assert [httpx.get(path, headers=headers).status_code for path, headers in asked] == [200] * 3
            os.utime(file, (1, 1))
            assert [httpx.get(path, headers=headers).status_code for path, headers in asked] == [410] * 3
            file.unlink()
            for path, headers in asked:
                gone = httpx.get(path, headers=headers)
                assert (gone.status_code, gone.json()["about"]) == (410, "5.5.1.1")

    def test_of_two_studies_that_name_a_series_alike_stay_apart(self, tmp_path: Path) -> None:
        archive = Archive(tmp_path)
        folder = archive.volume_folder / "imported"
        folder.mkdir(parents=True)
        for number, study in enumerate(("5.6", "5.7"), start=1):
            image(study, "5.5.2", number).save_as(folder / f"{study}.dcm", enforce_file_format=True)
        archive.adopt(sorted(folder.iterdir()), writer="test")
        with serving(application(archive)) as url:
            for number, study in enumerate(("5.6", "5.7"), start=1):
                (one,) = httpx.get(f"{url}/studies/{study}/series/5.5.2/metadata").json()
                assert one["00080018"]["Value"] == [f"5.5.2.{number}"]
                other = f"{url}/studies/{study}/series/5.5.2/instances/5.5.2.{3 - number}/frames/1"
                assert httpx.get(other).status_code == 404


class TestObjects:
    def test_come_as_they_are_stored(self, server: Server) -> None:
        stored = (server.archive.volume_folder / "imported" / "jls.dcm").read_bytes()
        alone = server.client.get(server.instance("jls"), headers={"Accept": "application/dicom; transfer-syntax=*"})
        assert alone.content == stored
        assert JPEGLSLossless in alone.headers["content-type"]
        ((_, body),) = parts(server.client.get(server.instance("jls"), headers={"Accept": OBJECTS}))
        assert body == stored
        query = {"requestType": "WADO", "studyUID": "1.2.3", "seriesUID": server.series["jls"]}
        query |= {"objectUID": f"{server.series['jls']}.1", "transferSyntax": "*"}
        assert server.client.get("/wado", params=query).content == stored

    @pytest.mark.parametrize("accept", ["", "*/*", "application/dicom", 'multipart/related; type="application/dicom"'])
    def test_come_in_explicit_vr_little_endian_where_no_syntax_is_named(self, server: Server, accept: str) -> None:
        query = {"requestType": "WADO", "studyUID": "1.2.3", "seriesUID": server.series["jls"]}
        query |= {"objectUID": f"{server.series['jls']}.1", "contentType": accept if accept == "application/dicom" else ""}
        reply = server.client.get(server.instance("jls"), headers={"Accept": accept})
        assert reply.status_code == 200
        body = reply.content if accept == "application/dicom" else parts(reply)[0][1]
        for told in (body, server.client.get("/wado", params=query).content):
            found = pydicom.dcmread(io.BytesIO(told))
            assert found.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
            assert np.array_equal(found.pixel_array, server.pixels["jls"])

    def test_that_cannot_be_decoded_say_how_they_are_to_be_had(self, server: Server) -> None:
        for path in (server.instance("big"), "/studies/1.2.3"):
            reply = server.client.get(path)
            assert (reply.status_code, "transfer-syntax=*" in reply.json()["remedy"]) == (406, True)

    def test_of_video_come_as_they_are_stored(self, tmp_path: Path) -> None:
        video = image("6.8", "6.8.1", 1)
        video.PixelData = pydicom.encaps.encapsulate([b"\0\0\1\xba"])
        video.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
        with serving(application(adopted(tmp_path, video, image("6.8", "6.8.2", 1)))) as url:
            assert [kind.rpartition("=")[2] for kind, _ in parts(httpx.get(f"{url}/studies/6.8"))] == [
                pydicom.uid.MPEG2MPML,
                pydicom.uid.ExplicitVRLittleEndian,
            ]

    def test_are_decoded_where_that_is_asked(self, server: Server) -> None:
        explicit = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1'
        ((_, body),) = parts(server.client.get(server.instance("j2k"), headers={"Accept": explicit}))
        found = pydicom.dcmread(io.BytesIO(body))
        assert found.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert found.SOPInstanceUID == f"{server.series['j2k']}.1"
        assert np.array_equal(found.pixel_array, server.pixels["j2k"])

    def test_are_decoded_by_every_codec_that_frames_are(self, tmp_path: Path, data: Any) -> None:
        names = ("emri_small_RLE", "emri_small_jpeg_ls_lossless", "liver_j2k", "liver_deflate", "CT1_J2KR")
        files = [next(data("transfer_syntaxes").rglob(f"{name}.dcm")) for name in names]
        truth = pydicom.dcmread(next(data("transfer_syntaxes").rglob("liver.dcm"))).pixel_array
        for name, file in zip(names, files, strict=True):
            folder = tmp_path / name / "volume" / "imported"
            folder.mkdir(parents=True)
            shutil.copy(file, folder)
            archive = Archive(tmp_path / name)
            archive.adopt([folder / file.name], writer="test")
            with serving(application(archive)) as url:
                path = httpx.get(f"{url}/instances").json()[0]["00081190"]["Value"][0]
                reply = httpx.get(path, headers={"Accept": "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"})
            found = pydicom.dcmread(io.BytesIO(reply.content))
            assert found.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
            assert np.array_equal(found.pixel_array, truth if "liver" in name else pydicom.dcmread(file).pixel_array), name

    def test_without_pixels_are_converted_too(self, tmp_path: Path) -> None:
        report = image("6.7", "6.7.1", 1)
        for keyword in ("Rows", "Columns", "PixelData"):
            delattr(report, keyword)
        report.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        with serving(application(adopted(tmp_path, report))) as url:
            path = f"{url}/studies/6.7/series/6.7.1/instances/6.7.1.1"
            explicit = "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
            found = pydicom.dcmread(io.BytesIO(httpx.get(path, headers={"Accept": explicit}).content))
            assert found.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
            assert found.StudyDescription == "Chest"
            assert httpx.get(f"{path}/frames/1").status_code == httpx.get(f"{path}/rendered").status_code == 404

    def test_of_a_study_come_all(self, server: Server) -> None:
        found = parts(server.client.get("/studies/1.2.3", headers={"Accept": OBJECTS}))
        assert len(found) == 8

    def test_are_never_deleted(self, server: Server) -> None:
        reply = server.client.delete("/studies/1.2.3")
        assert reply.status_code == 405
        assert "nothing is ever deleted" in reply.json()["remedy"]
        assert server.client.get("/studies/1.2.3/series").json()


class TestMetadata:
    @pytest.mark.parametrize("below", ["", "/series/1.2.3.8", "/series/1.2.3.8/instances/1.2.3.8.2"])
    def test_is_what_pydicom_reads(self, server: Server, below: str) -> None:
        found = server.client.get(f"/studies/1.2.3{below}/metadata").json()
        assert len(found) == {"": 8, "/series/1.2.3.8": 3}.get(below, 1)
        for one in found:
            assert not [tag for tag in one if tag.startswith("0002") or tag == "7FE00010"]
            assert list(one) == sorted(one)
        many = next(one for one in found if one["00080018"]["Value"] == ["1.2.3.8.2"])
        truth = pydicom.dcmread(
            server.archive.volume_folder / "imported" / "many-2.dcm", stop_before_pixels=True
        ).to_json_dict()
        told = {tag: value for tag, value in many.items() if tag in truth and tag != "00281201"}
        assert told == {tag: json.loads(json.dumps(value)) for tag, value in truth.items() if tag != "00281201"}

    def test_leads_to_its_bulk_data(self, server: Server) -> None:
        (told,) = server.client.get(server.instance("native") + "/metadata").json()
        reply = httpx.get(told["00281201"]["BulkDataURI"], headers={"Accept": "application/octet-stream"})
        assert reply.content == bytes(range(256)) * 20
        ((_, body),) = parts(httpx.get(told["00281201"]["BulkDataURI"], headers={"Accept": STORED}))
        assert body == reply.content

    def test_is_small_and_kept(self, server: Server) -> None:
        path = f"/studies/1.2.3/series/{server.series['many']}/metadata"
        zipped = server.client.get(path)
        assert zipped.headers["content-encoding"] == "gzip"
        plain = server.client.get(path, headers={"Accept-Encoding": "identity"})
        assert plain.json() == zipped.json()
        again = server.client.get(path, headers={"If-None-Match": zipped.headers["etag"]})
        assert again.status_code == 304

    @pytest.mark.parametrize("query", ["offset=0", "offset=-1&length=5", "offset=a&length=b"])
    def test_bulk_data_is_asked_for_by_numbers(self, server: Server, query: str) -> None:
        assert server.client.get(f"{server.instance('native')}/bulkdata?{query}").status_code == 400
        assert server.client.get(f"{server.instance('native')}/bulkdata?offset=0&length=999999999").status_code == 404


class TestIrregularUIDs:
    """Files come with UIDs that are none (PS3.5 §9.1); what is here is served."""

    def test_are_served_at_every_level(self, tmp_path: Path) -> None:
        odd, plain = image("1.2.5", "1.2.5.3", 1), image("1.2.5", "1.2.5.4", 1)
        with pydicom.config.disable_value_validation():
            odd.SeriesInstanceUID, odd.SOPInstanceUID = "1.2.5..3", "1.2.5.ANON-1"
            archive = adopted(tmp_path, odd, plain)
        with serving(application(archive)) as url, httpx.Client(base_url=url) as client:
            assert len(client.get("/studies/1.2.5/metadata").json()) == 2
            assert len(parts(client.get("/studies/1.2.5"))) == 2
            series = "/studies/1.2.5/series/1.2.5..3"
            assert len(client.get(f"{series}/instances").json()) == len(client.get(f"{series}/metadata").json()) == 1
            assert client.get(f"{series}/instances?offset=1").json() == []
            assert client.get(f"{series}/instances/1.2.5.ANON-1/frames/1").status_code == 200
            assert client.get(f"{series}/instances/1.2.5.ANON-1/rendered").status_code == 200
            query = {"requestType": "WADO", "studyUID": "1.2.5", "seriesUID": "1.2.5..3", "objectUID": "1.2.5.ANON-1"}
            assert client.get("/wado", params=query).status_code == 200

    @pytest.mark.parametrize(
        "path",
        [
            *("/studies/1..2/metadata", "/studies/1..2/series", "/studies/1..2", "/studies/1.2.3/series/1..2/instances"),
            *("/studies/1.2.3/series/x/metadata", "/studies/1.2.3/series/1.2.3.1/instances/..%00/frames/1"),
            *("/studies/1.2.3,9.9/series", "/studies/1.2.3%5C9.9/metadata", "/studies/1.2.3,9.9/metadata", "/studies/*/series"),
            *("/studies/1.2.*/metadata", "/studies/%201.2.3/series", "/studies/1.2.3/series/'%20OR%201=1--/metadata"),
            *("/studies/1.2.3/series/..%00/metadata", "/wado?requestType=WADO&studyUID=x&seriesUID=y&objectUID=z"),
        ],
    )
    def test_that_are_not_here_are_refused(self, server: Server, path: str) -> None:
        reply = server.client.get(path)
        assert (reply.status_code, reply.json()["title"]) == (400, "not a UID")


class TestPictures:
    @pytest.mark.parametrize(("accept", "kind"), [("*/*", "JPEG"), ("image/png", "PNG")])
    def test_show_the_frame_that_is_asked_for(self, server: Server, accept: str, kind: str) -> None:
        for path in (
            server.instance("jls") + "/rendered",
            server.instance("jls") + "/frames/2/rendered",
            "/studies/1.2.3/thumbnail",
        ):
            shown = Image.open(io.BytesIO(server.client.get(path, headers={"Accept": accept}).content))
            assert (shown.format, shown.size) == (kind, (64, 48))

    def test_of_a_frame_that_is_not_there(self, server: Server) -> None:
        reply = server.client.get(server.instance("native") + "/frames/9/rendered")
        assert (reply.status_code, reply.json()["title"]) == (404, "there are 3 frames")

    def test_follow_window_and_viewport(self, server: Server) -> None:
        path, png = server.instance("native") + "/frames/1/rendered", {"Accept": "image/png"}
        window = server.client.get(path, params={"window": "2000,1000,linear-exact"}, headers=png)
        truth = np.clip((server.pixels["native"][0] - 1500.0) / 1000, 0, 1) * 255
        assert np.abs(np.asarray(Image.open(io.BytesIO(window.content))) - truth).max() <= 1
        small = server.client.get(path, params={"viewport": "8,8"}, headers=png)
        assert Image.open(io.BytesIO(small.content)).size == (8, 6)

    @pytest.mark.parametrize(
        ("viewport", "part"),
        [
            ("30,20,10,8,30,20", np.s_[8:28, 10:40]),
            ("30,20,-10,-8,30,20", np.s_[8:28, 10:40]),  # of an offset the absolute value counts
            ("64,20,,8,,20", np.s_[8:28, :]),
            ("54,48,10", np.s_[:, 10:]),
            ("30,20,10,8,-30,20", np.s_[8:28, 39:9:-1]),
            ("30,20,10,8,30,-20", np.s_[27:7:-1, 10:40]),
            ("64,48,,,-64,-48", np.s_[::-1, ::-1]),
            ("30,500,10,8,30,20", np.s_[8:28, 10:40]),  # as large as fits, in the proportions of the region
        ],
    )
    def test_show_a_region(self, server: Server, viewport: str, part: tuple[slice, slice]) -> None:
        whole, shown = (np.asarray(picture(server, "/rendered", viewport=asked)).astype(int) for asked in ("64,48", viewport))
        assert np.array_equal(shown, whole[part])

    def test_fill_the_viewport_undistorted(self, server: Server) -> None:
        assert picture(server, "/rendered", viewport="640,640").size == (640, 480)
        assert picture(server, "/rendered", viewport="300,100,0,0,10,20").size == (50, 100)
        assert picture(server, "/thumbnail", viewport="128,128").size == (128, 96)
        pixels = np.asarray(picture(server, "/rendered", viewport="64,48"))
        cut = Image.fromarray(pixels[4:24, 2:12]).resize((50, 100), Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(cut), np.asarray(picture(server, "/rendered", viewport="300,100,2,4,10,20")))

    def test_take_fractions_of_a_pixel(self, server: Server) -> None:
        shown, mirrored = (picture(server, "/rendered", viewport=f"40,40,8.25,8.5,{width},7.5") for width in ("7.5", "-7.5"))
        assert shown.size == (40, 40)
        apart = np.abs(np.asarray(shown).astype(int) - np.asarray(mirrored)[:, ::-1])
        assert np.ptp(np.asarray(shown)) > 50 and apart.max() <= 1

    @pytest.mark.parametrize(
        "query",
        [
            *("window=1", "window=1,0", "window=1,2,cubic", "viewport=0,4", "quality=101", "zoom=2", "region=0,0,1,1"),
            *("viewport=8", "viewport=8,8,a", "viewport=8,8,0,0,8,8,8", "viewport=8192,8192", "viewport=8,nan", "viewport=,8"),
            *("viewport=8,8,0,0,0,8", "viewport=8,8,0,0,65,8", "viewport=8,8,64,0", "viewport=8,8,0,40,8,9"),
            *("viewport=8,8,1,1,1e-9,1e-9", "viewport=8,8,63.9999999999"),
        ],
    )
    def test_refuse_what_they_do_not_know(self, server: Server, query: str) -> None:
        reply = server.client.get(f"{server.instance('native')}/rendered?{query}")
        assert reply.status_code == 400 and reply.json()["remedy"]

    def test_of_a_thumbnail_have_no_region(self, server: Server) -> None:
        reply = server.client.get(f"{server.instance('native')}/thumbnail?viewport=8,8,0,0,8,8")
        assert (reply.status_code, reply.json()["title"]) == (400, "a thumbnail shows the whole image")

    def test_come_by_wado_uri(self, server: Server) -> None:
        query = {"requestType": "WADO", "studyUID": "1.2.3", "seriesUID": "1.2.3.1", "objectUID": "1.2.3.1.1"}
        reply = server.client.get("/wado", params={**query, "contentType": "image/png", "frameNumber": "2"})
        assert Image.open(io.BytesIO(reply.content)).size == (64, 48)
        whole = np.asarray(Image.open(io.BytesIO(reply.content)))
        asked = {**query, "contentType": "image/png", "frameNumber": "2", "region": "0.25,0.5,0.75,1"}
        region = np.asarray(Image.open(io.BytesIO(server.client.get("/wado", params=asked).content)))
        assert np.array_equal(region, whole[24:48, 16:48])
        for size in ({"columns": "64"}, {"rows": "48"}, {"columns": "64", "rows": "64"}):
            larger = server.client.get("/wado", params={**asked, **size})
            assert Image.open(io.BytesIO(larger.content)).size == (64, 48), size
        for wrong in ("0,0,1", "0,0,1,1.5", "0,0,1e-9,1", "0.5,0,0.5,1", "0,0,-1,1", "a,0,1,1"):
            assert server.client.get("/wado", params={**asked, "region": wrong}).status_code == 400, wrong
        assert server.client.get("/wado", params={**query, "contentType": "text/html"}).status_code == 406
        assert server.client.get("/wado", params={**query, "objectUID": "9.9"}).status_code == 404
        assert server.client.get("/wado", params={"requestType": "WADO"}).status_code == 400


class TestClients:
    def test_dicomweb_client_reads_what_is_there(self, server: Server, dicomweb: DICOMwebClient) -> None:
        (study,) = dicomweb.search_for_studies(search_filters={"PatientID": "P1"}, fields=["StudyDescription"])
        assert study["00081030"]["Value"] == ["Chest"]
        assert len(dicomweb.search_for_series("1.2.3")) == 6
        for kind in KINDS:
            uids = "1.2.3", server.series[kind], f"{server.series[kind]}.1"
            stored = dicomweb.retrieve_instance(*uids)  # asks for transfer-syntax=*
            (plain,) = dicomweb.retrieve_series(*uids[:2])  # names none
            syntaxes = [one.file_meta.TransferSyntaxUID for one in (plain, stored)]
            assert syntaxes == [pydicom.uid.ExplicitVRLittleEndian, KINDS[kind] or pydicom.uid.ExplicitVRLittleEndian]
            assert all(np.array_equal(one.pixel_array, server.pixels[kind]) for one in (plain, stored))
            frames = dicomweb.retrieve_instance_frames(*uids, frame_numbers=[2, 3])
            assert frames == [frame.tobytes() for frame in server.pixels[kind][1:]]
            assert pydicom.Dataset.from_json(dicomweb.retrieve_instance_metadata(*uids)).Rows == 48
        assert len(dicomweb.retrieve_series("1.2.3", server.series["many"])) == 3
        bulk = dicomweb.retrieve_instance_metadata("1.2.3", "1.2.3.1", "1.2.3.1.1")["00281201"]["BulkDataURI"]
        assert dicomweb.retrieve_bulkdata(bulk) == [bytes(range(256)) * 20]
        assert (
            dicomweb.retrieve_instance_rendered("1.2.3", "1.2.3.1", "1.2.3.1.1", media_types=("image/png",))[:4] == b"\x89PNG"
        )

    def test_every_codec_of_the_real_files(self, home: Path, data: Any) -> None:
        archive = Archive(home)
        folder = archive.volume_folder / "imported"
        folder.mkdir(parents=True)
        for index, file in enumerate(sorted(file for file in data("transfer_syntaxes").rglob("*.dcm"))):
            shutil.copy(file, folder / f"{index}.dcm")
        archive.adopt(sorted(folder.iterdir()), writer="test")
        with serving(application(archive)) as url, httpx.Client(base_url=url, timeout=60) as client:
            seen = set()
            for one in client.get("/instances").json():
                path, syntax = one["00081190"]["Value"][0], one["00083002"]["Value"][0]
                stored, plain = (client.get(f"{path}/frames/1", headers={"Accept": a}) for a in (STORED, "*/*"))
                assert {stored.status_code, plain.status_code} <= {200, 404, 406}, (syntax, stored.text[:200], plain.text[:200])
                seen.add(syntax) if stored.status_code == 200 else None
            assert len(seen) > 15


class TestHostileClients:
    @pytest.mark.parametrize(
        "path",
        [
            "/studies/..%2F..%2Fetc%2Fpasswd/metadata",
            "/studies/1.2.3/series/..%00/instances",
            "/studies/1.2.3'%20OR%201=1--/series",
            f"/studies/{'9' * 65}/metadata",
            f"/studies/1.2.3/series/1.2.3.1/instances/1.2.3.1.1/frames/{'1,' * 20_000}1",
            f"/studies?PatientName={'*a' * 5_000}",
            f"/studies?{'A' * 10_000}=1",
            f"/studies?PatientID={'%27;DROP%20TABLE%20index_files;--' * 20}",
            "/studies?PatientName=%22%20OR%20index_names%20MATCH%20%22",
            f"/studies?StudyInstanceUID={','.join(['1.2.3'] * 3_000)}",
            "/studies?limit=99999999999999999999",
            "/studies?PatientName=%ff%fe%00",
        ],
    )
    def test_get_an_error_or_an_answer_and_the_next_request_is_answered(self, server: Server, path: str) -> None:
        reply = server.client.get(path)
        assert reply.status_code in (200, 400, 404, 414)
        assert len(reply.content) < 5_000
        assert len(server.client.get("/studies").json()) == 1

    def test_one_that_stops_reading_holds_nobody_up(self, server: Server) -> None:
        host, port = httpx.URL(server.url).host, httpx.URL(server.url).port
        lazy = []
        for _ in range(20):
            connection = socket.create_connection((host, port))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(f"GET /dicomweb/studies/1.2.3 HTTP/1.1\r\nHost: x\r\nAccept: {OBJECTS}\r\n\r\n".encode() * 10)
            lazy.append(connection)
        assert server.client.get(server.instance("native") + "/frames/1").status_code == 200
        for connection in lazy:
            connection.close()
        assert server.client.get("/studies").status_code == 200

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_schemathesis_finds_no_failure_of_the_server(self, server: Server) -> None:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        quick = hypothesis.settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))

        def check(case: Any) -> None:
            reply = case.call(base_url=server.url)
            assert reply.status_code < 500, (case.method, reply.url, reply.text[:300])

        operations = [found.ok() for found in schema.get_all_operations()]
        operations = [one for one in operations if one.method == "get"]  # what is stored: test_stow.py
        for operation in operations:
            quick(hypothesis.given(case=operation.as_strategy())(check))()
        assert len(operations) > 20
