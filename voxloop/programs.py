"""Programs that supervisord keeps running as long as this process lives: started again when they end, later each time."""

import os
import resource
import shlex
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from voxloop.errors import FrontDoorError
from voxloop.processes import Server, answers, last_line

__all__ = ["Death", "Program", "State", "Supervisor", "states"]

HOPELESS = 3
"""Deaths in a row after which a program is said not to start."""

SETTLED_S = 60
"""Seconds after which a program counts as running; one that ends earlier is started again later each time."""

STOP_S = 5
"""Seconds that a program is given to end."""

_LONGEST_SOCKET = 90  # of the 107 bytes that Linux takes, as supervisord adds its process id
_GROUP = "voxloop"
_DOWN = (OSError, xmlrpc.client.Error, xmlrpc.client.ResponseError)

# A path of the home may hold what means something here (; # %): it comes by the environment.
_CONFIGURATION = """\
[unix_http_server]
file=%(ENV_VOXLOOP_SOCKET)s
chmod=0700
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisord]
nodaemon=true
logfile=/dev/null
logfile_maxbytes=0
pidfile=%(ENV_VOXLOOP_RUN)s/supervisord.pid
minfds={files}
{user}
[group:{group}]
programs={names}
"""

_PROGRAM = """\
[program:{name}]
command={command}
autostart={autostart}
autorestart=true
startsecs={settled}
startretries=1000
stopwaitsecs={stop}
stopasgroup=true
killasgroup=true
redirect_stderr=true
stdout_logfile=%(ENV_VOXLOOP_LOGS)s/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
environment={environment}
"""


@dataclass(frozen=True)
class Program:
    """A server: it is up once ``ready_url`` answers 200. ``starts``: at once, else when told to. ``environment`` goes before
    the supervisor's; it is written into a file, so it holds no secret."""

    name: str
    command: Sequence[str]
    ready_url: str
    starts: bool = True
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True)
class State:
    """A program as supervisord sees it; ``state`` is its word (RUNNING, STARTING, BACKOFF, STOPPED, …), ``pid`` 0 if none."""

    name: str
    state: str
    pid: int
    started: int
    ended: int


@dataclass(frozen=True)
class Death:
    """A program ended, for the ``count``-th time in a row; ``said`` is its log's last line."""

    name: str
    count: int
    said: str


class Supervisor:
    """supervisord with its programs, while the ``with`` lasts. Files are HOME/run/ (0700) and HOME/logs/PROGRAM.log."""

    def __init__(self, home: Path, programs: Sequence[Program], environment: Mapping[str, str]) -> None:
        self._run, self._logs = home / "run", home / "logs"
        self.programs = {program.name: program for program in programs}
        self._environment = environment
        self._ended: dict[str, int] = {}
        self._deaths: dict[str, int] = {}

    def __enter__(self) -> "Supervisor":
        for folder in (self._run, self._logs):
            folder.mkdir(parents=True, exist_ok=True)
        self._run.chmod(0o700)
        self.socket = self._run / "supervisor.sock"
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET:
            self.socket = Path(tempfile.mkdtemp(prefix="voxloop-")) / "supervisor.sock"
        file = self._run / "supervisord.conf"
        file.write_text(_configuration(list(self.programs.values())))
        command = [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "--configuration", str(file)]
        log = self._logs / "supervisord.log"
        paths = {"VOXLOOP_RUN": str(self._run), "VOXLOOP_SOCKET": str(self.socket)}
        paths["VOXLOOP_LOGS"] = str(self._logs).replace("%", "%%")  # supervisord expands the names of logs twice
        environment = {**self._environment, **paths}
        self._server = Server("supervisord", command, log=log, ready_url="", environment=environment)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.stop()
        if self.socket.parent != self._run:
            with suppress(OSError):
                self.socket.unlink(missing_ok=True)
                self.socket.parent.rmdir()

    def start(self, name: str) -> None:
        """Start a program that waited for it."""
        with _asked(self.socket) as supervisor, suppress(xmlrpc.client.Fault):  # it runs already
            supervisor.startProcess(f"{_GROUP}:{name}", False)

    def deaths(self) -> list[Death]:
        """Programs that ended since this was last asked; FrontDoorError where supervisord itself did."""
        if not self._server.running():
            raise FrontDoorError(f"supervisord ended: {last_line(self._server.log)}", about=str(self._server.log))
        found = []
        for state in states(self.socket):
            if state.ended > self._ended.get(state.name, 0):
                self._ended[state.name] = state.ended
                self._deaths[state.name] = self._deaths.get(state.name, 0) + 1
                found.append(Death(state.name, self._deaths[state.name], last_line(self._logs / f"{state.name}.log")))
            elif state.state == "RUNNING":
                self._deaths[state.name] = 0
        return found

    def wait_ready(self, name: str, timeout: float = 240.0) -> None:
        """Return once a program answers; FrontDoorError with its last words where it does not start, or is slow."""
        deadline = time.monotonic() + timeout
        log = str(self._logs / f"{name}.log")
        while not answers(self.programs[name].ready_url):
            for death in self.deaths():
                if death.name == name and death.count >= HOPELESS:
                    raise FrontDoorError(f"{name} does not start: {death.said}", about=log)
            if time.monotonic() > deadline:
                raise FrontDoorError(f"{name} did not answer within {timeout:.0f} s", about=log)
            time.sleep(0.2)


def states(socket: Path) -> list[State]:
    """The programs of the supervisord that listens on ``socket``; none where it does not (yet, or no more)."""
    try:
        with _asked(socket) as supervisor:
            told: list[dict[str, Any]] = supervisor.getAllProcessInfo()
    except _DOWN:
        return []
    return [State(one["name"], one["statename"], one["pid"], one["start"], one["stop"]) for one in told]


@contextmanager
def _asked(socket: Path) -> Iterator[Any]:
    transport = SupervisorTransport(None, None, f"unix://{socket}")
    try:
        yield xmlrpc.client.ServerProxy("http://localhost", transport=transport).supervisor
    finally:
        if transport.connection and transport.connection.sock:
            transport.connection.sock.close()
        transport.close()


def _configuration(programs: Sequence[Program]) -> str:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    head = _CONFIGURATION.format(
        files=min(4096, most) if most != resource.RLIM_INFINITY else 4096,
        user="user=root" if os.getuid() == 0 else "",  # else supervisord warns that it runs as root
        group=_GROUP,
        names=",".join(program.name for program in programs),
    )
    return head + "".join(_section(program) for program in programs)


def _section(program: Program) -> str:
    """``;`` and ``#`` after a space begin a comment, quoted or not: another quote is put between."""
    command = shlex.join(program.command).replace("%", "%%").replace(" ;", " '';").replace(" #", " ''#")
    environment = ",".join(f'{name}="{value}"' for name, value in (program.environment or {}).items())
    autostart = str(program.starts).lower()
    return _PROGRAM.format(
        name=program.name, command=command, autostart=autostart, settled=SETTLED_S, stop=STOP_S, environment=environment
    )
