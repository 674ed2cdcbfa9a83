"""STAC items: one image of the assets of an item, whose bands are those of its files.

The assets must lie on one grid; none is resampled. Numbers are read as stored, without scale and
offset, as those of other formats. The files are read by their own formats. Collections are found by
`tasks.discovery`, which follows their links.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.stac.assets import Asset, acquired, chosen
from maskloom.segcore.formats.stac.documents import SUFFIXES, item_at
from maskloom.segcore.formats.stac.reader import AssetsReader, described, opened
from maskloom.segcore.formats.user_nodata import with_user_nodata
from maskloom.segcore.raster.spec import FORMATS, FileKind, RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage
from maskloom.segcore.storage.addresses import address_of, redacted, remember_address

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.ground.space import Space


@dataclass(frozen=True, slots=True)
class Stac:
    """Items of STAC catalogs: their assets as the bands of one image."""

    kinds: tuple[FileKind, ...] = (FileKind("a STAC item", SUFFIXES, content="JSON", named=True),)
    mask: str = "cog"

    def describe(self, location: str, version: str) -> RasterSpec:
        """See `Format.describe`."""
        return self.describe_image(StoredImage(location, version), ReadOptions())

    def parts(self, image: StoredImage, options: ReadOptions) -> Sequence[str]:  # noqa: ARG002
        """See `OptionsFormat.parts`: an item is one image."""
        return ()

    def describe_image(self, image: StoredImage, options: ReadOptions) -> RasterSpec:
        """See `OptionsFormat.describe_image`. The first of the files is the document."""
        document = image.files[0] if image.files else ""
        item, document = item_at(image.location, image.version, document)
        shown = redacted(image.location)
        assets = chosen(item, options.assets, shown, address_of(document))
        for asset in assets:
            remember_address(asset.uri, asset.address)
        specs = [described(asset.uri, options) for asset in assets]
        _require_one_grid(specs, assets, shown)
        first, bands = specs[0], sum(spec.file_bands for spec in specs)
        spec = replace(
            first,
            location=image.location,
            format="stac",
            bands=tuple(range(1, bands + 1)),
            dtype=np.result_type(*(spec.dtype for spec in specs)).name,
            version=image.version,
            file_bands=bands,
            nodata=first.nodata if len({spec.nodata for spec in specs}) == 1 else None,
            interpretation=first.interpretation if len(specs) == 1 else "bands",
            notes=_notes(specs),
            files=tuple(spec.location for spec in specs for _ in range(spec.file_bands)),
            part="",
            mask=first.mask or FORMATS[first.format].mask,
            acquired=acquired(item) or first.acquired,
            band_names=_names(specs, assets),
            scaling=_scaling(specs, assets),
        )
        return _with_nodata(spec, specs, assets)

    def open(self, spec: RasterSpec) -> AssetsReader:
        """See `Format.open`. Only the assets of the bands that are read are opened."""
        return opened(spec)

    def reduced_shapes(self, spec: RasterSpec) -> Sequence[Shape]:
        """See `PyramidFormat.reduced_shapes`: those that all assets have."""
        from maskloom.segcore.formats import reduced_shapes

        with opened(spec, closed=True) as reader:
            found = [reduced_shapes(part.spec) for part in reader.parts]
        return found[0] if len(set(found)) == 1 else ()

    def open_reduced(self, spec: RasterSpec, number: int, *, stored: bool = False) -> AssetsReader:
        """See `PyramidFormat.open_reduced`."""
        return opened(spec, reduced=number, stored=stored)


FORMATS.register("stac")(Stac())


def _require_one_grid(specs: Sequence[RasterSpec], assets: Sequence[Asset], shown: str) -> None:
    """Raise `FormatError` unless all assets have the same pixels."""
    by_size = sorted(range(len(specs)), key=lambda i: -specs[i].pixels)
    finest = specs[by_size[0]]
    other = [i for i, spec in enumerate(specs) if not _same_grid(spec, finest)]
    if not other:
        return
    same = [assets[i].name for i in range(len(specs)) if i not in other]
    sizes = ", ".join(
        f"{asset.name} {' x '.join(map(str, spec.shape[::-1]))}"
        for asset, spec in zip(assets, specs, strict=True)
    )
    raise FormatError(
        f"{shown}: its assets lie on different grids ({sizes} pixels), and none is resampled. Name "
        f"those of one grid, e.g. `assets: [{', '.join(same)}]`."
    )


def _same_grid(one: RasterSpec, other: RasterSpec) -> bool:
    return one.shape == other.shape and _same_place(one.space, other.space)


def _same_place(one: Space, other: Space) -> bool:
    if one == other:
        return True
    a, b = one.affine, other.affine
    if a is None or b is None or (one.crs is None) != (other.crs is None):
        return False
    # The same grid to a thousandth of a pixel, as different programs write it.
    pixel = max(abs(a[0]) + abs(a[1]), abs(a[3]) + abs(a[4]))
    if not np.allclose(a, b, rtol=1e-9, atol=1e-3 * pixel):
        return False
    if one.crs is None or other.crs is None or one.crs == other.crs:
        return True
    from pyproj import CRS

    return bool(CRS.from_wkt(one.crs) == CRS.from_wkt(other.crs))


def _notes(specs: Sequence[RasterSpec]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for spec in specs for note in spec.notes))


def _names(specs: Sequence[RasterSpec], assets: Sequence[Asset]) -> tuple[str, ...]:
    """The names of all bands: those in the item, or else in the files, or else of the assets."""
    names: list[str] = []
    for asset, spec in zip(assets, specs, strict=True):
        said = tuple(band.name for band in asset.bands)
        if len(said) != spec.file_bands:
            alone = (asset.name,) if spec.file_bands == 1 else ("",) * spec.file_bands
            said = spec.band_names or alone
        names += said
    return tuple(names)


def _scaling(
    specs: Sequence[RasterSpec], assets: Sequence[Asset]
) -> tuple[tuple[float, float], ...]:
    """Scale and offset of all bands, as the item or else the files state them."""
    found: list[tuple[float, float] | None] = []
    for asset, spec in zip(assets, specs, strict=True):
        said = [band.scaling for band in asset.bands]
        own: list[tuple[float, float] | None] = list(spec.scaling)
        found += (
            said if len(said) == spec.file_bands and any(said) else own or [None] * spec.file_bands
        )
    return tuple(each or (1.0, 0.0) for each in found) if any(found) else ()


def _with_nodata(
    spec: RasterSpec, specs: Sequence[RasterSpec], assets: Sequence[Asset]
) -> RasterSpec:
    """The metadata with the nodata value that the item states for files that state none."""
    stated = {
        asset.nodata
        for asset, own in zip(assets, specs, strict=True)
        if own.nodata is None and asset.nodata is not None
    }
    if len(stated) == 1:
        return with_user_nodata(spec, stated.pop())
    if stated:
        listed = ", ".join(f"{value:g}" for value in sorted(stated))
        note = f"its item states several nodata values ({listed}), so none of them is used"
        return replace(spec, notes=(*spec.notes, note))
    return spec
