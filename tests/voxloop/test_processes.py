"""A server that a command started ends with it, however it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from voxloop.errors import FrontDoorError
from voxloop.processes import LOOPBACK, Server, free_port

PARENT = """
import sys, time
from pathlib import Path
from voxloop.processes import LOOPBACK, Server
port = int(sys.argv[1])
server = Server("web", [sys.executable, "-m", "http.server", str(port), "--bind", LOOPBACK],
                log=Path(sys.argv[2]), ready_url=f"http://{LOOPBACK}:{port}/")
server.wait_ready()
print("ready", flush=True)
time.sleep(600)
"""


def web(port: int, log: Path) -> Server:
    command = [sys.executable, "-m", "http.server", str(port), "--bind", LOOPBACK]
    return Server("web", command, log=log, ready_url=f"http://{LOOPBACK}:{port}/")


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def gone(port: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while listening(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_stop_ends_the_server_and_all_it_started(tmp_path: Path) -> None:
    port = free_port()
    with web(port, tmp_path / "log") as server:
        server.wait_ready()
        assert listening(port)
    assert not listening(port)


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_parent_leaves_no_server_behind(tmp_path: Path, death: signal.Signals) -> None:
    port = free_port()
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(port), str(tmp_path / "log")], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == b"ready\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    os.kill(parent.pid, death)
    parent.wait()
    assert gone(port)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    server = Server(
        "broken",
        [sys.executable, "-c", "raise SystemExit('no such thing')"],
        log=tmp_path / "log",
        ready_url="http://127.0.0.1:9/",
    )
    with server, pytest.raises(FrontDoorError, match="no such thing"):
        server.wait_ready()


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        with pytest.raises(FrontDoorError, match=str(taken.getsockname()[1])):
            free_port(taken.getsockname()[1])
