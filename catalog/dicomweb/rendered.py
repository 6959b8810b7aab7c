"""Rendered resources and thumbnails (PS3.18 §10.4.1.1.3, §8.3.5): pictures that any program shows."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import isfinite

from starlette.responses import Response

from catalog.dicomweb import _files
from catalog.dicomweb._accept import accepted
from catalog.dicomweb._held import Place
from catalog.dicomweb.frames import IMMUTABLE
from catalog.errors import CatalogError
from catalog.frames import NoPicture
from catalog.problem import Refused
from catalog.thumbnail import LARGEST, Region, Window, rendered

__all__ = ["FORMATS", "PARAMETERS", "picture"]

FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG"}
PARAMETERS = {
    "rendered": ("window", "viewport", "quality", "accept"),
    "thumbnail": ("viewport", "accept"),
    "uri": ("window", "viewport", "quality", "region"),
}
"""What each kind of picture takes; WADO-URI's region is told in fractions, that of a viewport in pixels."""

_LONGEST, _MOST = 8192, 1 << 25  # pixels of a side, and of a picture that is made to fill a viewport
_LEAST = 0.01  # of a pixel: a region that is smaller is none
_FORMS = {
    "window": "CENTRE,WIDTH,FUNCTION",
    "viewport": "WIDTH,HEIGHT, or WIDTH,HEIGHT,X,Y,WIDTH,HEIGHT to show a region",
    "quality": "1 to 100",
    "region": "LEFT,TOP,RIGHT,BOTTOM between 0 and 1",
}
_FUNCTIONS = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}


def picture(
    places: Sequence[Place], kind: str, number: str, parameters: Mapping[str, str], headers: Mapping[str, str]
) -> Response:
    """Of the one in the middle of ``places``, its frame ``number`` (from 1) or its middle one; ``kind``: one of PARAMETERS.

    Refused: 400 for a parameter that is not understood, 404 where there is no picture, 406 for another type or without codec.
    """
    found = places[len(places) // 2].object
    unknown = [name for name in parameters if name not in PARAMETERS[kind]]
    if unknown:
        raise Refused(400, "not a parameter of it", about=unknown[0][:64], remedy=f"there are {', '.join(PARAMETERS[kind])}")
    media = _media(parameters.get("accept") or headers.get("accept", ""))
    if number and not (number.isascii() and number.isdigit() and int(number[:9]) > 0 and len(number) < 10):
        raise Refused(400, "not the number of a frame", about=number[:64], remedy="give one number from 1")
    viewport, region = _viewport(parameters.get("viewport", ""), kind), _fractions(parameters.get("region", ""))
    size, region = viewport or ((LARGEST, LARGEST) if kind == "thumbnail" else None, region)
    quality = _quality(parameters.get("quality", "90"))
    window = _window(parameters["window"]) if parameters.get("window") else None
    _files.check(found)
    try:
        index = int(number) - 1 if number else None
        shown = rendered(found.path, frame=index, window=window, region=region, size=size, enlarge=viewport is not None)
        _files.check(found)
    except Refused:
        raise
    except NoPicture as problem:
        raise Refused(404, problem.problem, about=found.sop_uid, remedy="ask for an image") from None
    except CatalogError as problem:
        raise Refused(406, problem.problem, about=found.sop_uid, remedy=problem.remedy) from None
    written = BytesIO()
    shown.save(written, FORMATS[media], **({"quality": quality} if media == "image/jpeg" else {}))
    cache = IMMUTABLE if len(places) == 1 else "private, no-cache"
    told = {
        "ETag": _files.tag(found, kind, number, media, *sorted(parameters.items())),
        "Cache-Control": cache,
        "Vary": "Accept",
    }
    return Response(written.getvalue(), headers=told, media_type=media)


def _media(accept: str) -> str:
    for one in accepted(accept):
        for kind in FORMATS:
            if not one.multipart and one.takes(kind):
                return kind
    raise Refused(406, f"a picture is {' or '.join(FORMATS)}", about=f"Accept: {accept[:200]}", remedy="accept one of these")


def _numbers(name: str, parts: Sequence[str], count: int) -> list[float]:
    try:
        found = [float(part) for part in parts]
    except ValueError:
        found = []
    if len(found) != count or not all(isfinite(one) and abs(one) < 1e9 for one in found):
        raise Refused(400, "not understood", about=f"{name}={','.join(parts)[:64]}", remedy=f"give {_FORMS[name]}")
    return found


def _window(text: str) -> Window:
    *parts, function = text.split(",") if text.count(",") == 2 else (*text.split(","), "linear")
    centre, width = _numbers("window", parts, 2)
    if function.lower() not in _FUNCTIONS or width <= 0:
        remedy = f"the function is one of {', '.join(_FUNCTIONS)}, the width above 0"
        raise Refused(400, "not understood", about=f"window={text[:64]}", remedy=remedy)
    return centre, width, _FUNCTIONS[function.lower()]


def _viewport(text: str, kind: str) -> tuple[tuple[int, int], Region | None] | None:
    """(width, height) to fill, and which part of the image is to do so (PS3.18 §8.3.5.1.3)."""
    if not text:
        return None
    size, part = text.split(",")[:2], text.split(",")[2:]
    if part and kind == "thumbnail":
        about = f"viewport={text[:64]}"
        raise Refused(400, "a thumbnail shows the whole image", about=about, remedy="give WIDTH,HEIGHT, or ask for rendered")
    width, height = (int(one) for one in _numbers("viewport", size, 2))
    if not (1 <= width <= _LONGEST and 1 <= height <= _LONGEST and width * height <= _MOST):
        remedy = f"give 1 to {_LONGEST} pixels a side, {_MOST} in all at most"
        raise Refused(400, "not the size of a picture", about=f"viewport={text[:64]}", remedy=remedy)
    if len(part) > 4:
        raise Refused(400, "not understood", about=f"viewport={text[:64]}", remedy=f"give {_FORMS['viewport']}")
    given = [_numbers("viewport", [one], 1)[0] if one else None for one in (*part, "", "", "", "")[:4]]
    return (width, height), _pixels(text, *given) if part else None


def _pixels(text: str, sx: float | None, sy: float | None, sw: float | None, sh: float | None) -> Region:
    def region(columns: int, rows: int) -> tuple[float, float, float, float]:
        left, top = abs(sx or 0), abs(sy or 0)
        right = columns if sw is None else left + abs(sw)
        bottom = rows if sh is None else top + abs(sh)
        _check_within(f"viewport={text[:64]}", (left, top, right, bottom), columns, rows)
        across = (right, left) if sw is not None and sw < 0 else (left, right)
        down = (bottom, top) if sh is not None and sh < 0 else (top, bottom)
        return across[0], down[0], across[1], down[1]

    return region


def _fractions(text: str) -> Region | None:
    """WADO-URI's region: left, top, right, bottom as fractions of the image's width and height (PS3.18 §9.4)."""
    if not text:
        return None
    left, top, right, bottom = _numbers("region", text.split(","), 4)

    def region(columns: int, rows: int) -> tuple[float, float, float, float]:
        found = left * columns, top * rows, right * columns, bottom * rows
        _check_within(f"region={text[:64]}", found, columns, rows)
        return found

    return region


def _check_within(about: str, part: tuple[float, float, float, float], columns: int, rows: int) -> None:
    left, top, right, bottom = part
    if not (0 <= left <= right - _LEAST and right <= columns and 0 <= top <= bottom - _LEAST and bottom <= rows):
        remedy = f"the image has {columns} columns and {rows} rows"
        raise Refused(400, "not a region within the image", about=about, remedy=remedy)


def _quality(text: str) -> int:
    (found,) = _numbers("quality", [text], 1)
    if not 1 <= found <= 100:
        raise Refused(400, "not understood", about=f"quality={text[:64]}", remedy="give 1 to 100")
    return int(found)
