"""The endpoint: MLflow's scoring server around a model that follows the champion.

A thread looks at the alias once a second, loads another champion beside the one that answers, and then swaps a reference: a
request is answered whole by the version that it began with. While the registry cannot be reached the loaded version goes on. An
alias that was moved by hand is refused: every item is answered with the reason until the alias is right again.

A request that came through a proxy, as the web server is one, may name series and uploads alone: who has an account on this
machine reads its files by their paths, who has a token does not.
"""

import logging
import socket
import sys
import threading
import time
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.errors import ServingError
from serving.registry import ALIAS, Registry
from serving.request import answer, parse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from serving.model import VoxloopModel

__all__ = ["HotModel", "serve"]

LOOK_EVERY = 1.0
"""Seconds between two looks at the alias."""

REQUEST_TIMEOUT = 600
"""Seconds that a request may take; a large volume on a CPU takes minutes."""

_log = logging.getLogger(__name__)
_proxied: ContextVar[bool] = ContextVar("proxied", default=False)


class HotModel:
    """What MLflow's scoring server holds as its model: the champion, whichever it is."""

    def __init__(self, model: str, registry: Registry, home: Path, index_url: str | None = None) -> None:
        self._model, self._registry, self._home, self._index_url = model, registry, home, index_url
        self._refusal: ServingError | None = None
        version = registry.champion(model)
        if version is None:
            raise ServingError("has no champion yet", about=f"model {model}", remedy="train and promote a version first")
        self._loaded = self._load(version)
        self.metadata = self._loaded.metadata

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Answer a table of items; columns that the schema does not know reach the model, which refuses them by name. A path
        of this machine is refused to who asks through a proxy."""
        import pandas as pd

        model: VoxloopModel = self._loaded.unwrap_python_model()
        table, origin, refusal = pd.DataFrame(data), model.served.origin, self._refusal
        problems = [refusal or (_of_this_machine(row) if _proxied.get() else None) for row in table.to_dict("records")]
        answers = iter(model.predict(None, table[[problem is None for problem in problems]]))
        named = {"model": origin.model_name, "version": origin.model_version}
        return [next(answers) if problem is None else answer(None, problem, **named) for problem in problems]

    @property
    def version(self) -> str:
        """The version that answers now."""
        return str(self._loaded.unwrap_python_model().served.origin.model_version)

    def look(self) -> None:
        """Look at the alias once; load and swap where it names another version."""
        try:
            version = self._registry.champion(self._model)
        except ServingError as problem:
            if problem.__cause__ is None:  # with a cause the registry was not reached, which says nothing about the alias
                self._refusal = problem
            return
        if version is not None and version != self.version:
            self._loaded = self._load(version)
            _log.warning("%s version %s answers now", self._model, version)
        self._refusal = None

    def follow(self, stop: threading.Event) -> None:
        """Look until ``stop``; a version that cannot be loaded leaves the one that answers."""
        while not stop.wait(LOOK_EVERY):
            try:
                self.look()
            except Exception:
                _log.exception("the champion of %s cannot be loaded; version %s goes on", self._model, self.version)

    def _load(self, version: str) -> Any:
        from mlflow.pyfunc import load_model

        import_module("serving.model")  # with all its rooms, before those that lie with the model can take their names
        folder = self._registry.fetch(self._model, version, self._home / "models")
        path = list(sys.path)
        try:
            return load_model(str(folder), model_config={"home": str(self._home), "index_url": self._index_url or ""})
        finally:
            sys.path[:] = path  # MLflow puts each model's code first, and the path must not grow


class _Proxied:
    """An ASGI middleware that notes of a request whether it came through a proxy (Via, RFC 9110 §7.6.3)."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        _proxied.set(any(name == b"via" for name, _ in scope.get("headers", ())))
        await self.app(scope, receive, send)


def _of_this_machine(row: Any) -> ServingError | None:
    """Why an item that names a path is not answered from afar; None for others, also those that the model refuses itself."""
    try:
        kind = parse(row).reference.kind
    except ServingError:
        return None
    if kind in ("series", "upload"):
        return None
    remedy = "send the file to /api/uploads and name that upload, or a series of the catalog"
    return ServingError("a path is taken on the server's own machine only", about=f"reference.{kind}", remedy=remedy)


def serve(
    model: str, tracking_uri: str, home: str | Path, *, port: int, index_url: str | None = None, wait: float = 0.0
) -> None:
    """Serve the champion of ``model`` on 127.0.0.1:``port`` until the process is told to end (SIGTERM, Ctrl-C).

    /ping answers once the model is loaded. ``wait`` is how many seconds to wait for a first champion. ServingError where the
    port is taken, there is no champion, or the alias was moved by hand.
    """
    with _bound(port) as listening:
        import uvicorn
        from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
        from mlflow.pyfunc import scoring_server

        MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(1)  # the next look is the retry
        MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.set(REQUEST_TIMEOUT)
        registry, deadline = Registry(tracking_uri), time.monotonic() + wait
        if wait and registry.champion(model) is None:
            _log.warning("waits for the first champion of %s", model)
            while registry.champion(model) is None and time.monotonic() < deadline:
                time.sleep(LOOK_EVERY)
            _log.warning("loads the champion of %s", model)
        hot, stop = HotModel(model, registry, Path(home), index_url), threading.Event()
        follower = threading.Thread(target=hot.follow, args=(stop,), name=f"follow {ALIAS}", daemon=True)
        follower.start()
        try:
            config = uvicorn.Config(
                _Proxied(scoring_server.init(hot)), log_level="warning", lifespan="off", timeout_graceful_shutdown=30
            )
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            stop.set()


def _bound(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError as problem:
        listening.close()
        raise ServingError(
            f"port {port} is taken ({problem.strerror})", about="endpoint", remedy="choose another port"
        ) from None
    return listening
