"""The one image that a user names."""

from __future__ import annotations

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.formats.dicom.grouping import is_series
from maskloom.segcore.raster.source import Source
from maskloom.segcore.storage.filesystems import filesystem, store_errors, version_of
from maskloom.tasks.discovery.discover import discover

_LISTED = 20


def single_source(path: str) -> Source:
    """The image at this path or URI: a file, a folder that is or holds one image, or one of the
    series in a folder. Raises `RecipeError` if there is none, or no single one.
    """
    fs, inner = filesystem(path)
    uri = inner if "file" in fs.protocol else path
    try:
        with store_errors(uri):
            info = fs.info(inner)
    except FileNotFoundError as error:
        folder, _, name = uri.rpartition("/")
        found = _images_in(folder) if is_series(uri) and fs.isdir(folder) else []
        if len(named := [each for each in found if each.uri.rpartition("/")[2] == name]) == 1:
            return named[0]
        raise RecipeError(f"{path!r} does not exist. Check its name.") from error
    if info["type"] == "other":
        raise RecipeError(f"{path!r} is neither a file nor a folder. Check its name.")
    if info["type"] != "directory":
        return Source(uri, "image", version_of(info), int(info.get("size") or 0))
    found = _images_in(path)
    if len(found) > 1:
        listed = "\n".join(f"  {each.uri}{_files(each)}" for each in found[:_LISTED])
        more = f"\n  and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise RecipeError(f"{path!r} holds {len(found)} images. Name one of them:\n{listed}{more}")
    return found[0]


def _images_in(folder: str) -> list[Source]:
    """The files, folders and series of files below a folder that are images, and the folder itself
    if it is one. Raises `RecipeError` if there is none.
    """
    try:
        return discover([folder], "", {}).sources
    except RecipeError as error:
        raise RecipeError(str(error).removeprefix("inputs: ")) from error


def _files(source: Source) -> str:
    return f" ({len(source.members)} files)" if source.members else ""
