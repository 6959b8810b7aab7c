"""nginx with a file for each answer: what a program's answers are measured against."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import ExperimentError

__all__ = ["Answer", "serving"]

_CONFIG = """
{user}
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    types {{ }}
    server {{
        listen 127.0.0.1:{port} backlog=512;
        {locations}
    }}
}}
"""


@dataclass(frozen=True)
class Answer:
    """What is answered for ``path``, whatever its query: bytes with their type, and their encoding where they have one."""

    path: str
    body: bytes
    type: str
    encoding: str = ""


@contextmanager
def serving(answers: Sequence[Answer], folder: Path) -> Iterator[str]:
    """The address of an nginx that serves ``answers`` from files in ``folder``, while the ``with`` lasts.

    Raises ExperimentError where there is no nginx, or it does not start.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise ExperimentError("no nginx on this machine", about="the baseline", remedy="install it (Debian: nginx-light)")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    places = [_location(answer, folder / f"{number}.body") for number, answer in enumerate(answers)]
    user = "user root;" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(user=user, folder=folder, port=port, locations="\n        ".join(places)))
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(config), "-g", "daemon off;"], stderr=subprocess.PIPE)
    try:
        _await(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _location(answer: Answer, file: Path) -> str:
    file.write_bytes(answer.body)
    kind = answer.type.replace("\\", "\\\\").replace('"', '\\"')
    encoded = f"add_header Content-Encoding {answer.encoding};" if answer.encoding else ""
    return f'location = {answer.path} {{ alias {file}; default_type "{kind}"; {encoded} }}'


def _await(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while True:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            said = process.communicate()[1].decode(errors="replace").strip()
            raise ExperimentError(f"nginx did not start: {said[-300:]}", about="the baseline")
        time.sleep(0.05)
