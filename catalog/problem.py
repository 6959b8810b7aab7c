"""Errors as problem details (RFC 9457): JSON that names the object, the reason and the remedy."""

import logging
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from catalog.errors import CatalogError

__all__ = ["HANDLERS", "Refused", "problem"]

_log = logging.getLogger(__name__)


class Refused(CatalogError):
    """A request that is answered with ``status``: what is wrong with it, what it was about (a UID, a parameter), the remedy."""

    def __init__(
        self, status: int, problem: str, *, about: str = "", remedy: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(problem, about=about, remedy=remedy)
        self.status, self.headers = status, dict(headers or {})


def problem(
    status: int, title: str, *, about: str = "", remedy: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    """``title`` is the reason, ``about`` the UID or parameter it is about, ``remedy`` what to do."""
    told: dict[str, Any] = {"type": "about:blank", "status": status, "title": title}
    detail = f"{about}: {title}" if about else title
    told |= {"detail": detail + (f" ({remedy})" if remedy else "")}
    told |= {name: text for name, text in (("about", about), ("remedy", remedy)) if text}
    return Response(orjson.dumps(told), status, headers, "application/problem+json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return problem(error.status, error.problem, about=error.about, remedy=error.remedy, headers=error.headers)


async def _catalog(_: Request, error: Exception) -> Response:
    """What the catalog refuses is the client's to mend."""
    assert isinstance(error, CatalogError)
    return problem(400, error.problem, about=error.about, remedy=error.remedy)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        remedy = "objects are read with GET and stored with POST /studies; nothing is ever deleted or changed"
        return problem(405, "not a method of this resource", remedy=remedy, headers=error.headers)
    return problem(error.status_code, error.detail, headers=error.headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("%s %s", request.method, request.url.path, exc_info=error)
    return problem(500, "the server failed", about=request.url.path, remedy="see its log")


HANDLERS = {Refused: _refused, CatalogError: _catalog, HTTPException: _http, Exception: _unexpected}
