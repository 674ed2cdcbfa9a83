"""The server of `maskloom view`, for this machine alone.

It listens on the loopback interface. Every address begins with a random token, so that other
programs and pages cannot guess it, and requests under another host name (DNS rebinding) are
refused. Images are named by ids of the tables; no request names a file.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskloom.flows.viewer import answers
from maskloom.flows.viewer.gallery import Gallery
from maskloom.flows.viewer.listing import UnknownImage
from maskloom.segcore.errors import MaskloomError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
_STATIC = Path(__file__).parent / "static"
_AT_ONCE = 8
"""Requests that are answered at once."""
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def application(gallery: Gallery, token: str) -> Starlette:
    """The application whose addresses begin with `/token/`."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        import anyio.to_thread

        anyio.to_thread.current_default_thread_limiter().total_tokens = _AT_ONCE
        yield
        gallery.close()

    def wrong(_: Request, error: Exception) -> Response:
        return PlainTextResponse(
            str(error) or "not found", 404, headers={**answers.FRESH, **_HEADERS}
        )

    def failed(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 500, headers={**answers.FRESH, **_HEADERS})

    def answering(answer: Callable[[Gallery, Request], Response]) -> Any:
        # Not a coroutine: Starlette calls it in a thread.
        def endpoint(request: Request) -> Response:
            response = answer(gallery, request)
            response.headers.update(_HEADERS)
            return response

        return endpoint

    inside = [
        Route("/", answering(lambda *_: answers.page(_STATIC))),
        Route("/api/images", answering(answers.images)),
        Route("/api/image", answering(answers.image)),
        Route("/api/progress", answering(answers.progress)),
        Route("/api/at", answering(answers.at)),
        Route("/tile/{layer}/{level:int}/{column:int}/{row:int}", answering(answers.tile)),
        Route("/plane/{layer}/{plane:int}/{index:int}", answering(answers.plane)),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=inside)],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
        ],
        exception_handlers={
            UnknownImage: wrong,
            answers.Wrong: wrong,
            MaskloomError: failed,
            OSError: failed,
        },
        lifespan=lifespan,
    )


def new_token() -> str:
    """A token that cannot be guessed."""
    return secrets.token_urlsafe(18)


def listening(port: int) -> socket.socket:
    """A socket on the loopback interface; port 0: any free one. Raises `OSError`."""
    # With its protocol named, asyncio sends small answers at once (TCP_NODELAY).
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
    except OSError:
        found.close()
        raise
    return found


def serve(gallery: Gallery, token: str, at: socket.socket, started: Callable[[], None]) -> None:
    """Answer requests until the process is interrupted. `started` is called when it listens."""
    import uvicorn

    class Server(uvicorn.Server):
        """Calls `started` once it listens."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

    # Without a log of accesses: the addresses hold the token.
    config = uvicorn.Config(
        application(gallery, token),
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=1,
    )
    Server(config).run(sockets=[at])
