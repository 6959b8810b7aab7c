"""Clients that go away in the middle of an answer, as viewers do when a reader scrolls on: no fault, nothing to log."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Gone"]


class Gone:
    """An ASGI middleware that ends an answer nobody reads any more."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on; what is raised because the connection has closed ends here."""
        gone = False

        async def sent(message: Message) -> None:
            nonlocal gone
            try:
                await send(message)
            except RuntimeError as problem:  # uvloop's word for it
                if "closed" not in str(problem):
                    raise
                gone = True
                raise OSError(str(problem)) from None

        try:
            await self.app(scope, receive, sent)
        except Exception:
            if not gone:
                raise
