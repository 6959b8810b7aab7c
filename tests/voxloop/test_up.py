"""`voxloop up` as an administrator meets it: one address, what dies comes back, and nothing outlives the command."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from voxloop.processes import free_port
from voxloop.programs import Program, Supervisor, states
from voxloop.tracking import running_server

pytestmark = pytest.mark.slow

TOKEN = "correct-horse-battery-staple"
ELSEWHERE = "http://127.0.0.1:9"
"""An MLflow that somebody else runs: none of our own is started."""

PROJECT = """
key: t
cohort: select SeriesInstanceUID, StudyInstanceUID, PatientID from series
label_set: {name: t, structures: [{name: lesion, value: 1, code: [SCT, "52988006", Lesion], color: [200, 80, 60]}]}
model: t
"""


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    pause = threading.Event()
    for _ in range(int(seconds / 0.1)):
        if condition():
            return
        pause.wait(0.1)
    raise AssertionError("too late")


def up(home: Path, *words: str, json: bool = True, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "voxloop", "up", "--home", str(home), *(["--json"] if json else []), *words]
    ports = [word for name in ("--port", "--mlflow-port", "--endpoint-port") if name not in words for word in (name, "0")]
    told = {**os.environ, "VOXLOOP_VIEWER_FOLDER": str(home / "viewer"), **environment}
    return subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=told)


@contextmanager
def running(home: Path, *words: str, **environment: str) -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    """A `voxloop up` that answers, with what it printed; it is interrupted at the end."""
    process = up(home, *words, **environment)
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, json.loads(line)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


class Words:
    """What a `voxloop up` without --json says on its standard output and error, line by line, as it says it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.lines: list[str] = []
        for stream in (process.stdout, process.stderr):
            threading.Thread(target=self._follow, args=(stream,), daemon=True).start()

    def _follow(self, stream: Any) -> None:
        with stream:
            for line in stream:
                self.lines.append(line)

    def has(self, part: str) -> bool:
        return any(part in line for line in self.lines)


def look(home: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "voxloop", "status", "--home", str(home), "--json"], capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["running"] else 3), done.stderr
    return found


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def program(process: "subprocess.Popen[str]", module: str) -> psutil.Process:
    """The child that runs ``module`` itself, not what watches over it."""
    found = [child for child in family(process) if child.cmdline()[1:3] == ["-m", module]]
    assert len(found) == 1, found
    return found[0]


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose name is not a plain one, with a project that has no champion yet."""
    home = tmp_path_factory.mktemp("up") / "a home; of 100% #1 'x'"
    (home / "projects").mkdir(parents=True)
    (home / "projects" / "t.yaml").write_text(PROJECT)
    return home


@pytest.fixture(scope="module")
def served(home: Path) -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    with running(home, VOXLOOP_TOKEN=TOKEN, VOXLOOP_INDEX_URL="") as found:
        yield found


def test_one_object_names_every_address_and_each_answers(served: Any) -> None:
    _, addresses = served
    assert set(addresses) == {"viewer", "mlflow", "endpoint", "dicomweb"}
    assert answers(addresses["viewer"] + "/healthz")
    assert answers(addresses["mlflow"] + "/health")
    assert httpx.get(addresses["viewer"] + "/app-config.js").status_code == 401
    through = httpx.get(addresses["viewer"] + "/mlflow/health", headers={"Authorization": f"Bearer {TOKEN}"})
    assert through.status_code == 200


def test_other_commands_of_the_home_find_mlflow(served: Any, home: Path) -> None:
    assert running_server(home) == served[1]["mlflow"]


def test_status_tells_what_runs(served: Any, home: Path) -> None:
    process, addresses = served
    waits, log = "waits for the first champion of t", home / "logs" / "endpoint.log"
    until(lambda: log.exists() and waits in log.read_text(), 120)
    found = look(home)
    assert (found["running"], found["pid"], found["viewer"]) == (True, process.pid, addresses["viewer"])
    told = {one["name"]: one for one in found["programs"]}
    assert set(told) == {"web", "mlflow", "endpoint"}
    assert told["web"]["answers"] and told["mlflow"]["answers"] and not told["endpoint"]["answers"]
    assert {name: one["reason"] for name, one in told.items()} == {"web": "", "mlflow": "", "endpoint": waits}
    assert all(one["pid"] > 0 and one["state"] in ("STARTING", "RUNNING") for one in told.values())


def test_a_second_one_in_the_same_home_is_refused(served: Any, home: Path) -> None:
    second = up(home)
    said = second.communicate(timeout=60)[1]
    assert second.returncode == 1 and str(served[0].pid) in said and f"open {served[1]['viewer']}" in said


def test_the_token_is_in_no_file_on_no_command_line_and_with_no_other_program(served: Any, home: Path) -> None:
    process, _ = served
    assert not [path for path in home.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not [child for child in family(process) if TOKEN in " ".join(child.cmdline())]
    assert program(process, "voxloop.web").environ()["VOXLOOP_TOKEN"] == TOKEN
    for module in ("voxloop.mlflow_entry", "voxloop.endpoint"):
        assert TOKEN not in program(process, module).environ().values()
    assert (home / "run").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("module", ["voxloop.web", "voxloop.mlflow_entry", "voxloop.endpoint"])
def test_what_is_killed_comes_back(served: Any, module: str) -> None:
    process, addresses = served
    ready = {"voxloop.web": "viewer", "voxloop.mlflow_entry": "mlflow"}.get(module)
    victim = program(process, module)
    victim.kill()
    until(lambda: not victim.is_running() and [c for c in family(process) if c.cmdline()[1:3] == ["-m", module]])
    if ready:
        until(lambda: answers(addresses[ready] + ("/healthz" if ready == "viewer" else "/health")))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Words]]:
    """A home that `voxloop up` made, with nothing in it, and what it said."""
    home = tmp_path_factory.mktemp("new") / "home"
    process = up(home, json=False, VOXLOOP_TRACKING_URI=ELSEWHERE)
    words = Words(process)
    try:
        until(lambda: words.has("no endpoint yet") or process.poll() is not None)
        yield home, words
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_an_empty_home_is_told_the_ways_on(empty: tuple[Path, Words]) -> None:
    home, words = empty
    assert words.has(f"made a new home {home}")
    assert words.has("Open http://127.0.0.1:") and not words.has("endpoint  http")
    until(lambda: words.has("Upload"))
    for part in ("docs/project.md", f"voxloop ingest DIR --home {home}", "Upload in the study list"):
        assert words.has(part), words.lines


def test_the_address_is_told_before_the_endpoint_answers(tmp_path: Path) -> None:
    """An MLflow that does not answer is asked for the champion for minutes."""
    (tmp_path / "projects").mkdir()
    (tmp_path / "projects" / "t.yaml").write_text(PROJECT)
    process = up(tmp_path, json=False, VOXLOOP_TRACKING_URI=ELSEWHERE)
    words = Words(process)
    try:
        until(lambda: words.has("Open http://127.0.0.1:") and words.has("/invocations"))
        assert not words.has("no endpoint yet") and not words.has("the endpoint of t")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert process.returncode == 0, words.lines


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_command(tmp_path: Path, death: signal.Signals) -> None:
    with running(tmp_path / "home") as (process, addresses):
        left = family(process)
        assert len(left) >= 4
        process.send_signal(death)
        process.wait(60)
        _, alive = psutil.wait_procs(left, timeout=30)
        assert alive == []
        assert not answers(addresses["viewer"] + "/healthz")
    assert process.returncode == (-signal.SIGKILL if death is signal.SIGKILL else 0)
    assert look(tmp_path / "home")["running"] is False
    assert running_server(tmp_path / "home") == ""


def test_nothing_outlives_supervisord(tmp_path: Path) -> None:
    with running(tmp_path / "home", VOXLOOP_TRACKING_URI=ELSEWHERE) as (process, _):
        left = family(process)
        program(process, "supervisor.supervisord").kill()
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 1 and "supervisord ended" in said
        _, alive = psutil.wait_procs(left, timeout=30)
        assert alive == []


@pytest.mark.parametrize("option", ["--port", "--mlflow-port", "--endpoint-port"])
def test_a_taken_port_is_named_and_nothing_is_started(tmp_path: Path, home: Path, option: str) -> None:
    (tmp_path / "home" / "projects").mkdir(parents=True)
    (tmp_path / "home" / "projects" / "t.yaml").write_text(PROJECT)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = up(tmp_path / "home", option, port)
        out, said = done.communicate(timeout=60)
    assert done.returncode == 1 and port in said and "another port" in said
    assert json.loads(out)["error"]["about"] == f"127.0.0.1:{port}"
    assert not (tmp_path / "home" / "run" / "supervisord.conf").exists()


def test_beyond_loopback_a_token_is_asked_for(tmp_path: Path) -> None:
    refused = up(tmp_path / "home", "--host", "0.0.0.0")
    said = refused.communicate(timeout=60)[1]
    assert refused.returncode == 1 and "VOXLOOP_TOKEN" in said and "openssl" in said
    short = up(tmp_path / "home", "--host", "0.0.0.0", VOXLOOP_TOKEN="short")
    said = short.communicate(timeout=60)[1]
    assert short.returncode == 1 and "VOXLOOP_TOKEN" in said and "16" in said
    with running(tmp_path / "home", "--host", "0.0.0.0", VOXLOOP_TOKEN=TOKEN, VOXLOOP_TRACKING_URI=ELSEWHERE) as (_, addresses):
        port = addresses["viewer"].rsplit(":", 1)[1]
        own = f"http://{socket.gethostbyname(socket.gethostname())}:{port}"
        assert httpx.get(own + "/app-config.js").status_code == 401
        assert httpx.get(own + "/app-config.js", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_broken_project_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "home" / "projects").mkdir(parents=True)
    (tmp_path / "home" / "projects" / "t.yaml").write_text("key: [")
    done = up(tmp_path / "home")
    said = done.communicate(timeout=60)[1]
    assert done.returncode == 1 and "t.yaml" in said and "Traceback" not in said


def test_what_dies_over_and_over_is_reported_with_its_last_words(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "raise SystemExit('the disk is on fire; 100% #1')"]
    broken = Program("broken", words, "http://127.0.0.1:9/")
    deep = tmp_path / ("a" * 60)
    with Supervisor(deep, [broken], {}) as supervisor:
        with pytest.raises(Exception, match="the disk is on fire; 100% #1"):
            supervisor.wait_ready("broken", 60)
        assert [state.name for state in states(supervisor.socket)] == ["broken"]
        assert supervisor.socket.parent != deep / "run"  # too long for a socket's name
    assert not supervisor.socket.parent.exists()


def test_mlflow_of_another_command_is_followed_at_its_address(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from voxloop.settings import Settings; from voxloop.tracking import *\n"
        "with tracking_server(Settings(home=Path(sys.argv[1]))) as uri: print(uri, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "home")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        uri = other.stdout.readline().strip()
        with running(tmp_path / "home", "--mlflow-port", str(free_port())) as (process, addresses):
            assert addresses["mlflow"] == uri
            other.stdin.close()
            other.wait(30)
            until(lambda: answers(f"{uri}/health") and running_server(tmp_path / "home") == uri)
            assert program(process, "voxloop.mlflow_entry").is_running()
