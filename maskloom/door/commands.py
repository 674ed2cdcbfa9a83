"""`maskloom.run`, `train`, `evaluate` and `change`: the commands, called from Python."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maskloom.door import outputs
from maskloom.door.comparisons import Changes, Evaluation
from maskloom.door.host import import_whole, main_hidden
from maskloom.segcore.errors import RecipeError

if TYPE_CHECKING:
    from maskloom.segcore.training.run import TrainingResult

Recipe = str | os.PathLike[str] | Mapping[str, Any]


def run(
    recipe: Recipe,
    *,
    workers: int | None = None,
    changes: Mapping[str, Any] | None = None,
    prefect: bool = False,
    quiet: bool = False,
) -> outputs.Output:
    """Segment all images of a recipe, or those that are left, and return the output.

    It is the run of the command line: the same call resumes it, and does nothing if all is done.
    Images that fail raise nothing: they are in `.failed`, and a warning says how many.

    Parameters
    ----------
    recipe
        A file, or the document as a dict, whose paths are below the current folder.
    workers
        Number of worker processes on this machine. None: as the recipe says.
    changes
        Values in place of the recipe's, e.g. `{"segmenter.clusters": 4}`.
    prefect
        Record the run with Prefect, as the command line does.
    quiet
        Show no progress.

    Raises
    ------
    RecipeError
        If the recipe is wrong, before any work (the command line's exit code 2).
    RunError
        If the run cannot go on (exit code 1).
    """
    from maskloom.flows.recipes import run as recipes
    from maskloom.flows.run import RunOptions
    from maskloom.flows.run import run as run_flow
    from maskloom.flows.stages import Plain
    from maskloom.tasks.clusters.serial import SerialCluster

    wanted = _changes({**(changes or {}), **_of_workers(workers)})
    loaded = _loaded(recipe, wanted, recipes.load, recipes.make)
    orchestrator: Any = Plain()
    if prefect:
        from maskloom.flows.orchestration.prefect import Prefect
        from maskloom.flows.terminal import recordable

        shown = dict(recipe) if isinstance(recipe, Mapping) else str(Path(recipe).resolve())
        orchestrator = Prefect({"recipe": recordable(shown), "changes": recordable(wanted)})
    if not isinstance(loaded.cluster, SerialCluster):
        import_whole("distributed")
    with main_hidden():
        result = run_flow(loaded, RunOptions(quiet=quiet), orchestrator)
    output = outputs.open(loaded.output)
    if result.some_failed:
        failed = len(output.failed)
        warnings.warn(
            f"{failed} of {failed + len(output)} images failed; `.failed` has the reasons.",
            stacklevel=2,
        )
    return output


def train(
    recipe: Recipe, *, changes: Mapping[str, Any] | None = None, quiet: bool = False
) -> TrainingResult:
    """Train a network by a recipe, or continue the training; `model` of the result is where it is.

    `maskloom.segment(image, "unet", weights=trained.model)` uses it. Raises as `run`.
    """
    from maskloom.flows import train as flow
    from maskloom.flows.recipes import training

    loaded = _loaded(recipe, _changes(changes or {}), training.load, training.make)
    return flow.run(loaded, quiet)


def evaluate(  # noqa: PLR0913  the options of the command
    output: str | os.PathLike[str] | outputs.Output,
    truth: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    values: Mapping[int | str, str] | Sequence[str] = (),
    colours: str | os.PathLike[str] | None = None,
    void: str | int | Sequence[str | int] = (),
    truth_suffix: str = "",
    image_suffix: str = "",
    tolerance: float = 2.0,
    objects: bool | None = None,
    out: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    quiet: bool = True,
) -> Evaluation:
    """Compare the masks of an output with truth masks, as `maskloom evaluate` does: tables and a
    picture are written to `out`, or to the folder `evaluation` of the output.

    `truth` names files, globs or folders, and `values` the class of each of their values:
    `{0: "soil", 1: "water"}`. Raises `RecipeError` and `RunError` as `run`.
    """
    from maskloom.flows.evaluation import evaluate as flow
    from maskloom.flows.evaluation.options import EvaluationRequest, cluster_of
    from maskloom.segcore.annotations.pairing import NameSuffixes

    location = output.location if isinstance(output, outputs.Output) else os.fspath(output)
    named = [truth] if isinstance(truth, str | os.PathLike) else list(truth)
    meanings = (
        [f"{value}={name}" for value, name in values.items()]
        if isinstance(values, Mapping)
        else values
    )
    ignored = [void] if isinstance(void, str | int) else void
    request = EvaluationRequest(
        truth=tuple(os.fspath(each) for each in named),
        values=tuple(meanings),
        colours=None if colours is None else Path(colours),
        void=tuple(map(str, ignored)),
        suffixes=NameSuffixes(truth_suffix, image_suffix),
        tolerance=tolerance,
        objects="auto" if objects is None else "yes" if objects else "no",
        out=None if out is None else _absolute(os.fspath(out)),
        cluster=None if workers is None else cluster_of(workers),
    )
    with main_hidden():
        return Evaluation(flow.evaluate(_absolute(location), request, quiet=quiet))


def change(  # noqa: PLR0913  the options of the command
    before: str | os.PathLike[str] | outputs.Output,
    after: str | os.PathLike[str] | outputs.Output | None = None,
    *,
    by: Literal["id", "place"] = "id",
    key: str | None = None,
    warp: bool = False,
    spread: str | None = None,
    days: float | None = None,
    out: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    quiet: bool = True,
) -> Changes:
    """What changed between two outputs, or by date inside one, as `maskloom change` does: tables,
    change masks and a picture are written to `out`, or to the folder `change` of the later output.

    Raises `RecipeError` and `RunError` as `run`.
    """
    from maskloom.flows import change as flow
    from maskloom.flows.evaluation.options import cluster_of

    first, last = (
        None
        if each is None
        else _absolute(each.location if isinstance(each, outputs.Output) else os.fspath(each))
        for each in (before, after)
    )
    assert first is not None
    request = flow.ChangeRequest(
        by=by,
        key=key,
        warp=warp,
        spread=spread,
        days=days,
        out=None if out is None else _absolute(os.fspath(out)),
        cluster=None if workers is None else cluster_of(workers),
    )
    with main_hidden():
        return Changes(flow.change(first, last, request, quiet=quiet))


def _loaded(recipe: Recipe, changes: Sequence[str], load: Any, make: Any) -> Any:
    """The checked recipe of a file or a document. Raises `RecipeError`."""
    if isinstance(recipe, Mapping):
        document = json.loads(json.dumps(dict(recipe), default=_as_text))
        return make(document, Path.cwd(), changes)
    if not isinstance(recipe, str | os.PathLike):
        raise RecipeError(
            f"recipe: expected a path or a dict with inputs, output and segmenter; got "
            f"{type(recipe).__name__}."
        )
    return load(Path(recipe).expanduser(), changes)


def _as_text(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise RecipeError(f"recipe: {value!r} is no value of a recipe.")


def _changes(changes: Mapping[str, Any]) -> list[str]:
    """Changes as the command line takes them; JSON is YAML."""
    return [f"{key}={json.dumps(value, default=_as_text)}" for key, value in changes.items()]


def _of_workers(workers: int | None) -> dict[str, Any]:
    if workers is None:
        return {}
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise RecipeError(
            f"workers: expected a whole number from 1 on; got {workers!r}. For this process alone: "
            "changes={'cluster': 'serial'}."
        )
    return {"cluster.workers": workers}


def _absolute(location: str) -> str:
    plain = "://" not in location
    return str(Path(location).expanduser().resolve()) if plain else location.rstrip("/")
