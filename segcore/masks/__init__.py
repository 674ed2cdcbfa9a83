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
    """The writer of this name, or that of TIFF where masks of this one cannot tell so many objects
    apart.
    """
    writer = MASKS[name]
    return writer if objects <= writer.most_objects else MASKS["cog"]


def mask_endings() -> set[str]:
    """What the names of masks of all writers, and of files beside them, add to the id of an
    image.
    """
    return {writer.suffix + ending for writer in MASKS.values() for ending in ("", *writer.beside)}


def beside_endings() -> set[str]:
    """What the names of files beside masks add to the mask's name."""
    return {ending for writer in MASKS.values() for ending in writer.beside}
