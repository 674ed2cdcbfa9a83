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

import numpy as np

from maskloom.flows.viewer.gallery import Gallery, Opened
from maskloom.segcore.errors import MaskloomError
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.lonlat import is_located, to_lonlat
from maskloom.segcore.viewing.pictures import class_picture, encoded, object_picture, shown
from maskloom.segcore.viewing.pyramids import Pyramid
from maskloom.segcore.viewing.volumes import Volume

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

TILE = 512
"""Side of a tile in pixels."""
HOST = "127.0.0.1"
_STATIC = Path(__file__).parent / "static"
_AT_ONCE = 8
"""Requests that are answered at once."""
_MOST_ROWS = 500
_MOST_VERTICES = 20_000
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
_FRESH = {"Cache-Control": "private, no-cache"}
_KEPT = {"Cache-Control": "private, max-age=86400"}


class _Wrong(Exception):
    """A request that names nothing of the output."""


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
        return PlainTextResponse(str(error) or "not found", 404, headers={**_FRESH, **_HEADERS})

    def failed(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 500, headers={**_FRESH, **_HEADERS})

    def answering(answer: Callable[[Gallery, Request], Response]) -> Any:
        # Not a coroutine: Starlette calls it in a thread.
        def endpoint(request: Request) -> Response:
            response = answer(gallery, request)
            response.headers.update(_HEADERS)
            return response

        return endpoint

    inside = [
        Route("/", answering(_page)),
        Route("/api/images", answering(_images)),
        Route("/api/image", answering(_image)),
        Route("/api/progress", answering(_progress)),
        Route("/api/at", answering(_at)),
        Route("/tile/{layer}/{level:int}/{column:int}/{row:int}", answering(_tile)),
        Route("/plane/{layer}/{plane:int}/{index:int}", answering(_plane)),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=inside)],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
        ],
        exception_handlers={KeyError: wrong, _Wrong: wrong, MaskloomError: failed},
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
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

    # Without a log of accesses: the addresses hold the token.
    config = uvicorn.Config(
        application(gallery, token), log_level="warning", access_log=False, lifespan="on"
    )
    Server(config).run(sockets=[at])


# ---- answers
# --------------------------------------------------------------------------------------------------


def _page(_: Gallery, __: Request) -> Response:
    from starlette.responses import FileResponse

    return FileResponse(_STATIC / "index.html", media_type="text/html", headers=_FRESH)


def _images(gallery: Gallery, request: Request) -> Response:
    query = request.query_params
    if query.get("refresh"):
        gallery.refresh()
    start, count = _number(query.get("start", "0")), _number(query.get("count", "100"))
    return _json(gallery.page(start, min(count, _MOST_ROWS), query.get("search", "")))


def _image(gallery: Gallery, request: Request) -> Response:
    return _json(gallery.facts(_id(request), _bands(request)))


def _progress(gallery: Gallery, request: Request) -> Response:
    return _json({"done": gallery.progress.get(_id(request))})


def _tile(gallery: Gallery, request: Request) -> Response:
    image = gallery.opened(_id(request), _bands(request))
    layer, level, column, row = (
        request.path_params[name] for name in ("layer", "level", "column", "row")
    )
    pyramid = {"source": image.source, "mask": image.mask}.get(layer)
    if not isinstance(pyramid, Pyramid) or level >= pyramid.count:
        raise _Wrong(f"no such tile: {layer} {level}")
    height, width = pyramid.shape(level)
    top, left = row * TILE, column * TILE
    if top >= height or left >= width:
        raise _Wrong(f"no such tile: {column}, {row}")
    box = Box((top, left), (min(top + TILE, height), min(left + TILE, width)))
    pixels, valid = (_whole_tile(each) for each in pyramid.read(level, box))
    return _picture(image, request, layer, pixels, valid, exact=level == 0)


def _plane(gallery: Gallery, request: Request) -> Response:
    image = gallery.opened(_id(request), _bands(request))
    layer, number, index = (request.path_params[name] for name in ("layer", "plane", "index"))
    volume = {"source": image.source, "mask": image.mask}.get(layer)
    if not isinstance(volume, Volume) or number >= len(image.planes):
        raise _Wrong(f"no such plane: {layer} {number}")
    plane = image.planes[number]
    if index >= volume.spec.shape[plane.across]:
        raise _Wrong(f"no such plane: {index}")
    pixels, valid = volume.plane(plane, index)
    return _picture(image, request, layer, pixels, valid, exact=True)


def _at(gallery: Gallery, request: Request) -> Response:
    """The class and the object at a pixel: its row, and its outline in pixels."""
    image, query = gallery.opened(_id(request), _bands(request)), request.query_params
    position = [_number(query.get(axis, "0")) for axis in image.spec.space.axes]
    if any(at >= n for at, n in zip(position, image.spec.shape, strict=True)):
        raise _Wrong("outside the image")
    label, known = _label(image, position)
    found: dict[str, Any] = {"position": position, "label": label if known else None}
    found["values"] = _values(image, position)
    if is_located(image.spec.space):
        x, y = to_lonlat(
            image.spec.space, *(np.array([at + 0.5]) for at in (position[-1], position[-2]))
        )
        if np.isfinite([x[0], y[0]]).all():
            found["lonlat"] = [float(x[0]), float(y[0])]
    if known and not image.has_objects:
        found["class"] = next(
            (each["name"] for each in image.classes.rows if each["id"] == label), None
        )
    if known and not (image.has_objects and label == 0):
        entry = gallery.object_at(image, position, label)
        if entry is not None:
            row, geometry = entry
            found["object"] = row
            found["class"] = row.get("class_name")
            found["outline"] = _outline(image, geometry)
    return _json(found)


# ---- their parts
# --------------------------------------------------------------------------------------------------


def _id(request: Request) -> str:
    image_id = request.query_params.get("image")
    if image_id is None:
        raise _Wrong("no image is named")
    return image_id


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise _Wrong(f"expected a number, got {text!r}")
    return int(text)


def _bands(request: Request) -> tuple[int, ...]:
    text = request.query_params.get("bands", "")
    bands = tuple(map(_number, text.split(","))) if text else ()
    if len(bands) not in (0, 1, 3):
        raise _Wrong("expected one band or three")
    return bands


def _json(content: Any) -> Response:
    from starlette.responses import Response as Plain

    # NaN is not JSON; only numbers of objects may be it.
    return Plain(_dumped(content), media_type="application/json", headers=_FRESH)


def _dumped(content: Any) -> bytes:
    import json

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return value if np.isfinite(value) else None
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        return value

    return json.dumps(plain(content), default=str).encode()


def _picture(
    image: Opened, request: Request, layer: str, pixels: Any, valid: Any, *, exact: bool
) -> Response:
    from starlette.responses import Response as Plain

    query = request.query_params
    if layer == "source":
        limits = image.limits
        if "low" in query and "high" in query:
            try:
                pair = (float(query["low"]), float(query["high"]))
            except ValueError:
                raise _Wrong("expected numbers for `low` and `high`") from None
            if not np.isfinite(pair).all() or pair[0] >= pair[1]:
                raise _Wrong("expected `low` below `high`")
            limits = (pair,) * pixels.shape[-1]
        content, media_type = encoded(shown(pixels, limits), valid, exact=exact)
        return Plain(content, media_type=media_type, headers=_KEPT)
    if image.has_objects:
        return Plain(object_picture(pixels, valid), media_type="image/png", headers=_KEPT)
    hidden = {_number(each) for each in query.get("hidden", "").split(",") if each}
    content = class_picture(pixels, valid, image.classes.colours, hidden)
    return Plain(content, media_type="image/png", headers=_KEPT)


def _whole_tile(array: Any) -> Any:
    """The array on a whole tile: what is beyond the image is 0, and not valid."""
    more = [(0, TILE - n) for n in array.shape[:2]]
    if not any(after for _, after in more):
        return array
    return np.pad(array, more + [(0, 0)] * (array.ndim - 2))


def _label(image: Opened, position: list[int]) -> tuple[int, bool]:
    if isinstance(image.mask, Volume):
        place = tuple(position)
        return int(image.mask.voxels[place]), bool(image.mask.valid[place])
    labels, known = image.mask.read(0, _one(position))
    return int(labels[0, 0]), bool(known[0, 0])


def _values(image: Opened, position: list[int]) -> list[float]:
    """The numbers of the source at a pixel; empty where it has no data."""
    if image.source is None:
        return []
    if isinstance(image.source, Volume):
        place = tuple(position)
        values, known = image.source.voxels[place], image.source.valid[place]
    else:
        pixels, valid = image.source.read(0, _one(position))
        values, known = pixels[0, 0], valid[0, 0]
    return [float(each) for each in values] if known else []


def _one(position: list[int]) -> Box:
    return Box(tuple(position), tuple(at + 1 for at in position))


def _outline(image: Opened, geometry: bytes | None) -> list[list[list[float]]] | None:
    """The rings of an object in pixels of the image (x, y); simplified if they are long."""
    if geometry is None or len(image.spec.shape) > 2:
        return None
    import shapely

    from maskloom.segcore.ground.lonlat import from_lonlat

    shape = shapely.from_wkb(geometry)
    if is_located(image.spec.space):
        height, width = image.spec.shape
        shape = shapely.transform(
            shape,
            lambda points: np.stack(
                from_lonlat(image.spec.space, points[:, 0], points[:, 1], (height, width)), axis=1
            ),
        )
    if shapely.get_num_coordinates(shape) > _MOST_VERTICES:
        shape = shapely.simplify(shape, max(image.spec.shape) / 2048)
    # Pixels that touch at corners make an object of several polygons.
    rings = shapely.get_rings(shapely.get_parts(shape))
    return [np.round(shapely.get_coordinates(ring), 2).tolist() for ring in rings]
