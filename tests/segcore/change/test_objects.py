"""What became of objects, for objects drawn by hand and for labels of scikit-image."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
from skimage.measure import label

from maskloom.segcore.change.joint import Joint
from maskloom.segcore.change.objects import object_changes
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.space import Metric, Space
from maskloom.segcore.raster.spec import RasterSpec

PIXEL = 0.25
"""mm²"""
CLASS_OF = np.zeros(20_000, np.int64)
"""By id: from 10,000 on, another class."""
CLASS_OF[10_000:] = 1


def changes(before: np.ndarray, after: np.ndarray, tile: int = 1000) -> pa.Table:
    shape = before.shape
    space = Space(metric=Metric((0.5, 0.5)))
    spec = RasterSpec("x", "tiff", shape, (1,), "uint32", shape, "", 1, space=space)
    parts = []
    for y in range(0, shape[0], tile):
        for x in range(0, shape[1], tile):
            box = Box((y, x), (min(y + tile, shape[0]), min(x + tile, shape[1])))
            parts.append(Joint.of(before[box.slices], after[box.slices], spec, box))
    joint = Joint.total(parts)
    classes = CLASS_OF[joint.before], CLASS_OF[joint.after]
    return object_changes(joint, classes, spec)


def drawn(*objects: tuple[int, int, int, int], shape: tuple[int, int] = (40, 60)) -> np.ndarray:
    """Ids from 1 of rectangles (top, left, bottom, right)."""
    ids = np.zeros(shape, np.int64)
    for number, (top, left, bottom, right) in enumerate(objects, 1):
        ids[top:bottom, left:right] = number
    return ids


BEFORE = drawn((0, 0, 4, 4), (0, 10, 4, 14), (0, 20, 4, 24), (0, 30, 4, 34), (10, 0, 14, 20),
               (20, 0, 24, 8), (20, 10, 24, 18), (30, 0, 34, 4))  # fmt: skip
AFTER = drawn((0, 0, 4, 6), (0, 10, 4, 12), (0, 20, 4, 24), (10, 0, 14, 9), (10, 11, 14, 20),
              (20, 0, 24, 18), (30, 3, 34, 10), (36, 40, 40, 50))  # fmt: skip


def test_what_became_of_objects_drawn_by_hand() -> None:
    rows = [
        (row["event"], row["object_a"], row["object_b"], row["overlap_pixels"])
        for row in changes(BEFORE, AFTER).to_pylist()
    ]
    assert Counter(rows) == Counter(
        [
            ("grown", 1, 1, 16),
            ("shrunk", 2, 2, 8),
            ("same", 3, 3, 16),
            ("gone", 4, None, 0),
            ("split", 5, 4, 36),
            ("split", 5, 5, 36),
            ("merged", 6, 6, 32),
            ("merged", 7, 6, 32),
            # Less than half of the smaller one.
            ("gone", 8, None, 0),
            ("appeared", None, 7, 0),
            ("appeared", None, 8, 0),
        ]
    )
    split = changes(BEFORE, AFTER).filter(pa.compute.field("event") == "split").to_pylist()
    assert {row["area_a"] for row in split} == {80 * PIXEL}
    assert [row["area_b"] for row in split] == [36 * PIXEL] * 2
    assert len({row["group"] for row in split}) == 1


def test_labels_of_scikit_image_match_by_their_overlaps() -> None:
    """Events follow from the overlap matrix alone; tiles do not matter; reversed is reversed."""
    rng = np.random.default_rng(11)
    noise = rng.random((12, 16)).repeat(6, 0).repeat(6, 1)
    pierced = (noise > 0.6) & (rng.random(noise.shape) > 0.3)
    left = np.arange(noise.shape[1]) < noise.shape[1] // 2
    before = label(np.where(left, noise > 0.5, pierced), connectivity=1).astype(np.int64)
    after = label(np.where(left, pierced, noise > 0.5), connectivity=1).astype(np.int64)
    found = changes(before, after)
    assert found.equals(changes(before, after, tile=17))

    overlap = np.zeros((before.max() + 1, after.max() + 1), int)
    np.add.at(overlap, (before, after), 1)
    sizes = np.bincount(before.ravel())[:, None], np.bincount(after.ravel())[None]
    linked = overlap * 2 >= np.minimum(*sizes)
    linked[0] = linked[:, 0] = False
    partners: dict[tuple[str, int], set[tuple[str, int]]] = defaultdict(set)
    for a, b in np.argwhere(linked).tolist():
        partners["a", a].add(("b", b))
        partners["b", b].add(("a", a))
    rows = found.to_pylist()
    assert {(r["object_a"], r["object_b"]) for r in rows if r["overlap_pixels"]} == {
        (a, b) for a, b in np.argwhere(linked).tolist()
    }
    for row in rows:
        group, reached = set(), {(s, row[f"object_{s}"]) for s in "ab" if row[f"object_{s}"]}
        while reached - group:
            group |= reached
            reached = {other for one in group for other in partners[one]}
        sides = Counter(side for side, _ in group)
        one, other = (min(sides[side], 2) for side in "ab")
        if (one, other) == (1, 1):
            difference = row["pixel_count_b"] - row["pixel_count_a"]
            wanted = "grown" if difference > 0 else "shrunk" if difference < 0 else "same"
        else:
            wanted = {(0, 1): "appeared", (1, 0): "gone", (1, 2): "split", (2, 1): "merged"}.get(
                (one, other), "regrouped"
            )
        assert row["event"] == wanted, row
    events = set(found["event"].to_pylist())
    assert {"split", "merged"} <= events
    back = Counter(changes(after, before)["event"].to_pylist())
    opposite = {"grown": "shrunk", "appeared": "gone", "split": "merged"}
    opposite |= {there: here for here, there in opposite.items()}
    assert back == Counter(opposite.get(each, each) for each in found["event"].to_pylist())


def test_objects_of_two_classes_do_not_belong_together() -> None:
    """A tree that is new in a meadow leaves the meadow what it was, but smaller."""
    meadow, tree = drawn((0, 0, 20, 20)), drawn((0, 0, 20, 20))
    tree[5:10, 5:10] = 10_000
    rows = changes(meadow, tree).to_pylist()
    assert [(row["event"], row["object_a"], row["object_b"]) for row in rows] == [
        ("shrunk", 1, 1),
        ("appeared", None, 10_000),
    ]


def test_no_objects_on_either_side() -> None:
    empty = np.zeros((8, 8), np.int64)
    assert len(changes(empty, empty)) == 0
    assert changes(empty, empty + 1)["event"].to_pylist() == ["appeared"]
