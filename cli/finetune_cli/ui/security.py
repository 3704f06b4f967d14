"""Who may read the pages, and what the pages may load.

The server is bound to the loopback interface, but every program and every web page on this machine can reach that.
A random token keeps other users out, the Host header keeps out pages that have rebound their name to 127.0.0.1, and the
policies keep anything in a page from reaching another server.
"""

from __future__ import annotations

import secrets
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_BYTES = 32
HOSTS = ("127.0.0.1", "localhost")
_PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
"""Policy of files from the store: they run no scripts, load nothing, and have an origin of their own."""
_HEADERS = {
    "content-security-policy": _PAGE_POLICY,
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-dns-prefetch-control": "off",
    "x-frame-options": "DENY",
}
# A link in a web mail or in a terminal in the browser is of another site, and a strict cookie is not sent with what it
# opens. The page that sets the cookie therefore opens the first page itself.
_WELCOME = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>finetune</title>
<link rel="icon" type="image/svg+xml" href="/static/icon.svg">
<meta http-equiv="refresh" content="0; url=/"></head>
<body><p><a href="/">Continue to finetune</a></p></body></html>
"""


def create_token() -> str:
    """Return a random token."""
    return secrets.token_urlsafe(TOKEN_BYTES)


class AccessControl:
    """Middleware that answers only GET requests to this server's own address with the token.

    The token is in the URL that is printed once, and in a cookie afterwards.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app = app
        self._token = token
        self._hosts = {f"{host}:{port}" for host in HOSTS}
        self._cookie = f"finetune-ui-{port}"  # browsers send cookies to all ports of a host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is not allowed, and pass the others on."""
        if scope["type"] != "http":
            return  # there are no WebSockets

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        responder = self._refuse(scope) or self._app
        await responder(scope, receive, send_with_headers)

    def _refuse(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if headers.get("host") not in self._hosts:
            return _deny(HTTPStatus.FORBIDDEN, "This server answers at 127.0.0.1 only.")
        if scope["method"] != "GET":
            return _deny(HTTPStatus.METHOD_NOT_ALLOWED, "These pages are read-only.")
        if scope["path"] == "/" and (given := parse_qs(scope["query_string"].decode("latin-1")).get("token")):
            return self._welcome(given[0])
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return _deny(HTTPStatus.FORBIDDEN, "Another site has opened this page.")
        if not self._is_token(_read_cookie(headers.get("cookie", ""), self._cookie)):
            return _deny(HTTPStatus.UNAUTHORIZED, "Open the address that finetune ui has printed; it has a token.")
        return None

    def _welcome(self, given: str) -> Response:
        if not self._is_token(given):
            message = "The token is of another start of the server. Open the address that finetune ui has printed."
            return _deny(HTTPStatus.UNAUTHORIZED, message)
        response = HTMLResponse(_WELCOME)
        response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
        return response

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())


def _read_cookie(header: str, name: str) -> str:
    try:
        cookie = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return cookie.value if cookie else ""


def _deny(status: HTTPStatus, message: str) -> Response:
    headers = {"allow": "GET"} if status is HTTPStatus.METHOD_NOT_ALLOWED else None
    return PlainTextResponse(message + "\n", status, headers)
