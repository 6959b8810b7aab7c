"""A small picture of a DICOM file: the middle frame as a viewer would open it, or a segmentation's labels in their colours."""

from collections.abc import Callable, Sequence
from io import BytesIO
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import numpy as np

from catalog.errors import CatalogError
from catalog.frames import ImageFile, NoPicture

if TYPE_CHECKING:
    from PIL import Image
    from pydicom import Dataset

__all__ = ["LARGEST", "Region", "Window", "rendered", "thumbnail"]

LARGEST = 256
"""How many pixels a picture is wide or high at most."""

_COLORS = ((230, 75, 53), (77, 187, 213), (0, 160, 135), (240, 180, 60), (130, 90, 200), (145, 209, 120), (220, 110, 170))
Window = tuple[float, float, str]
"""Centre, width and function (LINEAR, LINEAR_EXACT, SIGMOID) of PS3.3 §C.11.2."""

Region = Callable[[int, int], tuple[float, float, float, float]]
"""From an image's (columns, rows) the part of it to show: from x, from y, to x, to y, in pixels from its top left corner,
within it. Where *to* is less than *from* the picture is mirrored in that direction."""

_WHOLE = (1 << 14, 1 << 14)
_GREY = ("MONOCHROME1", "MONOCHROME2")
_RGB = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def thumbnail(path: str | Path, *, size: int = LARGEST) -> bytes:
    """A PNG, grey or RGB with 8 bits, of the DICOM file ``path``; its longer side has at most ``size`` (1 to 256) pixels.

    Shown is the middle frame, of a segmentation every segment of its middle slice, in the proportions of the pixels' spacing
    or aspect ratio; it is made smaller, never larger. Grey values go through modality LUT or rescale, then through the first
    VOI LUT, else the first window (PS3.3 §C.11.2), else the window between percentiles 1 and 99 of the finite values;
    padding is left out of these, and black. MONOCHROME1 is turned over.

    Raises CatalogError, with the reason, where there is no picture in the file, it is broken, or no codec takes it.
    """
    if not 1 <= size <= LARGEST:
        raise CatalogError(f"a picture of {size} pixels", about=str(path), remedy=f"ask for 1 to {LARGEST}")
    png = BytesIO()
    rendered(path, size=(size, size)).save(png, "PNG")
    return png.getvalue()


def rendered(
    path: str | Path,
    *,
    frame: int | None = None,
    window: Window | None = None,
    region: Region | None = None,
    size: tuple[int, int] | None = None,
    enlarge: bool = False,
) -> "Image.Image":
    """As ``thumbnail``, of ``frame`` (from 0), with ``window`` in the place of the header's, only the ``region``, within
    ``size`` (width, height), as large as fits with ``enlarge``; where no size is given as large as the image is.

    The window that is found without ``window`` is the whole frame's, not the region's. Raises what ``region`` raises.
    """
    from PIL import Image

    image = ImageFile(path)
    if frame is not None and frame >= image.frames:
        raise NoPicture(f"there are {image.frames} frames", about=str(path), remedy="ask for one of them")
    try:
        with catch_warnings():
            simplefilter("ignore")  # of the file's own peculiarities
            pixels, shown = _picture(image, frame, window)
            pixels, box = _cut(pixels, region) if region else (pixels, (0, 0, pixels.shape[1], pixels.shape[0]))
            within, enlarge = size or _WHOLE, enlarge and size is not None
            proportion = _proportion(image.described(shown))
            fitted = _fitted(box[2] - box[0], box[3] - box[1], proportion, within, enlarge=enlarge)
    except CatalogError:
        raise
    except Exception as problem:  # a header can be wrong in any way
        said = " ".join(str(problem).split())[:200]
        raise CatalogError(f"no picture can be made of it: {type(problem).__name__} {said}", about=str(path)) from problem
    return Image.fromarray(pixels).resize(fitted, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def _picture(image: ImageFile, frame: int | None, window: Window | None) -> tuple[np.ndarray, int]:
    """(uint8 pixels (rows, columns) or (rows, columns, 3), the frame whose spacing they have)."""
    if image.header.get("Modality") == "SEG" or "SegmentSequence" in image.header:
        return _segments(image, frame)
    middle = image.frames // 2 if frame is None else frame
    kind = image.header.get("PhotometricInterpretation") or "MONOCHROME2"
    if kind in _GREY:
        described = image.described(middle)
        if window is not None:
            described.WindowCenter, described.WindowWidth, described.VOILUTFunction = window
            described.pop("VOILUTSequence", None)
        return _grey(image.frame(middle), described, lossy=image.lossy), middle
    if kind in _RGB or kind == "PALETTE COLOR":
        return _colour(image.frame(middle), image.header, palette=kind == "PALETTE COLOR"), middle
    remedy = f"shown are {', '.join((*_GREY, *_RGB))} and PALETTE COLOR"
    raise CatalogError(f"pixels in the colour space {kind} are not shown", about=str(image.path), remedy=remedy)


def _grey(stored: np.ndarray, header: "Dataset", *, lossy: bool) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut

    shown = np.isfinite(stored) & ~_padding(stored, header, lossy=lossy)
    lut = header.get("ModalityLUTSequence") or None not in (header.get("RescaleSlope"), header.get("RescaleIntercept"))
    values = np.asarray(apply_modality_lut(stored, header) if lut else stored, dtype=np.float64)
    bright = _display(header, values[shown], whole=stored.dtype.kind != "f")(np.where(shown, values, 0.0))
    if header.get("PhotometricInterpretation") == "MONOCHROME1" or header.get("PresentationLUTShape") == "INVERSE":
        bright = 1.0 - bright
    grey: np.ndarray = np.rint(np.where(shown, bright, 0.0) * 255).astype(np.uint8)
    return grey


def _padding(stored: np.ndarray, header: "Dataset", *, lossy: bool) -> np.ndarray:
    """Where ``stored`` is padding (PS3.3 §C.7.5.1.1.2), also where the value is written without its sign or with it.

    A lossy codec spreads the padding value: then what lies within 5% of the range of values is padding too.
    """
    ends = [header.get(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    none = np.zeros(stored.shape, bool)
    if not isinstance(ends[0], int) or stored.dtype.kind not in "iu":
        return none
    low, high = sorted(np.array([e if isinstance(e, int) else ends[0] for e in ends], np.int64).astype(stored.dtype).tolist())
    spread = 0.05 * (float(stored.max()) - float(stored.min())) if lossy else 0.0
    padding: np.ndarray = (stored >= low - spread) & (stored <= high + spread)
    return none if padding.all() else padding


def _display(header: "Dataset", shown: np.ndarray, *, whole: bool) -> Callable[[np.ndarray], np.ndarray]:
    """What turns values into brightness from 0 to 1; ``shown`` are the values that the picture has.

    LINEAR windows count in whole stored values (PS3.3 §C.11.2.1.2.1); on floating-point pixels they are taken as exact.
    """
    for item in header.get("VOILUTSequence") or ():
        return _lut(item, low=float(shown.min()) if shown.size else 0.0)
    center, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    kind = str(header.get("VOILUTFunction") or "LINEAR").upper()
    kind = "LINEAR_EXACT" if kind == "LINEAR" and not whole else kind
    if center is not None and width is not None and width >= (1 if kind == "LINEAR" else 1e-9):
        return _window(center, width, kind)
    if not shown.size:
        return _between(0.0, 1.0)
    low, high = (float(value) for value in np.percentile(shown, (1, 99)))
    return _between(low, high) if high > low else _between(float(shown.min()), float(shown.max()))


def _window(center: float, width: float, kind: str) -> Callable[[np.ndarray], np.ndarray]:
    if kind == "SIGMOID":
        return lambda values: 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -500, 500)))
    if kind == "LINEAR":
        center, width = center - 0.5, max(width - 1, 1e-9)
    return _between(center - width / 2, center + width / 2)


def _between(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: np.clip((values - low) / max(high - low, 1e-30), 0.0, 1.0)


def _lut(item: "Dataset", *, low: float) -> Callable[[np.ndarray], np.ndarray]:
    """A VOI LUT (PS3.3 §C.11.2.1.1), its brightest entry as 1; pydicom's own wraps where its entries have 8 bits."""
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    data = item.LUTData
    lut = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.atleast_1d(np.asarray(data, dtype=np.float64))
    lut = lut[: entries or 1 << 16].astype(np.float64) / max(min(float(lut.max()), (1 << bits) - 1), 1.0)
    first -= 1 << 16 if low < 0 and first >= 1 << 15 else 0
    return lambda values: np.interp(values, first + np.arange(len(lut)), np.clip(lut, 0.0, 1.0))


def _first(value: Any) -> float | None:
    """The first of the values of an attribute, None where that is no number."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _colour(stored: np.ndarray, header: "Dataset", *, palette: bool) -> np.ndarray:
    from pydicom.pixels import apply_color_lut

    rgb = apply_color_lut(stored, header)[..., :3] if palette else stored
    if rgb.dtype != np.uint8:
        bits = 16 if palette and int(rgb.max()) > 255 else 8 if palette else int(header.get("BitsStored") or 16)
        rgb = np.clip(rgb.astype(np.float64) * (255 / ((1 << bits) - 1)), 0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(rgb)


def _segments(image: ImageFile, frame: int | None) -> tuple[np.ndarray, int]:
    """The segments of the middle slice, each in its recommended colour (PS3.3 §C.8.20.4), a later one over an earlier."""
    colors = _segment_colors(image.header)
    chosen = _middle_slice(image) if frame is None else [frame]
    canvas = np.zeros((*image.frame(chosen[0]).shape[:2], 3), np.float64)
    for index, stored in zip(chosen, image.each(chosen), strict=True):
        number = image.described(index).get("ReferencedSegmentNumber")
        if image.header.get("SegmentationType") == "LABELMAP" or number is None:
            for value in np.unique(stored[stored > 0]).tolist():
                canvas[stored == value] = colors(value)
        else:
            part = stored[..., None] / max(int(image.header.get("MaximumFractionalValue") or 1), int(stored.max()))
            canvas = canvas * (1 - part) + np.array(colors(number)) * part
    return np.rint(canvas).astype(np.uint8), chosen[0]


def _middle_slice(image: ImageFile) -> list[int]:
    """The frames that lie where the middle one of all positions does; the middle frame where none has a position."""
    places: dict[float, list[int]] = {}
    for index in range(image.frames):
        header = image.described(index)
        position, orientation = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
        if position is None or orientation is None:
            return [image.frames // 2]
        normal = np.cross(np.array(orientation[:3], float), np.array(orientation[3:], float))
        places.setdefault(round(float(normal @ np.array(position, float)), 2), []).append(index)
    return places[sorted(places)[len(places) // 2]]


def _segment_colors(header: "Dataset") -> Callable[[int], tuple[int, ...]]:
    from highdicom.color import CIELabColor

    named = {}
    for segment in header.get("SegmentSequence") or ():
        lab = segment.get("RecommendedDisplayCIELabValue")
        if lab is not None and len(lab) == 3:
            named[int(segment.SegmentNumber)] = CIELabColor.from_dicom_value([int(part) for part in lab]).to_rgb(clip=True)
    return lambda number: named.get(number, _COLORS[(number - 1) % len(_COLORS)])


def _proportion(header: "Dataset") -> float:
    """The height of a pixel over its width (PS3.3 §C.7.6.3.1.7), 1 where neither spacing nor aspect ratio is usable."""
    for keyword in ("PixelSpacing", "PixelAspectRatio", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        value = header.get(keyword)
        if isinstance(value, Sequence) and len(value) == 2 and min(map(float, value)) > 0:
            ratio = float(value[0]) / float(value[1])
            return ratio if 0.01 < ratio < 100 else 1.0
    return 1.0


def _cut(pixels: np.ndarray, region: Region) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """(the whole pixels that ``region`` touches, mirrored as it says; where within them it is)."""
    from_x, from_y, to_x, to_y = region(pixels.shape[1], pixels.shape[0])
    (left, right), (top, bottom) = sorted((from_x, to_x)), sorted((from_y, to_y))
    found = pixels[floor(top) : ceil(bottom), floor(left) : ceil(right)]
    left, right, top, bottom = left - floor(left), right - floor(left), top - floor(top), bottom - floor(top)
    if to_x < from_x:
        found, left, right = found[:, ::-1], found.shape[1] - right, found.shape[1] - left
    if to_y < from_y:
        found, top, bottom = found[::-1], found.shape[0] - bottom, found.shape[0] - top
    return np.ascontiguousarray(found), (left, top, right, bottom)


def _fitted(columns: float, rows: float, proportion: float, size: tuple[int, int], *, enlarge: bool = False) -> tuple[int, int]:
    """(width, height) of the picture: the finer side keeps its pixels, unless both must shrink to fit into ``size``, or both
    grow until one of them fills it."""
    width, height = columns / min(proportion, 1.0), rows * max(proportion, 1.0)
    scale = min(size[0] / width, size[1] / height)
    scale = scale if enlarge else min(1.0, scale)
    return max(1, round(width * scale)), max(1, round(height * scale))
