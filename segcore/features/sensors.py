"""Sensors: the names of their bands, what each band shows, and in which order files hold them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sensor:
    """A sensor's bands."""

    common: dict[str, str]
    """Common name (as in STAC) of each band that has one, by the sensor's own name."""
    orders: tuple[tuple[str, ...], ...]
    """The bands of its usual files, each order of another length."""

    def order(self, count: int) -> tuple[str, ...]:
        """The bands of a file of this many; empty if it is not a usual one."""
        return next((order for order in self.orders if len(order) == count), ())


_SENTINEL2 = {
    "B01": "coastal",
    "B02": "blue",
    "B03": "green",
    "B04": "red",
    "B05": "rededge",
    "B06": "rededge2",
    "B07": "rededge3",
    "B08": "nir",
    "B8A": "nir08",
    "B09": "nir09",
    "B10": "cirrus",
    "B11": "swir1",
    "B12": "swir2",
}
_LANDSAT8 = {
    "B1": "coastal",
    "B2": "blue",
    "B3": "green",
    "B4": "red",
    "B5": "nir",
    "B6": "swir1",
    "B7": "swir2",
    "B9": "cirrus",
    "B10": "lwir11",
    "B11": "lwir12",
}
_LANDSAT5 = {
    "B1": "blue",
    "B2": "green",
    "B3": "red",
    "B4": "nir",
    "B5": "swir1",
    "B6": "lwir",
    "B7": "swir2",
}


def _named(*names: str) -> Sensor:
    """A sensor whose bands have common names only."""
    return Sensor({name: name for name in names}, (names,))


SENSORS = {
    "sentinel2": Sensor(
        _SENTINEL2,
        (
            tuple(_SENTINEL2),
            tuple(band for band in _SENTINEL2 if band != "B10"),
            tuple(band for band in _SENTINEL2 if band not in ("B01", "B09", "B10")),
            ("B02", "B03", "B04", "B08"),
        ),
    ),
    "landsat8": Sensor(_LANDSAT8, (tuple(_LANDSAT8)[:7], ("B2", "B3", "B4", "B5", "B6", "B7"))),
    "landsat5": Sensor(_LANDSAT5, (tuple(_LANDSAT5), ("B1", "B2", "B3", "B4", "B5", "B7"))),
    "planetscope": Sensor(
        {
            **{name: name for name in ("coastal", "blue", "green", "yellow", "red", "rededge")},
            "green_i": "green_i",
            "nir": "nir",
        },
        (
            ("blue", "green", "red", "nir"),
            ("coastal", "blue", "green_i", "green", "yellow", "red", "rededge", "nir"),
        ),
    ),
    "naip": _named("red", "green", "blue", "nir"),
    "micasense": _named("blue", "green", "red", "nir", "rededge"),
}
