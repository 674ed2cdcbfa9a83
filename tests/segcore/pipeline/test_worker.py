"""What the jobs on one image do, one at a time: their results, and what they say of images and
staged files that cannot be read.
"""

from __future__ import annotations

import json

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from maskloom.segcore.errors import RunError
from maskloom.segcore.pipeline import worker
from maskloom.segcore.pipeline.jobs import (
    DescribeJob,
    FinishJob,
    ImagesJob,
    JoinJob,
    RelabelJob,
    TileRangeJob,
    staging_folder,
)
from maskloom.segcore.segmenters.connected_parts import ConnectedParts
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.storage.store import Store

RANGES = ((0, 4), (4, 11), (11, 15))
"""The 3 x 5 tiles of the photograph in three parts that begin and end within rows."""


def counts(result):
    return {row["class_name"]: row["pixel_count"] for row in result.rows["area"]}


# Headers


def test_headers_come_in_the_order_of_the_files_and_each_has_its_own_failure(bench, pixels):
    nothing = bench.write("empty", b"")
    sources = (
        bench.absent("absent"),
        bench.write("text", b"not a picture at all"),
        nothing,
        bench.plan("photo", pixels).source,
    )

    absent, text, empty, photo = worker.describe(DescribeJob(sources))

    assert [each.source for each in (absent, text, empty, photo)] == [*sources]
    assert absent.failure.error_type == "Missing"
    assert text.failure.error_type == empty.failure.error_type == "FormatError"
    assert text.failure.permanent
    assert "text.png" in text.failure.error
    assert absent.spec is text.spec is empty.spec is None
    assert photo.failure is None
    assert (photo.spec.shape, photo.spec.bands) == ((45, 70), (1, 2, 3))


# Small images


def test_a_small_image_ends_as_a_mask_its_rows_and_a_preview(bench, pixels, brighter):
    image, settings = bench.plan("a/photo", pixels), bench.settings(brighter(90, band=2))

    result = bench.segment(settings, image)

    expected = pixels[..., 1] > 90
    np.testing.assert_array_equal(bench.mask(settings, result), expected)
    assert counts(result) == {"dark": (~expected).sum(), "bright": expected.sum()}
    assert result.mask == "masks/a/photo.png"
    assert result.staged.keys() == {"masks/a/photo.png", "previews/a/photo.png"}
    assert all(name.startswith(f"{settings.results}/") for name in result.staged.values())
    assert (result.failure, result.tiles, result.source) == (None, 15, image.source)
    assert json.loads(result.segmenter) == {"kind": "brighter", "above": 90}


def test_pixels_without_data_are_nodata_in_the_mask_and_counted_apart(bench, pixels, brighter):
    alpha = np.full((45, 70, 1), 255, np.uint8)
    alpha[:20, 10:50] = 0
    image = bench.plan("hole", np.concatenate([pixels, alpha], axis=-1))
    settings = bench.settings(brighter())

    result = bench.segment(settings, image)

    mask = bench.mask(settings, result)
    assert (mask[:20, 10:50] == 255).all()
    assert (mask == 255).sum() == 800
    assert {row["nodata_pixels"] for row in result.rows["area"]} == {800}
    assert sum(counts(result).values()) == 45 * 70 - 800


def test_an_unreadable_image_is_a_failure_of_its_own_and_its_neighbours_are_done(
    bench, pixels, brighter
):
    photo, cut = bench.plan("photo", pixels), bench.plan("cut", pixels)
    with fsspec.open(cut.source.uri, "rb") as file:
        content = file.read()
    (cut,) = worker.describe(DescribeJob((bench.write("cut", content[: len(content) // 2]),)))
    assert cut.failure is None, "its header is whole"
    settings = bench.settings(brighter())

    before, broken, after = worker.segment_images(ImagesJob(settings, (photo, cut, photo)))

    assert broken.failure.error_type == "ReadError"
    assert "cut.png" in broken.failure.error
    assert broken.failure.permanent
    assert (broken.mask, broken.staged) == (None, {})
    assert counts(broken) == {"dark": 0, "bright": 0}
    assert {row["unprocessed_pixels"] for row in broken.rows["area"]} == {45 * 70}
    assert before.failure is after.failure is None
    assert before.mask_sha256 == after.mask_sha256


def test_an_image_that_changed_since_the_plan_fails_and_is_to_be_tried_again(
    bench, pixels, brighter
):
    image, settings = bench.plan("photo", pixels), bench.settings(brighter())
    bench.plan("photo", pixels[::-1])

    for failure in (
        bench.segment(settings, image).failure,
        worker.segment_part(TileRangeJob(settings, image, 0, 4)).failure,
    ):
        assert failure.error_type == "SourceChanged"
        assert not failure.permanent


def test_an_image_that_is_gone_fails_and_is_to_be_tried_again(bench, pixels, brighter):
    image = bench.plan("photo", pixels)
    fsspec.filesystem("memory").rm(image.source.uri)

    failure = bench.segment(bench.settings(brighter()), image).failure

    assert failure.error_type == "Unavailable"
    assert "photo.png" in failure.error
    assert not failure.permanent


# Fitting


def test_a_model_is_fitted_to_each_image_alone_where_the_settings_hold_a_fitter(
    bench, pixels, brighter_than_mean
):
    settings = bench.settings(brighter_than_mean())
    for image_id, each in (("photo", pixels), ("darker", pixels // 2)):
        result = bench.segment(settings, bench.plan(image_id, each))

        red = each[..., 0]
        assert json.loads(result.segmenter)["above"] == red.sum(dtype=int) / red.size
        np.testing.assert_array_equal(bench.mask(settings, result), red > red.mean())


def test_an_image_without_data_needs_no_model_and_is_all_nodata(bench, pixels, brighter_than_mean):
    blank = np.concatenate([pixels, np.zeros((45, 70, 1), np.uint8)], axis=-1)

    settings = bench.settings(brighter_than_mean())
    result = bench.segment(settings, bench.plan("blank", blank))

    assert result.failure is None
    assert (bench.mask(settings, result) == 255).all()
    assert {row["nodata_pixels"] for row in result.rows["area"]} == {45 * 70}


def test_parts_of_an_image_teach_a_fitter_what_the_whole_image_does(
    bench, pixels, brighter_than_mean
):
    fitter, image = brighter_than_mean(), bench.plan("photo", pixels)
    settings = bench.settings(fitter)
    whole = worker.observe(ImagesJob(settings, (image,)))

    first, second, third = (
        worker.observe(TileRangeJob(settings, image, *each)).state for each in RANGES
    )

    assert whole.state == (pixels[..., 0].sum(dtype=int), 45 * 70)
    assert fitter.merge(third, fitter.merge(first, second)) == whole.state


def test_an_image_that_cannot_be_read_teaches_nothing_and_is_named(
    bench, pixels, brighter_than_mean
):
    settings = bench.settings(brighter_than_mean())
    photo, gone = bench.plan("photo", pixels), bench.plan("gone", pixels)
    fsspec.filesystem("memory").rm(gone.source.uri)

    alone = worker.observe(ImagesJob(settings, (photo,)))
    both = worker.observe(ImagesJob(settings, (gone, photo)))
    nothing = worker.observe(ImagesJob(settings, (gone,)))

    assert both.state == alone.state
    assert [image for image, _ in both.failures] == [gone]
    assert alone.failures == ()
    assert nothing.state is None


def test_a_model_that_is_ready_has_nothing_left_to_fit(bench, pixels, brighter):
    with pytest.raises(TypeError, match="Brighter has nothing left to fit"):
        worker.observe(ImagesJob(bench.settings(brighter()), (bench.plan("photo", pixels),)))


# Large images


@pytest.mark.parametrize("borders", [(), (1,), (4, 11), range(1, 15)], ids=str)
def test_parts_put_together_are_the_image_in_one_job(bench, pixels, brighter, borders):
    image, settings = bench.plan("photo", pixels), bench.settings(brighter())

    whole, parts = (
        bench.segment(settings, image),
        bench.segment_in_parts(settings, image, *borders),
    )

    assert parts.mask_sha256 == whole.mask_sha256
    assert parts.rows == whole.rows
    assert (parts.tiles, parts.segmenter, parts.mask) == (15, whole.segmenter, whole.mask)
    preview = f"previews/{image.source.image_id}.png"
    assert bench.read(settings, parts.staged[preview]) == bench.read(
        settings, whole.staged[preview]
    )


@pytest.mark.parametrize(
    ("model", "objects"),
    [
        (Threshold(value=140).start(), Objects()),
        (ConnectedParts(Threshold(value=140)).start(), Objects(min_size=3)),
        (ConnectedParts(Threshold(value=140)).start(), None),
    ],
    ids=["objects of a class mask", "a mask of objects", "a mask of objects without their table"],
)
def test_objects_of_parts_are_those_of_the_image_in_one_job(bench, pixels, model, objects):
    image, settings = bench.plan("photo", pixels), bench.settings(model, objects=objects)

    whole = bench.segment(settings, image)
    parts = bench.segment_in_parts(settings, image, 4, 11)

    assert parts.mask_sha256 == whole.mask_sha256
    assert parts.rows == whole.rows
    assert parts.tables.keys() == whole.tables.keys() == ({"objects"} if objects else set())
    if objects:
        one, other = (
            pa.ipc.open_stream(bench.read(settings, each.tables["objects"])).read_all()
            for each in (whole, parts)
        )
        assert one.num_rows > 10
        assert one.equals(other)


def test_a_part_that_is_staged_is_not_made_again(bench, pixels, brighter):
    image = bench.plan("photo", pixels)
    part = TileRangeJob(bench.settings(brighter()), image, 0, 4)
    worker.segment_part(part)
    staged = bench.read(part.settings, part.name)
    fsspec.filesystem("memory").rm(image.source.uri)

    assert worker.segment_part(part).failure is None
    assert bench.read(part.settings, part.name) == staged


@pytest.mark.parametrize("lost", ["name", "labels", "relabellings", "relabelled"])
def test_a_staged_file_that_is_gone_is_named(bench, pixels, lost):
    settings = bench.settings(ConnectedParts(Threshold(value=140)).start())
    image = bench.plan("photo", pixels)
    bench.segment_in_parts(settings, image, 4, 11)
    part = TileRangeJob(settings, image, *RANGES[1])
    name = getattr(part, lost)
    if lost == "relabellings":
        # A part that is relabelled already needs none.
        fsspec.filesystem("memory").rm(Store(settings.output).uri(part.relabelled))
    fsspec.filesystem("memory").rm(Store(settings.output).uri(name))
    job = {
        "name": FinishJob(settings, image, RANGES),
        "labels": JoinJob(settings, image, RANGES),
        "relabellings": RelabelJob(part, 5),
        "relabelled": FinishJob(settings, image, RANGES),
    }[lost]

    with pytest.raises(RunError, match=r"photo\.png is gone .*Run the same command again") as gone:
        worker.perform(job)
    assert name.rpartition("/")[2] in str(gone.value)


@pytest.mark.parametrize("content", [b"", b"\x10", b"nothing that was ever staged", b"\0" * 99])
def test_a_damaged_part_is_named_with_the_folder_to_remove(bench, pixels, brighter, content):
    settings, image = bench.settings(brighter()), bench.plan("photo", pixels)
    bench.segment_in_parts(settings, image, 4, 11)
    part = TileRangeJob(settings, image, *RANGES[1])
    with fsspec.open(Store(settings.output).uri(part.name), "wb") as file:
        file.write(content)

    with pytest.raises(RunError, match=r"photo\.png is damaged") as damaged:
        worker.finish_image(FinishJob(settings, image, RANGES))
    assert Store(settings.output).uri(staging_folder(settings, image)) in str(damaged.value)


def test_an_image_with_a_part_too_few_has_no_mask(bench, pixels, brighter):
    settings, image = bench.settings(brighter()), bench.plan("photo", pixels)
    bench.segment_in_parts(settings, image, 4, 11)

    with pytest.raises(RunError, match=r"photo\.png has 8 of 15 tiles; tile \(0, 4\) is missing"):
        worker.finish_image(FinishJob(settings, image, (RANGES[0], RANGES[2])))


def test_work_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="there is no work in a int"):
        worker.perform(5)
