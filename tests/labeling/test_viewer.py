"""A reader in a real Chromium: OHIF's stock build, our plugin, and the whole web server on a synthetic cohort.

What is drawn by mouse is compared, voxel for voxel, with what highdicom reads from the SEG that was stored.
"""

import re
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import highdicom as hd
import numpy as np
import pyarrow as pa
import pydicom
import pytest
import uvicorn

from catalog import Archive, LabelSet, Project, Split, Structure, freeze, seg, submit
from catalog.labels import Submission, history
from catalog.schemas import PREDICTIONS
from experiments import synthetic
from voxloop import web
from voxloop.access import Rules
from voxloop.settings import Settings, read
from voxloop.viewer import installed

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

    Drawn = Callable[[Archive, str], np.ndarray]

pytestmark = pytest.mark.slow

COHORT = "select SeriesInstanceUID, StudyInstanceUID, PatientID from series where is_image"
KIDNEYS = LabelSet("kidneys", (Structure("kidney", 1, ("SCT", "64033007", "Kidney"), (185, 102, 83)),))
WAIT = 60_000  # ms: a busy machine draws slowly
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "acrin_nsclc_petct_seg"
BUILD = installed(read().viewer_folder)


@dataclass(frozen=True)
class Site:
    """What runs: the web server at ``url`` on ``archive``."""

    url: str
    archive: Archive
    project: Project
    endpoint: Any

    def study(self, series: str) -> str:
        """The study of a series."""
        self.archive.index.follow(self.archive.objects)
        return str(self.archive.index.instances({"SeriesInstanceUID": series})[0]["StudyInstanceUID"])


@pytest.fixture(scope="module")
def site(clinic: Any, lasting_endpoint: tuple[str, Any]) -> Iterator[Site]:
    """The real application, as `voxloop up` serves it, for a project of its own."""
    url, handler = lasting_endpoint
    project = replace(clinic.project, key="viewed")
    yield from _served(clinic.archive, [project], url, handler)


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two studies, of which one has two series of images, and two projects: one labels both, one the later series only."""
    folder = tmp_path_factory.mktemp("phases")
    synthetic.write(folder / "cohort", 2)
    archive = Archive(folder / "home")
    for case in sorted((folder / "cohort" / "images").iterdir()):
        images = [pydicom.dcmread(path) for path in sorted(case.iterdir())]
        archive.store(images, folder="images", writer=f"test/{case.name}")
    later = hd.UID()
    for image in images:
        image.SeriesInstanceUID, image.SeriesNumber, image.SeriesDescription = later, 9, "late phase"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = hd.UID()
    archive.store(images, folder="images", writer="test/late")
    split = Split(0.0, 0.0, "test")
    both = Project("abdomens", COHORT, synthetic.LABEL_SET, {}, split, "abdomens", 0.02)
    late = Project("late", f"{COHORT} and SeriesDescription = 'late phase'", KIDNEYS, {}, split, "late", 0.02)
    yield from _served(archive, [both, late], "", None)


def _served(archive: Archive, projects: Sequence[Project], endpoint: str, handler: Any) -> Iterator[Site]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        settings = Settings(home=archive.home, viewer_folder=str(BUILD), tracking_uri="")
        app = web.application(settings, Rules.of(settings, "127.0.0.1", port), projects, endpoint=endpoint)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield Site(f"http://127.0.0.1:{port}", archive, projects[0], handler)
        server.should_exit = True
        thread.join(20)


def panel(page: "Page") -> "Locator":
    return page.locator("voxloop-panel")


def press(page: "Page", name: str) -> None:
    panel(page).get_by_role("button", name=name, exact=True).click()


def said(page: "Page", text: str) -> None:
    """Wait until the panel says so."""
    panel(page).get_by_text(text).first.wait_for()


def until(page: "Page", condition: "str | Callable[[], bool]") -> None:
    """Wait for what a function of the page, or of ours, says (the page's policy forbids Playwright's own way to wait)."""
    deadline = time.monotonic() + WAIT / 1000
    while not (page.evaluate(condition) if isinstance(condition, str) else condition()):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(100)


def opened(page: "Page", site: Site, series: str, more: str = "") -> None:
    """The series in mode Label, its picture drawn and the panel ready."""
    page.goto(f"{site.url}/label?StudyInstanceUIDs={site.study(series)}{more}")
    ready(page)


def ready(page: "Page") -> None:
    panel(page).get_by_label("Reader").fill("Ada")
    until(page, SHOWN)
    panel(page).get_by_role("button", name="Start an empty label").and_(page.locator(":enabled")).wait_for()


def brush(page: "Page", *, down: int = 0) -> None:
    """A stroke by mouse through the middle of the picture, ``down`` pixels lower."""
    page.locator('[data-cy="Brush"]').first.click()
    until(page, BRUSHING)
    box = page.locator("canvas").first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2 + down
    page.mouse.move(x - 100, y)
    page.mouse.down()
    for step in range(12):
        page.mouse.move(x - 100 + 15 * step, y)
    page.mouse.up()


SHOWN = "() => window.cornerstone?.getRenderingEngines()[0]?.getViewports()[0]?.getCornerstoneImage?.() != null"
BRUSHING = """() => cornerstoneTools.ToolGroupManager.getAllToolGroups()
  .some(group => /Brush|Circular/.test(group.getActivePrimaryMouseButtonTool() ?? ''))"""
SEGMENTED = """() => services.segmentationService.getSegmentations().some(({ segmentationId }) =>
  cornerstoneTools.segmentation.state.getSegmentation(segmentationId).representationData.Labelmap?.imageIds
    .some(id => cornerstone.cache.getImage(id)?.voxelManager.getScalarData().some(Boolean)))"""
SIDES = """() => [...services.viewportGridService.getState().viewports.keys()].map(id => {
  const viewport = services.cornerstoneViewportService.getCornerstoneViewport(id);
  const labels = services.segmentationService.getSegmentationRepresentations(id).map(one => one.label);
  return [labels.join(), viewport.getActors().length, viewport.getCurrentImageIdIndex()];
})"""
SERIES = """() => {
  const { viewports, activeViewportId } = services.viewportGridService.getState();
  const [uid] = viewports.get(activeViewportId)?.displaySetInstanceUIDs ?? [];
  return uid && services.displaySetService.getDisplaySetByUID(uid)?.SeriesInstanceUID;
}"""
LISTED = "() => services.displaySetService.getActiveDisplaySets().map(set => set.SeriesInstanceUID)"


def shown(page: "Page") -> Any:
    """The series in the viewport that is worked in."""
    return page.evaluate(SERIES)


def stored(site: Site, series: str) -> tuple[np.ndarray, Path]:
    """The latest label as highdicom reads it where its frames lie, and its file."""
    latest = history(site.archive, site.project.key, series)[0]
    site.archive.index.follow(site.archive.objects)
    path = Path(site.archive.index.instance(latest.seg_uid).path)
    read = hd.seg.segread(path).get_volume(combine_segments=True, dtype=np.uint8)
    return read.match_geometry(site.archive.geometry(series)).array, path


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * np.count_nonzero((a == b) & (a > 0)) / (np.count_nonzero(a) + np.count_nonzero(b)))


def valid(path: Path) -> list[str]:
    """What dciodvfy finds wrong."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("no dciodvfy on this machine (Debian: dicom3tools)")
    told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    return [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")]


def of_training(site: Site, place: int) -> str:
    return sorted(uid for uid, role in freeze(site.archive, site.project).items() if role == "train")[place]


def test_what_is_drawn_by_mouse_is_stored_and_comes_back_voxel_for_voxel(page: "Page", site: Site, drawn: "Drawn") -> None:
    series = of_training(site, 0)
    study = site.study(series)
    page.goto(site.url)
    page.locator(f'[data-cy="studyRow-{study}"]').first.click()
    page.locator(f'[data-cy="mode-label-{study}"]').click()
    ready(page)
    said(page, "This series has no label yet.")
    press(page, "Start an empty label")
    said(page, "choose a structure")
    assert panel(page).get_by_role("radio", name="not annotated").first.is_checked()
    brush(page)
    panel(page).locator("input[value=present]:checked").wait_for()
    panel(page).get_by_role("radio", name="absent").nth(1).check()
    said(page, "Not submitted yet.")
    press(page, "Submit label")
    said(page, "Submitted in")
    said(page, "Submitted as it is.")
    made = drawn(site.archive, series)
    assert np.count_nonzero(made == 1) > 50
    kept, path = stored(site, series)
    assert dice(made, kept) == 1.0
    assert (made == kept).all()
    assert valid(path) == []
    latest = history(site.archive, site.project.key, series)[0]
    assert latest.states == {"liver": "present", "spleen": "absent"}
    assert (latest.author, latest.parent) == ("Ada", None)
    assert 0 < latest.seconds < 120

    page.reload()
    ready(page)
    assert panel(page).get_by_label("Reader").input_value() == "Ada", "the name is remembered"
    press(page, "Load revision 1, by Ada")
    said(page, "Loaded revision 1, by Ada")
    assert (drawn(site.archive, series) == made).all()
    assert panel(page).get_by_role("radio", name="absent").nth(1).is_checked()
    brush(page, down=60)
    until(page, lambda: np.count_nonzero(drawn(site.archive, series)) > np.count_nonzero(made))
    said(page, "Changed since: not submitted yet.")
    press(page, "Submit label")
    said(page, "Submitted in")
    second, first = history(site.archive, site.project.key, series)
    assert (second.parent, second.label_id != first.label_id) == (first.label_id, True)
    assert (drawn(site.archive, series) == stored(site, series)[0]).all()


def test_a_suggestion_is_shown_on_its_slices_and_what_was_changed_is_counted(
    page: "Page", site: Site, clinic: Any, drawn: "Drawn"
) -> None:
    series = of_training(site, 1)
    opened(page, site, series)
    press(page, "Auto-segment")
    said(page, "Suggested by phantoms version 3")
    truth = seg.decode(clinic.truth[series], site.archive.geometry(series), synthetic.LABEL_SET).array
    assert (drawn(site.archive, series) == truth).all()
    assert panel(page).locator("input[value=present]:checked").count() == 2
    assert page.evaluate(SIDES)[0][2] == np.argmax((truth > 0).sum((1, 2))), "and a slice that has it is in view"
    press(page, "Submit label")
    said(page, "Submitted in")
    untouched = history(site.archive, site.project.key, series)[0]
    assert (untouched.suggested_by, untouched.voxels_changed, untouched.added_path_length) == ("phantoms/3", 0, 0)

    press(page, "Auto-segment")
    said(page, "Suggested by phantoms version 3")
    press(page, "spleen")
    brush(page)
    until(page, lambda: np.count_nonzero(drawn(site.archive, series) == 2) > np.count_nonzero(truth == 2))
    press(page, "Submit label")
    said(page, "It is revision 2 of this series.")
    changed = history(site.archive, site.project.key, series)[0]
    made = drawn(site.archive, series)
    assert (made == stored(site, series)[0]).all()
    assert changed.voxels_changed == np.count_nonzero(made != truth) > 0
    assert changed.added_path_length > 0


def test_what_the_model_cannot_do_is_said_with_the_remedy(page: "Page", site: Site) -> None:
    opened(page, site, of_training(site, 2))
    site.endpoint.refuse = "the series is too short"
    try:
        press(page, "Auto-segment")
        told = panel(page).get_by_role("alert")
        told.wait_for()
        assert "the series is too short" in told.inner_text().lower()
    finally:
        site.endpoint.refuse = ""


def test_a_refused_label_leaves_the_drawing_and_says_why(page: "Page", site: Site, drawn: "Drawn") -> None:
    series = of_training(site, 2)
    opened(page, site, series)
    press(page, "Start an empty label")
    brush(page)
    panel(page).locator("input[value=present]:checked").wait_for()
    page.evaluate("""() => {
      const { activeViewportId } = services.viewportGridService.getState();
      const { segmentationId } = services.segmentationService.getActiveSegmentation(activeViewportId);
      services.segmentationService.setSegmentLabel(segmentationId, 1, 'Tumour');
    }""")
    said(page, "Of another name than the project’s: Tumour.")
    before = drawn(site.archive, series)
    press(page, "Submit label")
    told = panel(page).get_by_role("alert")
    told.wait_for()
    assert "'Tumour' has voxels and is no structure of phantom abdomen" in told.inner_text()
    assert "name the segment as one of liver, spleen" in told.inner_text()
    assert (drawn(site.archive, series) == before).all()
    assert history(site.archive, site.project.key, series) == []

    url = page.url
    press(page, "Next sample")
    said(page, "Your drawing is not submitted")
    assert page.url == url


def test_the_next_sample_opens_without_a_reload(page: "Page", site: Site) -> None:
    opened(page, site, of_training(site, 2))
    page.evaluate("window.kept = true")
    labelled = {
        row.series_uid for uid in freeze(site.archive, site.project) for row in history(site.archive, site.project.key, uid)
    }
    seen = set()
    for _ in range(2):
        url = page.url
        press(page, "Next sample")
        page.wait_for_url(lambda now, before=url: now != before)
        ready(page)
        said(page, "drawn at random")
        (study,) = re.findall(r"StudyInstanceUIDs=([\d.]+)", page.url)
        seen.add(study)
        until(page, f"() => services.displaySetService.getActiveDisplaySets().every(s => s.StudyInstanceUID === '{study}')")
    assert page.evaluate("window.kept")
    assert len(seen) == 2
    assert not seen & {site.study(series) for series in labelled}


def test_a_project_is_picked_and_its_next_sample_is_the_series_that_was_offered(page: "Page", phases: Site) -> None:
    alone, earlier, later = three(phases)
    opened(page, phases, alone)
    press(page, "Start an empty label")
    assert panel(page).locator("legend button").all_inner_texts() == ["liver", "spleen"]
    project = panel(page).get_by_label("Project")
    assert project.locator("option").all_inner_texts() == ["abdomens", "late"]
    project.select_option("late")
    until(page, lambda: project.input_value() == "late" and panel(page).locator("legend").count() == 0)
    press(page, "Start an empty label")
    assert panel(page).locator("legend button").all_inner_texts() == ["kidney"]
    brush(page)
    panel(page).locator("input[value=present]:checked").wait_for()

    project.select_option("abdomens")
    said(page, "Your drawing is not submitted")
    assert project.input_value() == "late", "nor is the project changed"
    press(page, "Next sample")
    said(page, "press Next sample again to leave it")
    assert shown(page) == alone
    press(page, "Next sample")
    until(page, lambda: shown(page) == later)
    assert set(page.evaluate(LISTED)) == {earlier, later}, "of which the viewer itself opens the earlier"
    said(page, "drawn at random")


def three(site: Site) -> Any:
    """The series of `phases`: the only one of its study, the earlier and the later of the other."""
    found = site.archive.sql("select SeriesInstanceUID from series where is_image order by PatientID, SeriesNumber")
    return found["SeriesInstanceUID"].to_pylist()


def test_a_stroke_made_during_a_submit_is_kept_and_is_not_submitted(page: "Page", phases: Site, drawn: "Drawn") -> None:
    series = three(phases)[0]
    opened(page, phases, series)
    press(page, "Start an empty label")
    brush(page)
    panel(page).locator("input[value=present]:checked").wait_for()
    first = drawn(phases.archive, series)
    sent: list[Route] = []
    page.route("**/labels", lambda route: sent.append(route), times=1)
    press(page, "Submit label")
    until(page, lambda: len(sent) == 1)
    brush(page, down=60)
    until(page, lambda: np.count_nonzero(drawn(phases.archive, series)) > np.count_nonzero(first))
    sent[0].continue_()
    said(page, "Submitted in")
    more = drawn(phases.archive, series)
    assert (stored(phases, series)[0] == first).all()
    assert np.count_nonzero(more) > np.count_nonzero(first)

    press(page, "Compare with the model")
    said(page, "press Compare with the model again to leave it")
    assert (drawn(phases.archive, series) == more).all()
    press(page, "Submit label")
    loads = panel(page).locator("li button")
    until(page, lambda: loads.count() == 2)
    assert (stored(phases, series)[0] == more).all()
    press(page, "Load revision 1, by Ada")
    said(page, "Loaded revision 1, by Ada")
    assert (drawn(phases.archive, series) == first).all()
    press(page, "Load revision 2, by Ada")
    until(page, lambda: np.array_equal(drawn(phases.archive, series), more))


def test_measurements_become_a_report_that_is_valid(page: "Page", site: Site) -> None:
    series = of_training(site, 3)
    opened(page, site, series)
    press(page, "Submit measurements")
    said(page, "Nothing is measured")
    page.evaluate("commandsManager.runCommand('setToolActiveToolbar', { toolName: 'Length', toolGroupIds: ['default'] })")
    box = page.locator("canvas").first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 80, y)
    page.mouse.down()
    for step in range(8):
        page.mouse.move(x - 80 + 20 * step, y + 5 * step)
    page.mouse.up()
    until(page, "() => services.measurementService.getMeasurements().some(one => one.displayText?.primary?.length)")
    press(page, "Submit measurements")
    said(page, "1 measurement stored")
    site.archive.index.follow(site.archive.objects)
    (report,) = site.archive.index.instances({"StudyInstanceUID": site.study(series), "Modality": "SR"})
    path = Path(site.archive.index.instance(report["SOPInstanceUID"]).path)
    assert valid(path) == []
    values = [item for item in pydicom.dcmread(path).iterall() if item.keyword == "NumericValue"]
    assert any(float(item.value) > 10 for item in values)

    press(page, "Submit measurements")
    said(page, "Nothing new is measured: 1 measurement stored already.")
    page.reload()
    ready(page)
    page.evaluate("""() => {
      const report = services.displaySetService.getActiveDisplaySets().find(({ Modality }) => Modality === 'SR');
      const { displaySetInstanceUID } = report;
      report.load().then(() => commandsManager.runCommand('hydrateStructuredReport', { displaySetInstanceUID }));
    }""")
    until(page, "() => services.measurementService.getMeasurements().length === 1")
    press(page, "Submit measurements")
    said(page, "Nothing new is measured: 1 measurement stored already.")


def test_label_and_prediction_stand_side_by_side_from_a_link(page: "Page", site: Site, clinic: Any) -> None:
    series = of_training(site, 4)
    grid = site.archive.geometry(series)
    truth = seg.decode(clinic.truth[series], grid, synthetic.LABEL_SET)
    liver = truth.with_array(np.where(truth.array == 1, 1, 0).astype(np.uint8))
    states = {"liver": "present", "spleen": "not_annotated"}
    submit(site.archive, site.project.key, synthetic.LABEL_SET, Submission(series, liver, states, "Grace"))
    predict(site, series, truth)
    opened(page, site, series, f"&compare={series}")
    standing = "the latest; which is the champion is not known (no MLflow is configured)"
    said(page, f"Left: label of Grace. Right: prediction of phantoms version 7, {standing}.")
    most = int(np.argmax((liver.array > 0).sum((1, 2))))
    until(page, lambda: page.evaluate(SIDES) == [["Label of Grace", 2, most], ["Prediction of phantoms/7", 2, most]])
    page.locator("canvas").first.hover()
    page.mouse.wheel(0, 100)
    until(page, lambda: {side[2] for side in page.evaluate(SIDES)} == {most + 1})
    page.evaluate("commandsManager.runCommand('setViewportGridLayout', { numRows: 1, numCols: 1 })")
    until(page, lambda: len(page.evaluate(SIDES)) == 1)
    press(page, "Compare with the model")
    until(page, lambda: page.evaluate(SIDES) == [["Label of Grace", 2, most + 1], ["Prediction of phantoms/7", 2, most + 1]])


def predict(site: Site, series: str, mask: hd.Volume) -> None:
    """What batch inference leaves: a SEG, then its row."""
    uid = str(hd.UID())
    told = {"sop_uid": uid, "series_uid": hd.UID(), "description": "prediction", "author": ""}
    algorithm = seg.Algorithm(site.project.model, "7")
    made = seg.encode(mask, site.archive.sources(series), synthetic.LABEL_SET, algorithm=algorithm, **told)
    site.archive.store([made], folder="predictions", writer=f"test/{uuid.uuid4()}")
    row = dict.fromkeys(PREDICTIONS.names) | {
        "sop_uid": uid,
        "project": site.project.key,
        "series_uid": series,
        "model_name": site.project.model,
        "model_version": "7",
        "created_at": datetime.now(UTC),
    }
    site.archive.predictions.append(pa.Table.from_pylist([row], schema=PREDICTIONS), writer=f"test/{uid}", batch=0)


def test_the_panel_is_worked_by_keyboard_and_keeps_its_focus(page: "Page", site: Site) -> None:
    series = of_training(site, 5)
    opened(page, site, series)
    panel(page).get_by_label("Reader").focus()
    order = []
    for _ in range(5):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.querySelector('voxloop-panel').shadowRoot.activeElement?.dataset.key"))
    assert order[:4] == ["strategy", "next", "suggest", "empty"]
    panel(page).get_by_role("button", name="Start an empty label").focus()
    page.keyboard.press("Enter")
    said(page, "choose a structure")
    assert page.evaluate("document.querySelector('voxloop-panel').shadowRoot.activeElement.dataset.key") == "empty"
    panel(page).get_by_role("radio", name="not annotated").first.focus()
    page.keyboard.press("ArrowLeft")
    assert panel(page).get_by_role("radio", name="absent").first.is_checked()

    panel(page).get_by_label("Reader").fill("Aa")
    page.keyboard.press("ArrowLeft")
    page.evaluate("import('/plugins/state.js').then(state => state.changed())")  # draws the panel anew
    page.keyboard.type("d")
    assert panel(page).get_by_label("Reader").input_value() == "Ada"


@pytest.mark.parametrize("module", ["extension.js", "label.js", "mode.js"])
def test_a_broken_plugin_leaves_a_viewer_that_says_so(page: "Page", site: Site, module: str) -> None:
    page.route(f"**/plugins/{module}", lambda route: route.fulfill(body="syntax error (", content_type="text/javascript"))
    series = of_training(site, 5)
    page.goto(f"{site.url}/label?StudyInstanceUIDs={site.study(series)}")
    until(page, SHOWN)
    if module == "mode.js":
        page.get_by_text("The mode Label could not be loaded").wait_for()
        return
    page.get_by_text("The Active learning panel could not be loaded").wait_for()


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL.name} on this machine")
def test_real_images_in_jpeg_ls_with_segmentations_that_exist(page: "Page", tmp_path: Path, drawn: "Drawn") -> None:
    archive = Archive(tmp_path / "home")
    for folder in ("PT_PET-AC_61081015", "SEG_PT-Segmentation_7.504365"):
        files = [pydicom.dcmread(path) for path in sorted((REAL / folder).rglob("*.dcm"))]
        archive.store(files, folder="images", writer=f"test/{folder}")
    cohort = "select SeriesInstanceUID, StudyInstanceUID, PatientID from series where Modality = 'PT'"
    project = Project("pet", cohort, synthetic.LABEL_SET, {}, Split(0.1, 0.3, "test"), "pet", 0.02)
    archive.index.follow(archive.objects)
    (series,) = {row["SeriesInstanceUID"] for row in archive.index.instances({"Modality": "PT"})}
    for site in _served(archive, [project], "", None):
        opened(page, site, series)
        page.get_by_text("PT-Segmentation").first.dblclick()
        until(page, SEGMENTED)
        page.get_by_role("button", name="Yes").click()
        until(page, SHOWN)
        press(page, "Start an empty label")
        said(page, "choose a structure")
        brush(page)
        panel(page).locator("input[value=present]:checked").wait_for()
        press(page, "Submit label")
        said(page, "Submitted in")
        made = drawn(archive, series)
        kept, path = stored(site, series)
        assert np.count_nonzero(made) > 0
        assert (made == kept).all()
        assert valid(path) == []
