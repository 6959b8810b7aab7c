"""The web server as a browser, another client, and somebody who means harm meet it: a real one, in a process of its own."""

import asyncio
import base64
import contextlib
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import psutil
import pytest
import uvicorn
from dicomweb_client import DICOMwebClient
from mlflow import MlflowClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from catalog import uploads
from serving.registry import ALIAS, PROMOTED
from voxloop import uploads as uploading
from voxloop.access import Access, Rules, loopback
from voxloop.errors import FrontDoorError
from voxloop.login import LONGEST
from voxloop.processes import bound
from voxloop.protocol import BoundedProtocol
from voxloop.settings import Settings
from voxloop.tracking import tracking_server, without_password

pytestmark = pytest.mark.slow

TOKEN = "correct-horse-battery-staple"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PAGE = {"Accept": "text/html,*/*", "Sec-Fetch-Mode": "navigate"}


def raw(port: int, request: bytes) -> bytes:
    """What the server answers to bytes that no client library would send; it may close before it has read them all, and what
    then is on its way is answered by a reset."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(request)
        while part := connection.recv(65536):
            answer += part
    return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def at(port: int, path: str, *lines: str) -> bytes:
    head = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close", *lines]
    return raw(port, ("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))


# The viewer


def test_the_page_is_asked_for_again_and_its_script_is_kept(web: Any, viewer: Path) -> None:
    page = web.get("/", **PAGE)
    assert page.status_code == 200 and "<title>Viewer</title>" in page.text
    assert page.headers["cache-control"] == "no-cache" and page.headers["content-encoding"] == "gzip"
    again = web.get("/", If_None_Match=page.headers["etag"])
    assert again.status_code == 304
    assert again.headers["content-security-policy"] == page.headers["content-security-policy"], "a reload lives by this one"
    script = web.get("/app.bundle.0123456789abcdef0123.js")
    assert script.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert "immutable" not in web.get("/app.bundle.css").headers["cache-control"]


def test_a_file_is_sent_compressed_to_who_takes_it_and_is_the_same(web: Any, viewer: Path) -> None:
    whole = (viewer / "app.bundle.css").read_bytes()
    plain = web.get("/app.bundle.css", Accept_Encoding="identity")
    packed = web.get("/app.bundle.css", Accept_Encoding="gzip")
    assert plain.content == packed.content == whole == gzip.decompress((viewer / "app.bundle.css.gz").read_bytes())
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) == len(whole)
    assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
    assert plain.headers["etag"] != packed.headers["etag"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/app.bundle.0123456789abcdef0123.js", "text/javascript"),
        ("/assets/worker.mjs", "text/javascript"),
        ("/0123456789abcdef0123.wasm", "application/wasm"),
        ("/app.bundle.css", "text/css"),
        ("/app-config.js", "text/javascript"),
        ("/init-service-worker.js", "text/javascript"),
        ("/plugins/app-config.js", "text/javascript"),
    ],
)
def test_types_are_those_a_browser_insists_on(web: Any, path: str, kind: str) -> None:
    answer = web.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_only_who_navigates_gets_the_page_for_another_path(web: Any) -> None:
    assert "<title>Viewer</title>" in web.get("/viewer?StudyInstanceUIDs=1.2.3", **PAGE).text
    assert web.get("/viewer").status_code == 404
    assert web.get("/viewer", Accept="text/html", Sec_Fetch_Mode="cors").status_code == 404
    assert web.get("/gone.js", **PAGE).status_code == 404
    assert httpx.post(web.url + "/viewer", headers=PAGE).status_code == 405


def test_without_the_build_all_else_answers_and_the_page_says_what_to_do(start: Callable[..., Any]) -> None:
    bare = start()
    page = bare.get("/", **PAGE)
    assert page.status_code == 503 and "make viewer" in page.text
    assert bare.get("/app.js").status_code == 404
    assert bare.get("/healthz").json() == {"status": "ok"}
    assert bare.get("/plugins/app-config.js").status_code == 200


TRAVERSALS = [
    "/../../../../etc/passwd",
    "/..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/plugins/../../../../../etc/passwd",
    "/plugins/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/plugins/..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/plugins//etc/passwd",
    "/plugins/%2fetc%2fpasswd",
    "/plugins/..%5c..%5cetc%5cpasswd",
    "/plugins/%00",
    "/plugins/../__init__.py",
    "/.pin",
    "/" + "a" * 5000,
    "/%ff%fe",
]


@pytest.mark.parametrize("path", TRAVERSALS, ids=lambda path: path[:40])
def test_no_path_leads_out_of_the_folders(web: Any, path: str) -> None:
    answer = at(web.port, path)
    assert status(answer) == 404
    assert b"root:" not in answer


def test_the_policy_lets_the_pages_own_scripts_run_and_no_others(web: Any) -> None:
    policy = web.get("/").headers["content-security-policy"]
    assert "'sha256-" in policy and "frame-ancestors 'self'" in policy
    script_src = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert "'unsafe-inline'" not in script_src and "*" not in policy
    assert "'unsafe-eval'" in script_src  # the build reads segmentations with functions made of text
    assert "'unsafe-eval'" in web.get("/app.bundle.0123456789abcdef0123.js").headers["content-security-policy"]  # in workers
    assert "'unsafe-eval'" not in web.get("/login").headers["content-security-policy"]
    assert "access-control-allow-origin" not in web.get("/", Origin="https://evil.example").headers


def test_it_starts_without_what_trains() -> None:
    code = "import sys, voxloop.web; print({'torch', 'mlflow', 'pyspark', 'monai'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"


# Who may ask


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:{}", 200),
        ("localhost:{}", 200),
        ("LOCALHOST:{}", 200),
        ("[::1]:{}", 200),
        ("127.0.0.1", 200),
        ("127.0.0.1:1", 200),
        ("evil.example@127.0.0.1", 421),
        ("[::1", 421),
        ("evil.example:{}", 421),
        ("127.0.0.1.evil.example:{}", 421),
        ("", 421),
    ],
)
def test_a_name_that_was_pointed_here_is_refused(web: Any, host: str, expected: int) -> None:
    line = f"Host: {host.format(web.port)}"
    assert status(raw(web.port, f"GET /app-config.js HTTP/1.1\r\n{line}\r\nConnection: close\r\n\r\n".encode())) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 415),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:{}"}, 415),
        ({"Origin": "http://127.0.0.1:{}"}, 415),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_another_sites_page_changes_nothing(web: Any, headers: dict[str, str], expected: int) -> None:
    told = {name: value.format(web.port) for name, value in headers.items()}
    assert httpx.post(f"{web.url}/api/uploads", headers=told).status_code == expected


@pytest.fixture(scope="module")
def guarded(start: Callable[..., Any]) -> Any:
    """A server with a token."""
    return start(VOXLOOP_TOKEN=TOKEN)


@pytest.mark.parametrize("path", ["/", "/app-config.js", "/api/x", "/dicomweb/studies", "/plugins/x", "/mlflow/", "/nothing"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": TOKEN},
        {"Authorization": b"Bearer \xff\xfe"},
        {"Cookie": f"voxloop={TOKEN}"},
        {"Cookie": "voxloop=99999999999.00"},
        {"Cookie": "voxloop=..."},
        {"X-Forwarded-User": "ada"},
        {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-User": "ada"},
    ],
)
def test_who_does_not_know_the_token_gets_nothing(guarded: Any, path: str, headers: dict[str, Any]) -> None:
    answer = httpx.get(guarded.url + path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "Bearer TOKEN" in answer.json()["remedy"]


def test_who_knows_it_gets_all(guarded: Any) -> None:
    assert guarded.get("/app-config.js", **BEARER).status_code == 200
    assert guarded.get("/app-config.js", Authorization=f"bearer  {TOKEN}").status_code == 200
    assert guarded.get("/healthz").status_code == 200


def test_a_browser_signs_in_and_stays_for_some_hours(guarded: Any) -> None:
    with httpx.Client(base_url=guarded.url) as browser:
        sent = browser.get("/viewer?StudyInstanceUIDs=1.2&x=a%26b", headers=PAGE)
        assert sent.status_code == 303
        login = browser.get(sent.headers["location"])
        assert login.status_code == 200 and 'value="/viewer?StudyInstanceUIDs=1.2&amp;x=a%26b"' in login.text
        wrong = browser.post("/login", data={"token": "wrong", "next": "/"})
        assert wrong.status_code == 401 and "not the token" in wrong.text and not browser.cookies
        right = browser.post("/login", data={"token": TOKEN, "next": "/viewer?StudyInstanceUIDs=1.2"})
        assert (right.status_code, right.headers["location"]) == (303, "/viewer?StudyInstanceUIDs=1.2")
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie and TOKEN not in cookie
        assert browser.get("/app-config.js").status_code == 200
        expires, _, signed = browser.cookies["voxloop"].partition(".")
        known = browser.get("/login?next=/viewer?a=b")
        assert (known.status_code, known.headers["location"]) == (303, "/viewer?a=b"), "who is signed in is not asked again"
        out = browser.get("/logout")
        assert (out.status_code, out.headers["location"], dict(browser.cookies)) == (303, "/login", {})
        assert browser.get("/login").status_code == 200
    assert guarded.get("/app-config.js", Cookie=f"voxloop={int(expires) + 1}.{signed}").status_code == 401


@pytest.mark.parametrize("to", ["//evil.example", "https://evil.example", "/\\evil.example", "", "/a\r\nSet-Cookie: b=c"])
def test_signing_in_leads_nowhere_else(guarded: Any, to: str) -> None:
    answer = httpx.post(f"{guarded.url}/login", data={"token": TOKEN, "next": to})
    assert answer.headers["location"] == "/"


def test_a_form_that_is_too_long_is_refused(guarded: Any) -> None:
    assert httpx.post(f"{guarded.url}/login", content=b"token=" + b"a" * LONGEST).status_code == 413


def test_the_token_is_in_no_log_and_on_no_command_line(guarded: Any) -> None:
    assert guarded.get("/app-config.js", **BEARER).status_code == 200
    assert TOKEN not in guarded.log.read_text()
    assert not [process for process in psutil.process_iter(["cmdline"]) if TOKEN in " ".join(process.info["cmdline"] or [])]


@contextmanager
def behind() -> Iterator[tuple[str, list[tuple[str, dict[str, str], bytes]]]]:
    """A server of this machine that tells what it was asked."""
    asked: list[tuple[str, dict[str, str], bytes]] = []

    class Told(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(418, "teapot")
            self.send_header("X-Seen", "yes")
            self.end_headers()
            self.wfile.write(b"behind")

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Told) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_mlflow_and_the_endpoint_are_reached_under_the_one_address(start: Callable[..., Any]) -> None:
    with behind() as (address, asked):
        web = start("--endpoint", address, VOXLOOP_TRACKING_URI=address, VOXLOOP_TOKEN=TOKEN)
        cookie = {"Cookie": "a=b", "Origin": web.url}
        found = httpx.post(f"{web.url}/mlflow/a%2Fb/c?d=e%20f", content=b"body", headers={**BEARER, **cookie, "X-Kept": "1"})
        assert (found.status_code, found.text, found.headers["x-seen"]) == (418, "behind", "yes")
        web.get("/endpoint/ping", **BEARER)
    (path, headers, body), (ping, _, _) = asked
    assert (path, body, ping) == ("/a%2Fb/c?d=e%20f", b"body", "/ping")
    assert headers["via"].endswith("1.1 voxloop")
    assert headers["x-kept"] == "1" and not {"authorization", "cookie", "origin"} & headers.keys()
    gone = web.get("/mlflow/", **BEARER)
    assert gone.status_code == 502 and "MLflow" in gone.json()["title"]
    assert "first champion" in web.get("/endpoint/ping", **BEARER).text
    assert web.get("/mlflow", **BEARER).headers["location"] == "/mlflow/"


def test_mlflows_password_is_sent_to_it_and_shown_to_nobody(start: Callable[..., Any]) -> None:
    with behind() as (address, asked):
        web = start(VOXLOOP_TRACKING_URI=address.replace("://", "://me:s3cret%21@"))
        assert web.get("/mlflow/version").status_code == 418
        assert b"s3cret" not in at(web.port, "/mlflow/x@evil.example/")
    assert asked[0][1]["authorization"] == "Basic " + base64.b64encode(b"me:s3cret!").decode()
    assert not [one for one in psutil.process_iter(["cmdline"]) if "s3cret" in " ".join(one.info["cmdline"] or [])]
    assert "s3cret" not in web.log.read_text()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:s3cret@mlflow.example.org:8080/a@b", "http://mlflow.example.org:8080/a@b"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("databricks", "databricks"),
    ],
)
def test_what_is_shown_of_an_address_holds_no_password(uri: str, shown: str) -> None:
    assert without_password(uri) == shown


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_dicomweb_client_is_let_in_though_it_names_no_port(web: Any, name: str) -> None:
    client = DICOMwebClient(f"http://{name}:{web.port}/dicomweb")
    assert client.search_for_studies() == []


def test_links_name_the_public_address_also_behind_a_proxy_that_leaves_the_port_out() -> None:
    rules = Rules.of(Settings(token=TOKEN, viewer_url="https://voxloop.example.org:8443"), "127.0.0.1", 5002)
    told = {host: asked_as(rules, host) for host in ("voxloop.example.org", "voxloop.example.org:8443", "localhost:5002")}
    public = "https://voxloop.example.org:8443/"
    assert told == {
        "voxloop.example.org": public,
        "voxloop.example.org:8443": public,
        "localhost:5002": "http://localhost:5002/",
    }


def asked_as(rules: Rules, host: str) -> str:
    """How a page behind Access sees its own address when it is asked for at ``host``."""

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await Response(str(Request(scope).base_url))(scope, receive, send)

    async def ask() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Access(page, rules)), base_url=f"http://{host}") as client:
            return (await client.get("/", headers=BEARER)).text

    return asyncio.run(ask())


def test_a_trusted_proxy_is_known_also_to_a_server_on_every_address() -> None:
    rules = Rules.of(Settings(trusted_proxy="10.0.0.5"), "::", 5002)
    assert rules.trusts("::ffff:10.0.0.5") and not rules.trusts("::ffff:10.0.0.6")


PROJECT = """
key: t
cohort: select SeriesInstanceUID, StudyInstanceUID, PatientID from series
label_set: {name: t, structures: [{name: lesion, value: 1, code: [SCT, "52988006", Lesion], color: [200, 80, 60]}]}
model: t
"""


def test_the_champion_is_asked_of_mlflow_and_a_reader_does_not_wait_for_one_that_is_down(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "t.yaml").write_text(PROJECT)

    def compared(web: Any) -> tuple[str | None, str]:
        told = httpx.get(f"{web.url}/api/projects/t/compare?series=1.2.3", timeout=60).json()  # at first it imports the client
        return told["champion"], told["unknown"]

    with tracking_server(Settings(home=tmp_path)) as uri:
        web = start("--project", str(tmp_path / "t.yaml"), VOXLOOP_TRACKING_URI=uri)
        client = MlflowClient(uri, uri)
        client.create_registered_model("t")
        client.create_model_version("t", "s3://nowhere/model")
        assert compared(web) == (None, "t has no champion yet")
        client.set_registered_model_alias("t", ALIAS, "1")
        assert compared(web) == (None, "alias champion was moved by hand to version 1, which was never promoted")
        client.set_model_version_tag("t", "1", PROMOTED, "now")
        assert compared(web) == ("1", "")
        port = int(uri.rsplit(":", 1)[1])
    with socket.create_server(("127.0.0.1", port)):  # takes connections and says nothing
        assert compared(web) == (None, "MLflow does not answer")
    assert compared(web) == (None, "MLflow does not answer")


def test_project_files_are_followed_and_a_broken_one_is_told_of(start: Callable[..., Any]) -> None:
    web = start()
    assert web.get("/api/projects").json() == {"author": "", "projects": [], "misread": []}
    (web.home / "projects").mkdir()
    (web.home / "projects" / "t.yaml").write_text(PROJECT)
    assert web.get("/api/projects/t").json()["model"] == "t"
    (web.home / "projects" / "broken.yaml").write_text("key: [")
    told = web.get("/api/projects").json()
    assert [one["key"] for one in told["projects"]] == ["t"]
    (misread,) = told["misread"]
    assert misread["file"] == "broken.yaml" and misread["problem"].startswith("not YAML")
    assert misread["remedy"] == "mend the project file"
    assert "there are t" in web.get("/api/projects/other").json()["detail"]


def test_a_trusted_proxy_says_who_asks(start: Callable[..., Any]) -> None:
    web = start(VOXLOOP_TRUSTED_PROXY="10.0.0.0/8, 127.0.0.1", VOXLOOP_VIEWER_URL="https://voxloop.example.org")
    assert web.get("/app-config.js").status_code == 401
    assert web.get("/app-config.js", X_Forwarded_User="").status_code == 401
    assert web.get("/app-config.js", X_Forwarded_User="ada").status_code == 200
    assert web.get("/app-config.js", X_Forwarded_User="ada", Host="voxloop.example.org").status_code == 200
    assert web.get("/app-config.js", X_Forwarded_User="ada", Host="other.example.org").status_code == 421
    far = start(VOXLOOP_TRUSTED_PROXY="10.0.0.0/8")
    assert far.get("/app-config.js", X_Forwarded_User="ada").status_code == 401


def test_the_author_is_who_the_proxy_names() -> None:
    async def told(request: Request) -> Response:
        return JSONResponse([request.scope.get("voxloop.author", ""), str(request.base_url)])

    settings = Settings(trusted_proxy="10.1.2.3", viewer_url="https://voxloop.example.org", identity_header="Remote-User")
    rules = Rules.of(settings, "0.0.0.0", 5002)
    app = Starlette(routes=[Route("/", told)], middleware=[Middleware(Access, rules=rules)])

    async def asks(address: str) -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://voxloop.example.org") as client:
            return await client.get("/", headers={"Remote-User": "ada"})

    assert asyncio.run(asks("10.1.2.3")).json() == ["ada", "https://voxloop.example.org/"]
    assert asyncio.run(asks("10.1.2.4")).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "localhost.example.org"])
def test_beyond_loopback_nobody_listens_without_asking_who_comes(host: str) -> None:
    with pytest.raises(FrontDoorError, match="VOXLOOP_TOKEN"):
        Rules.of(Settings(), host, 5002)
    assert Rules.of(Settings(token=TOKEN), host, 5002).asks
    assert not loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_token(host: str) -> None:
    assert not Rules.of(Settings(), host, 5002).asks


# Uploads


def test_others_are_answered_while_an_upload_is_synced_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    monkeypatch.setattr(os, "fsync", lambda _: threads.append(threading.current_thread()))

    async def upload() -> httpx.Response:
        transport = httpx.ASGITransport(Starlette(routes=uploading.routes(tmp_path)))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.post("/api/uploads", files={"file": ("scan.nii.gz", nifti(tmp_path).read_bytes())})

    assert asyncio.run(upload()).status_code == 201
    assert threads and threading.main_thread() not in threads


def nifti(folder: Path, name: str = "scan.nii.gz", size: int = 4) -> Path:
    path = folder / name
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 99, (size,) * 3).astype(np.int16), np.eye(4)), path)
    return path


def files(home: Path) -> list[Path]:
    folder = uploads.folder(home)
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "../../SCAN.NII.GZ"])
def test_an_upload_is_there_whole_under_a_name_that_nobody_guesses(web: Any, tmp_path: Path, name: str) -> None:
    path = nifti(tmp_path, "scan.nii.gz" if name.lower().endswith("gz") else "scan.nii", 96)
    form = {"file": (name, path.read_bytes())}
    sent = httpx.post(f"{web.url}/api/uploads", data={"note": "x"}, files=form)
    assert sent.status_code == 201
    told = sent.json()
    assert told["name"].endswith(path.name.removeprefix("scan")) and told["name"] != name
    assert Path(uploads.find(web.home, told["name"])).read_bytes() == path.read_bytes()
    again = httpx.post(f"{web.url}/api/uploads", files=form).json()
    assert again["name"] != told["name"] and again["expires"] >= told["expires"]


FORM = "multipart/form-data; boundary=b"
GOOD = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_bytes()


def part(filename: str, body: bytes, end: bytes = b"\r\n--b--\r\n") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="f"; filename="{filename}"\r\n\r\n'.encode() + body + end


@pytest.mark.parametrize(
    ("kind", "body", "expected", "word"),
    [
        ("application/json", b"{}", 415, "multipart"),
        ("multipart/form-data", b"", 415, "multipart"),
        ("multipart/form-data; boundary=" + "b" * 1000, b"", 400, "oundary"),
        (FORM, b"", 415, "not a kind"),
        (FORM, b"garbage" * 1000, 400, "cannot be read"),
        (FORM, part("a.dcm", GOOD), 415, "a.dcm"),
        (FORM, part("a.nii.gz", GOOD), 415, "no .nii.gz"),
        (FORM, part("a.zip", GOOD), 415, "no .zip"),
        (FORM, part("a.nii", b""), 415, "no .nii"),
        (FORM, part("a.nii", GOOD, end=b""), 400, "whole"),
        (FORM, part("a.nii", GOOD, end=b"\r\n") + part("b.nii", GOOD), 400, "one file"),
        (FORM, b"--b\r\n" + b"X: y\r\n" * 5000 + b"\r\n", 400, "cannot be read"),
        (FORM, b"--b\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", 400, "cannot be read"),
        (FORM, b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nx\r\n--b--\r\n', 415, "not a kind"),
    ],
)
def test_what_is_no_upload_leaves_no_file(web: Any, kind: str, body: bytes, expected: int, word: str) -> None:
    before = files(web.home)
    answer = httpx.post(f"{web.url}/api/uploads", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, word in answer.json()["detail"]) == (expected, True), answer.text
    assert files(web.home) == before


def test_a_client_that_breaks_off_leaves_no_file(web: Any) -> None:
    before = files(web.home)
    body = part("a.nii", GOOD * 1000, end=b"")
    head = (
        f"POST /api/uploads HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\nContent-Type: {FORM}\r\nContent-Length: 99999999\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", web.port)) as connection:
        connection.sendall(head.encode() + body)
    assert gone(lambda: files(web.home) == before)


def gone(condition: Callable[[], bool], seconds: float = 20) -> bool:
    pause, tries = threading.Event(), int(seconds / 0.1)
    return any(condition() or pause.wait(0.1) for _ in range(tries))


CAPPED = """
import sys
from pathlib import Path
from voxloop.access import Rules
from voxloop.processes import bound
from voxloop.settings import Settings
from voxloop.tracking import tracking_server
from voxloop.web import application, serve
settings, port = Settings(home=Path(sys.argv[1])), int(sys.argv[2])
with bound("127.0.0.1", port) as listening:
    serve(settings, listening, application(settings, Rules.of(settings, "127.0.0.1", port), largest_upload=3_000_000))
"""


def test_an_upload_over_the_cap_is_refused_and_removed(tmp_path: Path) -> None:
    from voxloop.processes import Server, free_port

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", CAPPED, str(tmp_path), str(port)]
    with Server("web", command, log=tmp_path / "log", ready_url=f"{url}/healthz") as server:
        server.wait_ready()
        form = {"file": ("big.nii", GOOD + bytes(3_000_001 - len(GOOD)))}
        assert httpx.post(f"{url}/api/uploads", files={"file": ("fits.nii", GOOD + bytes(2_000_000))}).status_code == 201
        assert httpx.post(f"{url}/api/uploads", files=form).status_code == 413
        unsaid = part("big.nii", GOOD + bytes(20_000_000))
        chunks = (unsaid[start : start + 100_000] for start in range(0, len(unsaid), 100_000))
        try:
            refused = httpx.post(f"{url}/api/uploads", content=chunks, headers={"Content-Type": FORM})
            assert refused.status_code == 413 and "3000000" in refused.text
        except httpx.TransportError:
            pass  # the server may close while the client still sends
        head = f"POST /api/uploads HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {FORM}\r\nConnection: close\r\n"
        assert status(raw(port, f"{head}Content-Length: 9999999999\r\n\r\n".encode())) == 413
    assert [path.suffix for path in files(tmp_path)] == [".nii"]


def test_uploads_are_kept_for_a_day(tmp_path: Path) -> None:
    import os

    folder = uploads.folder(tmp_path)
    folder.mkdir(parents=True)
    old, new = (folder / uploads.new_name("a.nii") for _ in range(2))
    (folder / "unpacked" / "0").mkdir(parents=True)
    for path in (old, new):
        path.write_bytes(GOOD)
    for path in (old, folder / "unpacked"):
        os.utime(path, (1, 1))
    assert uploads.sweep(tmp_path) == 2
    assert files(tmp_path) == [new]


# Clients that mean harm, or are slow


def test_who_does_not_read_or_does_not_write_keeps_nobody_waiting(web: Any) -> None:
    begun = [socket.create_connection(("127.0.0.1", web.port)) for _ in range(50)]
    try:
        for number, connection in enumerate(begun):
            connection.sendall(f"GET /app.bundle.css HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\n".encode())
            if number % 2:
                connection.sendall(b"\r\n" * 1 + b"GET /app.bundle.css HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert web.get("/app-config.js").status_code == 200
    finally:
        for connection in begun:
            connection.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"\x00\x01\x02\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    ],
)
def test_what_is_no_request_is_answered_so(web: Any, request_: bytes) -> None:
    answer = raw(web.port, request_)
    assert answer == b"" or 400 <= status(answer) < 500
    assert web.get("/healthz").status_code == 200


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\nX: a\r\n"])
def test_a_head_without_end_is_cut_off(web: Any, begin: bytes) -> None:
    sent, more = 0, b"X: aaaa\r\n" * 1000 if begin.endswith(b"\n") else b"a" * 10_000
    with socket.create_connection(("127.0.0.1", web.port), timeout=20) as connection:
        connection.sendall(begin)
        with contextlib.suppress(ConnectionError):
            while sent < 50_000_000:
                connection.sendall(more)
                sent += len(more)
    assert sent < 10_000_000  # what the sockets' buffers take
    assert web.get("/healthz").status_code == 200


@pytest.mark.parametrize("path", ["/mlflow%2F@example.test/x", "/endpoint%2F@example.test/", "/mlflow%2f%2fexample.test/x"])
def test_only_the_server_behind_is_ever_asked(web: Any, path: str) -> None:
    assert status(at(web.port, path)) in (400, 404)


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxloop.protocol.BODY_S", 0.3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    with bound("127.0.0.1", 0) as listening:
        listening.listen()
        config = uvicorn.Config(app, http=BoundedProtocol, lifespan="off", log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            port = listening.getsockname()[1]
            head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nConnection: close\r\n\r\n"
            assert raw(port, head + b"1") == b""
            assert status(raw(port, head + b"1234567890")) == 204
        finally:
            server.should_exit = True
            thread.join()


def test_errors_are_problem_details(web: Any) -> None:
    answer = web.get("/no.js")
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.text)["status"] == 404
