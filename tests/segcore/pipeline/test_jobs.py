"""Jobs: how they split, and what their names keep apart."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest

from maskloom.segcore.geometry import Tiling
from maskloom.segcore.models.protocols import Requirements
from maskloom.segcore.pipeline.jobs import (
    DescribeJob,
    FinishJob,
    ImagesJob,
    JoinJob,
    RelabelJob,
    TileRangeJob,
    result_name,
    staging_folder,
)
from maskloom.segcore.segmenters.connected_parts import ConnectedParts
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.statistics.objects.options import Objects


@pytest.fixture
def image(bench, pixels):
    return bench.plan("photo", pixels)


@pytest.fixture
def part(bench, image, brighter):
    return TileRangeJob(bench.settings(brighter()), image, 4, 11)


def test_a_job_splits_into_its_images_and_tiles(bench, image, part):
    assert (
        DescribeJob((image.source,) * 2, "picture").split()
        == (DescribeJob((image.source,), "picture"),) * 2
    )
    assert (
        ImagesJob(part.settings, (image,) * 3).split() == (ImagesJob(part.settings, (image,)),) * 3
    )
    assert [(each.first, each.stop) for each in part.split()] == [(i, i + 1) for i in range(4, 11)]


def test_what_is_done_once_for_an_image_does_not_split(part):
    for job in (
        JoinJob(part.settings, part.image, ((0, 4), (4, 15))),
        FinishJob(part.settings, part.image, ((0, 15),), objects=3),
        RelabelJob(part, 3),
    ):
        assert job.split() == (job,)


def test_only_work_with_a_model_that_uses_a_gpu_wants_one(part):
    def with_device(device):
        model = SimpleNamespace(requirements=Requirements(device=device))
        return replace(part, settings=replace(part.settings, model=model))

    assert not part.wants_gpu
    assert not with_device("any").wants_gpu
    job = with_device("gpu")
    assert job.wants_gpu
    assert ImagesJob(job.settings, (job.image,)).wants_gpu
    # Joining and finishing run no network.
    for rest in (JoinJob(job.settings, job.image, ()), RelabelJob(job, 3)):
        assert not getattr(rest, "wants_gpu", False)


def test_jobs_are_small_when_they_travel(part):
    for job in (part, ImagesJob(part.settings, (part.image,)), RelabelJob(part, 3)):
        journey = pickle.dumps(job)
        assert pickle.loads(journey) == job
        assert len(journey) < 3000


def test_files_of_different_work_have_different_names(bench, image, part):
    """Of other tiles, of another size of tile, of another image (also one whose id begins like this
    one's), of another run.
    """
    other = replace(image, source=replace(image.source, image_id="photo/2"))
    jobs = [
        part,
        replace(part, first=3),
        replace(part, stop=12),
        replace(part, image=other),
        replace(part, settings=replace(part.settings, tiling=Tiling(32))),
        replace(part, settings=replace(part.settings, run_id="run-2")),
    ]

    names = [
        name for job in jobs for name in (job.name, job.labels, job.relabellings, job.relabelled)
    ]

    assert len(set(names)) == 4 * len(jobs)
    folders = {staging_folder(part.settings, each) for each in (image, other)}
    assert not any(a != b and b.startswith(f"{a}/") for a in folders for b in folders)


def test_the_parts_of_an_image_are_the_jobs_that_staged_them(part):
    whole = JoinJob(part.settings, part.image, ((0, 4), (4, 11)))
    assert whole.parts == (replace(part, first=0, stop=4), part)


def test_every_result_has_a_new_name_in_the_folder_of_its_driver(part):
    order = replace(part.settings, results="staging/mine")
    names = {result_name(order) for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("staging/mine/") for name in names)


@pytest.mark.parametrize(
    ("recipe", "objects", "joins"),
    [
        (Threshold(value=9), None, False),
        (Threshold(value=9), Objects(), True),
        (ConnectedParts(Threshold(value=9)), None, True),
    ],
)
def test_objects_are_joined_where_the_mask_or_the_table_has_them(bench, recipe, objects, joins):
    assert bench.settings(recipe.start(), objects=objects).joins == joins


def test_the_tiles_of_an_image_see_as_far_as_the_model_must(bench, image):
    grid = bench.settings(Threshold(method="local", window=15).start()).grid(image.spec)

    assert grid.counts == (3, 5)
    assert grid[0].core.shape == (16, 16)
    assert grid.halo >= 7
