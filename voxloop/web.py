"""The web server: OHIF, its plugin, DICOMweb, the panel's API, MLflow and the endpoint under one address, without CORS.

``python -m voxloop.web`` is what the process of `voxloop up` runs; its settings come from the environment, so that neither a
token nor MLflow's password stands on a command line.
"""

import argparse
import resource
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from catalog import Archive, CatalogError, Project, dicomweb, uploads
from catalog.errors import VoxloopError
from catalog.problem import HANDLERS
from labeling import api, ohif
from serving import Registry
from voxloop import login
from voxloop import uploads as uploading
from voxloop.access import Access, Rules
from voxloop.processes import bound
from voxloop.projects import ProjectFiles
from voxloop.protocol import BoundedProtocol
from voxloop.proxy import Proxy
from voxloop.settings import Settings, read
from voxloop.viewer import Modules, Viewer, installed

__all__ = ["application", "serve"]

GRACE_S = 3
"""Seconds that requests under way are given at the end."""

REGISTRY_S = 3
"""Seconds that MLflow has to say which version is champion."""

CONNECTIONS = 1000
"""What more clients at a time are told to come back for (503)."""


def application(
    settings: Settings,
    rules: Rules,
    projects: Sequence[Project] | ProjectFiles = (),
    *,
    endpoint: str = "",
    tracking_uri: str = "",
    largest_upload: int = uploading.LARGEST,
) -> Starlette:
    """Everything that a browser or another client reaches, by ``rules``.

    ``endpoint`` and ``tracking_uri`` are the addresses of the scoring server and of MLflow, which may be empty or down: below
    /endpoint/ and /mlflow/ they are then answered for with 502.
    """
    archive = Archive(settings.home, index_url=settings.index_url or None)
    pages = tracking_uri if tracking_uri.startswith("http") else ""  # a registry that is no server has none
    runs = f"{rules.public}/mlflow" if pages else ""  # where a reader's browser finds them
    champion = partial(_champion, tracking_uri) if tracking_uri else None
    problems: Callable[[], Sequence[CatalogError]] = projects.problems if isinstance(projects, ProjectFiles) else list
    panel = api.application(archive, projects, problems=problems, endpoint=endpoint, tracking_uri=runs, champion=champion)
    starting = "it may be starting; see voxloop status and logs/ in the home"
    waiting = "it may be starting, or wait for its model's first champion: voxloop status says which"
    without = "this home had no project when voxloop up started: write one (docs/project.md), then start it again"
    behind = {"/mlflow": Proxy("MLflow", pages, starting)}
    behind["/endpoint"] = Proxy("the endpoint", endpoint, waiting if endpoint else without)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        uploads.sweep(settings.home)
        yield
        for proxy in behind.values():
            await proxy.client.aclose()

    routes = [
        Mount("/dicomweb", dicomweb.application(archive)),
        *uploading.routes(settings.home, largest=largest_upload),
        Mount("/api", panel),
        Route("/healthz", _healthz),
        *login.routes(rules),
        Route("/app-config.js", _config),
        Route("/init-service-worker.js", _no_service_worker),
        Mount("/plugins", Modules(directory=ohif.FOLDER)),
        *(Route(path, _with_slash) for path in behind),
        *(Mount(path, proxy) for path, proxy in behind.items()),
        Mount("/", Viewer(installed(settings.viewer_folder))),
    ]
    guard = Middleware(Access, rules=rules)
    return Starlette(routes=routes, middleware=[guard], exception_handlers=HANDLERS, lifespan=lifespan)


def _champion(tracking_uri: str, model: str) -> str | None:
    """``Registry.champion``, asked once and for a moment: a reader waits, and MLflow's own patience is minutes."""
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(0)
    MLFLOW_HTTP_REQUEST_TIMEOUT.set(REGISTRY_S)
    return Registry(tracking_uri).champion(model)


async def _healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _config(_: Request) -> Response:
    return FileResponse(ohif.FOLDER / "app-config.js", headers={"Cache-Control": "no-cache"}, media_type="text/javascript")


async def _no_service_worker(_: Request) -> Response:
    """In place of the build's own, which names an address outside; an older one is still sent away."""
    away = "navigator.serviceWorker?.getRegistrations().then(found => found.forEach(one => one.unregister()));\n"
    return Response(away, media_type="text/javascript", headers={"Cache-Control": "no-cache"})


async def _with_slash(request: Request) -> Response:
    return RedirectResponse(request.url.path + "/")


def serve(settings: Settings, listening: socket.socket, app: Starlette) -> None:
    """Serve ``app`` until told to stop (SIGTERM, Ctrl-C)."""
    import uvicorn

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a file each for clients, and for what they read
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=BoundedProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # who asks is what Access says
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE_S,
    )
    uvicorn.Server(config).run(sockets=[listening])


def main() -> None:
    """Serve until told to stop; the settings are those of the environment."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    for name in ("--endpoint", "--project"):
        parser.add_argument(name, default="")
    options = parser.parse_args()
    settings = read()
    rules = Rules.of(settings, options.host, options.port)
    with bound(options.host, options.port) as listening:
        projects = ProjectFiles(settings.home, Path(options.project) if options.project else None)
        app = application(settings, rules, projects, endpoint=options.endpoint, tracking_uri=settings.tracking_uri)
        serve(settings, listening, app)


if __name__ == "__main__":
    try:
        main()
    except VoxloopError as problem:
        raise SystemExit(str(problem)) from None
