"""Answers to the requests of the page: lists and facts as JSON, tiles and planes as pictures."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.flows.viewer.listing import ORDERS
from maskloom.flows.viewer.objects import (
    object_around,
    object_with_id,
    outline_of,
    shown_row,
)
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.lonlat import is_located, to_lonlat
from maskloom.segcore.viewing.pictures import (
    borders,
    class_picture,
    encoded,
    object_picture,
    shown,
)
from maskloom.segcore.viewing.pyramids import Pyramid
from maskloom.segcore.viewing.volumes import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from starlette.requests import Request
    from starlette.responses import Response

    from maskloom.flows.viewer.gallery import Gallery
    from maskloom.flows.viewer.opened import Opened

TILE = 512
"""Side of a tile in pixels."""
FRESH = {"Cache-Control": "private, no-cache"}
_KEPT = {"Cache-Control": "private, max-age=86400"}
_MOST_ROWS = 500


class Wrong(Exception):
    """A request that names nothing of the output."""


def page(static: Path) -> Response:
    """The page itself."""
    from starlette.responses import FileResponse

    return FileResponse(static / "index.html", media_type="text/html", headers=FRESH)


def images(gallery: Gallery, request: Request) -> Response:
    """Some rows of the list."""
    query = request.query_params
    if query.get("refresh"):
        gallery.listing.refresh()
    start, count = _number(query.get("start", "0")), _number(query.get("count", "100"))
    return _json(gallery.listing.page(start, min(count, _MOST_ROWS), *_search(request)))


def image(gallery: Gallery, request: Request) -> Response:
    """Facts of an image."""
    return _json(gallery.facts(_id(request), _bands(request), *_search(request)))


def progress(gallery: Gallery, request: Request) -> Response:
    """The done share of what is read before an image can be shown."""
    return _json({"done": gallery.progress.get(_id(request))})


def tile(gallery: Gallery, request: Request) -> Response:
    """A tile of a level."""
    found = gallery.opened(_id(request), _bands(request))
    layer, level, column, row = (
        request.path_params[name] for name in ("layer", "level", "column", "row")
    )
    pyramid = {"source": found.source, "mask": found.mask}.get(layer)
    if not isinstance(pyramid, Pyramid) or level >= pyramid.count:
        raise Wrong(f"no such tile: {layer} {level}")
    height, width = pyramid.shape(level)
    top, left = row * TILE, column * TILE
    if top >= height or left >= width:
        raise Wrong(f"no such tile: {column}, {row}")
    box = Box((top, left), (min(top + TILE, height), min(left + TILE, width)))
    if layer == "source":
        pixels, valid = (_whole_tile(each) for each in pyramid.read(level, box))
        return _source_picture(found, request, pixels, valid, exact=level == 0)
    # With a pixel more on each side, where a border may lie between two tiles.
    around = box.grow((1, 1)) & Box.whole((height, width))
    labels, valid = pyramid.read(level, around)
    inside = box.relative_to(around).slices
    drawn = _drawn(found, request, labels, valid)[inside]
    return _mask_picture(found, request, _whole_tile(labels[inside]), _whole_tile(drawn))


def plane(gallery: Gallery, request: Request) -> Response:
    """A plane of a volume."""
    found = gallery.opened(_id(request), _bands(request))
    layer, number, index = (request.path_params[name] for name in ("layer", "plane", "index"))
    volume = {"source": found.source, "mask": found.mask}.get(layer)
    if not isinstance(volume, Volume) or number >= len(found.planes):
        raise Wrong(f"no such plane: {layer} {number}")
    across = found.planes[number]
    if index >= volume.spec.shape[across.across]:
        raise Wrong(f"no such plane: {index}")
    pixels, valid = volume.plane(across, index)
    if layer == "source":
        return _source_picture(found, request, pixels, valid, exact=True)
    return _mask_picture(found, request, pixels, _drawn(found, request, pixels, valid))


def at(gallery: Gallery, request: Request) -> Response:
    """The class and the object at a pixel: its row, and its outline in pixels."""
    found, query = gallery.opened(_id(request), _bands(request)), request.query_params
    spec = found.spec
    position = [_number(query.get(axis, "0")) for axis in spec.space.axes]
    if any(each >= n for each, n in zip(position, spec.shape, strict=True)):
        raise Wrong("outside the image")
    label = _value(found.mask, position)
    answer: dict[str, Any] = {
        "position": position,
        "label": None if label is None else int(label),
        "values": _values(found, position),
    }
    if is_located(spec.space):
        x, y = to_lonlat(spec.space, *(np.array([each + 0.5]) for each in position[-1:-3:-1]))
        if np.isfinite([x[0], y[0]]).all():
            answer["lonlat"] = [float(x[0]), float(y[0])]
    if label is None or (found.has_objects and not label):
        return _json(answer)
    if found.has_objects:
        row = object_with_id(found.output, found.image_id, int(label))
    else:
        names = {each["id"]: each["name"] for each in found.classes.rows}
        answer["class"] = names.get(int(label))
        row = object_around(found.output, found.image_id, spec, position, int(label))
    if row is not None:
        answer["object"] = shown_row(row)
        answer["class"] = row.get("class_name")
        answer["outline"] = outline_of(spec, row.get("geometry"))
    return _json(answer)


# ---- their parts
# --------------------------------------------------------------------------------------------------


def _id(request: Request) -> str:
    image_id = request.query_params.get("image")
    if image_id is None:
        raise Wrong("no image is named")
    return image_id


def _number(text: str) -> int:
    # `isdecimal` is true of digits of all scripts, which `int` reads.
    if not text.isdecimal() or len(text) > 12:
        raise Wrong(f"expected a number, got {text!r}")
    return int(text)


def _search(request: Request) -> tuple[str, str]:
    query = request.query_params
    order = query.get("order", "name")
    if order not in ORDERS:
        raise Wrong(f"expected one of {', '.join(ORDERS)}, got {order!r}")
    return query.get("search", ""), order


def _bands(request: Request) -> tuple[int, ...]:
    text = request.query_params.get("bands", "")
    bands = tuple(map(_number, text.split(","))) if text else ()
    if len(bands) not in (0, 1, 3):
        raise Wrong("expected one band or three")
    return bands


def _hidden(request: Request) -> Collection[int]:
    return {_number(each) for each in request.query_params.get("hidden", "").split(",") if each}


def _json(content: Any) -> Response:
    from starlette.responses import Response as Plain

    def plain(value: Any) -> Any:
        """A value of which JSON can hold all: null in place of NaN and infinity."""
        # NaN and infinity are not JSON.
        if isinstance(value, float):
            return value if np.isfinite(value) else None
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        return value

    body = json.dumps(plain(content), default=str).encode()
    return Plain(body, media_type="application/json", headers=FRESH)


def _source_picture(
    found: Opened, request: Request, pixels: Any, valid: Any, *, exact: bool
) -> Response:
    from starlette.responses import Response as Plain

    query, limits = request.query_params, found.limits
    if "low" in query and "high" in query:
        try:
            pair = (float(query["low"]), float(query["high"]))
        except ValueError:
            raise Wrong("expected numbers for `low` and `high`") from None
        if not np.isfinite(pair).all() or pair[0] >= pair[1]:
            raise Wrong("expected `low` below `high`")
        limits = (pair,) * pixels.shape[-1]
    content, media_type = encoded(shown(pixels, limits), valid, exact=exact)
    return Plain(content, media_type=media_type, headers=_KEPT)


def _drawn(found: Opened, request: Request, labels: Any, valid: Any) -> NDArray[np.bool_]:
    """The pixels of a mask that are drawn: all, or those at borders."""
    if request.query_params.get("outline") != "1":
        return np.asarray(valid)
    edges = borders(labels, valid)
    return edges & (labels > 0) if found.has_objects else edges


def _mask_picture(found: Opened, request: Request, labels: Any, drawn: Any) -> Response:
    from starlette.responses import Response as Plain

    hidden = _hidden(request)
    if found.has_objects:
        by_class = request.query_params.get("by") == "class"
        if hidden or by_class:
            classes = found.classes_of(labels)
            drawn = drawn & ~np.isin(classes, list(hidden))
        if by_class:
            content = class_picture(
                classes, drawn & (classes >= 0), found.classes.colours, frozenset()
            )
        else:
            content = object_picture(labels, drawn)
    else:
        content = class_picture(labels, drawn, found.classes.colours, hidden)
    return Plain(content, media_type="image/png", headers=_KEPT)


def _whole_tile(array: Any) -> Any:
    """The array on a whole tile: what is beyond the image is 0, and not valid."""
    more = [(0, TILE - n) for n in array.shape[:2]]
    if not any(after for _, after in more):
        return array
    return np.pad(array, more + [(0, 0)] * (array.ndim - 2))


def _value(layer: Pyramid | Volume | None, position: list[int]) -> Any:
    """What a layer holds at a pixel; None where it has no data."""
    if layer is None:
        return None
    one = Box(tuple(position), tuple(each + 1 for each in position))
    values, known = layer.read(one) if isinstance(layer, Volume) else layer.read(0, one)
    place = (0,) * len(position)
    return values[place] if known[place] else None


def _values(found: Opened, position: list[int]) -> list[float]:
    """The numbers of the source at a pixel; empty where it has no data."""
    values = _value(found.source, position)
    return [] if values is None else [float(each) for each in values]
