"""OHIF's stock build as static files: what a browser may keep for ever, what it asks for again, and its one page."""

import base64
import hashlib
import mimetypes
import os
import re
import sys
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import NotModifiedResponse, PathLike, StaticFiles
from starlette.types import Receive, Scope, Send

from voxloop.access import policy

__all__ = ["Modules", "Viewer", "installed"]

MISSING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Voxloop</title>
<body style="font: 16px system-ui, sans-serif; margin: 3em; max-width: 40em">
<h1>The viewer is not here yet</h1>
<p>It is fetched at set-up, which had no network. Everything else is running: <a href="/mlflow/">MLflow</a>, DICOMweb at
<code>/dicomweb</code>.</p><p>To get the viewer: <code>make viewer</code>, then reload this page.</p></html>
"""

EVAL = "'unsafe-eval'"
"""The build makes functions of text: its codecs (JPEG-LS, JPEG 2000) in workers, which live by the policy of their own file,
and what reads a segmentation in the page."""

_POLICY = "content-security-policy"
FOR_EVER = "public, max-age=31536000, immutable"
_HASHED = re.compile(r"[.-][0-9a-f]{16,}\.|^[0-9a-f]{20}\.")
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".map": "application/json"}


def installed(folder: str = "") -> Path:
    """Where the viewer is, or would be: ``folder``, else where set-up puts it in this environment."""
    return Path(folder) if folder else Path(sys.prefix) / "share" / "voxloop" / "ohif"


class Modules(StaticFiles):
    """Files of ours that a browser asks for again each time, and gets only when they changed."""

    def file_response(self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200) -> Response:
        """As StaticFiles, with the right type and ``no-cache``."""
        headers = {"Cache-Control": "no-cache"}
        response = FileResponse(full_path, status_code, headers, media_type=_type(str(full_path)), stat_result=stat_result)
        return _unless_known(self, response, scope)


class Viewer(StaticFiles):
    """The build in ``folder``; a page that says how to get it where it is not there.

    A file's ``.gz`` beside it is sent to who takes it. A path that is no file is the viewer's own address where a browser
    navigates there, and 404 otherwise.
    """

    def __init__(self, folder: Path) -> None:
        folder = folder.resolve()  # as Starlette gives a file's path
        super().__init__(directory=folder, check_dir=False)
        self.index = folder / "index.html"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer GET and HEAD."""
        response = await (self._missing if not self.index.is_file() else self._found)(scope)
        await response(scope, receive, send)

    async def _missing(self, scope: Scope) -> Response:
        if _navigates(scope):
            return HTMLResponse(MISSING, 503, {"Cache-Control": "no-store"})
        raise HTTPException(404, "no such file; the viewer is not here yet: make viewer")

    async def _found(self, scope: Scope) -> Response:
        path = self.get_path(scope)
        if path != "." and not any(part.startswith(".") for part in path.split(os.sep)):
            try:
                return await self.get_response(path, scope)
            except HTTPException as problem:
                if problem.status_code != 404 or not _navigates(scope):
                    raise
        elif path != ".":
            raise HTTPException(404)
        return await self.get_response("index.html", scope)

    def file_response(self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200) -> Response:
        """As StaticFiles, compressed where that is there, kept for ever where the name changes with the content."""
        path = Path(full_path)
        headers = {"Cache-Control": FOR_EVER if _HASHED.search(path.name) else "no-cache", "Vary": "Accept-Encoding"}
        if path == self.index:
            headers[_POLICY] = policy({"script-src": f"{EVAL} {_scripts(path.read_text())}"})
        elif path.suffix in (".js", ".mjs"):
            headers[_POLICY] = policy({"script-src": EVAL})
        shorter = path.with_name(path.name + ".gz")
        if "gzip" in Headers(scope=scope).get("accept-encoding", "") and shorter.is_file():
            headers["Content-Encoding"] = "gzip"
            response = FileResponse(shorter, status_code, headers, media_type=_type(str(path)))
            response.set_stat_headers(shorter.stat())
        else:
            response = FileResponse(path, status_code, headers, media_type=_type(str(path)), stat_result=stat_result)
        return _unless_known(self, response, scope)


def _unless_known(files: StaticFiles, response: FileResponse, scope: Scope) -> Response:
    if not files.is_not_modified(response.headers, Headers(scope=scope)):
        return response
    known = NotModifiedResponse(response.headers)
    if _POLICY in response.headers:  # a browser puts the headers of this answer in the place of those that it kept
        known.headers[_POLICY] = response.headers[_POLICY]
    return known


def _type(path: str) -> str:
    """By our own table first: a machine's may know neither modules nor WebAssembly."""
    return _TYPES.get(Path(path).suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"


def _navigates(scope: Scope) -> bool:
    """Whether a person opens an address, rather than a page asking for a part of it."""
    headers = Headers(scope=scope)
    page = "text/html" in headers.get("accept", "") and "." not in scope["path"].rsplit("/", 1)[-1]
    return scope["method"] in ("GET", "HEAD") and headers.get("sec-fetch-mode", "navigate") == "navigate" and page


def _scripts(page: str) -> str:
    """The hashes of a page's own scripts, as a policy names them."""
    inline = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in inline)
