"""Who may ask the web server what: one ASGI middleware before everything that it serves.

A request needs the token (``Authorization: Bearer``, or the cookie that the login page sets for it), or comes from a trusted
reverse proxy that says who asks. On loopback without a token it needs neither, but names this machine in ``Host``, so that no
page of another site reaches it under a name that was pointed here. What changes something never comes from another site.
"""

import hashlib
import hmac
import ipaddress
import re
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from catalog.problem import problem
from voxloop.errors import FrontDoorError
from voxloop.settings import Settings

__all__ = ["COOKIE", "POLICY", "SESSION_S", "Access", "Rules", "loopback", "policy"]

COOKIE = "voxloop"
SESSION_S = 12 * 3600
"""Seconds that a login lasts."""

OPEN = ("/healthz", "/login", "/logout")
"""Answered to anybody."""

FOREIGN = ("/mlflow/",)
"""Pages that are not ours: their scripts and styles are theirs to restrict."""

POLICY = {
    "default-src": "'self'",
    "script-src": "'self' 'wasm-unsafe-eval' blob:",
    "worker-src": "'self' blob:",
    "connect-src": "'self' blob: data:",
    "img-src": "'self' blob: data:",
    "font-src": "'self' data:",
    "style-src": "'self' 'unsafe-inline'",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'self'",
}
"""What a page of ours may load: this server's, and what its scripts make (workers, pictures, WebAssembly)."""

_SAFE = ("GET", "HEAD", "OPTIONS")
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on ``host``."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def address(host: str) -> str:
    """How a URL names a server that listens on ``host``: by this machine's name where that is every address."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host.strip("[]")
    return f"[{name}]" if ":" in name else name


def policy(more: Mapping[str, str] | None = None) -> str:
    """A Content-Security-Policy: ``POLICY``, with ``more`` sources by directive."""
    added = more or {}
    return "; ".join(f"{name} {value} {added.get(name, '')}".strip() for name, value in POLICY.items())


@dataclass(frozen=True)
class Rules:
    """``token``: empty asks for none. ``proxies`` say in ``identity_header`` who asks. ``hosts``: the names that ``Host`` may
    have, at any port (a name that was pointed here is another name, and some clients leave the port out); empty allows all.
    ``public``: the address that browsers know."""

    token: str
    proxies: tuple[_Network, ...]
    identity_header: str
    hosts: frozenset[str]
    public: str

    @classmethod
    def of(cls, settings: Settings, host: str, port: int) -> "Rules":
        """The rules of a server on ``host``:``port``; FrontDoorError where others reach it and nobody is asked who they are."""
        proxies = tuple(ipaddress.ip_network(part.strip()) for part in settings.trusted_proxy.split(",") if part.strip())
        token = settings.token.get_secret_value()
        if not (loopback(host) or token or proxies):
            remedy = "set VOXLOOP_TOKEN (openssl rand -hex 24 makes one) or VOXLOOP_TRUSTED_PROXY, or leave out --host"
            raise FrontDoorError("other machines would reach this without a token", about=f"--host {host}", remedy=remedy)
        given = settings.viewer_url.rstrip("/")
        public = given or f"http://{address(host)}:{port}"
        own = {"localhost", "127.0.0.1", "[::1]", address(host), _name(urlsplit(public).netloc)}
        hosts = own if loopback(host) or given else set()
        return cls(token, proxies, settings.identity_header.lower(), frozenset(hosts), public)

    @property
    def asks(self) -> bool:
        """Whether a client must say who it is."""
        return bool(self.token or self.proxies)

    def knows(self, token: str) -> bool:
        """Whether ``token`` is the one, in a time that does not tell how much of it is right."""
        return bool(self.token) and hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode())

    def session(self, expires: int) -> str:
        """A cookie's value that is good until ``expires`` (seconds since 1970), and does not hold the token."""
        signed = hmac.new(self.token.encode(), f"session {expires}".encode(), hashlib.sha256)
        return f"{expires}.{signed.hexdigest()}"

    def remembers(self, session: str) -> bool:
        """Whether ``session`` is a cookie of ours that is still good."""
        expires = session.partition(".")[0]
        if not self.token or not expires.isascii() or not expires.isdigit() or len(expires) > 12:
            return False
        good = hmac.compare_digest(session.encode("utf-8", "replace"), self.session(int(expires)).encode())
        return good and int(expires) > time.time()

    def signed_in(self, headers: Headers) -> bool:
        """Whether a request has a cookie of ours that is still good."""
        return self.remembers(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))

    def trusts(self, address: str) -> bool:
        """Whether ``address`` is a proxy's that is believed."""
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        plain = getattr(found, "ipv4_mapped", None) or found  # as a server on :: sees it
        return any(plain in network for network in self.proxies)


class Access:
    """The middleware. ``scope["voxloop.author"]`` is who asks where a trusted proxy says so."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules
        common = {
            "x-content-type-options": "nosniff",
            "referrer-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
        }
        self.headers = _encoded({**common, "content-security-policy": policy()})
        self.foreign = _encoded({**common, "content-security-policy": "frame-ancestors 'self'"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass; answer the rest with the reason. Every answer gets the security headers."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        added = self.foreign if scope["path"].startswith(FOREIGN) else self.headers

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                has = {name for name, _ in headers}
                message = {**message, "headers": headers + [pair for pair in added if pair[0] not in has]}
            await send(message)

        refused = self.refusal(scope, Headers(scope=scope))
        return await (refused or self.app)(scope, receive, sending)

    def refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """What to answer to a request that may not pass."""
        host = headers.get("host", "").lower()
        public = urlsplit(self.rules.public)
        if self.rules.hosts and _name(host) not in self.rules.hosts:
            remedy = f"open {self.rules.public}, or set VOXLOOP_VIEWER_URL to the address that you opened"
            return problem(421, "this server is not known by that name", about=f"Host: {host[:200]}", remedy=remedy)
        if scope["method"] not in _SAFE and _from_elsewhere(headers, (host, public.netloc.lower())):
            return problem(403, "a page of another site may not change anything here", about=headers.get("origin", "")[:200])
        if host in (public.netloc.lower(), _name(public.netloc)):  # a proxy speaks otherwise to us than its links must say
            scope["scheme"] = public.scheme
            if headers.get("host") != public.netloc:
                MutableHeaders(scope=scope)["host"] = public.netloc
        return None if scope["path"] in OPEN else self._unknown(scope, headers)

    def _unknown(self, scope: Scope, headers: Headers) -> Response | None:
        if not self.rules.asks:
            return None
        if scope["client"] and self.rules.trusts(scope["client"][0]):
            author = headers.get(self.rules.identity_header, "").strip()
            if author:
                scope["voxloop.author"] = author
                return None
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.rules.knows(token.strip()):
            return None
        if self.rules.signed_in(headers):
            return None
        if self.rules.token and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            query = scope["query_string"].decode("latin-1")
            return RedirectResponse("/login?next=" + quote(scope["path"] + ("?" + query if query else ""), safe=""), 303)
        remedy = "send Authorization: Bearer TOKEN" if self.rules.token else "come through the reverse proxy that signs you in"
        return problem(401, "who asks is not known", remedy=remedy, headers={"WWW-Authenticate": "Bearer"})


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


@lru_cache(maxsize=64)
def _name(host: str) -> str:
    """The name in ``host[:port]``, in lower case; all of it where it is not of that form."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^][:/@?#\s]+)(:\d*)?", host)
    return (found[1] if found else host).lower()


def _from_elsewhere(headers: Headers, own: Iterable[str]) -> bool:
    """Whether a browser says that another site's page made the request; other clients say nothing."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() not in own
