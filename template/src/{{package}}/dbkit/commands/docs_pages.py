"""`/docs` and `/redoc` without the Internet, for `manage.py runserver`; and `/`, which leads there.

FastAPI's pages take their scripts from elsewhere. The development dependency fastapi-offline
has them as files; without it, and in production, the pages are FastAPI's own.
"""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi import docs
from starlette.responses import FileResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FOLDER = "_docs"
"""Where the files are, as seen from the folder of each page: applications may be mounted."""
PAGES: dict[str, dict[str, Any]] = {
    "get_swagger_ui_html": {
        "swagger_js_url": f"{FOLDER}/swagger-ui-bundle.js",
        "swagger_css_url": f"{FOLDER}/swagger-ui.css",
        "swagger_favicon_url": f"{FOLDER}/favicon.png",
    },
    "get_redoc_html": {
        "redoc_js_url": f"{FOLDER}/redoc.standalone.js",
        "redoc_favicon_url": f"{FOLDER}/favicon.png",
        "with_google_fonts": False,
    },
}
FILE = re.compile(rf"/{FOLDER}/([\w-]+(?:\.[\w-]+)+)$")


def prepare(app: ASGIApp) -> ASGIApp:
    """Return the application with pages that need nothing from elsewhere."""
    if isinstance(app, FastAPI) and app.openapi_url and app.docs_url:
        lead_to(app, app.docs_url)
    spec = find_spec("fastapi_offline")  # Found, not imported: its files are all that is used.
    if spec is None or spec.origin is None:
        return app
    for page, urls in PAGES.items():
        getattr(docs, page).__kwdefaults__.update(urls)
    return with_files(app, Path(spec.origin).parent / "static")


def with_files(app: ASGIApp, folder: Path) -> ASGIApp:
    """Answer requests for the files of the pages; all others are the application's."""
    files = {path.name: path for path in folder.iterdir()}

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        found = FILE.search(scope["path"]) if scope["type"] == "http" else None
        if found and found[1] in files:
            await FileResponse(files[found[1]])(scope, receive, send)
        else:
            await app(scope, receive, send)

    return answer


def lead_to(app: FastAPI, docs_url: str) -> None:
    """Lead from `/` to the pages, unless the application has a `/` of its own."""
    otherwise = app.router.default

    async def lead(scope: Scope, receive: Receive, send: Send) -> None:
        root: str = scope.get("root_path", "")
        if scope["type"] == "http" and scope["path"].removeprefix(root) == "/":
            await RedirectResponse(root + docs_url)(scope, receive, send)
        else:
            await otherwise(scope, receive, send)

    app.router.default = lead
