"""Servers that a command starts beside itself: wait until they answer, stop them, never leave one behind."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from voxloop.child import GRACE_S
from voxloop.errors import FrontDoorError

__all__ = ["LOOPBACK", "Server", "answers", "bound", "free_port", "last_line"]

LOOPBACK = "127.0.0.1"


def free_port(wanted: int = 0, host: str = LOOPBACK) -> int:
    """``wanted`` if nothing listens there, any free port of ``host`` for 0.

    Raises FrontDoorError where the port is taken, or ``host`` is no address of this machine.
    """
    with bound(host, wanted) as probe:
        return int(probe.getsockname()[1])


def bound(host: str, port: int) -> socket.socket:
    """A socket on ``host``:``port``, to listen on; FrontDoorError as ``free_port``."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise FrontDoorError("no such address", about=f"--host {host}", remedy="name one of this machine's") from None
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as problem:
        listening.close()
        if problem.errno == errno.EADDRNOTAVAIL:
            raise FrontDoorError("no address of this machine", about=f"--host {host}", remedy="name one that is") from None
        if problem.errno == errno.EACCES:
            remedy = "choose one above 1023, and put a reverse proxy before it"
            raise FrontDoorError("only root may listen on that port", about=f"{host}:{port}", remedy=remedy) from None
        remedy = "stop what listens there, or choose another port (0 takes a free one)"
        raise FrontDoorError("the port is taken", about=f"{host}:{port}", remedy=remedy) from None
    return listening


def answers(url: str, timeout: float = 2.0) -> bool:
    """Whether a GET of ``url`` gives 200."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def last_line(log: Path) -> str:
    """What a server said last."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 20_000))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        lines = []
    return lines[-1][:300] if lines else "it said nothing"


class Server:
    """One server process with its log; a context manager that stops it, with all that it started, at the end.

    ``environment`` is added to this process's own.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, ready_url: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.log, self.ready_url = name, log, ready_url
        log.parent.mkdir(parents=True, exist_ok=True)
        reading, self._alive = os.pipe()
        try:
            with log.open("ab") as sink:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "voxloop.child", str(reading), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    pass_fds=(reading,),
                    start_new_session=True,
                    env={**os.environ, **(environment or {})},
                )
        finally:
            os.close(reading)

    def wait_ready(self, timeout: float = 240.0) -> "Server":
        """Return once the server answers; FrontDoorError with the log's last line if it ends first or takes too long."""
        deadline = time.monotonic() + timeout
        while not answers(self.ready_url):
            if self._process.poll() is not None:
                raise FrontDoorError(f"{self.name} did not start: {last_line(self.log)}", about=str(self.log))
            if time.monotonic() > deadline:
                self.stop()
                raise FrontDoorError(f"{self.name} did not answer within {timeout:.0f} s", about=str(self.log))
            time.sleep(0.2)
        return self

    def running(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Stop the server and what it started; returns when they are gone."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(GRACE_S + 5)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                self._process.wait()
        elif self._process.returncode == -signal.SIGKILL:
            self._signal(signal.SIGTERM)  # what watched over the server was killed, and nobody has told it
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
