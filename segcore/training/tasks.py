"""Subjects: which kind of training a network asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.training import instances, semantic
from maskloom.segcore.training.labels import Instances

if TYPE_CHECKING:
    from maskloom.segcore.training.recipe import TrainingRecipe
    from maskloom.segcore.training.sampling import PatchShape
    from maskloom.segcore.training.setup import TrainingSetup, TrainingTask

_OBJECTS = frozenset({"mask_rcnn"})
"""Networks that find objects."""


def frame_of(recipe: TrainingRecipe, channels: int) -> PatchShape:
    """What the network sees of a patch and answers. Raises `RecipeError` where the patch does not
    suit it, or the labels do not.
    """
    if recipe.kind not in _OBJECTS:
        return semantic.frame_of(recipe, channels)
    if not isinstance(recipe.labels, Instances) or recipe.labels.border is not None:
        raise RecipeError(
            f"labels: {recipe.kind} learns objects: set labels: {{kind: instances}}, without "
            "`border`."
        )
    return instances.frame_of(recipe)


def subject_of(lesson: TrainingSetup) -> TrainingTask:
    """How the network is trained."""
    return (
        instances.InstanceSubject(lesson)
        if lesson.recipe.kind in _OBJECTS
        else semantic.Semantic(lesson)
    )
