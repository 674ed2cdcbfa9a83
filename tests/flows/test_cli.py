"""The command line before any command."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from maskloom.flows.cli import app
from maskloom.flows.commands.messages import WRONG_USAGE


def test_says_its_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"maskloom {version('maskloom')}\n")


@pytest.mark.parametrize(
    "arguments",
    [[], ["no-such-command"], ["run"], ["run", "no-such-file.yaml"], ["list", "colours"]],
)
def test_wrong_usage_is_told_apart(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == WRONG_USAGE
    assert "maskloom" in result.output


@pytest.mark.parametrize(
    "command",
    sorted(
        command.callback.__name__.rstrip("_")
        for command in app.registered_commands
        if command.callback
    ),
)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"maskloom {command}" in result.output or f" {command} " in result.output


def test_help_needs_none_of_the_large_libraries() -> None:
    large = {"numpy", "pydantic", "prefect", "distributed", "pyarrow", "rasterio", "rich", "numba"}
    program = (
        "import sys\n"
        "from maskloom.flows.cli import app\n"
        "try:\n    app(['--help'])\n"
        f"except SystemExit:\n    sys.exit(','.join({large!r} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert b"segment" in result.stdout


@pytest.mark.parametrize(
    ("words", "completed"),
    [("st", {"status"}), ("segment in -s mi", {"mixture"}), ("run --log", {"--log-file"})],
)
def test_shells_complete_commands_options_and_segmenters(words: str, completed: set[str]) -> None:
    found = CliRunner().invoke(
        app,
        [],
        env={
            "_MASKLOOM_COMPLETE": "complete_bash",
            "COMP_WORDS": f"maskloom {words}",
            "COMP_CWORD": str(len(words.split())),
        },
        prog_name="maskloom",
    )
    assert set(found.stdout.split()) == completed
