"""Mask writers, one file or folder each."""

from maskloom.segcore.masks.protocol import (
    MASKS,
    EncodedBlock,
    MaskWriter,
    PublishedMask,
    name_of,
)

__all__ = [
    "MASKS",
    "EncodedBlock",
    "MaskWriter",
    "PublishedMask",
    "mask_names",
    "mask_writer",
    "name_of",
    "names_beside",
]


def mask_writer(name: str, objects: int = 0) -> MaskWriter:
    """The writer with this name, or that of TIFF if its masks cannot hold this number of
    objects.
    """
    writer = MASKS[name]
    return writer if objects <= writer.most_objects else MASKS["cog"]


def mask_names(image_id: str) -> set[str]:
    """Names under which any writer writes the mask of an image, and the files beside it."""
    masks = [(f"masks/{image_id}{writer.suffix}", writer) for writer in MASKS.values()]
    return {name_of(mask, ending) for mask, writer in masks for ending in ("", *writer.beside)}


def names_beside(mask: str) -> set[str]:
    """Names of files that there may be beside a mask of this name."""
    return {
        name_of(mask, ending)
        for writer in MASKS.values()
        if mask.endswith(writer.suffix)
        for ending in writer.beside
    }
