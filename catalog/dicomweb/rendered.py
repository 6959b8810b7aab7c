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
from catalog.thumbnail import LARGEST, Window, rendered

__all__ = ["FORMATS", "picture"]

FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG"}
_PARAMETERS = {"rendered": ("window", "viewport", "quality", "accept"), "thumbnail": ("viewport", "accept")}
_FUNCTIONS = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}


def picture(
    places: Sequence[Place], kind: str, number: str, parameters: Mapping[str, str], headers: Mapping[str, str]
) -> Response:
    """Of the one in the middle of ``places``, its frame ``number`` (from 1) or its middle one; ``kind``: rendered, thumbnail.

    Refused: 400 for a parameter that is not understood, 404 where there is no picture, 406 for another type or without codec.
    """
    found = places[len(places) // 2].object
    unknown = [name for name in parameters if name not in _PARAMETERS[kind]]
    if unknown:
        raise Refused(400, "not a parameter of it", about=unknown[0][:64], remedy=f"there are {', '.join(_PARAMETERS[kind])}")
    media = _media(parameters.get("accept") or headers.get("accept", ""))
    if number and not (number.isascii() and number.isdigit() and int(number[:9]) > 0 and len(number) < 10):
        raise Refused(400, "not the number of a frame", about=number[:64], remedy="give one number from 1")
    size = _viewport(parameters.get("viewport", "")) or ((LARGEST, LARGEST) if kind == "thumbnail" else None)
    quality = _quality(parameters.get("quality", "90"))
    window = _window(parameters["window"]) if parameters.get("window") else None
    _files.check(found)
    try:
        shown = rendered(found.path, frame=int(number) - 1 if number else None, window=window, size=size)
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
        forms = {"window": "CENTRE,WIDTH,FUNCTION", "viewport": "WIDTH,HEIGHT", "quality": "1 to 100"}
        raise Refused(400, "not understood", about=f"{name}={','.join(parts)[:64]}", remedy=f"give {forms[name]}")
    return found


def _window(text: str) -> Window:
    *parts, function = text.split(",") if text.count(",") == 2 else (*text.split(","), "linear")
    centre, width = _numbers("window", parts, 2)
    if function.lower() not in _FUNCTIONS or width <= 0:
        remedy = f"the function is one of {', '.join(_FUNCTIONS)}, the width above 0"
        raise Refused(400, "not understood", about=f"window={text[:64]}", remedy=remedy)
    return centre, width, _FUNCTIONS[function.lower()]


def _viewport(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    if text.count(",") != 1:
        raise Refused(400, "a part of an image is not rendered", about=f"viewport={text[:64]}", remedy="give WIDTH,HEIGHT")
    width, height = (int(one) for one in _numbers("viewport", text.split(","), 2))
    if not (1 <= width <= 8192 and 1 <= height <= 8192):
        raise Refused(400, "a side has 1 to 8192 pixels", about=f"viewport={text[:64]}", remedy="give a smaller one")
    return width, height


def _quality(text: str) -> int:
    (found,) = _numbers("quality", [text], 1)
    if not 1 <= found <= 100:
        raise Refused(400, "not understood", about=f"quality={text[:64]}", remedy="give 1 to 100")
    return int(found)
