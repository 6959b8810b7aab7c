"""Absolute URLs of what is served (PS3.18 §10.4, RetrieveURL)."""

from starlette.requests import Request

__all__ = ["instance", "root"]


def root(request: Request) -> str:
    """The absolute URL where DICOMweb is mounted, without a slash at the end."""
    return f"{request.url.scheme}://{request.url.netloc}{request.scope.get('root_path', '')}".rstrip("/")


def instance(study: str, series: str = "", sop: str = "") -> str:
    """The path of a study, a series or an instance below the root."""
    path = f"/studies/{study}"
    if series:
        path += f"/series/{series}"
    return f"{path}/instances/{sop}" if sop else path
