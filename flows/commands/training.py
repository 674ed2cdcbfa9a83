"""The command that trains a network."""

from __future__ import annotations

import typer

from maskloom.flows.commands.messages import errors_as_messages
from maskloom.flows.commands.options import Changes, LogFile, QuietFlag, TrainingPath
from maskloom.flows.signals import end_process


def train(
    recipe: TrainingPath,
    changes: Changes = None,
    quiet: QuietFlag = False,
    log_file: LogFile = None,
) -> None:
    """Train a network on images and masks. The same command continues an interrupted training and
    does nothing if it is finished.

    A finished training continues if training.epochs is raised or training.patience is changed.
    """
    from maskloom.flows import train as flow
    from maskloom.flows.commands.log_file import written_to
    from maskloom.flows.recipes import training
    from maskloom.flows.report.write import try_to_write, write_of_training
    from maskloom.flows.terminal import line

    with errors_as_messages(), written_to(log_file, f"train {recipe}"):
        training_run = training.load(recipe, changes or [])
        result = flow.run(training_run, quiet, break_off=end_process)
        typer.echo(
            f"{'Nothing to do: already trained. ' if result.before else ''}{result.model}: "
            f"{result.score[0]} {result.score[1]:.4f} at epoch {result.epoch}, the best of "
            f"{result.epochs} trained in {result.minutes:.1f} minutes. Use it:\n"
            f"  {flow.usage(training_run, result)}"
        )
        report = try_to_write(training_run.recipe.output, write_of_training)
        if report is not None:
            typer.echo(f"Report: {line(report)}")
