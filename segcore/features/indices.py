"""Spectral indices: formulas of bands with common names.

Reflectances, or numbers proportional to them, are expected; those with constants (`evi`, `savi`)
need reflectances from 0 to 1 (`values: physical`).
"""

from __future__ import annotations

from typing import NamedTuple


class Index(NamedTuple):
    """A formula, and where it comes from."""

    formula: str
    source: str


INDICES = {
    "ndvi": Index("(nir - red) / (nir + red)", "vegetation; Rouse et al. 1974"),
    "gndvi": Index("(nir - green) / (nir + green)", "chlorophyll; Gitelson et al. 1996"),
    "ndre": Index("(nir - rededge) / (nir + rededge)", "chlorophyll; Barnes et al. 2000"),
    "evi": Index(
        "2.5 * (nir - red) / (nir + 6 * red - 7.5 * blue + 1)", "vegetation; Huete et al. 2002"
    ),
    "savi": Index("1.5 * (nir - red) / (nir + red + 0.5)", "vegetation on soil; Huete 1988"),
    "ndwi": Index("(green - nir) / (green + nir)", "open water; McFeeters 1996"),
    "mndwi": Index("(green - swir1) / (green + swir1)", "open water; Xu 2006"),
    "ndmi": Index("(nir - swir1) / (nir + swir1)", "moisture of plants; Gao 1996"),
    "ndsi": Index("(green - swir1) / (green + swir1)", "snow; Hall et al. 1995"),
    "ndbi": Index("(swir1 - nir) / (swir1 + nir)", "built-up land; Zha et al. 2003"),
    "nbr": Index("(nir - swir2) / (nir + swir2)", "burned land; Key and Benson 2006"),
    "bsi": Index(
        "(swir1 + red - nir - blue) / (swir1 + red + nir + blue)", "bare soil; Rikimaru et al. 2002"
    ),
    "excess_green": Index(
        "(2 * green - red - blue) / (red + green + blue)",
        "plants in colour pictures; Woebbecke et al. 1995",
    ),
    "excess_red": Index(
        "(1.4 * red - green) / (red + green + blue)",
        "soil and residue in colour pictures; Meyer and Neto 2008",
    ),
    "luminance": Index("0.299 * red + 0.587 * green + 0.114 * blue", "Rec. ITU-R BT.601"),
}
