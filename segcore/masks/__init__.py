"""Mask writers, one file or folder each."""

from maskloom.segcore.masks.protocol import MASKS, EncodedBlock, MaskWriter, PublishedMask

__all__ = [
    "MASKS",
    "EncodedBlock",
    "MaskWriter",
    "PublishedMask",
    "beside_endings",
    "mask_endings",
    "mask_writer",
]


def mask_writer(name: str, objects: int = 0) -> MaskWriter:
    """The writer with this name, or that of TIFF if its masks cannot hold this number of
    objects.
    """
    writer = MASKS[name]
    return writer if objects <= writer.most_objects else MASKS["cog"]


def mask_endings() -> set[str]:
    """The endings of the names of masks of all writers, and of files beside them, after the id of
    an image.
    """
    return {writer.suffix + ending for writer in MASKS.values() for ending in ("", *writer.beside)}


def beside_endings() -> set[str]:
    """The endings of the names of files beside masks, after the name of the mask."""
    return {ending for writer in MASKS.values() for ending in writer.beside}
