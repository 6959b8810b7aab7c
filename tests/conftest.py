"""What tests share: one Spark and one MLflow server for the session, an empty home for each test."""

import atexit
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import numpy as np
    from playwright.sync_api import Browser, Page
    from pyspark.sql import SparkSession

    from catalog import Archive


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[SparkSession]":
    """A real local Spark, started once."""
    from voxloop.spark import session

    started = session(scratch=tmp_path_factory.mktemp("spark"))
    yield started
    started.stop()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home."""
    return tmp_path / "home"


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a real MLflow server on a loopback port, with its own database and artifacts; it cannot outlive the tests."""
    from voxloop.settings import Settings
    from voxloop.tracking import tracking_server

    with tracking_server(Settings(home=tmp_path_factory.mktemp("mlflow"), tracking_uri="")) as uri:
        yield uri


@pytest.fixture(scope="session")
def dciodvfy() -> Callable[[Path], list[str]]:
    """What the validator of dicom3tools calls an error in a DICOM file, a line each; its warnings are printed."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("no dciodvfy on this machine: apt install dicom3tools")

    def verify(path: Path) -> list[str]:
        ran = subprocess.run([program, str(path)], capture_output=True, text=True, errors="replace")
        said = [line for line in (ran.stdout + ran.stderr).splitlines() if line.startswith(("Error", "Warning"))]
        print("\n".join(line for line in said if line.startswith("Warning")))
        errors = [line for line in said if line.startswith("Error")]
        return errors or ([f"exit status {ran.returncode}: {ran.stderr}"] if ran.returncode else [])

    return verify


PATIENCE = 60_000  # ms: a busy machine draws slowly

DRAWN = """() => {
  const { activeViewportId } = services.viewportGridService.getState();
  const { segmentationId } = services.segmentationService.getActiveSegmentation(activeViewportId);
  const found = {};
  for (const id of cornerstoneTools.segmentation.state.getSegmentation(segmentationId).representationData.Labelmap.imageIds) {
    const image = cornerstone.cache.getImage(id);
    const sop = cornerstone.metaData.get('instance', image.referencedImageId).SOPInstanceUID;
    found[sop] = Array.from(image.voxelManager.getScalarData());
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """The system's Chromium, without a window; skips where it or OHIF's build is not here."""
    from playwright.sync_api import sync_playwright

    from voxloop.settings import read
    from voxloop.viewer import installed

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine (Debian: chromium)")
    if not (installed(read().viewer_folder) / "index.html").is_file():
        pytest.skip("the viewer was not fetched (make viewer)")
    quiet = ["--no-sandbox", "--no-first-run", "--disable-background-networking"]
    drawing = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # WebGL without a GPU
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*quiet, *drawing])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser") -> "Iterator[Page]":
    """A page of its own context; an error that nobody caught fails the test."""
    context = browser.new_context(viewport={"width": 1500, "height": 1100})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


@pytest.fixture
def drawn(page: "Page") -> "Callable[[Archive, str], np.ndarray]":
    """The voxels of a series' segmentation that the page holds, uint8 on the series' grid, as cornerstone names the slices."""
    import numpy as np

    def read(archive: "Archive", series: str) -> np.ndarray:
        slices, sources = page.evaluate(DRAWN), archive.sources(series)
        assert set(slices) == {source.SOPInstanceUID for source in sources}
        return np.array([np.reshape(slices[s.SOPInstanceUID], (s.Rows, s.Columns)) for s in sources], np.uint8)

    return read


@atexit.register
def _be_quiet() -> None:
    """DuckDB's bindings bid farewell with a page of "leaked" lines, after the tests' own last line: to nowhere with them."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
