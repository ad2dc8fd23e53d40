"""The chat page: its files, and the headers that restrict what a browser does with them."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["page_routes"]

SCRIPTS = (
    "chat",
    "clipboard",
    "events",
    "markdown",
    "markdown_spans",
    "markdown_view",
    "pictures",
    "settings",
    "storage",
)
FILES = {
    "/": ("chat.html", "text/html"),
    "/page/chat.css": ("chat.css", "text/css"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/page/{name}.js": (f"{name}.js", "text/javascript") for name in SCRIPTS},
}

# The page loads only its own files. Whatever text a model generates, no script in it runs, nothing
# is loaded for it, and in browsers that have trusted types it cannot become markup.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # cached, but revalidated: a new release is seen at once
}


def page_routes() -> list[Route]:
    """Routes to the page and its files. They need no key: they have no data."""
    return [_route(path, *file) for path, file in FILES.items()]


def _route(path: str, name: str, media_type: str) -> Route:
    content = files(__package__).joinpath("page", name).read_bytes()
    tag = f'"{sha256(content).hexdigest()[:32]}"'

    async def file(request: Request) -> Response:
        headers = {**HEADERS, "etag": tag}
        known = request.headers.get("if-none-match", "").split(",")
        if tag in (each.strip().removeprefix("W/") for each in known):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return Route(path, file)
