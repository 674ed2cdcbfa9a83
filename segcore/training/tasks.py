"""Which `TrainingTask` trains which network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.training import flow, instances, semantic
from maskloom.segcore.training.labels import Instances

if TYPE_CHECKING:
    from maskloom.segcore.training.recipe import TrainingRecipe
    from maskloom.segcore.training.sampling import PatchShape
    from maskloom.segcore.training.setup import TrainingSetup, TrainingTask

_OBJECTS = frozenset({"mask_rcnn"})
"""Kinds of networks that find objects; all others are semantic."""


def patch_shape_of(recipe: TrainingRecipe, channels: int, axes: int) -> PatchShape:
    """Input and output of the network for a patch of images with `channels` bands and 2 `axes`, or
    of volumes with 3. Raises `RecipeError` if it does not take patches of this size, these images
    or these labels.
    """
    if axes > 2 and isinstance(recipe.labels, Instances) and recipe.labels.border is not None:
        raise RecipeError("labels.border: borders are found in images, not in volumes. Remove it.")
    if axes > 2 and flow.is_flow(recipe.labels):
        raise RecipeError(
            "labels.target: flow is learned from images, and these are volumes. Write their planes "
            "as images, or remove it."
        )
    if recipe.kind not in _OBJECTS:
        return semantic.patch_shape_of(recipe, channels, axes)
    if axes > 2:
        raise RecipeError(
            f"images: {recipe.kind} is trained on images, and these are volumes. Write their "
            "planes as images, or use another network."
        )
    if (
        not isinstance(recipe.labels, Instances)
        or recipe.labels.border is not None
        or flow.is_flow(recipe.labels)
    ):
        raise RecipeError(
            f"labels: {recipe.kind} learns objects. Set labels: {{kind: instances}}, without "
            "`border` and `target`."
        )
    return instances.patch_shape_of(recipe)


def task_of(setup: TrainingSetup) -> TrainingTask:
    """The task of a setup."""
    if setup.recipe.kind in _OBJECTS:
        return instances.InstanceTask(setup)
    if flow.is_flow(setup.recipe.labels):
        return flow.FlowTask(setup)
    return semantic.SemanticTask(setup)
