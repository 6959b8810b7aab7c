"""The DICOMweb application: the routes of each service, and one way to say what went wrong."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from catalog.dicomweb import openapi, qido, stow, uri, wado
from catalog.dicomweb._gone import Gone
from catalog.dicomweb._held import Held
from catalog.problem import HANDLERS

if TYPE_CHECKING:
    from catalog.archive import Archive

__all__ = ["application"]


def application(archive: "Archive", *, largest: int = stow.LARGEST) -> Starlette:
    """QIDO-RS, WADO-RS, WADO-URI and STOW-RS of ``archive``; a request to store has at most ``largest`` bytes.

    Links in its answers are absolute URLs below the path where it is mounted. Errors are problem details (RFC 9457).
    """
    held = Held(archive)
    routes = [
        *wado.routes(held),
        *qido.routes(held),
        *uri.routes(held),
        *openapi.routes(),
        *stow.routes(archive, largest=largest),
    ]
    told: dict[Any, Any] = {**HANDLERS, HTTPException: partial(_http, routes)}
    return Starlette(routes=routes, middleware=[Middleware(Gone)], exception_handlers=told)


async def _http(routes: Sequence[Route], request: Request, error: Exception) -> Response:
    """As everywhere; a 405 allows the methods of all routes of its path, not of the first alone (RFC 9110 §15.5.6)."""
    found = await HANDLERS[HTTPException](request, error)
    if found.status_code == 405:
        here = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
        found.headers["Allow"] = ", ".join(sorted({method for route in here for method in route.methods or ()}))
    return found
