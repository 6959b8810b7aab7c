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

__all__ = ["announce", "running_server", "server_command", "tracking_server", "withdraw", "without_password"]


@contextmanager
def tracking_server(settings: Settings, *, port: int = 0) -> Iterator[str]:
    """The tracking URI to use inside the ``with``; a server that was started for it is stopped at the end."""
    if settings.tracking_uri:
        yield settings.tracking_uri
        return
    running = running_server(settings.home)
    if running:
        yield running
        return
    uri = f"http://{LOOPBACK}:{free_port(port)}"
    log = settings.home / "mlflow" / "server.log"
    with Server("MLflow", server_command(settings.home, uri), log=log, ready_url=f"{uri}/health") as server:
        server.wait_ready()
        announce(settings.home, uri)
        try:
            yield uri
        finally:
            withdraw(settings.home)


def announce(home: Path, uri: str) -> None:
    """Let other commands of ``home`` find the server that this process keeps running."""
    written = _note(home).with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps({"uri": uri, "pid": os.getpid()}))
    written.replace(_note(home))


def withdraw(home: Path) -> None:
    """The server that this process announced is no more."""
    if _announced(home)[1] == os.getpid():
        _note(home).unlink(missing_ok=True)


def running_server(home: Path) -> str:
    """The URI of the server that another command of ``home`` keeps running, or ''."""
    uri, pid = _announced(home)
    return uri if uri and psutil.pid_exists(pid) and answers(f"{uri}/health") else ""


def without_password(uri: str) -> str:
    """``uri`` as it may be shown: without the name and password that an address of HTTP can hold."""
    scheme, found, rest = uri.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}" if found else uri


def _announced(home: Path) -> tuple[str, int]:
    try:
        stored = json.loads(_note(home).read_text())
        return str(stored["uri"]), int(stored["pid"])
    except (OSError, ValueError, KeyError):
        return "", 0


def _note(home: Path) -> Path:
    return home / "mlflow" / "server.json"


def server_command(home: Path, uri: str) -> list[str]:
    """What serves HOME/mlflow, which is made where it is not there, at ``uri``."""
    folder = home / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    port = uri.rsplit(":", 1)[1]
    store = ["--backend-store-uri", sqlite_url(folder / "mlflow.db"), "--artifacts-destination", str(folder / "artifacts")]
    quiet = ["--uvicorn-opts", "--log-level warning", "--workers", "1"]
    return [sys.executable, "-m", "voxloop.mlflow_entry", "server", *store, "--host", LOOPBACK, "--port", port, *quiet]
