"""A stand-in for a trained Mask R-CNN: a finder that knows the truth, and weights that are never
opened.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.networks.mask_rcnn.detections import Detections


class BlobFinder:
    """Stands for a network: finds the bright spots of a window, those brighter than 0.8 with class
    2, and the larger the surer.
    """

    def detect(self, image: np.ndarray) -> Detections:
        parts = ndimage.label(image[..., 0] > 0.3)[0]
        boxes, classes, scores, masks = [], [], [], []
        for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
            box = np.array([rows.start, columns.start, rows.stop, columns.stop], float)
            inside = (parts[rows, columns] == number).astype(np.float32)
            places = [(np.arange(28) + 0.5) * side // 28 for side in inside.shape]
            masks.append(inside[np.ix_(*(place.astype(int) for place in places))])
            boxes.append(box)
            classes.append(2 if image[rows, columns].max() > 0.8 else 1)
            scores.append(0.5 + min(0.49, inside.sum() / 2000))
        order = np.argsort(-np.array(scores), kind="stable")
        return Detections(
            np.array(boxes).reshape(-1, 4),
            np.array(classes, np.int64),
            np.array(scores, np.float32),
            np.array(masks, np.float32).reshape(-1, 28, 28),
        )[order]


def write_weights(folder: Path, content: bytes = b"weights", **changes: Any) -> str:
    """Writes a file of weights and its card; gives where."""
    path = folder / "net.keras"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    card = Card(
        "mask_rcnn",
        digest,
        1,
        ("background", "dim", "bright"),
        Scaling(),
        ReceptiveField(halo=None, stride=32),
        output="objects",
    )
    path.with_suffix(".json").write_bytes(replace(card, **changes).dump())
    return str(path)
