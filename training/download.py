"""Fetching one large file over HTTP so that it is either there, whole and as pinned, or not there.

What an interrupted download left beside the target, NAME.part, is gone on with (RFC 9110 §14) where the server still has the
same file: by its ETag or Last-Modified (If-Range), or because the result's sha256 is known and will tell.
"""

import hashlib
import http.client
import json
import os
import ssl
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from catalog.disk import full_disk, sync_folder
from catalog.progress import Progress
from training.errors import TrainingError

__all__ = ["checked", "fetch", "sha256_of"]

CHUNK = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
CARRY = "set HTTPS_PROXY, or fetch it on another machine, carry it here and give --file"


def fetch(url: str, path: Path, *, sha256: str = "", size: int = 0, progress: Progress | None = None) -> None:
    """Download ``url`` to ``path``; ``sha256`` (hex) and ``size`` (bytes) are what it must have, where they are known.

    Proxies are taken from the environment. Raises TrainingError that says what to do: what came is kept to go on with where
    the connection broke, and removed where it is not the file that was wanted.
    """
    if not url.startswith(("http://", "https://")):
        raise TrainingError("not an HTTP address", about=url, remedy="give --url https://…, or --file for a file that is here")
    part = path.with_name(path.name + ".part")
    with full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _receive(url, part, bool(sha256), progress)
        except HTTPError as problem:
            raise TrainingError(
                f"the server answers {problem.code} {problem.reason}", about=url, remedy=_advice(problem)
            ) from None
        except (URLError, TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as problem:
            reason = getattr(problem, "reason", None) or problem or type(problem).__name__
            raise TrainingError(f"no connection: {reason}", about=url, remedy=f"run it again to go on; or {CARRY}") from None
        checked(part, url, sha256=sha256, size=size)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        _origin(part).unlink(missing_ok=True)
        sync_folder(path.parent)


def checked(path: Path, about: str, *, sha256: str = "", size: int = 0) -> None:
    """Remove ``path``, which was received, and raise TrainingError where it is not of ``sha256`` and ``size``."""
    wrong = ""
    if size and path.stat().st_size != size:
        wrong = f"{path.stat().st_size} bytes instead of {size}"
    elif sha256 and (found := sha256_of(path)) != sha256.lower():
        wrong = f"sha256 {found} instead of {sha256.lower()}"
    if wrong:
        path.unlink()
        _origin(path).unlink(missing_ok=True)
        remedy = "get the file from its publisher; --sha256 names that of another release"
        raise TrainingError(f"not the file that was expected: {wrong}; it was removed", about=about, remedy=remedy)


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _receive(url: str, part: Path, known: bool, progress: Progress | None) -> None:
    """Bring ``part`` to the end of ``url``; TrainingError where the server stops before."""
    have, validator = _resumable(url, part, known)
    headers = {"Accept-Encoding": "identity", "User-Agent": "voxloop"}
    if have:
        headers |= {"Range": f"bytes={have}-", **({"If-Range": validator} if validator else {})}
    try:
        answer = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as problem:
        if problem.code != 416 or not have:
            raise
        if problem.headers.get("Content-Range") == f"bytes */{have}":
            return None  # it was all there
        part.unlink()  # longer than what the server has now
        return _receive(url, part, known, progress)
    with answer:
        start = have if answer.status == 206 and _starts(answer) == have else 0
        if answer.status == 206 and start != have:
            part.unlink()
            return _receive(url, part, known, progress)
        rest = int(answer.headers.get("Content-Length") or 0)
        _origin(part).write_text(json.dumps({"url": url, "validator": _validator(answer)}))
        with part.open("ab" if start else "wb") as file:
            _copy(answer, file, start, start + rest, progress)
    if rest and part.stat().st_size < start + rest:
        remedy = f"run it again to go on; or {CARRY}"
        raise TrainingError(f"the connection ended at {part.stat().st_size} of {start + rest} bytes", about=url, remedy=remedy)
    return None


def _copy(answer: http.client.HTTPResponse, file: BinaryIO, done: int, total: int, progress: Progress | None) -> None:
    while chunk := answer.read(CHUNK):
        file.write(chunk)
        done += len(chunk)
        if progress:
            progress(done, total)


def _resumable(url: str, part: Path, known: bool) -> tuple[int, str]:
    """How many bytes of ``part`` can be gone on from, and what the server called the file."""
    with suppress(OSError, ValueError, KeyError):
        origin = json.loads(_origin(part).read_text())
        if origin["url"] == url and (known or origin["validator"]):
            return part.stat().st_size, str(origin["validator"])
    return 0, ""


def _origin(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _validator(answer: http.client.HTTPResponse) -> str:
    """A strong validator (RFC 9110 §8.8): an ETag that is not weak, else when the file was modified."""
    etag = answer.headers.get("ETag") or ""
    return (etag if not etag.startswith("W/") else "") or answer.headers.get("Last-Modified") or ""


def _starts(answer: http.client.HTTPResponse) -> int:
    """The first byte that a 206 answer holds; -1 where it does not say."""
    given = (answer.headers.get("Content-Range") or "").removeprefix("bytes ").split("-")[0]
    return int(given) if given.isdigit() else -1


def _advice(problem: HTTPError) -> str:
    if problem.code in (404, 410):
        return "look up where its publisher has it now and give --url; or give --file"
    if problem.code in (401, 403, 407):
        return f"the address or a proxy wants to know who asks; {CARRY}"
    return f"run it again later to go on; or {CARRY}"
