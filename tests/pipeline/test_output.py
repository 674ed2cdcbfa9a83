"""An output read back: tables of committed images, sources and masks by windows."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from PIL import Image

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import Box
from maskloom.tasks.output import Output

WINDOW = Box((37, 101), (290, 403))


@pytest.fixture
def output(collection, maskloom) -> Output:
    """The output of a run with one broken image."""
    (collection.folder / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    recipe = collection.recipe(segmenter={"kind": "connected_parts", "of": {"kind": "threshold"}})
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 3
    return Output.open(str(collection.output))


def test_tables_and_windows_are_those_of_other_readers(output, collection):
    images = output.images()
    assert images.num_rows == 7
    for name, table in (("areas", output.areas()), ("objects", output.objects())):
        files = sorted((collection.output / "tables" / name).glob("*.parquet"))
        assert table.num_rows == sum(pq.read_metadata(file).num_rows for file in files) > 0
    assert output.areas(["area"], of=["photo_png"]).column_names == ["area"]
    image_id = images.filter(images["uri"].combine_chunks().to_numpy(False) != "")["image_id"]
    utm = next(each for each in image_id.to_pylist() if each.endswith("utm"))
    rows, columns = (slice(a, b) for a, b in zip(WINDOW.start, WINDOW.stop, strict=True))
    with rasterio.open(collection.folder / "images" / "scenes" / "utm.tif") as file:
        expected = np.moveaxis(file.read(), 0, -1)[rows, columns]
    with rasterio.open(collection.output / "masks" / "scenes" / "utm.tif") as file:
        labels = file.read(1)[rows, columns]
    with output.source(utm) as source, output.mask(utm) as mask:
        for stride in (1, 3, 64):
            assert np.array_equal(
                source.read_window(WINDOW, stride)[0], expected[::stride, ::stride]
            )
            assert np.array_equal(mask.read_window(WINDOW, stride)[0], labels[::stride, ::stride])


def test_the_source_is_read_as_the_run_read_it(collection, maskloom):
    for path in (collection.folder / "images").rglob("*.*"):
        path.unlink()
    Image.fromarray(np.full((40, 50), 7, np.uint8)).save(collection.folder / "images" / "a.png")
    recipe = collection.recipe(segmenter={"kind": "threshold", "value": 3}, pixel_size="0.5 um")
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    assert Output.open(str(collection.output)).source_spec("a").space.metric is not None


def test_an_unknown_image_and_one_without_a_mask_are_said(output, tmp_path):
    with pytest.raises(RecipeError, match=r"'brokn' among its 7\. Did you mean broken"):
        output.image("brokn")
    with pytest.raises(RecipeError, match="broken has no mask: "):
        output.mask("broken")
    with pytest.raises(RecipeError, match="is not an output of maskloom"):
        Output.open(str(tmp_path / "nothing"))
