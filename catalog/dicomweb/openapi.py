"""What the services take, as an OpenAPI 3 document at /openapi.json: for programs that look before they ask."""

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from catalog.dicomweb import qido
from catalog.dicomweb.frames import MOST
from catalog.dicomweb.rendered import PARAMETERS as SHOWN
from catalog.dicomweb.uri import PARAMETERS
from catalog.index import Level

__all__ = ["document", "routes"]

_STUDY, _SERIES, _INSTANCE = (
    "/studies/{study}",
    "/studies/{study}/series/{series}",
    "/studies/{study}/series/{series}/instances/{sop}",
)
_SEARCHES: dict[str, Level] = {
    "/studies": "studies",
    "/series": "series",
    "/instances": "instances",
    f"{_STUDY}/series": "series",
    f"{_STUDY}/instances": "instances",
    f"{_SERIES}/instances": "instances",
}
_READ = {
    "": ("Retrieve objects", "application/dicom"),
    "/metadata": ("Retrieve metadata", "application/dicom+json"),
    "/rendered": ("Retrieve a picture", "image/jpeg"),
    "/thumbnail": ("Retrieve a small picture", "image/jpeg"),
}
_DESCRIBED = {
    "window": "centre, width, and linear, linear-exact or sigmoid",
    "viewport": "vw,vh, the pixels to fill; but for a thumbnail vw,vh,sx,sy,sw,sh with the region of the image to show in them",
    "quality": "of a JPEG: 1 to 100",
    "region": "left,top,right,bottom of what to show, as fractions of the image",
}
_SAID = {
    "400": "not understood",
    "404": "not here",
    "406": "not to be had in that form",
    "410": "its file has gone or changed",
}


def document() -> dict[str, Any]:
    """OpenAPI 3.0, paths relative to where DICOMweb is mounted."""
    paths: dict[str, Any] = {path: {"get": _search(path, level)} for path, level in _SEARCHES.items()}
    for level in (_STUDY, _SERIES, _INSTANCE):
        for name, (summary, kind) in _READ.items():
            asked = [_parameter("query", one) for one in SHOWN.get(name[1:], ())]
            paths.setdefault(level + name, {})["get"] = _read(level + name, summary, kind, asked)
    paths[f"{_INSTANCE}/frames/{{frames}}"] = {"get": _read(f"{_INSTANCE}/frames/{{frames}}", "Retrieve frames", _BYTES)}
    spot = [_parameter("query", name, {"type": "integer", "minimum": 0}, required=True) for name in ("offset", "length")]
    paths[f"{_INSTANCE}/bulkdata"] = {"get": _read(f"{_INSTANCE}/bulkdata", "Retrieve a value", _BYTES, spot)}
    paths["/wado"] = {
        "get": _read("/wado", "Retrieve one object", "application/dicom", [_parameter("query", n) for n in PARAMETERS])
    }
    for path in ("/studies", _STUDY):
        paths.setdefault(path, {})["post"] = _store(path)
    return {"openapi": "3.0.3", "info": {"title": "Voxloop DICOMweb", "version": "1"}, "paths": paths}


_BYTES = "application/octet-stream"


def routes() -> list[Route]:
    """GET /openapi.json."""
    body = orjson.dumps(document())

    async def answer(_: Request) -> Response:
        return Response(body, media_type="application/json")

    return [Route("/openapi.json", answer, methods=["GET"])]


def _parameter(where: str, name: str, schema: Any = None, *, required: bool = False) -> dict[str, Any]:
    found = {"in": where, "name": name, "required": required or where == "path", "schema": schema or {"type": "string"}}
    return found | ({"description": _DESCRIBED[name]} if name in _DESCRIBED else {})


def _path(path: str) -> list[dict[str, Any]]:
    frames = {"type": "string", "description": f"numbers from 1, by comma, {MOST} at most"}
    uid = {"type": "string", "pattern": r"^[0-9.]{1,64}$"}
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [_parameter("path", name, frames if name == "frames" else uid) for name in names]


def _search(path: str, level: Level) -> dict[str, Any]:
    count = {"type": "integer", "minimum": 0}
    controls = [_parameter("query", "limit", count), _parameter("query", "offset", count)]
    controls += [
        _parameter("query", "fuzzymatching", {"type": "boolean"}),
        _parameter("query", "includefield"),
        _parameter("query", "accept"),
    ]
    asked = [_parameter("query", name) for name in qido.attributes(level)]
    return {
        "summary": f"Search for {level}",
        "parameters": [*_path(path), *controls, *asked],
        "responses": _responses("application/dicom+json"),
    }


def _read(path: str, summary: str, kind: str, more: "list[dict[str, Any]] | None" = None) -> dict[str, Any]:
    return {"summary": summary, "parameters": [*_path(path), *(more or [])], "responses": _responses(kind)}


def _store(path: str) -> dict[str, Any]:
    told = {code: {"description": text} for code, text in {"202": "some stored", "409": "none stored"}.items()}
    return {
        "summary": "Store objects",
        "parameters": _path(path),
        "requestBody": {"content": {"application/dicom": {"schema": {"type": "string", "format": "binary"}}}},
        "responses": {**_responses("application/dicom+json"), **told, "413": {"description": "too large"}},
    }


def _responses(kind: str) -> dict[str, Any]:
    return {
        "200": {"description": "done", "content": {kind: {}}},
        **{code: {"description": text} for code, text in _SAID.items()},
    }
