"""The page on which a browser's user gives the token, for a cookie that lasts some hours or until /logout.

Also a link on another site's page (a report, a mail) brings the cookie along (SameSite=Lax): what changes something is refused
to other sites by Access, not by the cookie.
"""

import time
from html import escape
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from voxloop.access import COOKIE, SESSION_S, Rules

__all__ = ["routes"]

LONGEST = 8192
"""Bytes of a form."""

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Voxloop</title>
<style>
body {{ font: 16px system-ui, sans-serif; background: #10131a; color: #e8eaf0;
  display: grid; place-items: center; height: 90vh }}
form {{ display: grid; gap: .7em; width: 20em }} input, button {{ font: inherit; padding: .5em }}
p {{ color: #ff9a8a; margin: 0 }}
</style>
<form method="post" action="/login">
<h1>Voxloop</h1>
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<input name="next" type="hidden" value="{next}">
<p role="alert">{said}</p>
<button>Sign in</button>
</form></html>
"""


def routes(rules: Rules) -> list[Route]:
    """GET and POST /login; GET /logout."""

    async def show(request: Request) -> Response:
        to = _local(request.query_params.get("next", ""))
        return RedirectResponse(to, 303) if rules.signed_in(request.headers) else _page(to)

    async def sign_out(_: Request) -> Response:
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE)
        return response

    async def sign_in(request: Request) -> Response:
        form = parse_qs((await _body(request)).decode("utf-8", "replace"))
        to = _local(form.get("next", [""])[0])
        if not rules.knows(form.get("token", [""])[0].strip()):
            return _page(to, "That is not the token.", 401)
        expires = int(time.time()) + SESSION_S
        response = RedirectResponse(to, 303)
        secure = rules.public.startswith("https:")
        response.set_cookie(COOKIE, rules.session(expires), SESSION_S, httponly=True, samesite="lax", secure=secure)
        return response

    return [
        Route("/login", show, methods=["GET"]),
        Route("/login", sign_in, methods=["POST"]),
        Route("/logout", sign_out, methods=["GET"]),
    ]


def _page(to: str, said: str = "", status: int = 200) -> Response:
    return HTMLResponse(PAGE.format(next=escape(to, quote=True), said=escape(said)), status, {"Cache-Control": "no-store"})


def _local(path: str) -> str:
    """``path``, where it leads to a page of this server."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() else "/"


async def _body(request: Request) -> bytes:
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > LONGEST:
                raise HTTPException(413, "the form is too long")
    except ClientDisconnect:
        raise HTTPException(400, "the form did not arrive whole") from None
    return body
