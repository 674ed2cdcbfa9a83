"""Commands of maskloom, run in this process."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from maskloom.flows.cli import app


def invoke(*arguments: object) -> Result:
    """Run maskloom in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def command(*words: object, exit_code: int = 0) -> str:
    """What a command says that ends with this exit code."""
    done = invoke(*words)
    assert done.exit_code == exit_code, done.output
    return done.output
