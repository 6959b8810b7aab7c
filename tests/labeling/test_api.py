"""What the panel asks of the server: the next series, suggestions, labels there and back, and what it says when it cannot."""

import gzip
import io
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import hypothesis
import numpy as np
import pyarrow as pa
import pydicom
import pytest
import schemathesis
from hypothesis import HealthCheck
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from catalog import Archive, LabelSet, Project, freeze, seg
from catalog.labels import history, mask
from catalog.schemas import PREDICTIONS, SCORES
from experiments import synthetic
from labeling import api
from labeling.masks import Masks, slice_names
from serving.errors import ServingError

pytestmark = pytest.mark.slow  # the cohort is written first

KEY = "viewer"
PRESENT = {"liver": "present", "spleen": "present"}


@pytest.fixture
def project(clinic: Any, request: pytest.FixtureRequest) -> Project:
    """A project of its own for each test: what one labels is news to the next."""
    return replace(clinic.project, key=f"{KEY}-{uuid.uuid5(uuid.NAMESPACE_OID, request.node.name).hex[:8]}")


@pytest.fixture
def client(clinic: Any, project: Project, endpoint: tuple[str, Any]) -> Iterator[TestClient]:
    app = api.application(clinic.archive, [project], endpoint=endpoint[0], tracking_uri="http://mlflow.test")
    with TestClient(app, base_url=f"http://test/projects/{project.key}/") as client:
        yield client


@pytest.fixture
def series(clinic: Any) -> str:
    return min(clinic.truth)


@pytest.fixture
def truth(clinic: Any, series: str) -> np.ndarray:
    found: np.ndarray = seg.decode(clinic.truth[series], clinic.archive.geometry(series), clinic.project.label_set).array
    return found


def drawn(archive: Archive, uid: str, array: np.ndarray, **told: Any) -> dict[str, Any]:
    """What the viewer sends: its slices in an order of its own."""
    order = np.random.default_rng(0).permutation(len(array))
    names = slice_names(archive, uid)
    label = {
        "label_id": str(uuid.uuid4()),
        "series": uid,
        "states": PRESENT,
        "author": "Ada",
        "slices": [names[place] for place in order],
        "segments": [{"value": 1, "name": "liver"}, {"value": 2, "name": "spleen"}],
        **told,
    }
    return {"data": {"label": json.dumps(label)}, "files": {"mask": gzip.compress(array[order].tobytes())}}


def mask_of(client: TestClient, told: Mapping[str, Any]) -> np.ndarray:
    """The bytes behind what a mask is told by."""
    answer = client.get(f"http://test/masks/{told['mask']}")
    assert answer.headers["content-encoding"] == "gzip"
    return np.frombuffer(answer.content, np.uint8).reshape(len(told["slices"]), told["rows"], told["columns"])


def suggested(client: TestClient, series: str) -> dict[str, Any]:
    asked = client.post("suggestions", json={"series": series})
    assert asked.status_code == 202
    told: dict[str, Any] = asked.json()
    while told["state"] == "running":
        told = client.get(f"http://test/suggestions/{told['id']}", params={"wait": 20}).json()
    return told


def problem(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) >= {"type", "title", "status", "detail"}
    return str(answer.json()["detail"])


def test_tells_of_the_project_what_a_viewer_needs(client: TestClient, project: Project) -> None:
    assert client.get("http://test/projects").json() == {
        "author": "",
        "projects": [{"key": project.key, "label_set": "phantom abdomen"}],
        "misread": [],
    }
    told = client.get("").json()
    assert told["segments"][0] == {"value": 1, "name": "liver", "color": [221, 130, 101]}
    assert told["codes"][1] == ["SCT", "78961009", "Spleen"]
    assert told["strategies"] == ["entropy", "random", "reference"]
    assert told["model_url"] == "http://mlflow.test/#/models/phantoms"


def test_the_author_is_who_the_server_knows_whatever_the_request_says(
    clinic: Any, project: Project, series: str, truth: np.ndarray
) -> None:
    app = api.application(clinic.archive, [project])

    async def known(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "voxloop.author": "grace"}, receive, send)

    client = TestClient(known)
    assert client.get("/projects").json()["author"] == "grace"
    answer = client.post(f"/projects/{project.key}/labels", **drawn(clinic.archive, series, truth))
    assert answer.json()["author"] == "grace"


def test_describes_itself(client: TestClient) -> None:
    paths = client.get("http://test/openapi.json").json()["paths"]
    assert {"/projects/{key}/next", "/projects/{key}/labels", "/masks/{mask_id}", "/suggestions/{suggestion_id}"} <= set(paths)


class TestNext:
    def test_draws_at_random_from_those_that_train_while_nothing_is_scored(
        self, client: TestClient, clinic: Any, project: Project
    ) -> None:
        told = client.post("next", json={}).json()
        roles = freeze(clinic.archive, project)
        assert roles[told["next"]["series"]] == "train"
        assert (told["next"]["strategy"], told["next"]["reason"]) == ("random", "drawn at random")
        assert told["remaining"]["train"] == sum(role == "train" for role in roles.values())

    def test_takes_the_series_of_most_doubt_by_the_model_that_scored_last(
        self, client: TestClient, clinic: Any, project: Project
    ) -> None:
        train = sorted(uid for uid, role in freeze(clinic.archive, project).items() if role == "train")
        score(clinic.archive, project, "1", {train[0]: 9.0})
        score(clinic.archive, project, "2", {train[1]: 0.2, train[2]: 0.7})
        told = client.post("next", json={}).json()["next"]
        assert (told["series"], told["score"], told["strategy"]) == (train[2], 0.7, "entropy")
        assert "0.7000" in told["reason"]
        assert client.post("next", json={"skip": [train[2]]}).json()["next"]["series"] == train[1]

    def test_offers_the_reference_patients_when_asked(self, client: TestClient, clinic: Any, project: Project) -> None:
        told = client.post("next", json={"strategy": "reference"}).json()["next"]
        assert freeze(clinic.archive, project)[told["series"]] in ("validation", "holdout")
        assert told["reason"].startswith("its patient is of the ")

    def test_is_null_where_none_is_left(self, client: TestClient, clinic: Any, project: Project) -> None:
        everything = list(freeze(clinic.archive, project))
        told = client.post("next", json={"skip": everything}).json()
        assert told["next"] is None
        assert told["remaining"]["train"] > 0

    def test_does_not_offer_what_another_has_open(self, client: TestClient) -> None:
        ada, grace = (client.post("next", json={"author": name}).json()["next"]["series"] for name in ("Ada", "Grace"))
        assert ada != grace
        assert client.post("next", json={"author": "Ada"}).json()["next"]["series"] == ada

    def test_does_not_offer_what_is_labelled(self, client: TestClient, clinic: Any) -> None:
        first = client.post("next", json={}).json()
        uid = first["next"]["series"]
        found = seg.decode(clinic.truth[uid], clinic.archive.geometry(uid), clinic.project.label_set).array
        client.post("labels", **drawn(clinic.archive, uid, found)).raise_for_status()
        again = client.post("next", json={}).json()
        assert again["next"]["series"] != uid
        assert again["remaining"]["train"] == first["remaining"]["train"] - 1

    def test_a_strategy_that_there_is_not_is_refused_with_those_there_are(self, client: TestClient) -> None:
        assert "entropy, random, reference" in problem(client.post("next", json={"strategy": "best"}), 400)


def score(archive: Archive, project: Project, version: str, values: Mapping[str, float]) -> None:
    row = {"project": project.key, "model_version": version, "kind": "entropy", "created_at": datetime.now(UTC)}
    rows = [{**row, "series_uid": uid, "value": value} for uid, value in values.items()]
    archive.scores.append(pa.Table.from_pylist(rows, schema=SCORES), writer=f"{project.key}/{version}", batch=0)


class TestSuggestion:
    def test_is_the_models_mask_with_its_slices_named(
        self, client: TestClient, clinic: Any, series: str, truth: np.ndarray
    ) -> None:
        told = suggested(client, series)
        assert (told["state"], told["model"], told["version"], told["entropy"]) == ("done", "phantoms", "3", 0.25)
        assert told["elapsed"] > 0
        assert told["mask"]["slices"] == [str(source.SOPInstanceUID) for source in clinic.archive.sources(series)]
        np.testing.assert_array_equal(mask_of(client, told["mask"]), truth)

    def test_is_told_by_the_names_of_the_version_that_answered(
        self, client: TestClient, endpoint: tuple[str, Any], series: str, truth: np.ndarray
    ) -> None:
        liver, spleen = synthetic.LABEL_SET.structures
        endpoint[1].labels = LabelSet("before", (replace(spleen, value=1), replace(liver, value=2)))
        np.testing.assert_array_equal(mask_of(client, suggested(client, series)["mask"]), truth)
        endpoint[1].labels = LabelSet("before", (replace(liver, name="heart"), spleen))
        assert "'heart' has voxels" in suggested(client, series)["problem"]["title"]

    def test_says_what_the_model_said(self, client: TestClient, endpoint: tuple[str, Any], series: str) -> None:
        endpoint[1].refuse = "two of its slices are missing"
        told = suggested(client, series)
        assert told["state"] == "failed"
        assert told["mask"] is None
        assert "two of its slices are missing" in told["problem"]["title"]

    def test_of_another_projects_model_is_refused(self, client: TestClient, endpoint: tuple[str, Any], series: str) -> None:
        endpoint[1].name = "hearts"
        assert "serves model hearts, this project's is phantoms" in suggested(client, series)["problem"]["title"]

    def test_without_an_endpoint_says_how_to_have_one(self, clinic: Any, project: Project, series: str) -> None:
        client = TestClient(api.application(clinic.archive, [project]))
        told = problem(client.post(f"/projects/{project.key}/suggestions", json={"series": series}), 503)
        assert "no endpoint is configured" in told
        assert "voxloop up" in told

    def test_of_an_endpoint_that_is_down_says_so(self, clinic: Any, project: Project, series: str) -> None:
        app = api.application(clinic.archive, [project], endpoint="http://127.0.0.1:9")
        with TestClient(app, base_url=f"http://test/projects/{project.key}/") as client:
            told = suggested(client, series)
        assert told["state"] == "failed"
        assert told["problem"]["title"].startswith("no endpoint answers")
        assert "127.0.0.1:9" in told["problem"]["about"]
        assert "promoted" in told["problem"]["remedy"]

    def test_of_a_series_that_is_not_there_names_it(self, client: TestClient, endpoint: tuple[str, Any]) -> None:
        endpoint[1].refuse = "1.2.3: no such series in the catalog"
        assert "1.2.3" in suggested(client, "1.2.3")["problem"]["title"]


class TestLabel:
    def test_comes_back_voxel_for_voxel_with_the_label_sets_codes(
        self, client: TestClient, clinic: Any, project: Project, series: str, truth: np.ndarray
    ) -> None:
        told = suggested(client, series)
        changed = truth.copy()
        changed[10, 20:24, 20:24] = 2
        began = {"suggestion": told["mask"]["mask"], "suggested_by": "phantoms/3", "seconds": 42.5}
        answer = client.post("labels", **drawn(clinic.archive, series, changed, **began))
        assert answer.status_code == 201
        stored = answer.json()
        assert (stored["author"], stored["seconds"], stored["suggested_by"]) == ("Ada", 42.5, "phantoms/3")
        assert stored["voxels_changed"] == np.count_nonzero(changed != truth)
        assert 0 < stored["added_path_length"] <= 12 + np.count_nonzero(changed != truth)
        shown = client.get(f"http://test/labels/{stored['label_id']}/mask").json()
        np.testing.assert_array_equal(mask_of(client, shown), changed)
        file = Path(clinic.archive.index.instance(stored["seg_uid"]).path)
        codes = [item.SegmentedPropertyTypeCodeSequence[0].CodeValue for item in pydicom.dcmread(file).SegmentSequence]
        assert codes == ["10200004", "78961009"]

    def test_is_listed_with_its_revisions_the_latest_first(
        self, client: TestClient, clinic: Any, series: str, truth: np.ndarray
    ) -> None:
        first = client.post("labels", **drawn(clinic.archive, series, truth)).json()
        second = client.post("labels", **drawn(clinic.archive, series, truth, parent=first["label_id"], author="Grace")).json()
        told = client.get("labels", params={"series": series}).json()
        assert [row["label_id"] for row in told] == [second["label_id"], first["label_id"]]
        assert [row["parent"] for row in told] == [first["label_id"], None]
        assert told[0]["added_path_length"] is None
        assert told[0]["states"] == PRESENT

    def test_submitted_twice_is_one(
        self, client: TestClient, clinic: Any, project: Project, series: str, truth: np.ndarray
    ) -> None:
        sent = drawn(clinic.archive, series, truth)
        assert client.post("labels", **sent).json() == client.post("labels", **sent).json()
        assert len(history(clinic.archive, project.key, series)) == 1

    @pytest.mark.parametrize(
        ("told", "redrawn"),
        [
            ({"author": "Grace"}, lambda truth: truth),
            ({"states": {**PRESENT, "spleen": "not_annotated"}}, lambda truth: truth * (truth == 1)),
            ({}, lambda truth: np.roll(truth, 1, axis=2)),
        ],
    )
    def test_another_under_its_id_is_refused(
        self, client: TestClient, clinic: Any, project: Project, series: str, truth: np.ndarray, told: Any, redrawn: Any
    ) -> None:
        first = client.post("labels", **drawn(clinic.archive, series, truth)).json()
        answer = client.post("labels", **drawn(clinic.archive, series, redrawn(truth), label_id=first["label_id"], **told))
        assert "give the new label a new id" in problem(answer, 409)
        assert [one.label_id for one in history(clinic.archive, project.key, series)] == [first["label_id"]]

    def test_an_id_of_another_series_is_refused(self, client: TestClient, clinic: Any, series: str, truth: np.ndarray) -> None:
        told = client.post("labels", **drawn(clinic.archive, series, truth)).json()
        other = max(clinic.truth)
        sent = drawn(clinic.archive, other, truth, label_id=told["label_id"])
        assert told["label_id"] in problem(client.post("labels", **sent), 409)

    def test_is_not_compared_with_another_series_suggestion(
        self, client: TestClient, clinic: Any, project: Project, series: str, truth: np.ndarray
    ) -> None:
        other = next(uid for uid in clinic.truth if clinic.archive.geometry(uid).spatial_shape == truth.shape and uid != series)
        began = {"suggestion": suggested(client, other)["mask"]["mask"], "suggested_by": "phantoms/3"}
        answer = client.post("labels", **drawn(clinic.archive, series, truth, **began))
        assert f"the suggestion is another series' (name one of {series})" in problem(answer, 422)
        assert history(clinic.archive, project.key, series) == []

    def test_may_come_as_a_dicom_seg_even_as_ohif_writes_one(
        self, client: TestClient, clinic: Any, project: Project, series: str, truth: np.ndarray
    ) -> None:
        dataset = pydicom.dcmread(clinic.truth[series])
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [pydicom.Dataset()]
        for item in dataset.SegmentSequence:
            item.SegmentedPropertyTypeCodeSequence[0].CodeValue = "85756007"
        file = io.BytesIO()
        dataset.save_as(file)
        label = {"label_id": str(uuid.uuid4()), "series": series, "states": PRESENT, "author": "Ada"}
        answer = client.post("labels", data={"label": json.dumps(label)}, files={"seg": file.getvalue()})
        assert answer.status_code == 201, answer.text
        (stored,) = history(clinic.archive, project.key, series)
        np.testing.assert_array_equal(mask(clinic.archive, stored, project.label_set).array, truth)

    def test_voxels_of_the_viewers_own_numbers_become_the_label_sets(
        self, client: TestClient, clinic: Any, project: Project, series: str, truth: np.ndarray
    ) -> None:
        numbered = np.where(truth == 1, 7, truth)
        segments = [{"value": 7, "name": "liver"}, {"value": 2, "name": "spleen"}, {"value": 9, "name": "unused"}]
        client.post("labels", **drawn(clinic.archive, series, numbered, segments=segments)).raise_for_status()
        (stored,) = history(clinic.archive, project.key, series)
        np.testing.assert_array_equal(mask(clinic.archive, stored, project.label_set).array, truth)

    def test_without_a_drawing_says_that_nothing_is_there(
        self, client: TestClient, clinic: Any, series: str, truth: np.ndarray
    ) -> None:
        nothing = np.zeros_like(truth)
        states = {"liver": "absent", "spleen": "not_annotated"}
        stored = client.post("labels", **drawn(clinic.archive, series, nothing, states=states)).json()
        assert stored["states"] == states

    @pytest.mark.parametrize(
        ("change", "status", "says"),
        [
            ({"states": {"liver": "present", "spleen": "absent"}}, 400, "spleen is said to be absent but has voxels"),
            ({"states": {"liver": "present"}}, 400, "do not fit label set"),
            ({"author": ""}, 422, "enter your name"),
            ({"author": "  "}, 422, "enter your name"),
            ({"segments": [{"value": 1, "name": "liver"}]}, 422, "'segment 2' has voxels and is no structure"),
            ({"parent": "no such label"}, 400, "is no revision of this series"),
            ({"label_id": "7"}, 422, "label_id"),
            ({"colour": "red"}, 422, "colour"),
            ({"seconds": -1}, 422, "seconds"),
            ({"slices": ["1.2.3"]}, 422, "1.2.3"),
            ({"series": "1.2.3"}, 422, "no case of the project"),
        ],
    )
    def test_that_does_not_fit_is_refused_with_the_reason_and_nothing_is_stored(
        self,
        client: TestClient,
        clinic: Any,
        project: Project,
        series: str,
        truth: np.ndarray,
        change: dict[str, Any],
        status: int,
        says: str,
    ) -> None:
        assert says in problem(client.post("labels", **drawn(clinic.archive, series, truth, **change)), status)
        assert history(clinic.archive, project.key, series) == []

    @pytest.mark.parametrize(
        ("sent", "says"),
        [(b"no gzip", "not gzip"), (gzip.compress(b"abc"), "3 voxels"), (gzip.compress(bytes(1 << 20)), "more than")],
    )
    def test_whose_voxels_are_not_what_its_slices_have_is_refused(
        self, client: TestClient, clinic: Any, series: str, truth: np.ndarray, sent: bytes, says: str
    ) -> None:
        told = drawn(clinic.archive, series, truth)
        assert says in problem(client.post("labels", data=told["data"], files={"mask": sent}), 422)

    def test_without_a_mask_or_with_two_is_refused(
        self, client: TestClient, clinic: Any, series: str, truth: np.ndarray
    ) -> None:
        told = drawn(clinic.archive, series, truth)
        both = {"mask": told["files"]["mask"], "seg": b"x"}
        assert "one of seg and mask" in problem(client.post("labels", data=told["data"]), 422)
        assert "one of seg and mask" in problem(client.post("labels", data=told["data"], files=both), 422)
        assert "not DICOM" in problem(client.post("labels", data=told["data"], files={"seg": b"x"}), 422)

    def test_of_no_multipart_is_refused(self, client: TestClient) -> None:
        problem(client.post("labels", content=b"\x00" * 100, headers={"Content-Type": "multipart/form-data; boundary=x"}), 400)
        problem(client.post("labels", json={"label": "x"}), 422)

    def test_larger_than_the_limit_is_refused_before_it_is_read(self, client: TestClient) -> None:
        headers = {"Content-Length": str(api.LARGEST + 1)}
        assert "larger than" in problem(client.post("labels", content=b"", headers=headers), 413)
        assert "does not say how long" in problem(client.post("labels", content=iter([b"x"])), 411)

    def test_that_is_not_there_is_404(self, client: TestClient) -> None:
        assert "no such label" in problem(client.get("http://test/labels/nothing/mask"), 404)
        assert "no such project" in problem(client.get("http://test/projects/nothing/labels", params={"series": "1"}), 404)
        assert "ask for it again" in problem(client.get("http://test/masks/nothing"), 404)
        assert "ask for it again" in problem(client.get("http://test/suggestions/nothing"), 404)


class TestComparison:
    def test_names_the_current_label_and_the_latest_prediction(
        self, client: TestClient, clinic: Any, project: Project, series: str, truth: np.ndarray
    ) -> None:
        nothing = client.get("compare", params={"series": series}).json()
        assert nothing == {"label": None, "prediction": None, "champion": None, "unknown": "no MLflow is configured"}
        label = client.post("labels", **drawn(clinic.archive, series, truth)).json()
        predict(clinic.archive, project, series, np.where(truth == 1, 1, 0).astype(np.uint8), version="4")
        told = client.get("compare", params={"series": series}).json()
        assert told["label"]["label_id"] == label["label_id"]
        assert (told["prediction"]["model"], told["prediction"]["version"]) == ("phantoms", "4")
        shown = client.get(f"http://test/predictions/{told['prediction']['sop_uid']}/mask").json()
        np.testing.assert_array_equal(mask_of(client, shown), truth == 1)

    def test_prefers_the_champions_prediction_to_a_later_one(
        self, clinic: Any, project: Project, series: str, truth: np.ndarray
    ) -> None:
        for version in ("2", "3"):
            predict(clinic.archive, project, series, truth, version=version)
        predict(clinic.archive, replace(project, model="other"), series, truth, version="2")
        told = [compared(clinic, project, series, champion) for champion in ("2", "4")]
        shown = [(one["champion"], one["prediction"]["model"], one["prediction"]["version"]) for one in told]
        assert shown == [("2", project.model, "2"), ("4", "other", "2")]
        assert [one["prediction"]["champion"] for one in told] == [True, False]

    def test_shows_the_latest_and_says_why_the_champion_is_not_known(
        self, clinic: Any, project: Project, series: str, truth: np.ndarray
    ) -> None:
        for version in ("2", "3"):
            predict(clinic.archive, project, series, truth, version=version)
        down, by_hand = ServingError("timed out"), ServingError("alias champion was moved by hand to version 3")
        down.__cause__ = OSError("refused")
        for champion, why in (
            (None, "phantoms has no champion yet"),
            (down, "MLflow does not answer"),
            (by_hand, by_hand.problem),
        ):
            told = compared(clinic, project, series, champion)
            assert (told["champion"], told["unknown"]) == (None, why)
            assert (told["prediction"]["version"], told["prediction"]["champion"]) == ("3", False)

    def test_a_prediction_that_is_not_there_is_404(self, client: TestClient) -> None:
        assert "batch-infer" in problem(client.get("http://test/predictions/1.2.3/mask"), 404)


def compared(clinic: Any, project: Project, series: str, champion: str | Exception | None) -> dict[str, Any]:
    """The comparison where the registry says this of the project's model."""

    def ask(model: str) -> str | None:
        assert model == project.model
        if isinstance(champion, Exception):
            raise champion
        return champion

    client = TestClient(api.application(clinic.archive, [project], champion=ask))
    answer = client.get(f"/projects/{project.key}/compare", params={"series": series})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def predict(archive: Archive, project: Project, series: str, array: np.ndarray, *, version: str) -> None:
    """What batch inference leaves: a SEG, then its row."""
    uid = hd.UID()
    grid, sources = archive.geometry(series), archive.sources(series)
    made = seg.encode(
        hd.Volume(array, grid.affine, "PATIENT", frame_of_reference_uid=grid.frame_of_reference_uid),
        sources,
        project.label_set,
        sop_uid=uid,
        series_uid=hd.UID(),
        description="prediction",
        author="",
        algorithm=seg.Algorithm(project.model, version),
    )
    archive.store([made], folder="predictions", writer=f"test/{uid}")
    row = dict.fromkeys(PREDICTIONS.names) | {
        "sop_uid": uid,
        "project": project.key,
        "series_uid": series,
        "model_name": project.model,
        "model_version": version,
        "created_at": datetime.now(UTC),
    }
    archive.predictions.append(pa.Table.from_pylist([row], schema=PREDICTIONS), writer=f"test/{uid}", batch=0)


class TestMasks:
    def test_forget_the_oldest_beyond_their_size_and_each_after_its_time(self, clinic: Any, series: str) -> None:
        noise = np.random.default_rng(0).integers(0, 2, clinic.archive.geometry(series).spatial_shape, np.uint8)
        labels = clinic.project.label_set
        small = Masks(largest=len(gzip.compress(noise.tobytes(), 1)) + 100)
        first, second = (small.add(clinic.archive, series, noise, labels).mask for _ in range(2))
        assert small.array(first) is None
        np.testing.assert_array_equal(small.array(second), noise)
        short = Masks(expiry=0)
        assert short.array(short.add(clinic.archive, series, noise, labels).mask) is None

    def test_a_label_whose_suggestion_is_forgotten_is_stored_without_what_was_changed(
        self, client: TestClient, clinic: Any, series: str, truth: np.ndarray
    ) -> None:
        stored = client.post("labels", **drawn(clinic.archive, series, truth, suggestion="gone", suggested_by="m/1")).json()
        assert (stored["suggested_by"], stored["voxels_changed"], stored["added_path_length"]) == ("m/1", None, None)


def test_a_label_that_says_nothing_is_refused(clinic: Any, project: Project, client: TestClient, series: str) -> None:
    nothing = np.zeros(clinic.archive.geometry(series).spatial_shape, np.uint8)
    unsaid = dict.fromkeys(PRESENT, "not_annotated")
    told = problem(client.post("labels", **drawn(clinic.archive, series, nothing, states=unsaid)), 422)
    assert "no structure is annotated" in told and "absent" in told
    assert history(clinic.archive, project.key, series) == []
    looked = {**unsaid, "spleen": "absent"}
    assert client.post("labels", **drawn(clinic.archive, series, nothing, states=looked)).status_code == 201


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_request_makes_the_api_fail(clinic: Any, project: Project, endpoint: tuple[str, Any]) -> None:
    app = api.application(clinic.archive, [project], endpoint=endpoint[0])
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    quick = hypothesis.settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))

    def check(case: Any) -> None:
        if "key" in case.path_parameters:
            case.path_parameters["key"] = project.key
        reply = case.call()
        assert reply.status_code < 500, (case.method, reply.url, reply.text[:300])

    operations = [found.ok() for found in schema.get_all_operations()]
    for operation in operations:
        quick(hypothesis.given(case=operation.as_strategy())(check))()
    assert len(operations) == 11
