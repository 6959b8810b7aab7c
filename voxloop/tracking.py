"""The MLflow server of a home: the one that is configured, the one that already runs, or one of our own."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from voxloop.processes import LOOPBACK, Server, answers, free_port
from voxloop.settings import Settings, sqlite_url

__all__ = ["tracking_server"]


@contextmanager
def tracking_server(settings: Settings, *, port: int = 0) -> Iterator[str]:
    """The tracking URI to use inside the ``with``; a server that was started for it is stopped at the end."""
    if settings.tracking_uri:
        yield settings.tracking_uri
        return
    folder = settings.home / "mlflow"
    note = folder / "server.json"
    running = _running(note)
    if running:
        yield running
        return
    folder.mkdir(parents=True, exist_ok=True)
    uri = f"http://{LOOPBACK}:{free_port(port)}"
    with Server("MLflow", _command(folder, uri), log=folder / "server.log", ready_url=f"{uri}/health") as server:
        server.wait_ready()
        written = note.with_suffix(".tmp")
        written.write_text(json.dumps({"uri": uri, "pid": os.getpid()}))
        written.replace(note)
        try:
            yield uri
        finally:
            note.unlink(missing_ok=True)


def _running(note: Path) -> str:
    """The URI of the server that another command of this home keeps running, or ''."""
    try:
        stored = json.loads(note.read_text())
        uri, pid = str(stored["uri"]), int(stored["pid"])
    except (OSError, ValueError, KeyError):
        return ""
    return uri if psutil.pid_exists(pid) and answers(f"{uri}/health") else ""


def _command(folder: Path, uri: str) -> list[str]:
    port = uri.rsplit(":", 1)[1]
    store = ["--backend-store-uri", sqlite_url(folder / "mlflow.db"), "--artifacts-destination", str(folder / "artifacts")]
    quiet = ["--uvicorn-opts", "--log-level warning", "--workers", "1"]
    return [sys.executable, "-m", "voxloop.mlflow_entry", "server", *store, "--host", LOOPBACK, "--port", port, *quiet]
