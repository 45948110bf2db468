"""The last check before Gradio sees a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["Guard"]

_Scope = MutableMapping[str, Any]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_Application = Callable[[_Scope, Any, _Send], Awaitable[None]]

# Gradio's routes that fetch from other servers, or keep what visitors do or send beyond what the page needs.
_REFUSED = (
    "/file=http:",
    "/file=https:",
    "/proxy=",
    "/deep_link",
    "/monitoring",
    "/process_recording",
    "/profiling",
    "/run-history",
    "/undo-vibe-edit",
    "/vibe-",
)

# Scripts of Gradio's are inline and evaluated; nothing may come from, or go, elsewhere.
_POLICY = "; ".join(
    (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:",
        "frame-ancestors 'self'",
        "form-action 'self'",
        "base-uri 'self'",
    )
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """ASGI middleware: refuses the routes of Gradio's that the page has no use for and a visitor might, and tells the
    browser to load nothing from elsewhere.

    Args:
        app: what is guarded.
        hosts: names by which the page may be asked for; None for any. A page on loopback that answered to any name
            would answer to other sites' pages too, once their name is made to point here.
    """

    def __init__(self, app: _Application, hosts: Collection[str] | None = None) -> None:
        self._application = app
        self._hosts = hosts

    @classmethod
    def as_middleware(cls, hosts: Collection[str] | None) -> list[Any]:
        """What FastAPI takes as `middleware`."""
        from starlette.middleware import Middleware

        return [Middleware(cls, hosts=hosts)]

    async def __call__(self, scope: _Scope, receive: Any, send: _Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        path = unquote(str(scope["path"])).lower()
        refusal = b""
        if any(route in path for route in _REFUSED):
            refusal = b"topv ui fetches nothing from other servers, and has no use for this route"
        elif self._hosts is not None and _host(scope) not in self._hosts:
            refusal = b"topv ui serves this machine alone: ask for it as 127.0.0.1 or localhost"
        if refusal:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": refusal})
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        await self._application(scope, receive, with_headers)


def _host(scope: _Scope) -> str:
    """The name, without port, that a request asks for."""
    named = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    return urlsplit(f"//{named}").hostname or ""
