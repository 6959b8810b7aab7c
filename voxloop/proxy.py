"""Another server of this machine below a path of ours, so that one address and one token reach it."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from catalog.problem import problem

__all__ = ["Proxy"]

_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
_OURS = {"host", "authorization", "cookie", "origin", "referer", "expect"}
"""What the server behind need not know: it is asked by us."""


class Proxy:
    """Passes requests on to ``target`` and streams both ways, without the path where it is mounted; Via says that it did.

    A name and password in ``target`` are sent as HTTP's basic authentication. ``remedy``: what to do where it does not answer.
    """

    def __init__(self, name: str, target: str, remedy: str) -> None:
        self.name, self.target, self.remedy = name, target.rstrip("/"), remedy
        timeout = httpx.Timeout(600, connect=5)  # a prediction takes minutes on a CPU
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=10)
        self.client = httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False, follow_redirects=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the server behind does; 502 where it does not."""
        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        scope = request.scope
        raw, prefix = scope["raw_path"].decode("ascii"), scope["root_path"]
        path = raw.removeprefix(prefix) if raw.startswith(prefix) else quote(scope["path"].removeprefix(prefix))
        if path and not path.startswith("/"):  # what follows would be taken for a part of the server's name
            return problem(400, "the address is not one that can be passed on", about=request.url.path[:200])
        query = scope["query_string"].decode("latin-1")
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP | _OURS]
        headers.append(("via", "1.1 voxloop"))  # the endpoint takes no paths from afar
        sends = "content-length" in request.headers or "transfer-encoding" in request.headers
        body: Any = request.stream() if sends else None
        try:
            url = self.target + path + ("?" + query if query else "")
            asked = self.client.build_request(request.method, url, headers=headers, content=body)
            wanted = httpx.URL(self.target)
            if (asked.url.userinfo, asked.url.netloc) != (wanted.userinfo, wanted.netloc):
                raise httpx.InvalidURL("another server")
            found = await self.client.send(asked, stream=True)
        except ClientDisconnect:
            return problem(400, "the request did not arrive whole")
        except httpx.InvalidURL:
            return problem(400, "the address is not one that can be passed on", about=request.url.path[:200])
        except httpx.HTTPError as error:
            return problem(502, f"{self.name} does not answer ({type(error).__name__})", about=self.name, remedy=self.remedy)
        answer = StreamingResponse(_streamed(found), found.status_code)
        kept = [(name.lower(), value) for name, value in found.headers.raw]
        answer.raw_headers = [(name, value) for name, value in kept if name.decode() not in _HOP | {"server", "date"}]
        return answer


async def _streamed(found: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it came, compressed or not; the connection is let go of also where the client does not stay."""
    try:
        async for part in found.aiter_raw():
            yield part
    finally:
        await found.aclose()
