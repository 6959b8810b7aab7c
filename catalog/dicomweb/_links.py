"""Absolute URLs of what is served (PS3.18 §10.4, RetrieveURL)."""

from starlette.requests import Request

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

__all__ = ["instance", "root"]


def root(request: Request) -> str:
    """The absolute URL where DICOMweb is mounted, without a slash at the end.

    By the Host header, as the client knows the server. Some clients leave the port out: on this machine it is put in again.
    """
    host, (_, port) = request.url.netloc, request.scope.get("server") or ("", None)
    if host in _LOOPBACK and port:
        host = f"{host}:{port}"
    return f"{request.url.scheme}://{host}{request.scope.get('root_path', '')}".rstrip("/")


def instance(study: str, series: str = "", sop: str = "") -> str:
    """The path of a study, a series or an instance below the root."""
    path = f"/studies/{study}"
    if series:
        path += f"/series/{series}"
    return f"{path}/instances/{sop}" if sop else path
