"""WADO-URI (PS3.18 §9): one object by three UIDs in the query, as a file or as a picture."""

from collections.abc import Mapping

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from catalog.dicomweb._held import Held
from catalog.dicomweb.rendered import FORMATS, picture
from catalog.dicomweb.wado import single
from catalog.problem import Refused

__all__ = ["PARAMETERS", "routes"]

_UIDS = ("studyUID", "seriesUID", "objectUID")
PARAMETERS = (
    *("requestType", *_UIDS, "contentType", "transferSyntax", "frameNumber"),
    *("windowCenter", "windowWidth", "rows", "columns", "region", "imageQuality"),
)


def routes(held: Held) -> list[Route]:
    """GET /wado."""

    async def answer(request: Request) -> Response:
        asked = request.query_params
        place = await run_in_threadpool(held.place, *_uids(asked))
        kinds = [one.partition(";")[0].strip() for one in asked.get("contentType", "").split(",") if one.strip()]
        shown = next((kind for kind in kinds if kind in FORMATS), None)
        if shown:
            number, parameters = asked.get("frameNumber", ""), _parameters(asked)
            return await run_in_threadpool(picture, [place], "uri", number, parameters, {"accept": shown})
        if kinds and not {"application/dicom", "*/*"} & set(kinds):
            about, remedy = f"contentType={','.join(kinds)[:64]}", f"ask for application/dicom, {', '.join(FORMATS)}"
            raise Refused(406, "not a type that is given", about=about, remedy=remedy)
        syntax = asked.get("transferSyntax", "")
        return await single(place, f"application/dicom; transfer-syntax={syntax}", request.headers.get("if-none-match", ""))

    return [Route("/wado", answer, methods=["GET"])]


def _uids(asked: Mapping[str, str]) -> list[str]:
    unknown = [name for name in asked if name not in PARAMETERS]
    if unknown:
        raise Refused(400, "not a parameter of it", about=unknown[0][:64], remedy=f"there are {', '.join(PARAMETERS)}")
    if asked.get("requestType") != "WADO":
        raise Refused(400, "requestType must be WADO", about=f"requestType={asked.get('requestType', '')[:64]}")
    lacking = [name for name in _UIDS if not asked.get(name)]
    if lacking:
        raise Refused(400, "missing", about=", ".join(lacking), remedy="name study, series and object")
    return [asked[name] for name in _UIDS]


def _parameters(asked: Mapping[str, str]) -> dict[str, str]:
    """Those of a rendered resource; of rows and columns that which is not given follows from the other."""
    names = {"quality": "imageQuality", "region": "region"}
    found = {name: asked[one] for name, one in names.items() if asked.get(one)}
    pairs = {"window": ("windowCenter", "windowWidth", ""), "viewport": ("columns", "rows", "4096")}
    for name, (one, other, missing) in pairs.items():
        if asked.get(one) or asked.get(other):
            found[name] = f"{asked.get(one) or missing},{asked.get(other) or missing}"
    return found
