"""The command that trains a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from maskloom.flows.commands.messages import SOME_FAILED, errors_as_messages
from maskloom.flows.commands.options import Changes, LogFile, QuietFlag, TrainingPath
from maskloom.flows.signals import end_process

if TYPE_CHECKING:
    from maskloom.flows.recipes.sweeps import Trial
    from maskloom.flows.recipes.training import TrainingRun


Sweeps = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="KEY=VALUE,VALUE",
        help=(
            "Train once with each of these values of a key of `training` or `network`, e.g. "
            "rate=1e-3,3e-4; repeated, with all combinations. Each is in a folder of its own below "
            "the output, beside sweep.csv, sweep.parquet and sweep.png."
        ),
    ),
]


WholeImages = Annotated[
    bool,
    typer.Option(
        "--whole-images/--no-whole-images",
        help=(
            "When the network is trained, segment its validation images whole and compare them "
            "with their masks, as `maskloom evaluate` does."
        ),
    ),
]


def train(
    recipe: TrainingPath,
    changes: Changes = None,
    sweep: Sweeps = None,
    whole_images: WholeImages = True,
    quiet: QuietFlag = False,
    log_file: LogFile = None,
) -> None:
    """Train a network on images and masks. The same command continues an interrupted training and
    does nothing if it is finished.

    A finished training continues if training.epochs is raised or training.patience is changed.
    With --sweep, or `folds` in the recipe's `split`, several networks are trained and compared.
    """
    from maskloom.flows.commands.log_file import written_to
    from maskloom.flows.recipes import sweeps

    with errors_as_messages(), written_to(log_file, f"train {recipe}"):
        trials = [
            replace(trial, run=replace(trial.run, whole_images=whole_images))
            for trial in sweeps.trials(recipe, changes or [], sweep or [])
        ]
        if trials[0].name:
            _train_series(trials, quiet)
        else:
            _train_one(trials[0].run, quiet)


def _train_one(training_run: TrainingRun, quiet: bool) -> None:
    from maskloom.flows import train as flow
    from maskloom.flows.report.measures import on_whole_images
    from maskloom.flows.report.write import try_to_write, write_of_training
    from maskloom.flows.terminal import line

    result = flow.run(training_run, quiet, break_off=end_process)
    typer.echo(
        f"{'Nothing to do: already trained. ' if result.before else ''}{result.model}: "
        f"{result.score[0]} {result.score[1]:.4f} at epoch {result.epoch}, the best of "
        f"{result.epochs} trained in {result.minutes:.1f} minutes. Use it:\n"
        f"  {flow.usage(training_run, result)}"
    )
    whole = on_whole_images(flow.metrics(training_run.recipe))
    if whole:
        typer.echo(whole)
    report = try_to_write(training_run.recipe.output, write_of_training)
    if report is not None:
        typer.echo(f"Report: {line(report)}")


def _train_series(trials: Sequence[Trial], quiet: bool) -> None:
    from maskloom.flows import series as flow
    from maskloom.flows.report.write import try_to_write, write_of_training
    from maskloom.flows.terminal import line
    from maskloom.flows.train import usage
    from maskloom.segcore.storage.store import Store

    output = trials[0].run.recipe.output.removesuffix(f"/{trials[0].name}")

    def tell(text: str) -> None:
        if not quiet:
            typer.echo(line(text), err=True)

    series = flow.run(trials, output, quiet, tell, break_off=end_process)
    for each in series.trained:
        if each.result is not None and not each.result.before:
            try_to_write(each.trial.run.recipe.output, write_of_training)
    store = Store(series.output)
    typer.echo(f"Table: {line(store.uri(f'{series.name}.csv'))}; curves: {series.name}.png")
    if series.failed:
        typer.echo(
            f"{series.failed} of {len(series.trained)} trainings failed; the table says why."
        )
    typer.echo(f"{flow.summary(series)}.")
    report = try_to_write(series.output, write_of_training)
    if report is not None:
        typer.echo(f"Report: {line(report)}")
    best = series.best.trained[0]
    if len(series.best.trained) == 1 and best.result is not None:
        typer.echo(f"Use it:\n  {usage(best.trial.run, best.result)}")
    if series.failed:
        raise typer.Exit(SOME_FAILED)
