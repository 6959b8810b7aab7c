"""uvicorn's HTTP protocol with an end to how long a request's head may be, how long a client may take to send it, and how long
it may be silent within the body."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["BODY_S", "HEAD_S", "LONGEST_HEAD", "BoundedProtocol"]

LONGEST_HEAD = 1 << 16
"""Bytes of a request before its body."""

HEAD_S = 30.0
"""Seconds in which they arrive."""


BODY_S = 90.0
"""Seconds that a client may be silent before its request has arrived whole: what takes uploads says so earlier, in words."""


class BoundedProtocol(HttpToolsProtocol):
    """The parser keeps what it was sent until the head is complete; here it is not sent more than ``LONGEST_HEAD``."""

    _waiting: asyncio.TimerHandle | None = None
    _silent: asyncio.TimerHandle | None = None
    _length = 0

    def connection_made(self, transport: Any) -> None:
        """A client has come; the clock runs until its first request's head is there."""
        super().connection_made(transport)
        self._begin()

    def on_message_begin(self) -> None:
        """The clock runs for each request anew."""
        super().on_message_begin()
        self._begin()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._end()
        self._listen()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The client is not silent."""
        self._listen()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there; the answer may take its time."""
        self._hear()
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Refuse and close where a head is too long."""
        super().data_received(data)
        if self._waiting is not None:
            self._length += len(data)
            if self._length > LONGEST_HEAD and not self.transport.is_closing():
                self.send_400_response("The head of the request is too long.")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._end()
        self._hear()
        super().connection_lost(exc)

    def _begin(self) -> None:
        self._end()
        self._length = 0
        self._waiting = self.loop.call_later(HEAD_S, self._too_slow)

    def _end(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _listen(self) -> None:
        self._hear()
        self._silent = self.loop.call_later(BODY_S, self._too_silent)

    def _hear(self) -> None:
        if self._silent is not None:
            self._silent.cancel()
            self._silent = None

    def _too_silent(self) -> None:
        self._silent = None
        if self.flow.read_paused:  # it is we who do not listen
            self._listen()
        elif not self.transport.is_closing():
            self.transport.close()

    def _too_slow(self) -> None:
        self._waiting = None
        if not self.transport.is_closing():
            self.transport.close()
