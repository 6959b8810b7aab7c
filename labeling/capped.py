"""A limit on what a request may send, held before anything of it is kept."""

from typing import TYPE_CHECKING

from catalog.problem import problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Capped"]


class Capped:
    """ASGI middleware: answers 413 where a request announces more than ``largest`` bytes, 411 where it sends a body of a length
    that it does not say. The server holds a request to what it announces."""

    def __init__(self, app: "ASGIApp", *, largest: int) -> None:
        self._app, self._largest = app, largest

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """See the class."""
        headers = dict(scope.get("headers", []))
        told = headers.get(b"content-length", b"0")
        if scope["type"] == "http" and b"transfer-encoding" in headers:
            refused = problem(411, "the request does not say how long it is", about="Content-Length", remedy="send it whole")
            return await refused(scope, receive, send)
        if scope["type"] == "http" and (not told.isdigit() or int(told) > self._largest):
            remedy = "send one label at a time"
            refused = problem(413, f"larger than {self._largest} bytes", about="Content-Length", remedy=remedy)
            return await refused(scope, receive, send)
        return await self._app(scope, receive, send)
