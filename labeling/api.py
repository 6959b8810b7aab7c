"""The viewer's own API: which series next, what the model suggests, what the reader says of it. An ASGI application.

Everything is JSON but masks, which are bytes; errors are problem details (RFC 9457) that say what to do. Who asks is what the
web server found out (``voxloop.author`` in the request's scope), else what the request says.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from catalog import Archive, CatalogError, LabelRevision, Project, VoxloopError, mask, quoted, seg
from catalog.labels import history, revision
from catalog.problem import HANDLERS, Refused, problem
from labeling.capped import Capped
from labeling.masks import Mask, Masks, Segment
from labeling.pool import REFERENCE, STRATEGIES, Left, Offer, Pool
from labeling.submitting import SubmittedLabel, take
from labeling.suggestions import Suggestion, Suggestions
from serving.errors import ServingError

__all__ = ["LARGEST", "Champion", "application"]

_log = logging.getLogger(__name__)

LARGEST = 1 << 28
"""Bytes that a request may have."""


class ProjectSummary(BaseModel):
    """A project by its key."""

    key: str
    label_set: str


class Misread(BaseModel):
    """A project file by its name, what is wrong with it and what to do."""

    file: str
    problem: str
    remedy: str


class Projects(BaseModel):
    """``author`` is who the server knows to be asking; empty: the reader is to say. ``misread`` are files that are wrong."""

    author: str
    projects: list[ProjectSummary]
    misread: list[Misread]


class ProjectDetail(BaseModel):
    """What a viewer needs to label for a project. ``segments`` are the label set's structures, ``codes`` theirs (scheme, value,
    meaning); ``suggests`` says whether an endpoint is configured, ``model_url`` is the model's page in MLflow."""

    key: str
    label_set: str
    segments: list[Segment]
    codes: list[tuple[str, str, str]]
    strategies: list[str]
    model: str
    model_url: str
    suggests: bool


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Wanted(_Strict):
    """Which series next: by ``strategy`` (empty: the best there is), none of ``skip``."""

    strategy: Annotated[str, Field(max_length=64)] = ""
    skip: Annotated[list[Annotated[str, Field(max_length=128)]], Field(max_length=10_000)] = []
    author: Annotated[str, Field(max_length=64)] = ""


class Next(BaseModel):
    """``next`` is null where none is left that may be offered; ``remaining`` counts what is not labelled."""

    next: Offer | None
    remaining: Left


class Asked(_Strict):
    """The series to suggest a mask for."""

    series: Annotated[str, Field(min_length=1, max_length=128)]


class Predicted(BaseModel):
    """A prediction of a series; ``champion`` says whether the version that is champion now made it."""

    sop_uid: str
    model: str
    version: str
    created_at: str
    champion: bool


class Comparison(BaseModel):
    """The reader's current label, and the champion's latest prediction, else the latest of any version; null where there is
    none. ``champion`` is the version that is champion now; null where that is not known, and ``unknown`` says why."""

    label: dict[str, Any] | None
    prediction: Predicted | None
    champion: str | None
    unknown: str


Champion = Callable[[str], str | None]
"""The version of a model that is champion, None before there is one; ServingError where that cannot be told."""


def application(
    archive: Archive,
    projects: Iterable[Project],
    *,
    problems: Callable[[], Sequence[CatalogError]] = list,
    endpoint: str = "",
    tracking_uri: str = "",
    champion: Champion | None = None,
) -> FastAPI:
    """The API of ``projects`` on ``archive``. They are iterated anew for each request, and may have changed; ``problems`` are
    then what is wrong with their files.

    ``endpoint`` is the base URL of MLflow's scoring server, which may be down or (empty) not there: suggestions then say so.
    ``tracking_uri`` is where a reader finds the models' runs; ``champion`` is asked while a reader waits.
    """
    app = FastAPI(title="Voxloop: labels", version="1", description=__doc__, docs_url=None, redoc_url=None)
    app.add_middleware(Capped, largest=LARGEST)
    for kind, handler in {**HANDLERS, VoxloopError: _voxloop, RequestValidationError: _invalid}.items():
        app.add_exception_handler(kind, handler)
    masks = Masks()
    _add_projects(app, archive, projects, problems, tracking_uri, suggests=bool(endpoint))
    _add_suggestions(app, projects, Suggestions(archive, endpoint, masks), masks)
    _add_labels(app, archive, projects, masks)
    _add_predictions(app, archive, projects, masks, champion)
    return app


def _add_projects(
    app: FastAPI,
    archive: Archive,
    projects: Iterable[Project],
    problems: Callable[[], Sequence[CatalogError]],
    tracking_uri: str,
    *,
    suggests: bool,
) -> None:
    pool = Pool(archive)

    @app.get("/projects")
    def list_projects(request: Request) -> Projects:
        """The projects, their files that are wrong, and who is asking."""
        told = [ProjectSummary(key=project.key, label_set=project.label_set.name) for project in projects]
        misread = [Misread(file=Path(one.about).name, problem=one.problem, remedy=one.remedy) for one in problems()]
        return Projects(author=request.scope.get("voxloop.author", ""), projects=told, misread=misread)

    @app.get("/projects/{key}")
    def show_project(key: str) -> ProjectDetail:
        """A project's label set, strategies and model."""
        project = _project(projects, key)
        page = f"{tracking_uri.rstrip('/')}/#/models/{project.model}" if tracking_uri.startswith("http") else ""
        return ProjectDetail(
            key=key,
            label_set=project.label_set.name,
            segments=Segment.of(project.label_set),
            codes=[structure.code for structure in project.label_set.structures],
            strategies=[*STRATEGIES, REFERENCE],
            model=project.model,
            model_url=page,
            suggests=suggests,
        )

    @app.post("/projects/{key}/next")
    def next_series(key: str, wanted: Wanted, request: Request) -> Next:
        """The series to label next."""
        author = _author(request, wanted.author)
        offer, left = pool.next(_project(projects, key), strategy=wanted.strategy, skip=wanted.skip, author=author)
        return Next(next=offer, remaining=left)


def _add_suggestions(app: FastAPI, projects: Iterable[Project], suggestions: Suggestions, masks: Masks) -> None:
    @app.post("/projects/{key}/suggestions", status_code=202)
    async def ask_for_suggestion(key: str, asked: Asked) -> Suggestion:
        """Ask the endpoint to segment a series; follow it at ``/suggestions/{id}``."""
        return suggestions.ask(_project(projects, key), asked.series)

    @app.get("/suggestions/{suggestion_id}")
    async def show_suggestion(suggestion_id: str, wait: Annotated[float, Query(ge=0, le=30)] = 0.0) -> Suggestion:
        """A suggestion as it stands, after up to ``wait`` seconds."""
        return await suggestions.get(suggestion_id, wait=wait)

    @app.get("/masks/{mask_id}", response_class=Response)
    def read_mask(mask_id: str) -> Response:
        """The voxels of a mask: uint8, axes (slices, rows, columns), gzipped in transfer."""
        headers = {"Content-Encoding": "gzip", "Cache-Control": "private, max-age=3600, immutable"}
        return Response(masks.packed(mask_id), headers=headers, media_type="application/octet-stream")


def _add_labels(app: FastAPI, archive: Archive, projects: Iterable[Project], masks: Masks) -> None:
    @app.post("/projects/{key}/labels", status_code=201)
    def submit_label(
        key: str,
        request: Request,
        label: Annotated[str, Form(description="JSON: a SubmittedLabel", max_length=1 << 20)],
        seg: Annotated[UploadFile | None, File(description="the mask as a DICOM SEG")] = None,
        mask: Annotated[UploadFile | None, File(description="or its voxels, gzipped uint8 (slices, rows, columns)")] = None,
    ) -> dict[str, Any]:
        """Submit a label; answers the revision. The same again adds nothing and answers the same, another is refused (409)."""
        project, told = _project(projects, key), _parsed(label)
        sent = seg or mask
        if sent is None or (seg and mask):
            raise Refused(422, "one of seg and mask is to be sent", about=told.series, remedy="send the mask once")
        author = _author(request, told.author)
        if not author:
            raise Refused(422, "nobody says who labelled", about="author", remedy="enter your name")
        stored = take(archive, project, masks, told, sent.file.read(), dicom=seg is not None, author=author)
        return stored.as_json()

    @app.get("/projects/{key}/labels")
    def list_labels(key: str, series: Annotated[str, Query(max_length=128)]) -> list[dict[str, Any]]:
        """The revisions of a series, the latest first."""
        return [found.as_json() for found in history(archive, _project(projects, key).key, series)]

    @app.get("/labels/{label_id}/mask")
    def show_label(label_id: str) -> Mask:
        """The mask of any revision."""
        found = _revision(archive, label_id)
        project = _project(projects, found.project)
        return masks.add(archive, found.series_uid, mask(archive, found, project.label_set).array, project.label_set)


def _add_predictions(
    app: FastAPI, archive: Archive, projects: Iterable[Project], masks: Masks, champion: Champion | None
) -> None:
    @app.get("/projects/{key}/compare")
    def compare(key: str, series: Annotated[str, Query(max_length=128)]) -> Comparison:
        """The reader's current label of a series, and the champion's prediction where it made one, else the latest."""
        project = _project(projects, key)
        labels = [found for found in history(archive, key, series) if found.status != "draft"]
        version, unknown = _champion(champion, project.model)
        told = [
            _predicted(row, champion=(row["model_name"], row["model_version"]) == (project.model, version))
            for row in _predictions(archive, f"project = {quoted(key)} AND series_uid = {quoted(series)}")
        ]
        best = max(told, key=lambda one: (one.champion, one.created_at), default=None)
        label = labels[0].as_json() if labels else None
        return Comparison(label=label, prediction=best, champion=version, unknown=unknown)

    @app.get("/predictions/{sop_uid}/mask")
    def show_prediction(sop_uid: str) -> Mask:
        """The mask of a prediction."""
        rows = _predictions(archive, f"sop_uid = {quoted(sop_uid)}")
        archive.index.follow(archive.objects)
        stored = archive.index.instance(sop_uid)
        if not rows or stored is None:
            raise Refused(404, "no such prediction", about=sop_uid, remedy="predict the series with voxloop batch-infer")
        project, series = _project(projects, rows[0]["project"]), rows[0]["series_uid"]
        found = seg.decode(Path(stored.path), archive.geometry(series), project.label_set)
        return masks.add(archive, series, found.array, project.label_set)


def _champion(champion: Champion | None, model: str) -> tuple[str | None, str]:
    """(the version, or None and why it is not known)."""
    if champion is None:
        return None, "no MLflow is configured"
    try:
        version = champion(model)
    except ServingError as problem:
        _log.warning("the champion of %s is not known: %s", model, problem)
        return None, "MLflow does not answer" if problem.__cause__ else problem.problem
    return version, "" if version else f"{model} has no champion yet"


def _predicted(row: dict[str, Any], *, champion: bool) -> Predicted:
    told = {"sop_uid": row["sop_uid"], "model": row["model_name"], "version": row["model_version"]}
    return Predicted(**told, created_at=row["created_at"].isoformat(), champion=champion)


def _predictions(archive: Archive, where: str) -> list[dict[str, Any]]:
    columns = ["sop_uid", "project", "series_uid", "model_name", "model_version", "created_at"]
    found: list[dict[str, Any]] = archive.predictions.scan(columns, where=where).read_all().to_pylist()
    return found


def _project(projects: Iterable[Project], key: str) -> Project:
    known = {project.key: project for project in projects}
    if key not in known:
        remedy = f"there are {', '.join(known)}" if known else "put a project file into the home's projects folder"
        raise Refused(404, "no such project", about=key, remedy=remedy)
    return known[key]


def _revision(archive: Archive, label_id: str) -> LabelRevision:
    found = revision(archive, label_id)
    if found is None:
        raise Refused(404, "no such label", about=label_id, remedy="list the labels of its series")
    return found


def _author(request: Request, said: str) -> str:
    known: str = request.scope.get("voxloop.author", "")
    return known or said.strip()


def _parsed(label: str) -> SubmittedLabel:
    try:
        return SubmittedLabel.model_validate_json(label)
    except ValidationError as error:
        raise Refused(422, _said(error.errors()[0]), about="label", remedy="see the API's description") from None


async def _voxloop(_: Request, error: Exception) -> Response:
    """What another room refuses is the client's to mend."""
    assert isinstance(error, VoxloopError)
    return problem(400, error.problem, about=error.about, remedy=error.remedy)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem(422, _said(error.errors()[0]), remedy="see the API's description")


def _said(error: Any) -> str:
    return f"{'.'.join(map(str, error['loc'])) or 'the body'}: {error['msg']}"
