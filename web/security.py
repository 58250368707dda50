"""What protects every answer and every request, whatever the page is.

The rule: nothing inline, nothing from elsewhere, nothing framed, nothing kept by caches; a request under a foreign name
(DNS rebinding) or from a foreign site (CSRF) is refused before any view sees it. After OWASP's ASVS 5, chapter V3.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from flask import Flask, Request, Response, g, request
from werkzeug.exceptions import BadRequest, Forbidden, MisdirectedRequest

from appliance.models import new_id
from appliance.setting_sections import WebSettings

BODY_BYTES_MAX = 1 << 20
_FIELDS_MAX = 500
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::[0-9]{1,5})?", re.ASCII)

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_API = "/api/"  # which tells programs what is wrong with which field
_HSTS = "max-age=31536000"


def _has_nul(request: Request) -> bool:
    return "\x00" in request.path or any("\x00" in text for text in request.args.values())


def protect(app: Flask, settings: WebSettings) -> None:
    """`settings` say under which names the console is reached, and whether it is by TLS."""
    app.config.update(
        MAX_CONTENT_LENGTH=BODY_BYTES_MAX,
        MAX_FORM_MEMORY_SIZE=BODY_BYTES_MAX,
        MAX_FORM_PARTS=_FIELDS_MAX,
        SESSION_COOKIE_NAME="__Host-strongroom-form",
        SESSION_COOKIE_SECURE=True,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_PATH="/",
        WTF_CSRF_TIME_LIMIT=None,  # as long as the session of forms, which sign-in and sign-out make anew
        WTF_CSRF_SSL_STRICT=True,
    )
    names = names_of(settings)

    @app.before_request
    def check() -> None:
        g.request_id = new_id()[:12]
        if not is_ours(request.host, names):
            raise MisdirectedRequest
        if not request.path.startswith(_API) and _has_nul(request):
            raise BadRequest  # PostgreSQL has no such text, and no form of ours sends one
        if request.method not in _SAFE and not same_site():
            raise Forbidden("The request came from another site.")

    @app.after_request
    def head(response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
        if settings.tls or settings.behind_proxy:
            response.headers["Strict-Transport-Security"] = _HSTS
        response.headers["X-Request-Id"] = g.get("request_id", "")
        return response


def names_of(settings: WebSettings) -> frozenset[str]:
    """The names, in small letters, that requests may be for; addresses always may."""
    own = ("localhost", socket.gethostname(), socket.getfqdn(), *settings.names)
    return frozenset(name.lower().rstrip(".") for name in own)


def is_ours(host: str, names: Iterable[str]) -> bool:
    """Whether a Host header is an address, which no foreign name server hands out, or one of the names."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match["six"] or match["name"].rstrip(".").lower()
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def same_site() -> bool:
    """Whether the browser says that its own page asks, or it is no browser: it then has no cookie that was not given to
    it on purpose. The token in forms is asked for besides."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.host
