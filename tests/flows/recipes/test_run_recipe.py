"""Recipes: what is accepted, what is refused, what decides the fingerprint."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from maskloom.flows.recipes import run as recipes
from maskloom.flows.recipes.run_file import effective_tile
from maskloom.flows.recipes.run_file import schema as run_schema
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.models.protocols import SEGMENTERS

MINIMAL = {"inputs": "images", "output": "out", "segmenter": {"kind": "kmeans"}}


def make(*changes: str, **keys: object):
    return recipes.make({**MINIMAL, **keys}, Path("/data"), changes)


def test_paths_are_relative_to_the_recipe_and_uris_are_not():
    recipe = make(inputs=["a/*.tif", "s3://bucket/b", "/abs"], output="../out")
    assert recipe.inputs == ("/data/a/*.tif", "s3://bucket/b", "/abs")
    assert recipe.output == "/out"


def test_the_name_comes_from_the_file(tmp_path):
    path = tmp_path / "Delta Land_cover.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    assert recipes.load(path).name == "delta-land-cover"


def test_the_fingerprint_depends_on_what_decides_results_and_on_nothing_else():
    base = make().work.fingerprint
    same = [
        make("tiling.tile=256"),
        make("cluster.kind=serial"),
        make(output="b"),
        make(name="other"),
        make("max_failed_fraction=0.5"),
    ]
    other = [
        make("segmenter.clusters=3"),
        make("segmenter.seed=1"),
        make(fit="image"),
        make(segmenter="mixture"),
    ]
    assert {recipe.work.fingerprint for recipe in same} == {base}
    assert len({recipe.work.fingerprint for recipe in other} | {base}) == len(other) + 1


def test_the_environment_fills_variables(monkeypatch):
    monkeypatch.setenv("SCENES", "s3://scenes")
    assert make(inputs="${SCENES}/2026").inputs == ("s3://scenes/2026",)
    with pytest.raises(RecipeError, match="NO_SUCH"):
        make(inputs="${NO_SUCH}/x")


NETWORKS = {"deeplab", "fcn", "instances", "mask_rcnn", "network", "unet"}
HOLDING = {"connected_parts", "watershed", "ensemble"}


@pytest.mark.parametrize("kind", sorted(SEGMENTERS.keys() - HOLDING))
def test_every_segmenter_runs_by_its_name_alone(kind):
    if kind in NETWORKS:
        with pytest.raises(RecipeError, match=r"segmenter.weights: this key is required"):
            make(segmenter=kind)
        return
    assert make(segmenter=kind).segmenter == make(segmenter={"kind": kind}).segmenter


@pytest.mark.parametrize("kind", ["connected_parts", "watershed"])
def test_segmenters_hold_others(kind):
    wanted = {
        "kind": kind,
        "of": {"kind": "threshold", "value": 100, "classes": ["background", "cell"]},
    }
    assert make(segmenter=wanted).segmenter.classes == ("background", "cell")
    assert make(segmenter=wanted).objects is not None
    assert (
        make(segmenter={"kind": kind, "of": "threshold"}).segmenter
        == make(segmenter={"kind": kind, "of": {"kind": "threshold"}}).segmenter
    )
    for broken, where in (
        ({"kind": kind}, r"segmenter\.of"),
        ({"kind": kind, "of": "treshold"}, r"segmenter\.of\.kind.*threshold"),
        ({"kind": kind, "of": {"kind": "threshold", "valve": 3}}, r"segmenter\.of\.valve.*value"),
        ({"kind": kind, "of": "quickshift"}, "objects"),
    ):
        with pytest.raises(RecipeError, match=where):
            make(segmenter=broken)


def test_a_list_of_segmenters_is_an_ensemble():
    members = ["threshold", {"kind": "threshold", "method": "li"}]
    listed = make(segmenter=members)
    assert listed.kind == "ensemble"
    assert listed.segmenter == make(segmenter={"kind": "ensemble", "members": members}).segmenter
    assert listed.objects is None
    for broken, where in (
        (["threshold"], "members"),
        (["threshold", "quickshift"], "objects"),
        (["threshold", "knn"], r"members\.1\.kind"),
    ):
        with pytest.raises(RecipeError, match=where):
            make(segmenter=broken)


def test_the_fingerprint_tells_recipes_apart_by_what_they_hold():
    def fingerprint(of):
        return make(segmenter={"kind": "connected_parts", "of": of}).work.fingerprint

    assert fingerprint("kmeans") == fingerprint({"kind": "kmeans", "clusters": None})
    assert (
        len(
            {
                fingerprint(of)
                for of in ("kmeans", "mixture", "threshold", {"kind": "kmeans", "seed": 1})
            }
        )
        == 4
    )
    objects = [
        make(statistics=statistics).work.fingerprint
        for statistics in (["area"], ["objects"], [{"kind": "objects", "min_size": 2}])
    ]
    assert len(set(objects)) == 3


@pytest.mark.parametrize(
    "path",
    sorted(
        path
        for path in (Path(__file__).parents[3] / "deploy" / "recipes").glob("*.yaml")
        if "weights: models/" not in path.read_text()  # trained first; tests/deploy has these
    ),
    ids=lambda path: path.stem,
)
def test_the_example_recipes_are_accepted(path, monkeypatch):
    monkeypatch.setenv("SCENES_BUCKET", "scenes")
    monkeypatch.setenv("MASKS_BUCKET", "masks")
    assert recipes.load(path).name == path.stem


def test_unknown_and_missing_keys_name_their_place():
    with pytest.raises(RecipeError, match=r"tiling\.tiles|tiling: .*|Did you mean"):
        make("tiling.tiles=3")
    with pytest.raises(RecipeError, match="segmenter: this key is required"):
        recipes.make({"inputs": "a", "output": "b"}, Path("/"))


def test_a_recipe_that_is_no_mapping_or_no_yaml_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    for text in (
        "- a\n",
        "a: [",
        "just text",
        "inputs: a\noutput: a\noutput: b\nsegmenter: kmeans\n",
    ):
        path.write_text(text)
        with pytest.raises(RecipeError):
            recipes.load(path)
    with pytest.raises(RecipeError, match="Cannot read"):
        recipes.load(tmp_path / "absent.yaml")


def test_memory_needs_this_process():
    with pytest.raises(RecipeError, match="serial"):
        make(output="memory://x")
    assert make(output="memory://x", cluster="serial").output == "memory://x"


@given(st.integers(16, 16384))
def test_tiles_are_large_enough_and_align_with_blocks(tile):
    effective = effective_tile(tile)
    assert tile <= effective < tile + 256 or effective < 2 * tile
    assert effective % 256 == 0 or (effective < 256 and effective & (effective - 1) == 0)
    assert effective_tile(effective) == effective


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    ANYTHING,
    st.sampled_from(["segmenter", "tiling", "cluster", "inputs", "statistics", "fit", "storage"]),
)
def test_any_document_is_accepted_or_refused_with_a_recipe_error(value, key):
    try:
        recipe = make(**{key: value})
    except RecipeError as error:
        assert str(error)
    else:
        assert recipe.inputs


def test_the_schema_accepts_what_the_recipe_accepts():
    schema = run_schema()
    assert {
        alternative["properties"]["kind"]["const"]
        for alternative in schema["properties"]["segmenter"]["oneOf"]
        if "properties" in alternative
    } == set(SEGMENTERS)
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(
        {
            **MINIMAL,
            "tiling": {"tile": 512},
            "statistics": ["area"],
            "cluster": {"kind": "local", "workers": 2},
        },
        schema,
    )
    ensemble = [{"kind": "threshold"}, "kmeans"]
    nuclei = {"kind": "watershed", "of": "threshold", "stitch": {"by": "overlap"}}
    for segmenter in (ensemble, nuclei):
        jsonschema.validate({**MINIMAL, "segmenter": segmenter}, schema)
    for schedule in ({"cron": "0 3 * * *"}, {"interval": "6h", "timezone": "UTC"}):
        jsonschema.validate({**MINIMAL, "schedule": schedule}, schema)
    for schedule in ({"timezone": "UTC"}, {"cron": "0 3 * * *", "interval": "6h"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**MINIMAL, "schedule": schedule}, schema)
    wrong = {"kind": "kmeans", "cluster": 3}
    for segmenter in (wrong, [wrong], {**nuclei, "stitch": {"over": 0.5}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**MINIMAL, "segmenter": segmenter}, schema)


def test_prefect_takes_every_schedule_that_is_accepted():
    from prefect.client.schemas.schedules import CronSchedule

    for cron in (
        "0 3 * * *",
        "*/5 0-6 1,15 * mon-fri",
        "0 0 29 2 *",
        "0 12 * JAN,dec 7",
        "0 0 L * *",
        "0 9 * * 5#2",
    ):
        for zone in ("UTC", "Asia/Ho_Chi_Minh", "America/New_York"):
            assert make(schedule={"cron": cron, "timezone": zone}).schedule
            CronSchedule(cron=cron, timezone=zone)
    assert not make().schedule
    assert make(schedule={"cron": "0 3 * * *"}).work == make().work


def test_a_schedule_is_checked_without_prefect():
    code = (
        "import sys; from pathlib import Path; from maskloom.flows.recipes import run;"
        "run.make({'inputs': 'a', 'output': 'b', 'segmenter': 'threshold', 'schedule': {'cron': "
        "'0 3 * * *'}}, Path('/'));"
        "sys.exit('prefect' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"cron": "61 * * * *"}, "got '61 .*bad minute"),
        ({"cron": "0 25 * * *"}, "bad hour"),
        ({"cron": "0 3 * *"}, r"expected five fields \(minute"),
        ({"cron": "0 0 3 * * *"}, "expected five fields"),
        ({"cron": "every day"}, "expected five fields"),
        ({"cron": "0 0 31 2 *"}, "bad day-of-month"),
        (
            {"cron": "0 3 * * *", "timezone": "Europe/Viena"},
            r"schedule.timezone: .*Did you mean `Europe/Vienna`\?$",
        ),
        ({"cron": "0 3 * * *", "timezone": ""}, "expected a time zone"),
        (
            {"cron": "0 3 * * *", "every": 3600},
            r"schedule.every: unknown key\. Known keys: cron, interval, timezone",
        ),
        ({"timezone": "UTC"}, "schedule: expected either cron or interval"),
        ({"cron": "0 3 * * *", "interval": "6h"}, "schedule: expected either cron or interval"),
        ({"interval": 3600}, "schedule.interval: expected text, got 3600"),
        ({"interval": "0h"}, r"schedule.interval: expected a whole number and a unit .*'0h'"),
        ({"interval": "1.5h"}, "schedule.interval: expected a whole number and a unit"),
        ({"interval": "30s"}, "schedule.interval: expected a whole number and a unit"),
        ({"interval": "36h"}, "schedule.interval: expected up to 24 hours or whole days"),
        (
            "0 3 * * *",
            "schedule: expected a mapping with the keys `cron`, `interval`, `timezone`, got '0 3",
        ),
    ],
)
def test_a_schedule_that_nothing_can_follow_is_refused(schedule, message):
    with pytest.raises(RecipeError, match=message):
        make(schedule=schedule)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tiling": 2048}, r"^tiling: expected a mapping with the key `tile`, got 2048\.$"),
        ({"tiling": {"tile": "big"}}, r"^tiling\.tile: expected a whole number, got 'big'\.$"),
        ({"tiling": {"tile": 3}}, r"^tiling\.tile: expected at least 16, got 3\.$"),
        (
            {"tiling": {"tile": [64, 64]}},
            r"^tiling\.tile: expected one whole number, or three for volumes: \[z, y, x\]; got 2: ",
        ),
        ({"tiling": {"tile": [0, 64, 64]}}, r"^tiling\.tile\.0: expected at least 1, got 0\.$"),
        ({"tiling": {"tile": [8, "a", 64]}}, r"^tiling\.tile\.1: expected a whole number, got 'a'"),
        (
            {"fit": "collecton"},
            r"^fit: expected collection or image, got 'collecton'\. Did you mean `collection`\?$",
        ),
        ({"outptu": "x"}, r"^outptu: unknown key\. Did you mean `output`\? Known keys: "),
        ({"format": "tif"}, r"^format: unknown format 'tif'\. Did you mean `tiff`\?"),
        ({"segmenter": 5}, r"^segmenter: expected a mapping, text or a list, got 5\."),
        ({"segmenter": {"kind": ["a"]}}, r"^segmenter\.kind: expected a name, got \['a'\]"),
        (
            {"cluster": {"workers": True}},
            r"^cluster\.workers: expected a whole number, got True\.$",
        ),
        ({"limits": {"read": True}}, r"^limits\.read: expected a number, got True\.$"),
        (
            {"max_failed_fraction": math.nan},
            r"^max_failed_fraction: expected a finite number, got nan\.$",
        ),
        ({"max_failed_fraction": True}, r"^max_failed_fraction: expected a number, got True\.$"),
        (
            {"output": "https://h/out"},
            r"^output: https://h/out is a web address, where nothing can be written\.",
        ),
        (
            {"storage": {"s3": {"oauth": "x"}}},
            r"^storage\.s3\.oauth: secrets are not allowed in recipes\.",
        ),
        ({"output": "a\0b"}, r"^output: 'a\\x00b' holds a character that no path can hold\.$"),
        ({"output": "a\ud800"}, r"^output: 'a\\ud800' holds a character that no path can hold\.$"),
        (
            {"output": "x" * 5000},
            r"^output: '.{1,100}\.\.\.: File name too long\. Name a folder\.$",
        ),
        ({"output": "https://h/out#token=x"}, r"^output: only inputs may have a signed address"),
        (
            {"cluster": {"workers": "two"}},
            r"^cluster\.workers: expected a whole number, got 'two'\.$",
        ),
        ({"name": "A b"}, r"^name: expected text of the characters a-z0-9- only, got 'A b'\.$"),
        ({"inputs": [[1]] * 1_000}, r"^inputs\.0: .*\n(.*\n)*\.\.\. and 980 more\.$"),
        ({"name": int("9" * 4000)}, r"^name: expected text, got 9{100}\.\.\."),
    ],
)
def test_messages_say_what_was_expected_and_what_came(keys, message):
    with pytest.raises(RecipeError, match=message):
        make(**keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "segmenter: {kind: kmeans, classes: [no, yes, maybe]}",
            "segmenter.classes.0: expected text, got False. YAML reads no, off .* put it in quotes",
        ),
        (
            "segmenter: {kind: kmeans, classes: [2026-01-01, b]}",
            "got 2026-01-01. YAML reads this as a date. If it is text, put it in quotes",
        ),
        (
            "name: 2026",
            "name: expected text, got 2026. YAML reads this as a number. .* put it in quotes",
        ),
        (
            "segmenter: {kind: off}",
            "segmenter.kind: expected a name, got False. YAML reads no, off",
        ),
        ("on: push", "expected a key that is text, got True. YAML reads no, off"),
    ],
)
def test_what_yaml_reads_as_something_else_needs_quotes(text, message):
    with pytest.raises(RecipeError, match=message):
        recipes.make({**MINIMAL, **yaml.safe_load(text)}, Path("/data"))


@pytest.mark.parametrize(
    ("uri", "extra"),
    [
        ("gs://b/a.tif", "gcs"),
        ("gcs://b/a", "gcs"),
        ("az://c/a.tif", "azure"),
        ("abfs://c@a/x", "azure"),
    ],
)
def test_a_store_without_its_package_names_the_extra(uri, extra, monkeypatch):
    for package in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        RecipeError, match=rf"needs the extra '{extra}': pip install 'maskloom\[{extra}\]'"
    ):
        make(inputs=uri)
    with pytest.raises(RecipeError, match=r"Did you mean https://\?"):
        make(inputs="htps://h/a.tif")


def test_an_ensemble_is_not_fitted_to_images_and_collection_at_once():
    network = {"kind": "unet", "weights": "nuclei", "scaling": {"by": "deviation"}}
    members = [network, {"kind": "threshold", "method": "otsu"}]
    with pytest.raises(RecipeError, match="fit: the values of each image scale it"):
        make(segmenter=members)
    assert make(segmenter=members, fit="image").fit == "image"
    assert make(segmenter=[network, network]).fit == "collection"


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"by": "mean"}, r"scaling\.by: expected deviation or range, got 'mean'\.$"),
        ({"factor": 3}, r"scaling\.factor: expected a list, got 3\.$"),
        ({"by": "range", "percentile": [1, 99]}, r"Did you mean `percentiles`\?"),
        ({"by": "range", "percentiles": [99, 1]}, "two ascending numbers from 0 to 100"),
        ({"percentiles": [1, 99]}, r"scaling\.by: this key is required\.$"),
    ],
)
def test_of_two_kinds_of_section_the_closer_one_is_spoken_of(scaling, message):
    with pytest.raises(RecipeError, match=message):
        make(segmenter={"kind": "unet", "weights": "nuclei", "scaling": scaling})
