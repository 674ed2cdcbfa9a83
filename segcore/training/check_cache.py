"""What earlier checks of the same files have found, so that they are not decoded again.

Beside the counts of an image, the digests of its files and the numbers that scale it, nothing is
kept: no pixels. An entry is found by everything that decides it: both headers, with the versions of
their files, the recipe's labels, classes and scaling by the image, and the version of maskloom. The
entries of a collection are one file in the user's cache, replaced as a whole, so that several
trainings may use it at once: at worst, one of them checks again what another has checked meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskloom import __version__
from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.training.class_counts import ImageCounts

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.training.pairs import Pair
    from maskloom.segcore.training.recipe import TrainingRecipe

_MOST_FILES = 50
"""Collections that are remembered: those used last."""


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """What a check has found out about an image and its mask."""

    counts: ImageCounts
    digests: tuple[str, ...]
    """SHA-256 of the files of the image, and of the mask."""
    scaling: Scaling | None = None
    """What a scaling by the image has found in it. None: all have the same numbers."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The file with the checks of a collection. Without `path`, nothing is remembered."""

    path: Path | None
    keys: tuple[str | None, ...]
    """Key of each pair. None: it cannot be told whether it has changed."""

    @classmethod
    def of(
        cls,
        pairs: Sequence[Pair],
        recipe: TrainingRecipe,
        cell: Shape,
        how: Scaling | ImageScaling,
    ) -> Memory:
        """That of the pairs of a training whose images are scaled so."""
        by_image = how if isinstance(how, ImageScaling) else None
        settings = repr((__version__, recipe.labels, recipe.classes, cell, by_image))
        folders = {
            spec.location.rpartition("/")[0] for pair in pairs for spec in (pair.image, pair.mask)
        }
        keys = tuple(
            _digest(settings, repr((pair.image, pair.mask, pair.turn)))
            if all(map(_has_version, (pair.image, pair.mask)))
            else None
            for pair in pairs
        )
        folder = cache_folder()
        name = f"{_digest(settings, *sorted(folders))[:32]}.npz"
        return cls(None if folder is None else folder / "training" / name, keys)

    def read(self) -> dict[int, Check]:
        """The checks of the pairs that have not changed, by number. A broken file has none."""
        if self.path is None:
            return {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as file:
                entries, cells, sizes = (file[name] for name in ("entries", "cells", "sizes"))
            # Used last.
            os.utime(self.path)
            read, found, start = json.loads(entries.tobytes()), dict[str, Check](), 0
            for (key, entry), of in zip(read.items(), sizes, strict=True):
                shape, largest, digests, numbers = entry
                end = start + int(np.prod(shape))
                counts = ImageCounts(cells[start:end].reshape(shape), of, int(largest))
                scaling = Scaling(*map(tuple, numbers)) if numbers else None
                found[key] = Check(counts, tuple(digests), scaling)
                start = end
            return {number: found[key] for number, key in enumerate(self.keys) if key in found}
        return {}

    def write(self, checks: Mapping[int, Check]) -> None:
        """Remember these checks by number in place of the earlier ones, if the cache can be written
        to.
        """
        kept = {key: checks[i] for i, key in enumerate(self.keys) if key is not None}
        if self.path is None or not kept:
            return
        entries = {
            key: (
                each.counts.cells.shape,
                each.counts.largest,
                each.digests,
                each.scaling and (each.scaling.offset, each.scaling.factor),
            )
            for key, each in kept.items()
        }
        file = io.BytesIO()
        np.savez_compressed(
            file,
            entries=np.frombuffer(json.dumps(entries).encode(), np.uint8),
            cells=np.concatenate([each.counts.cells.ravel() for each in kept.values()]),
            sizes=np.stack([each.counts.sizes for each in kept.values()]),
        )
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path.parent, delete=False) as staged:
                staged.write(file.getbuffer())
            Path(staged.name).replace(self.path)
            _forget_oldest(self.path.parent)


def cache_folder() -> Path | None:
    """The user's folder for what can be made again: that of `MASKLOOM_CACHE`, or the usual one.
    None: `MASKLOOM_CACHE` is empty, or the user has no home.
    """
    given = os.environ.get("MASKLOOM_CACHE")
    if given is not None:
        return Path(given) if given else None
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskloom"
    except RuntimeError:
        return None


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in files[:-_MOST_FILES]:
        path.unlink(missing_ok=True)


def _has_version(spec: object) -> bool:
    # Without a time or a tag, a version is the size alone.
    return isinstance(spec, RasterSpec) and not spec.version.endswith("-") and bool(spec.version)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
