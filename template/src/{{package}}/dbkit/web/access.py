"""Who may see the page.

With POOLS_TOKEN, whoever sends it: as `Authorization: Bearer ...`, or in the form of the page,
which leaves a cookie. Without it the page is closed, but for `manage.py runserver` on loopback:
that shows it to whoever asks from this machine, and calls it by a name of this machine. (A page
elsewhere may have its own name lead here.)
"""

import os
from hashlib import sha256
from hmac import compare_digest, digest

from starlette.requests import Request
from starlette.responses import Response

DEVELOPMENT = "RUNSERVER_ON_LOOPBACK"
"""The variable by which `runserver` tells the processes of its reloader."""
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
COOKIE = "pools"


def is_closed(token: str) -> bool:
    """Whether nobody may see it."""
    return not token and not os.environ.get(DEVELOPMENT)


def may_see(request: Request, token: str) -> bool:
    """Return whether the client may see the page."""
    if is_closed(token):
        return False
    if not token:
        client = request.client.host if request.client else ""
        return client in LOOPBACK and request.url.hostname in LOOPBACK
    if (sent := bearer(request)) is not None:
        return is_same(sent, token)
    return is_same(request.cookies.get(COOKIE, ""), cookie_of(token))


def bearer(request: Request) -> str | None:
    """Return the token that a request sends; None if it sends none."""
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    return sent.strip() if scheme.lower() == "bearer" else None


def is_same(sent: str, secret: str) -> bool:
    """Compare in a time that tells nothing of the secret."""
    return compare_digest(sent.encode(), secret.encode())


def cookie_of(token: str) -> str:
    """Make the cookie of a token; it opens the page, and does not reveal the token."""
    return digest(token.encode(), b"the page of the pools", sha256).hex()


def let_in(request: Request, response: Response, token: str) -> None:
    """Leave the cookie, for the page alone and until the browser ends."""
    response.set_cookie(
        COOKIE,
        cookie_of(token),
        path=request.scope["root_path"] or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
