"""The tables of a comparison of two outputs, and their rows.

pairs     one row per pair of images, also of those that could not be compared
change    one row per pair and transition: class before, class after; a null class is no data
objects   one row per two objects that belong together, and per object that appeared or is gone
spread    one row per pair and direction
"""

from __future__ import annotations

import pyarrow as pa

_PAIR = (("run_id", pa.string()), ("pair", pa.string()))
SCHEMAS: dict[str, pa.Schema] = {
    "pairs": pa.schema(
        [
            *_PAIR,
            ("image_a", pa.string()),
            ("image_b", pa.string()),
            ("run_id_a", pa.string()),
            ("status", pa.string()),
            ("error", pa.string()),
            ("acquired_a", pa.timestamp("us", "UTC")),
            ("acquired_b", pa.timestamp("us", "UTC")),
            ("days", pa.float64()),
            ("warped", pa.bool_()),
            ("mask_uri", pa.string()),
            ("changed_area", pa.float64()),
            ("area_unit", pa.string()),
        ]
    ),
    "change": pa.schema(
        [
            *_PAIR,
            ("from_class", pa.string()),
            ("to_class", pa.string()),
            ("pixel_count", pa.int64()),
            ("area", pa.float64()),
            ("area_unit", pa.string()),
        ]
    ),
    "objects": pa.schema(
        [
            *_PAIR,
            ("event", pa.string()),
            ("group", pa.int64()),
            ("object_a", pa.int64()),
            ("object_b", pa.int64()),
            ("class_a", pa.string()),
            ("class_b", pa.string()),
            ("pixel_count_a", pa.int64()),
            ("pixel_count_b", pa.int64()),
            ("area_a", pa.float64()),
            ("area_b", pa.float64()),
            ("overlap_pixels", pa.int64()),
            ("overlap_area", pa.float64()),
            ("area_unit", pa.string()),
        ]
    ),
    "spread": pa.schema(
        [
            *_PAIR,
            ("class_name", pa.string()),
            ("sector", pa.string()),
            ("pixel_count", pa.int64()),
            ("area", pa.float64()),
            ("area_unit", pa.string()),
            ("days", pa.float64()),
            ("hectares_per_day", pa.float64()),
            ("max_advance_m", pa.float64()),
            ("mean_advance_m", pa.float64()),
            ("max_metres_per_day", pa.float64()),
            ("mean_metres_per_day", pa.float64()),
            ("front_length_m", pa.float64()),
        ]
    ),
}
