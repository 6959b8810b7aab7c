"""The DICOMweb application: the routes of each service, and one way to say what went wrong."""

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware

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
    return Starlette(routes=routes, middleware=[Middleware(Gone)], exception_handlers=HANDLERS)
