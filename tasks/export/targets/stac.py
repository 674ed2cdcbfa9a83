"""STAC: a static collection of the masks, an item for each image."""

from __future__ import annotations

from maskloom.tasks.export.request import TARGETS, Exported, Request, counted
from maskloom.tasks.stac import write_stac


@TARGETS.register("stac")
def stac(request: Request) -> Exported:
    """Write the collection: `stac` below the output, where no folder is asked for."""
    done = write_stac(request.output, request.target)
    notes = []
    if done.left_out:
        notes.append(f"{counted(done.left_out, 'image')} without a mask left out.")
    if done.unplaced:
        unplaced = counted(done.unplaced, "item")
        notes.append(f"{unplaced} without a geometry: no place on a map is known.")
    return Exported(done.location, counted(done.items, "item"), tuple(notes))
