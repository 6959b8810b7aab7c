"""What tests of servers share: a home's web server in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from voxloop.processes import LOOPBACK, Server, free_port


@dataclass(frozen=True)
class Web:
    """A running web server, and the home that it serves."""

    url: str
    port: int
    home: Path
    log: Path

    def get(self, path: str, **headers: str) -> httpx.Response:
        """The answer to a GET of ``path`` as it is written, with headers named by their Python names."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.get(self.url + path, headers=named, trust_env=False)


@contextmanager
def web_server(home: Path, *words: str, **environment: str) -> Iterator[Web]:
    """``python -m voxloop.web`` on a free loopback port."""
    port = free_port()
    log = home / "logs" / f"web-{port}.log"
    url = f"http://{LOOPBACK}:{port}"
    command = [sys.executable, "-m", "voxloop.web", "--host", LOOPBACK, "--port", str(port), *words]
    told = {"VOXLOOP_HOME": str(home), "VOXLOOP_VIEWER_FOLDER": str(home / "viewer"), **environment}
    with Server("web", command, log=log, ready_url=f"{url}/healthz", environment=told) as server:
        server.wait_ready(60)
        yield Web(url, port, home, log)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build in small, as set-up unpacks one: `scripts/viewer` made it from a package with the checksum of its pin."""
    return build(tmp_path_factory.mktemp("viewer"))


def build(folder: Path) -> Path:
    """Pack and unpack a viewer of a few files; where it is."""
    import base64
    import hashlib
    import shutil
    import tarfile

    root = Path(__file__).parents[2]
    (folder / "scripts").mkdir()
    script = Path(shutil.copy(root / "scripts" / "viewer", folder / "scripts" / "viewer"))
    dist = folder / "package" / "dist"
    (dist / "assets").mkdir(parents=True)
    inline = "window.PUBLIC_URL = '/';"
    (dist / "index.html").write_text(f"<!doctype html><title>Viewer</title><script>{inline}</script>" + " " * 2000)
    (dist / "app.bundle.0123456789abcdef0123.js").write_text("console.log('viewer')\n" * 200)
    (dist / "app.bundle.css").write_text("body { margin: 0 }\n" * 200)
    (dist / "0123456789abcdef0123.wasm").write_bytes(b"\0asm" + bytes(3000))
    (dist / "assets" / "worker.mjs").write_text("export default 1\n")
    (folder / "package" / "package.json").write_text("{}")
    archive = folder / "viewer.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "package", "package")
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    (folder / "viewer.lock").write_text(f"viewer 1.0.0 sha512-{digest}\n")
    environment = {**os.environ, "VOXLOOP_VIEWER_ARCHIVE": str(archive)}
    subprocess.run([sys.executable, str(script), str(folder / "env")], check=True, env=environment, capture_output=True)
    return folder / "env" / "share" / "voxloop" / "ohif"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, viewer: Path) -> Iterator[Web]:
    """The server of an empty home without a token."""
    with web_server(tmp_path_factory.mktemp("web") / "home", VOXLOOP_VIEWER_FOLDER=str(viewer)) as running:
        yield running


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Web]]:
    """Starts a server of an empty home with the settings that are given."""
    with ExitStack() as stack:
        yield lambda *words, **settings: stack.enter_context(
            web_server(tmp_path_factory.mktemp("web") / "home", *words, **settings)
        )
