"""`voxloop bench viewer`: from the address of a study to its first picture in OHIF, against the same answers as static files.

The baseline is nginx with a file for each answer that the browser was given when it opened the study once: the same build, the
same bytes, no program behind them. Each opening is a new Chromium with nothing in its cache.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import highdicom as hd
import numpy as np

from catalog import Archive, write_series
from experiments.baselines.nginx import Answer, serving
from experiments.bench import BenchResult, compare
from experiments.errors import ExperimentError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

__all__ = ["bench", "series"]

SIDE = 512  # pixels
FIRST_PICTURE = """
    window.firstPicture = new Promise(resolve => document.addEventListener('CORNERSTONE_IMAGE_RENDERED', event => {
        const canvas = event.target.querySelector('canvas');
        requestAnimationFrame(() => resolve(canvas !== null));
    }, true));
"""
"""Rendering is said on the viewport's element by an event that does not bubble: it is listened to on its way down."""


def series(archive: Archive, n: int) -> str:
    """A CT of ``n`` slices of SIDE² pixels in ``archive``; its StudyInstanceUID. What is there is left alone."""
    folder = archive.volume_folder / "bench" / f"ct-{n}"
    noise = np.random.default_rng(0).normal(40, 60, (n, SIDE, SIDE)).clip(-1024, 3071).astype(np.int16)
    affine = np.array([[0, 0, 0.7, 0], [0, 0.7, 0, 0], [-1.0, 0, 0, 0], [0, 0, 0, 1]])
    volume = hd.Volume(noise, affine, coordinate_system="PATIENT")
    if not folder.is_dir():
        write_series(volume, folder, patient_id="bench", case=f"ct-{n}", modality="CT", description="noise")
    archive.adopt(sorted(folder.iterdir()), writer="bench/viewer")
    found = archive.index.studies({"PatientID": "bench"}) if archive.index.follow(archive.objects) >= 0 else []
    return str(found[0]["StudyInstanceUID"])


def bench(address: str, study: str, *, n: int, rounds: int = 5) -> BenchResult:
    """Open ``study`` of ``n`` slices at ``address``, and the same from nginx. ``ratio`` above 1/1.2 is the issue's floor:
    ours takes at most 1.2 times as long. Raises ExperimentError where nginx or Chromium is missing."""
    path = f"/viewer?StudyInstanceUIDs={study}"
    with _chromium() as browser, tempfile.TemporaryDirectory() as scratch:
        answers = _recorded(browser, address, path)
        with serving(answers, Path(scratch)) as static:
            ours, theirs = (partial(_open, browser, base + path) for base in (address, static))
            return compare("viewer", ours, theirs, n=n, rounds=rounds, figures={"answers": len(answers)})


def _open(browser: "Browser", url: str, watch: "Callable[[Page], None] | None" = None) -> None:
    """Return when the first picture is on the screen; every time as a new visitor."""
    # the page forbids what Playwright waits by; that changes nothing of what is loaded
    context = browser.new_context(viewport={"width": 1600, "height": 900}, bypass_csp=True)
    try:
        page = context.new_page()
        page.add_init_script(FIRST_PICTURE)
        if watch:
            watch(page)
        page.goto(url, wait_until="commit")
        page.wait_for_function("window.firstPicture", timeout=120_000)
        if watch:
            page.wait_for_load_state("networkidle")
    finally:
        context.close()


def _recorded(browser: "Browser", address: str, path: str) -> list[Answer]:
    """What the browser asked for, and was answered, by path."""
    asked: dict[str, dict[str, str]] = {}

    def noted(request: "Request") -> None:
        told = {"accept": "text/html"} if request.is_navigation_request() else request.headers
        asked.setdefault(urlsplit(request.url).path + _query(request.url), told)

    def watch(page: "Page") -> None:
        page.on("request", noted)

    _open(browser, address + path, watch)
    import httpx

    found = {}
    with httpx.Client(base_url=address, timeout=60) as client:
        for url, headers in asked.items():
            accept = {"Accept": headers.get("accept", "*/*"), "Accept-Encoding": "gzip"}
            with client.stream("GET", url, headers=accept) as reply:
                if reply.status_code == 200:
                    body = b"".join(reply.iter_raw())
                    found[urlsplit(url).path] = Answer(
                        urlsplit(url).path,
                        body,
                        reply.headers.get("content-type", "application/octet-stream"),
                        reply.headers.get("content-encoding", ""),
                    )
    return list(found.values())


def _query(url: str) -> str:
    query = urlsplit(url).query
    return f"?{query}" if query else ""


@contextmanager
def _chromium() -> "Iterator[Browser]":
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise ExperimentError("no Chromium on this machine", about="bench viewer", remedy="install it (Debian: chromium)")
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    drawing = ["--no-sandbox", "--disable-quic", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*quiet, *drawing])
        try:
            yield browser
        finally:
            browser.close()
