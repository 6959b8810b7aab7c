"""Published weights come once their licence is accepted, whole and as pinned, however the connection behaves."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from training.download import fetch
from training.errors import TrainingError

BODY = os.urandom(3 << 20)
SHA256 = hashlib.sha256(BODY).hexdigest()
WRONG = hashlib.sha256(b"another").hexdigest()
ETAGS = {"/model.pt": '"one"', "/changed.pt": '"two"', "/plain.pt": ""}


class Handler(BaseHTTPRequestHandler):
    """Serves BODY under the names of ETAGS, with ranges (the last without), and breaks off as the server says."""

    server: "Server"

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        etag = ETAGS.get(self.path)
        if etag is None:
            self.send_error(404)
            return
        same = etag and self.headers.get("If-Range", etag) == etag
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and same else 0
        if start >= len(BODY):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(BODY)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(BODY) - start))
        if etag:
            self.send_header("ETag", etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.end_headers()
        self.wfile.write(BODY[start : start + self.server.at_most])

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """``at_most`` bytes are sent before the connection ends; ``asked`` keeps the Range headers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.at_most = len(BODY)
        self.asked: list[str | None] = []

    def url(self, name: str = "model.pt") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as started:
        thread = threading.Thread(target=started.serve_forever)
        thread.start()
        yield started
        started.shutdown()
        thread.join()


def interrupted(server: Server, target: Path, name: str = "model.pt") -> None:
    server.at_most = 1 << 20
    with pytest.raises(TrainingError, match=r"ended at 1048576 of 3145728 bytes.*run it again"):
        fetch(server.url(name), target)
    server.at_most = len(BODY)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_and_its_progress_told(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    fetch(server.url(), tmp_path / "model.pt", sha256=SHA256, size=len(BODY), progress=lambda *at: told.append(at))
    assert (tmp_path / "model.pt").read_bytes() == BODY
    assert names(tmp_path) == ["model.pt"]
    assert told[-1] == (len(BODY), len(BODY)) and len(told) > 2


def test_an_interrupted_download_goes_on(server: Server, tmp_path: Path) -> None:
    interrupted(server, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()
    fetch(server.url(), tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == BODY
    assert server.asked == [None, "bytes=1048576-"]
    assert names(tmp_path) == ["model.pt"]


def test_a_file_that_has_changed_since_is_fetched_anew(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(server, tmp_path / "model.pt")
    (tmp_path / "model.pt.part").write_bytes(b"x" * 1000)
    monkeypatch.setitem(ETAGS, "/model.pt", '"newer"')
    fetch(server.url(), tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == BODY


def test_another_address_does_not_go_on_with_it(server: Server, tmp_path: Path) -> None:
    interrupted(server, tmp_path / "model.pt")
    fetch(server.url("changed.pt"), tmp_path / "model.pt")
    assert server.asked == [None, None]
    assert (tmp_path / "model.pt").read_bytes() == BODY


def test_a_server_without_ranges_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    interrupted(server, tmp_path / "model.pt", "plain.pt")
    fetch(server.url("plain.pt"), tmp_path / "model.pt", sha256=SHA256)
    assert (tmp_path / "model.pt").read_bytes() == BODY


def test_what_is_whole_already_is_only_checked(server: Server, tmp_path: Path) -> None:
    interrupted(server, tmp_path / "model.pt")
    (tmp_path / "model.pt.part").write_bytes(BODY)
    fetch(server.url(), tmp_path / "model.pt", sha256=SHA256)
    assert (tmp_path / "model.pt").read_bytes() == BODY


@pytest.mark.parametrize(("sha256", "size"), [(WRONG, 0), (SHA256, 17)])
def test_the_wrong_file_is_refused_and_removed(server: Server, tmp_path: Path, sha256: str, size: int) -> None:
    with pytest.raises(TrainingError, match="not the file that was expected"):
        fetch(server.url(), tmp_path / "model.pt", sha256=sha256, size=size)
    assert names(tmp_path) == []


def test_what_is_not_there_or_cannot_be_reached_says_what_to_do(server: Server, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"404.*--url"):
        fetch(server.url("gone.pt"), tmp_path / "model.pt")
    with pytest.raises(TrainingError, match=r"no connection.*HTTPS_PROXY.*--file"):
        fetch("http://127.0.0.1:9/model.pt", tmp_path / "model.pt")
    with pytest.raises(TrainingError, match="not an HTTP address"):
        fetch(tmp_path.as_uri(), tmp_path / "model.pt")


def command(*words: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "voxloop", "weights", "vista3d", *map(str, words), "--home", str(home), "--json"]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_without_the_licence_accepted_nothing_comes(server: Server, home: Path) -> None:
    done = command("--url", server.url(), home=home)
    assert done.returncode == 1
    for word in ("NVIDIA License (NCLS v1)", "https://", "not commercially", "--accept-license"):
        assert word in done.stderr
    assert json.loads(done.stdout)["error"]["remedy"].endswith("--accept-license")
    assert server.asked == [] and not (home / "weights").exists()


def test_with_it_they_come_and_who_accepted_is_kept(server: Server, home: Path) -> None:
    words = ("--accept-license", "--url", server.url(), "--sha256", SHA256)
    done = command(*words, home=home)
    folder = home / "weights/vista3d"
    assert json.loads(done.stdout) == {
        "path": str(folder / "model.pt"),
        "sha256": SHA256,
        "size": len(BODY),
        "licence": "NVIDIA License (NCLS v1)",
    }
    assert (folder / "model.pt").read_bytes() == BODY
    accepted = (folder / "licence.json").read_text()
    assert json.loads(accepted)["accepted_by"] and json.loads(accepted)["accepted_at"]
    assert command(*words, home=home).returncode == 0
    assert len(server.asked) == 1
    assert (folder / "licence.json").read_text() == accepted


def test_a_file_that_was_carried_in(home: Path, tmp_path: Path) -> None:
    carried = tmp_path / "carried.pt"
    carried.write_bytes(BODY)
    done = command("--accept-license", "--file", carried, home=home)
    assert done.returncode == 1 and "3145728 bytes instead of 871970895" in done.stderr
    assert not (home / "weights/vista3d/model.pt").exists() and carried.exists()
    assert command("--accept-license", "--file", carried, "--sha256", SHA256, home=home).returncode == 0
    assert (home / "weights/vista3d/model.pt").read_bytes() == BODY
