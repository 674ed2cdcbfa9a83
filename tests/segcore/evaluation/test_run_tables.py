"""What the tables of a run say: classes by name, areas in one unit, objects with or without
scores.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskloom.segcore.annotations.label_mapping import UNKNOWN
from maskloom.segcore.errors import RecipeError, StoreError
from maskloom.segcore.evaluation.run_tables import Output
from maskloom.segcore.storage.store import Store

IMAGE = {"uri": "/i/a.png", "mask_uri": "masks/a.png", "fingerprint": "f"}


def write(folder: Path, name: str, rows: list[dict[str, object]], file: str = "0.parquet") -> None:
    path = folder / "tables" / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def area(
    image_id: str, class_id: int, class_name: str, pixels: int, unit: str = "m2"
) -> dict[str, object]:
    counts = {"pixel_count": pixels, "area": pixels * 100.0 if unit == "m2" else float(pixels)}
    return {
        "image_id": image_id,
        "class_id": class_id,
        "class_name": class_name,
        "area_unit": unit,
    } | counts


def images(folder: Path, *names: str, status: str = "ok") -> None:
    write(folder, "images", [{"image_id": name, "status": status, **IMAGE} for name in names])


def test_classes_are_told_by_their_names_image_by_image(tmp_path: Path) -> None:
    images(tmp_path, "a", "b")
    write(
        tmp_path,
        "areas",
        [
            area("a", 0, "dark", 5),
            area("a", 1, "light", 7),
            area("b", 0, "light", 1),
            area("b", 2, "dark", 2),
        ],
    )
    output = Output.read(Store(str(tmp_path)))
    assert output.classes.names == ("dark", "light")
    assert output.classes.areas == (700, 800)
    assert output.classes.area_unit == "m2"
    tables = {
        image_id: table.tolist() for image_id, table in output.class_tables("0.parquet").items()
    }
    assert tables == {"a": [0, 1], "b": [1, UNKNOWN, 0]}


def test_areas_of_several_units_are_counted_in_pixels(tmp_path: Path) -> None:
    images(tmp_path, "a", "b")
    write(tmp_path, "areas", [area("a", 0, "dark", 5), area("b", 0, "dark", 3, "px")])
    assert Output.read(Store(str(tmp_path))).classes.areas == (8,)
    assert Output.read(Store(str(tmp_path))).classes.area_unit == "px"


@pytest.mark.parametrize("scored", [True, False])
def test_objects(tmp_path: Path, scored: bool) -> None:
    images(tmp_path, "a", "b", "c")
    write(
        tmp_path,
        "areas",
        [
            area(name, i, kind, 5)
            for name in "abc"
            for i, kind in enumerate(("background", "cell", "debris"))
        ],
    )
    rows = [("b", 2, "cell", 0.5), ("a", 1, "debris", 0.25), ("b", 4, "debris", 0.75)]
    columns = ("image_id", "object_id", "class_name", *(["score"] if scored else []))
    write(tmp_path, "objects", [dict(zip(columns, row, strict=False)) for row in rows])
    found = Output.read(Store(str(tmp_path))).object_tables("0.parquet", ["a", "b", "c"])
    assert found["a"].classes.tolist() == [0, 2]
    assert found["b"].classes.tolist() == [0, UNKNOWN, 1, UNKNOWN, 2]
    assert found["c"].classes.tolist() == [0]
    assert found["b"].others == UNKNOWN
    if scored:
        np.testing.assert_array_equal(found["b"].scores, [0, 0, 0.5, 0, 0.75])
    else:
        assert found["b"].scores is None


def test_without_a_table_of_objects_the_only_class_is_theirs(tmp_path: Path) -> None:
    images(tmp_path, "a")
    write(tmp_path, "areas", [area("a", 0, "background", 5), area("a", 1, "cell", 7)])
    (found,) = Output.read(Store(str(tmp_path))).object_tables("0.parquet", ["a"]).values()
    assert (found.classes.tolist(), found.others) == ([0], 1)


def test_only_images_with_a_mask_count(tmp_path: Path) -> None:
    """A run that was killed leaves areas of images whose masks are not committed; a table that is
    gone leaves masks without areas.
    """
    images(tmp_path, "a")
    write(
        tmp_path,
        "areas",
        [area("a", 0, "dark", 5), area("b", 0, "dark", 7), area("b", 1, "light", 9)],
    )
    found = Output.read(Store(str(tmp_path))).classes
    assert (found.names, found.areas) == (("dark",), (500,))
    images(tmp_path, "a", "c")
    with pytest.raises(StoreError, match=r"no rows of c.*verify"):
        Output.read(Store(str(tmp_path)))


def test_an_output_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no run"):
        Output.read(Store(str(tmp_path)))
    images(tmp_path, "a", status="failed")
    with pytest.raises(RecipeError, match="its only image failed"):
        Output.read(Store(str(tmp_path)))
