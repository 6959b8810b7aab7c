"""The library that viewers load images with (@cornerstonejs/dicom-image-loader, as OHIF's build has it) on our DICOMweb: every
file of a collection of transfer syntaxes is stored, and comes out of the loader as pydicom decodes it."""

import base64
import io
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pydicom
import pytest
from pydicom.pixels import pixel_array

from voxloop.settings import read
from voxloop.viewer import installed

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "transfer_syntaxes"
STUDY = "1.2.826.0.1.3680043.8.498.1"
FRAMES = "wadors:{url}/dicomweb/studies/{study}/series/{series}/instances/{instance}/frames/1"
FILE = "wadouri:{url}/dicomweb/wado?requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={instance}&transferSyntax=*"

LOAD = """async ids => await Promise.all(ids.map(async id => {
  try {
    const image = await cornerstone.imageLoader.loadAndCacheImage(id);
    const voxels = image.getPixelData();
    const bytes = new Blob([new Uint8Array(voxels.buffer, voxels.byteOffset, voxels.byteLength)]);
    const { rescaleSlope, rescaleIntercept } = image.preScale?.scaled ? image.preScale.scalingParameters : {};
    const reader = new FileReader();
    await new Promise(done => { reader.onload = done; reader.readAsDataURL(bytes); });
    const data = reader.result.split(',')[1];
    return { type: voxels.constructor.name, data, slope: rescaleSlope ?? 1, intercept: rescaleIntercept ?? 0 };
  } catch (error) {
    return { error: String((error.error ?? error).message ?? error) };
  }
}))"""
READ = "() => (window.services?.displaySetService?.getActiveDisplaySets() ?? []).length >= 70"
TYPES = {
    **{f"{kind}{bits}Array": f"<{kind[0].lower()}{bits // 8}" for kind in ("Int", "Uint", "Float") for bits in (8, 16, 32)},
    "Uint8ClampedArray": "u1",
}

NO_DECODER, SIGN, PLANES = "no decoder for it", "the sign of a lossless JPEG's padding is lost", "planes are taken for pixels"
BOTH = ("frames", "file")
CANNOT = {
    "CTImage.dcm_DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99": (["file"], "it has no inflater"),
    "CTImage.dcm_JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55": (BOTH, NO_DECODER),
    "CTImage.dcm_JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70": (BOTH, SIGN),
    "CTImage.dcm_JPEGProcess6_8TransferSyntax_1.2.840.10008.1.2.4.53": (BOTH, NO_DECODER),
    "CT2_JPLL": (BOTH, SIGN),
    "JLSL_RGB_ILV0": (BOTH, PLANES),
    "JLSN_RGB_ILV0": (BOTH, PLANES),
    "SC_ybr_full_422_uncompressed.deflated_image_frame_compression": (["file"], NO_DECODER),
    "liver": (["frames"], "bits stay packed"),
    "liver_deflate": (["file"], NO_DECODER),
    "liver_expb": (BOTH, "bits stay packed, or are read as words of the other endian"),
    "liver_nonbyte_aligned_deflate": (["file"], NO_DECODER),
    "liver_rle": (BOTH, "its RLE has no images of one bit"),
    "monochrome_jpeg_xl": (BOTH, NO_DECODER),
    "monochrome_jpeg_xl_12bit": (BOTH, NO_DECODER),
    "ultrasound_jpeg_xl": (BOTH, NO_DECODER),
}
"""What the loader itself cannot do, whoever serves the file: by which scheme, and why. What it can do one day is to leave."""

LOSSY = {
    "CT0012.fragmented_no_bot_jpeg_baseline.51": 16,
    "CTImage.dcm_JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50": 1,
    "CTImage.dcm_JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51": 16,
    "HTJ2K_08_RGB": 1,
    "MR1_JPLY": 160,
    "NM1_JPLY": 60,
}
"""By how much two decoders of a lossy codec may differ, in stored values (of 12 bits: 16, or what the codec itself lost)."""

ORIGINAL = {"MR1_JPLY": "MR1_UNC", "NM1_JPLY": "NM1_UNC"}
"""What pydicom cannot decode, and the same image without a codec."""

NO_REFERENCE = {
    "SC_ybr_full_422_uncompressed.deflated_image_frame_compression",
    "liver_deflate",
    "liver_nonbyte_aligned_deflate",
}
"""What pydicom cannot decode either: its frames, which we inflate, need only arrive."""


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL.name} on this machine")
def test_every_transfer_syntax_comes_out_of_the_loader_as_pydicom_decodes_it(page: "Page", start: Callable[..., Any]) -> None:
    web = start(VOXLOOP_VIEWER_FOLDER=str(installed(read().viewer_folder)))
    files = {path.stem: pydicom.dcmread(path, force=True) for path in sorted(REAL.rglob("*.dcm"))}
    for place, (name, file) in enumerate(files.items(), start=1):
        file.StudyInstanceUID, file.SeriesInstanceUID, file.SeriesNumber = STUDY, f"{STUDY}.{place}", place
        file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = f"{STUDY}.{place}.1"
        file.PatientID, file.SeriesDescription, file.preamble = "syntaxes", name[:64], bytes(128)
    store(web.url, files.values())
    page.goto(f"{web.url}/viewer?StudyInstanceUIDs={STUDY}")
    while not page.evaluate(READ):
        page.wait_for_timeout(100)

    wrong = {}
    for name, file in files.items():
        told = {"url": web.url, "study": STUDY, "series": file.SeriesInstanceUID, "instance": file.SOPInstanceUID}
        loaded = page.evaluate(LOAD, [FRAMES.format(**told), FILE.format(**told)])
        for scheme, image in zip(BOTH, loaded, strict=True):
            difference = differs(image, files, name)
            if bool(difference) != (scheme in CANNOT.get(name, ([], ""))[0]):
                wrong[name, scheme] = difference or "it can be loaded after all"
    assert wrong == {}
    assert set(CANNOT) | set(LOSSY) | NO_REFERENCE <= set(files)


def store(url: str, files: Iterable[pydicom.Dataset]) -> None:
    """By STOW-RS, each in the transfer syntax that it came in."""
    body = io.BytesIO()
    for file in files:
        known = file.file_meta.TransferSyntaxUID.is_transfer_syntax
        body.write(b"--XX\r\nContent-Type: application/dicom\r\n\r\n")
        part = io.BytesIO()
        forced = {} if known else {"implicit_vr": False, "little_endian": True, "force_encoding": True}
        pydicom.dcmwrite(part, file, **forced)
        body.write(part.getvalue() + b"\r\n")
    body.write(b"--XX--\r\n")
    kind = 'multipart/related; type="application/dicom"; boundary=XX'
    answer = httpx.post(f"{url}/dicomweb/studies", content=body.getvalue(), headers={"Content-Type": kind}, timeout=60)
    assert answer.status_code == 200, answer.text


def differs(image: dict[str, Any], files: dict[str, pydicom.Dataset], name: str) -> str:
    """What is wrong with an image that was loaded; empty: nothing."""
    if "error" in image:
        return str(image["error"])
    if name in NO_REFERENCE:
        return "" if image["data"] else "it is empty"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files
        try:
            wanted = pixel_array(files[ORIGINAL.get(name, name)], index=0)
        except (NotImplementedError, RuntimeError):
            return "pydicom cannot decode it: there is nothing to compare it with"
    values = np.frombuffer(base64.b64decode(image["data"]), TYPES[image["type"]]).astype(float)
    if values.size != wanted.size:
        return f"{values.size} values, not {wanted.size}"
    stored = (values - image["intercept"]) / image["slope"]
    off = float(np.abs(stored - wanted.ravel()).max())
    return "" if off <= LOSSY.get(name, 0) + 1e-3 * (name in LOSSY) else f"off by {off}"
