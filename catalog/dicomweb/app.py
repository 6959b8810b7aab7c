"""The DICOMweb application: the routes of each service, and one way to say what went wrong."""

from typing import TYPE_CHECKING

from starlette.applications import Starlette

from catalog.dicomweb import _problem, stow

if TYPE_CHECKING:
    from catalog.archive import Archive

__all__ = ["application"]


def application(archive: "Archive") -> Starlette:
    """QIDO-RS, WADO-RS, WADO-URI and STOW-RS of ``archive``.

    Links in its answers are absolute URLs below the path where it is mounted. Errors are problem details (RFC 9457).
    """
    return Starlette(routes=[*stow.routes(archive)], exception_handlers=_problem.HANDLERS)
