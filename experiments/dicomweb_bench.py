"""`voxloop bench frames` and `metadata`: DICOMweb as many clients at once meet it, in a process of its own.

Frames are measured against nginx with the same bytes in files; a series' metadata against pydicom reading each file anew.
"""

import asyncio
import gzip
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pydicom

from catalog import Archive
from experiments.baselines.nginx import Answer, serving
from experiments.bench import BenchResult, compare
from experiments.ct_corpus import SLICES, ct_corpus
from experiments.errors import ExperimentError

__all__ = ["frames", "metadata", "served"]

CLIENTS = 16
REQUESTS = 2000  # of a run, all clients together
SIDE = 512  # pixels: frames of 512 KiB
ACCEPT = "application/octet-stream"


def frames(folder: Path, *, n: int = 200, rounds: int = 5) -> BenchResult:
    """``n`` frames of SIDE² 16-bit pixels, each asked for again and again by CLIENTS clients over connections that stay.

    ``ratio`` is of nginx's throughput for the same bytes; ``p50_ms`` and ``p99_ms`` are of a request to ours.
    """
    archive = _archive(folder, n, SIDE)
    with served(archive) as address, tempfile.TemporaryDirectory() as scratch, httpx.Client(base_url=address) as client:
        found = client.get("/dicomweb/instances", params={"limit": n}).json()
        paths = [urlsplit(one["00081190"]["Value"][0]).path + "/frames/1" for one in found]
        answers = []
        for path in paths:
            reply = client.get(path, headers={"Accept": ACCEPT})
            answers.append(Answer(path, reply.content, reply.headers["content-type"]))
        with serving(answers, Path(scratch)) as static:
            times: list[float] = []
            ours, theirs = (partial(_load, base, paths) for base in (address, static))
            result = compare("frames", lambda: times.extend(ours()), theirs, n=n, rounds=rounds)
    return _told(result, times[REQUESTS:], clients=CLIENTS, requests_per_s=REQUESTS / result.ours)


def metadata(folder: Path, *, n: int = 1000, rounds: int = 5) -> BenchResult:
    """A series of ``n`` instances whose headers are a scanner's: its metadata, gzipped, which the server has not at hand.

    It keeps what it answered by the address that the client knows it by: each request here knows it by another.
    """
    archive = _archive(folder, n, 16, slices=n)
    with served(archive) as address, httpx.Client(base_url=address, timeout=60) as client:
        (series,) = {one["00081190"]["Value"][0] for one in client.get("/dicomweb/series").json()}
        path, times, asked = urlsplit(series).path + "/metadata", list[float](), iter(range(1, 1 << 30))

        def ours() -> None:
            started = time.perf_counter()
            reply = client.get(path, headers={"Host": f"localhost:{next(asked)}"})
            times.append((time.perf_counter() - started) * 1000)
            assert len(reply.json()) == n, reply.text[:200]

        files = archive.series_files(series.rsplit("/", 1)[1])
        result = compare("metadata", ours, partial(_by_pydicom, files), n=n, rounds=rounds)
        client.get(path)
        started = time.perf_counter()
        client.get(path)
        again = (time.perf_counter() - started) * 1000
    return _told(result, times[1:], again_ms=again)


def _told(result: BenchResult, times: Sequence[float], **more: float) -> BenchResult:
    p50, p99 = np.percentile(times, [50, 99])
    figures = {**result.figures, "p50_ms": float(p50), "p99_ms": float(p99), "mean_ms": statistics.fmean(times), **more}
    return replace(result, figures=figures)


def _archive(folder: Path, n: int, pixels: int, *, slices: int = SLICES) -> Archive:
    """A home with ``n`` CT instances, made and catalogued where they are not yet."""
    archive = Archive(folder / f"{n}-{pixels}")
    files = archive.volume_folder / "imported"
    if archive.objects.version() < 0:
        shutil.rmtree(files, ignore_errors=True)
        ct_corpus(files, n, pixels=pixels, slices=slices)
        archive.adopt(sorted(path for path in files.rglob("*") if path.is_file()), writer="bench")
    return archive


def _by_pydicom(files: Sequence[str]) -> bytes:
    """The obvious way."""
    found = []
    for file in files:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        found.append(header.to_json_dict(bulk_data_threshold=1 << 14, bulk_data_element_handler=lambda element: "x"))
    return gzip.compress(json.dumps(found).encode())


@contextmanager
def served(archive: Archive) -> Iterator[str]:
    """The address of the whole web server on ``archive``, in the process that `voxloop up` starts."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "voxloop.web", "--host", "127.0.0.1", "--port", str(port)]
    settings = {"HOME": str(archive.home), "INDEX_URL": archive.index_url or "", "TRACKING_URI": "", "TOKEN": ""}
    told = {**os.environ, **{f"VOXLOOP_{name}": value for name, value in settings.items()}}
    with subprocess.Popen(command, env=told) as process:
        try:
            _await(process, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _await(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise ExperimentError("the web server does not answer", about=f"port {port}")


def _load(address: str, paths: Sequence[str]) -> list[float]:
    """REQUESTS requests by CLIENTS clients; milliseconds of each."""
    import uvloop

    return uvloop.run(_clients(urlsplit(address).port or 80, paths))


async def _clients(port: int, paths: Sequence[str]) -> list[float]:
    turns = [list(range(client, REQUESTS, CLIENTS)) for client in range(CLIENTS)]
    found = await asyncio.gather(*(_client(port, [paths[turn % len(paths)] for turn in turn_of]) for turn_of in turns))
    return [one for times in found for one in times]


async def _client(port: int, paths: Sequence[str]) -> list[float]:
    loop, times = asyncio.get_running_loop(), list[float]()
    transport, protocol = await loop.create_connection(_Reader, "127.0.0.1", port)
    for path in paths:
        started = time.perf_counter()
        protocol.done = loop.create_future()
        transport.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: {ACCEPT}\r\n\r\n".encode())
        await protocol.done
        times.append((time.perf_counter() - started) * 1000)
    transport.close()
    return times


class _Reader(asyncio.BufferedProtocol):
    """Counts an answer's bytes off as they come, into one buffer: the client is to cost as little as it can."""

    def __init__(self) -> None:
        self.buffer = bytearray(1 << 20)
        self.left = -1
        self.head = b""
        self.done: asyncio.Future[None]

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where the next bytes go."""
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So many came."""
        if self.left < 0:
            self.head += self.buffer[:nbytes]
            head, found, body = self.head.partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self.done.set_exception(RuntimeError(head.decode(errors="replace")))
                return
            (length,) = (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            self.left, self.head, nbytes = length, b"", len(body)
        self.left -= nbytes
        if self.left == 0:
            self.left = -1
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer that broke off."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the connection ended within an answer"))
