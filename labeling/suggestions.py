"""What the endpoint suggests for a series: asked in the background, so that a viewer can say how long it has been."""

import asyncio
import base64
import logging
import time
import uuid
import zlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, Literal

import httpx
import numpy as np

from catalog import Archive, Project, VoxloopError
from catalog.problem import Refused
from labeling.masks import Mask, Masks, valued

__all__ = ["Problem", "Suggestion", "Suggestions"]

TIMEOUT = 900.0
"""Seconds that a prediction may take; a large volume on a CPU takes minutes."""

KEPT = 256
"""Suggestions that are remembered."""

_log = logging.getLogger(__name__)
_START = "voxloop up serves a model once one is promoted; voxloop status says what runs"


@dataclass(frozen=True)
class Problem:
    """Why there is none, as in a problem detail: what is wrong, with which UID or address, what to do."""

    title: str
    about: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Suggestion:
    """A mask that a model makes of a series. ``elapsed`` is seconds since it was asked for; once it is ``done`` the others are
    there: ``model`` and its ``version``, its mean predictive ``entropy`` in nats and the ``mask``; else ``problem``."""

    id: str
    project: str
    series: str
    state: Literal["running", "done", "failed"]
    elapsed: float
    model: str = ""
    version: str = ""
    entropy: float | None = None
    mask: Mask | None = None
    problem: Problem | None = None


@dataclass
class _Asked:
    suggestion: Suggestion
    began: float
    task: "asyncio.Task[None] | None" = None


class Suggestions:
    """Those of one endpoint; its methods belong to one event loop."""

    def __init__(self, archive: Archive, endpoint: str, masks: Masks) -> None:
        self._archive, self._endpoint, self._masks = archive, endpoint.rstrip("/"), masks
        self._asked: OrderedDict[str, _Asked] = OrderedDict()

    def ask(self, project: Project, series: str) -> Suggestion:
        """Begin to predict a series, or go on where it is being predicted already.

        Refused (503) where no endpoint is configured.
        """
        if not self._endpoint:
            raise Refused(503, "no endpoint is configured", about=f"project {project.key}", remedy=_START)
        for asked in self._asked.values():
            told = asked.suggestion
            if (told.project, told.series, told.state) == (project.key, series, "running"):
                return self._timed(asked)
        asked = _Asked(Suggestion(uuid.uuid4().hex, project.key, series, "running", 0.0), time.monotonic())
        asked.task = asyncio.create_task(self._answer(asked, project))
        self._asked[asked.suggestion.id] = asked
        ended = [key for key, old in self._asked.items() if old.suggestion.state != "running"]
        for key in ended[: max(0, len(self._asked) - KEPT)]:
            del self._asked[key]
        return asked.suggestion

    async def get(self, key: str, *, wait: float) -> Suggestion:
        """As it stands; waits up to ``wait`` seconds for its end. Refused (404) where it is not known."""
        asked = self._asked.get(key)
        if asked is None:
            raise Refused(404, "no such suggestion", about=key, remedy="ask for it again")
        if asked.task is not None:
            await asyncio.wait([asked.task], timeout=wait)
        return self._timed(asked)

    def _timed(self, asked: _Asked) -> Suggestion:
        told = asked.suggestion
        return replace(told, elapsed=round(time.monotonic() - asked.began, 3)) if told.state == "running" else told

    async def _answer(self, asked: _Asked, project: Project) -> None:
        told = asked.suggestion
        try:
            found = await self._predicted(project, told.series)
            mask = await asyncio.to_thread(self._kept, project, told.series, found["result"]["labelmap"])
            entropy = (found["result"].get("uncertainty") or {}).get("mean_entropy")
            told = replace(told, state="done", model=found["model"], version=found["version"], entropy=entropy, mask=mask)
        except VoxloopError as problem:
            told = replace(told, state="failed", problem=Problem(problem.problem, problem.about, problem.remedy))
        except (KeyError, TypeError, ValueError, zlib.error) as problem:
            said = Problem(f"its answer was not understood: {problem!r}", self._endpoint, "see the endpoint's log")
            told = replace(told, state="failed", problem=said)
        except Exception as problem:  # who waits is told, whatever it was
            _log.exception("the suggestion for %s", told.series)
            said = Problem(f"the server failed: {type(problem).__name__}", told.series, "see its log")
            told = replace(told, state="failed", problem=said)
        asked.suggestion = replace(told, elapsed=round(time.monotonic() - asked.began, 3))

    async def _predicted(self, project: Project, series: str) -> dict[str, Any]:
        """The endpoint's answer (``serving.request``) for the one item it was asked."""
        item = {"reference": {"series": series}, "outputs": ["labelmap", "uncertainty"]}
        timeout = httpx.Timeout(TIMEOUT, connect=5.0)
        try:
            async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
                response = await client.post(f"{self._endpoint}/invocations", json={"dataframe_records": [item]})
        except httpx.TimeoutException:
            raise Refused(504, "the endpoint did not answer in time", about=self._endpoint, remedy="see its log") from None
        except (httpx.HTTPError, httpx.InvalidURL) as problem:
            raise Refused(503, f"no endpoint answers ({problem})", about=self._endpoint, remedy=_START) from None
        if response.status_code != 200:
            said = " ".join(response.text.split())[:200]
            raise Refused(
                502, f"the endpoint failed: {response.status_code} {said}", about=self._endpoint, remedy="see its log"
            )
        found: dict[str, Any] = response.json()["predictions"][0]
        if found["error"]:
            raise Refused(502, str(found["error"]["message"]), about=f"model {found['model']}")
        if found["model"] != project.model:
            other = f"the endpoint serves model {found['model']}, this project's is {project.model}"
            raise Refused(409, other, about=f"project {project.key}", remedy="start an endpoint for this project's model")
        return found

    def _kept(self, project: Project, series: str, labelmap: dict[str, Any]) -> Mask:
        """The answered label map, once it is sure that it lies on the series' grid."""
        grid, shape = self._archive.geometry(series), tuple(labelmap["shape"])
        if shape != grid.spatial_shape or not np.allclose(labelmap["affine"], grid.affine, atol=1e-2):
            problem = f"the prediction, {shape}, is not on the series' grid, {grid.spatial_shape}"
            raise Refused(502, problem, about=series, remedy="see that the endpoint reads the same home")
        array = np.frombuffer(zlib.decompress(base64.b64decode(labelmap["data"])), np.uint8).reshape(shape)
        names = {value: name for name, value in labelmap["structures"].items()}  # the version's own, not the project's
        return self._masks.add(self._archive, series, valued(array, names, project.label_set, series), project.label_set)
