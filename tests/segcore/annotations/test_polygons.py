"""Polygons as masks, against rasterio and GeoPandas, and for any boxes the same."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.features import rasterize

from maskloom.segcore.annotations.label_mapping import VOID, LabelMapping
from maskloom.segcore.annotations.polygons import masks
from maskloom.segcore.annotations.polygons.collect import LabelledGrid, collect
from maskloom.segcore.annotations.polygons.drawn import DrawnCells
from maskloom.segcore.annotations.polygons.masks import CELL, Placing
from maskloom.segcore.annotations.polygons.rules import PolygonRules, attribute_text
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.space import Space
from maskloom.segcore.raster.spec import RasterSpec

CLASSES = ("background", "field", "water")
UTM = rasterio.crs.CRS.from_epsg(32633).to_wkt()
AFFINE = (10.0, 0.0, 400_000.0, 0.0, -10.0, 5_500_000.0)


@pytest.fixture(scope="module", autouse=True)
def _nothing_kept() -> Iterator[None]:
    """Each reader draws by itself, so that readers can be compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_DRAWN", DrawnCells(0))
        yield


def grid(shape=(600, 700), crs=UTM, affine=AFFINE, name="a", **more) -> LabelledGrid:
    space = Space(affine, crs) if crs else Space()
    spec = RasterSpec(f"/{name}.tif", "tiff", shape, (1,), "uint8", shape, "1", 1, space=space)
    return LabelledGrid(name, spec)


def blob(random, centre, radius, vertices=40):
    angles = np.sort(random.uniform(0, 2 * np.pi, vertices))
    reach = radius * random.uniform(0.5, 1, vertices)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None]
    return shapely.make_valid(shapely.Polygon(np.asarray(centre) + around), method="structure")


def scene(seed=0, count=60, size=(7000, 6000)) -> geopandas.GeoDataFrame:
    """Overlapping polygons in UTM, some with holes, some of them multipolygons."""
    random = np.random.default_rng(seed)
    shapes = []
    for i in range(count):
        centre = 400_000 + random.uniform(0, size[0]), 5_500_000 - random.uniform(0, size[1])
        shape = blob(random, centre, random.uniform(20, 1500))
        if i % 3 == 0:
            shape = shape.difference(blob(random, centre, 300))
        shapes.append(shape)
    names = random.choice(CLASSES[1:], count)
    frame = geopandas.GeoDataFrame({"class": names}, geometry=shapes, crs=32633)
    return frame[~frame.is_empty].reset_index(drop=True)


def oracle(frame, shape, affine, classes=CLASSES, **options) -> np.ndarray:
    """The whole image drawn at once by rasterio, in the order of the file."""
    burned = ((each.geometry, classes.index(each["class"])) for _, each in frame.iterrows())
    return rasterize(burned, shape, transform=Affine(*affine), dtype="uint8", **options)


def drawn(mask, boxes=None) -> np.ndarray:
    with pickle.loads(pickle.dumps(mask)).open() as reader:
        values = np.full(mask.shape, -9, np.int64)
        for box in boxes or [Box.whole(mask.shape)]:
            read, known = reader.read(box)
            values[box.slices] = np.where(known, read.astype(np.int64), VOID)
    return values


def one(path: Path, rules: PolygonRules, image: LabelledGrid | None = None):
    image = image or grid()
    return collect({str(path): path.stem}, {image.spec.location: image}, rules)


def only(found):
    (mask,) = found.masks.values()
    return mask


def test_an_image_that_is_opened_again_is_not_drawn_again(tmp_path, monkeypatch):
    """Unless its rules are others, or too much was drawn meanwhile."""
    drawings = []
    whole = masks.draw_cell
    monkeypatch.setattr(masks, "draw_cell", lambda *a: drawings.append(1) or whole(*a))
    monkeypatch.setattr(masks, "_DRAWN", DrawnCells(2**20))
    scene().to_file(path := tmp_path / "a.gpkg")
    mask = only(one(path, PolygonRules(CLASSES)))
    first = drawn(mask)
    assert len(drawings) == 9
    assert np.array_equal(drawn(mask), first)
    assert len(drawings) == 9
    touched = replace(mask, rules=PolygonRules(CLASSES, all_touched=True))
    assert not np.array_equal(drawn(touched), first)
    assert len(drawings) == 18
    monkeypatch.setattr(masks, "_DRAWN", DrawnCells(2000))
    assert all(np.array_equal(drawn(mask), first) for _ in range(2))
    assert 27 < len(drawings) <= 36


@pytest.mark.parametrize(
    ("values", "most"), [([-1, 127], 1), ([0, 128], 2), ([-1, 2**39], 8), ([7, 7], 1)]
)
def test_kept_cells_are_the_same_and_the_oldest_go(values, most):
    random = np.random.default_rng(0)
    cells = DrawnCells(2**13)
    shown = [random.choice(np.array(values), (32, 30)) for _ in range(40)]
    for key, cell in enumerate(shown):
        cells.put(key, cell)
        assert np.array_equal(cells.get(key), cell)
        assert cells.get(key).dtype == np.int64
    assert cells.get(0) is None
    assert cells._bytes <= 2**13
    assert all(np.dtype(each.dtype).itemsize == most for each in cells._cells.values())


@pytest.mark.parametrize("all_touched", [False, True])
def test_polygons_are_drawn_as_rasterio_draws_the_whole_image(tmp_path, all_touched) -> None:
    frame = scene()
    frame.to_file(tmp_path / "fields.gpkg")
    mask = only(one(tmp_path / "fields.gpkg", PolygonRules(CLASSES, all_touched=all_touched)))
    expected = oracle(frame, mask.shape, AFFINE, all_touched=all_touched)
    assert (drawn(mask) == expected).all()
    assert set(np.unique(expected)) == {0, 1, 2}


@given(st.integers(37, 700), st.integers(37, 700))
def test_the_labels_of_a_pixel_do_not_depend_on_the_boxes_read(
    tmp_path_factory, rows, columns
) -> None:
    random = np.random.default_rng(rows)
    # Corners and edges through pixel centres, where any rounding decides.
    halves = np.round(random.uniform(-20, 720, (60, 3, 2)) * 2) / 2
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*points, points[0]]]},
            "properties": {"class": CLASSES[1 + i % 2]},
        }
        for i, points in enumerate(halves.tolist())
    ]
    path = tmp_path_factory.mktemp("halves") / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    mask = only(one(path, PolygonRules(CLASSES), grid(crs=None)))
    boxes = [
        Box((y, x), (min(y + rows, 600), min(x + columns, 700)))
        for y in range(0, 600, rows)
        for x in range(0, 700, columns)
    ]
    assert (drawn(mask, boxes[::-1]) == drawn(mask)).all()


def test_a_huge_polygon_is_cut_to_cells_without_a_trace(tmp_path) -> None:
    random = np.random.default_rng(3)
    angles = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    reach = 250 + 40 * np.cumsum(random.normal(size=20_000)) / 100 + random.normal(size=20_000)
    reach *= 1 + 0.2 * np.sin(40 * angles)
    points = np.stack([350 + reach * np.cos(angles), 300 + reach * np.sin(angles)], axis=1)
    shape = shapely.make_valid(shapely.Polygon(points), method="structure")
    shape = shape.difference(shapely.Point(400, 250).buffer(60)).difference(
        shapely.Point(256, 256).buffer(3)
    )
    geopandas.GeoDataFrame({"class": ["water"]}, geometry=[shape]).to_parquet(
        tmp_path / "a.parquet"
    )
    mask = only(one(tmp_path / "a.parquet", PolygonRules(CLASSES), grid(crs=None)))
    assert shapely.get_num_coordinates(shape) > 10_000
    assert (drawn(mask) == 2 * rasterize([shape], mask.shape, dtype="uint8")).all()


@pytest.mark.parametrize("epsg", [4326, 3857, 3035, 27700])
def test_edges_bend_as_the_projection_does(tmp_path, epsg) -> None:
    """A large triangle in another CRS has, on the grid of the image, edges as if each had ten
    thousand vertices.
    """
    there = Transformer.from_crs(32633, epsg, always_xy=True)
    affine = (1000.0, 100.0, 200_000.0, -50.0, -1000.0, 5_900_000.0)
    corners = np.array([[10, 20], [680, 80], [300, 590]]) @ np.array(affine).reshape(2, 3)[:, :2].T
    corners += (affine[2], affine[5])
    triangle = shapely.Polygon(np.stack(there.transform(*corners.T), axis=1))
    frame = geopandas.GeoDataFrame({"class": ["field"]}, geometry=[triangle], crs=epsg)
    frame.to_file(tmp_path / "a.gpkg")
    mask = only(one(tmp_path / "a.gpkg", PolygonRules(CLASSES), grid(affine=affine)))
    dense = frame.segmentize(triangle.length / 30_000).to_crs(32633)
    expected = rasterize(dense.geometry, mask.shape, transform=Affine(*affine), dtype="uint8")
    straight = rasterize(
        frame.to_crs(32633).geometry, mask.shape, transform=Affine(*affine), dtype="uint8"
    )
    wrong = (drawn(mask) != expected).sum()
    assert wrong <= 3
    assert (straight != expected).sum() > 20 * (wrong + 1)


def test_a_search_finds_all_polygons_of_a_box(tmp_path) -> None:
    """In another CRS, whose boxes are turned against those of the image."""
    frame = scene(5, 200)
    frame["number"] = range(1, len(frame) + 1)
    frame.to_crs(4326).to_file(tmp_path / "a.geojson")
    mask = only(one(tmp_path / "a.geojson", PolygonRules(CLASSES)))
    with mask.open() as reader:
        for y, x in np.random.default_rng(0).integers(0, 600, (40, 2)):
            left, top = Affine(*AFFINE) @ (x, y)
            window = shapely.box(left, top - 300, left + 300, top)
            inside = set(frame["number"][frame.intersects(window)])
            assert inside <= set(reader.numbers_near(Box((y, x), (y + 30, x + 30))).tolist())


def test_the_last_polygon_or_the_last_class_covers_others(tmp_path) -> None:
    frame = scene(1).to_crs(4326)
    frame.to_parquet(tmp_path / "a.parquet")
    ordered = scene(1).sort_values("class", key=lambda c: c.map(CLASSES.index), kind="stable")
    by_class = only(one(tmp_path / "a.parquet", PolygonRules(CLASSES, overlap="class")))
    last = only(one(tmp_path / "a.parquet", PolygonRules(CLASSES)))
    # Coordinates went through degrees and back: centres on edges may fall either way.
    assert (drawn(by_class) != oracle(ordered, by_class.shape, AFFINE)).sum() <= 2
    assert (drawn(last) != oracle(scene(1), last.shape, AFFINE)).sum() <= 2
    assert (drawn(by_class) != drawn(last)).sum() > 1000


def test_objects_have_values_of_their_own_and_void_covers_all(tmp_path) -> None:
    frame = scene(2)
    frame.loc[7, "class"] = "void"
    frame.to_file(tmp_path / "a.gpkg")
    rules = PolygonRules(CLASSES, numbered=frozenset({1, 2}))
    found = drawn(only(one(tmp_path / "a.gpkg", rules)))
    order = [*(i for i in frame.index if i != 7), 7]
    ranks = rasterize(
        ((frame.geometry[i], i + 1) for i in order), found.shape, transform=Affine(*AFFINE)
    )
    assert (found[ranks == 8] == VOID).all()
    assert (found[ranks == 0] == 0).all()
    mapping = LabelMapping.of(rules.value_rules(), CLASSES)
    for i in set(np.unique(ranks)) - {0, 8}:
        (value,) = np.unique(found[ranks == i])
        assert value & 0xFFFFFFFF == i
        assert CLASSES[mapping.classify(np.array([value]))[0]] == frame["class"][i - 1]


def features(*pairs) -> list[dict]:
    return [
        {
            "type": "Feature",
            "geometry": None if shape is None else shapely.geometry.mapping(shape),
            "properties": said,
        }
        for shape, said in pairs
    ]


def test_quaths_annotations_are_read_in_pixels(tmp_path) -> None:
    square = shapely.box(3, 4, 20, 30)
    said = {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}}
    # QuPath writes an array, a collection or a single feature.
    one_feature = features((square, said))[0]
    for content in (
        [one_feature],
        {"type": "FeatureCollection", "features": [one_feature]},
        one_feature,
    ):
        path = tmp_path / "slide.geojson"
        path.write_text(json.dumps(content))
        rules = PolygonRules(CLASSES, values={"Tumor": "water"})
        found = drawn(only(one(path, rules, grid(crs=None))))
        assert (found[4:30, 3:20] == 2).all()
        assert found.sum() == 2 * 26 * 17
    assert attribute_text('{"names": ["Tumor", "Positive"]}') == "Tumor: Positive"


def test_a_level_of_a_pyramid_counts_pixels_of_full_resolution() -> None:
    placing = Placing(Space(), (4.0, 4.0), None)
    (shape,) = placing.to_pixels([shapely.box(8, 16, 40, 80).wkb])
    assert shape.bounds == (2, 4, 10, 20)


def test_what_is_left_out_is_counted(tmp_path) -> None:
    inside = shapely.box(10, 10, 20, 20)
    bow = shapely.Polygon([(30, 30), (50, 50), (50, 30), (30, 50)])
    content = features(
        (inside, {"class": "field"}),
        (bow, {"class": "water"}),
        (None, {"class": "field"}),
        (shapely.Polygon(), {"class": "field"}),
        (shapely.Point(3, 3), {"class": "field"}),
        (shapely.box(9000, 9000, 9010, 9010), {"class": "field"}),
        (shapely.box(60, 60, 70, 70), {"class": "hedge"}),
    )
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": content}))
    with pytest.raises(RecipeError, match=r"mean no class: hedge \(1\)\. Give their class"):
        one(path, PolygonRules(CLASSES), grid(crs=None))
    found = one(path, PolygonRules(CLASSES, rest_is_void=True), grid(crs=None))
    (note,) = found.notes
    assert note == (
        "Of 7 features, 1 void, 1 outside of all images, 1 invalid and repaired, 2 empty and left "
        "out, 1 points or lines and left out."
    )
    values = drawn(only(found))
    assert (values[60:70, 60:70] == VOID).all()
    # Both halves of the bow, and nothing beyond its box.
    assert 150 < (values == 2).sum() < 250
    assert (values[30:50, 30:50] == 2).sum() == (values == 2).sum()


def test_one_file_serves_many_images_by_place_name_or_attribute(tmp_path) -> None:
    frame = scene(4)
    east = (10.0, 0.0, 403_500.0, 0.0, -10.0, 5_500_000.0)
    far = (10.0, 0.0, 600_000.0, 0.0, -10.0, 5_500_000.0)
    images = {
        each.spec.location: each
        for each in (
            grid((600, 350), name="west"),
            grid((600, 350), affine=east, name="east"),
            grid((600, 350), affine=far, name="far"),
        )
    }
    frame.to_file(tmp_path / "all.gpkg")
    found = collect({str(tmp_path / "all.gpkg"): "all"}, images, PolygonRules(CLASSES))
    whole = oracle(frame, (600, 700), AFFINE)
    assert list(found.masks) == ["/west.tif", "/east.tif"]
    assert (drawn(found.masks["/west.tif"]) == whole[:, :350]).all()
    assert (drawn(found.masks["/east.tif"]) == whole[:, 350:]).all()
    assert "1 images have no polygon and are left out: /far.tif." in found.notes

    plain = {f"/{name}.tif": grid((90, 90), None, name=name) for name in ("one", "two", "three")}
    content = features(
        (shapely.box(1, 1, 5, 5), {"class": "field", "picture": "one"}),
        (shapely.box(2, 2, 9, 9), {"class": "water", "picture": "two.tif"}),
        (shapely.box(2, 2, 9, 9), {"class": "water", "picture": "four"}),
    )
    path = tmp_path / "named.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": content}))
    found = collect({str(path): "named"}, plain, PolygonRules(CLASSES, image="picture"))
    assert {uri: int(drawn(mask).sum()) for uri, mask in found.masks.items()} == {
        "/one.tif": 16,
        "/two.tif": 98,
    }
    assert "1 of images that there are not" in found.notes[0]

    for name, feature in zip(("one", "two"), content, strict=False):
        (tmp_path / f"{name}.geojson").write_text(json.dumps(feature))
    (tmp_path / "three.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    files = {str(tmp_path / f"{name}.geojson"): name for name in ("one", "two", "three")}
    named = collect(files, plain, PolygonRules(CLASSES))
    assert [int(drawn(mask).sum()) for mask in named.masks.values()] == [16, 98, 0]


def test_a_wrong_crs_a_missing_attribute_and_broken_files_are_refused(tmp_path) -> None:
    frame = scene()
    path = tmp_path / "a.gpkg"

    def refused(match, rules=PolygonRules(CLASSES), image=None):  # noqa: B008
        with pytest.raises(RecipeError, match=match):
            one(path, rules, image)

    frame.set_crs(32601, allow_override=True).to_file(path)
    refused(r"No polygon of .*a\.gpkg lies in /a\.tif\. .* Check the CRS")
    refused(
        r"coordinates in a CRS, but /a\.tif states none\. Give the image its CRS",
        image=grid(crs=None),
    )
    refused(
        r"attribute: .*a\.gpkg has no attribute 'kind'\. Its attributes: class",
        PolygonRules(CLASSES, attribute="kind"),
    )
    frame.rename(columns={"class": "kind"}).to_file(path)
    refused(r"no attribute of the name class_name, class.*its attributes: kind")
    frame.to_file(path, layer="more")
    refused(r"has 2 layers: a, more\. Say which one")
    refused("has no layer 'b'", PolygonRules(CLASSES, layer="b"))
    with pytest.warns(UserWarning, match="crs"):
        frame.set_crs(None, allow_override=True).to_file(tmp_path / "b.gpkg")
    path = tmp_path / "b.gpkg"
    refused(r"b\.gpkg states no CRS, but /a\.tif has one")
    for content in ("", "hello", '{"type": "FeatureCollection", "features": [{"type": "Fea'):
        path = tmp_path / "c.geojson"
        path.write_text(content)
        refused(r"c\.geojson cannot be read as a file of vectors: ")
    path.write_text('{"type": "FeatureCollection", "features": []}')
    empty = PolygonRules(CLASSES, of="field")
    assert (drawn(only(one(path, empty, grid(crs=None, name="c")))) == 0).all()
    frame[:0].to_file(tmp_path / "d.gpkg")
    path = tmp_path / "d.gpkg"
    refused("The files of polygons hold none")
    path = tmp_path / "d.parquet"
    frame.drop(columns="geometry").to_parquet(path)
    refused("has no GeoParquet metadata")
    path.write_bytes(b"PAR1")
    refused(r"d\.parquet cannot be read")
    assert CELL == 256
