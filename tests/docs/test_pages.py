"""The documentation is true: its examples run, its links lead somewhere, its commands exist, and
the reference of the recipes is that of the code.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import docs_support as runner
import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
DEPLOY = sorted((ROOT / "deploy").rglob("*.md"))
RECIPES = sorted((ROOT / "deploy" / "recipes").glob("*.yaml"))
_LONGEST_LINE = 100
_LONGEST_README = 6000


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


QUICK = """maskloom() {
  case $1 in
    run|segment) command maskloom "$@" --no-prefect --set cluster=serial ;;
    *) command maskloom "$@" ;;
  esac
}
"""
"""The command by day: Prefect and workers take seconds to start, and other tests have them."""


def run(page: Path, folder: Path, quick: bool) -> subprocess.CompletedProcess[str]:
    """Run a page in an empty folder and a process of its own: it may register and change
    anything.
    """
    work = folder / "work"
    work.mkdir()
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect")}
    if quick:
        # Bash runs this file before a script.
        environment["BASH_ENV"] = str(folder / "quick.sh")
        (folder / "quick.sh").write_text(QUICK, encoding="utf-8")
    return subprocess.run(
        [sys.executable, runner.__file__, str(page)],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


SLOW = (
    "start.md",
    "training.md",
    "networks.md",
    "formats.md",
    "objects.md",
    "clusters.md",
    "stac.md",
    "evaluation.md",
    "extending.md",
    "features.md",
    "inputs.md",
    "outputs.md",
    "recipes.md",
    "scores.md",
    "vectors.md",
    "python.md",
    "report.md",
    "zones.md",
    "change.md",
    "alerts.md",
    "applications/*.md",
    "segmenters/*.md",
    "concepts/*.md",
    "guides/*.md",
)
"""Pages whose commands other tests run too: README.md has those of the first steps,
tests/flows/test_train.py trains, and tests/pipeline has runs of networks, of every format and
segmenter, of objects, of zones, of alerts, of STAC, of the audit and on clusters; evaluation,
samples, change, reports, scores, features, vectors, tables, Python and plug-ins
(tests/segcore/test_plugins.py) have tests of their own. The guides read tables by other programs.
"""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.nightly if any(map(page.match, SLOW)) else ())
        for page in PAGES
        if runner.examples(page)
    ],
    ids=by_name,
)
def test_examples_run(page, tmp_path, pytestconfig):
    nightly = pytestconfig.getoption("--hypothesis-profile") == "nightly"
    done = run(page, tmp_path, quick=not nightly)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_block_is_run_or_says_why_not(page):
    assert runner.forgotten(page) == 0


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("```sh\nfalse; true\n```\n", "exit 1"),
        ("```sh\nfalse | true\n```\n", "exit 1"),
        ("```python\nassert 1 == 2, 'unequal'\n```\n", "unequal"),
        ("```yaml\ntilling: {tile: 512}\n```\n", "'tilling' was unexpected"),
        ("```yaml\nclassses: [a, b]\nimages: cells\n```\n", "'classses' was unexpected"),
        ("```sql\nSELECT 1 WHERE 1 = 2\n```\n", "no rows"),
    ],
)
def test_a_false_example_fails(block, message, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (example,) = runner.examples(page)
    with pytest.raises((AssertionError, jsonschema.ValidationError), match=message):
        example.evaluate()


@pytest.mark.parametrize(
    ("block", "forgotten"),
    [
        ("```sh\ntrue\n```\n", 0),
        ("```console\n$ true\n```\n", 1),
        ("```bash\ntrue\n```\n", 1),
        ("```\ntrue\n```\n", 1),
        ("~~~sh\ntrue\n~~~\n", 0),
        ("<!-- not run: a drawing -->\n```text\n-->\n```\n", 0),
        ("<!-- not run: -->\n```text\n-->\n```\n", 1),
        ("<!-- not run: a drawing -->\n\n```text\n-->\n```\n", 1),
    ],
)
def test_blocks_that_nothing_runs_are_found(block, forgotten, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{block}", encoding="utf-8")
    assert runner.forgotten(page) == forgotten


@pytest.mark.parametrize("page", [*PAGES, *DEPLOY, ROOT / "CHANGELOG.md"], ids=by_name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        file = page.parent / target if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_names_every_page():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^- \[[^]]+\]\(([^.][^)#]+)\): \S", index, re.MULTILINE))
    assert named == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {"README.md"}


def test_every_segmenter_has_a_page_with_its_parameters():
    module = reference_maker()
    from maskloom.segcore.models.protocols import SEGMENTERS

    pages = {page.stem: page for page in (DOCS / "segmenters").glob("*.md")}
    assert set(pages) == {name for name, _ in SEGMENTERS.items()}
    for name, page in pages.items():
        text = page.read_text(encoding="utf-8")
        assert f"<!-- parameters of {name} -->" in text
        assert text == module.with_parameters(text), "run: python docs/make_reference.py"


@pytest.mark.nightly
def test_the_site_is_made_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "-W", "-q", "-c", DOCS, "-d", tmp_path / "read"),
            *(ROOT, tmp_path / "site"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "site/docs/README.html").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert (
            f'href="{page.relative_to(DOCS).with_suffix(".html")}"' in first
            or page.name == "README.md"
        )


def test_the_first_page_names_every_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = re.findall(
        r"^\| (`.+?) \|", (DOCS / "start.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    named = {extra for row in table for extra in re.findall(r"`(\w+)`", row)}
    assert named == set(project["optional-dependencies"])


@pytest.mark.parametrize("page", [*PAGES, *DEPLOY, *RECIPES], ids=by_name)
def test_commands_and_options_in_the_text_exist(page):
    import typer

    from maskloom.flows.cli import app

    commands = typer.main.get_command(app).commands
    spans = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    for span in spans:
        for name in re.findall(r"maskloom ([a-z]+)", span):
            assert name in commands, span
            known = {option for each in commands[name].params for option in each.opts}
            known |= {option for each in commands[name].params for option in each.secondary_opts}
            assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", span)) <= known | {"--help"}, span


@pytest.mark.parametrize("page", [*PAGES, *DEPLOY], ids=by_name)
def test_prose_fits_the_line(page):
    text = page.read_text(encoding="utf-8")
    prose = [line for line in text.splitlines() if not line.startswith(("|", "!["))]
    command = "python3 -m venv"  # a README's command is one line to copy
    assert [
        line for line in prose if len(line) > _LONGEST_LINE and not line.startswith(command)
    ] == []


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size < _LONGEST_README


def reference_maker():
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_that_of_the_schemas():
    module = reference_maker()
    written = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert written == module.reference(), "run: python docs/make_reference.py"


def test_every_column_of_the_tables_is_described():
    from maskloom.segcore.statistics.area import Area
    from maskloom.tasks.image_rows import IMAGES_SCHEMA
    from maskloom.tasks.object_files import objects_schema
    from maskloom.tasks.table_files import table_schema

    page = (DOCS / "outputs.md").read_text(encoding="utf-8")
    schemas = (IMAGES_SCHEMA, table_schema(Area()), objects_schema(1, located=True))
    for schema in schemas:
        assert [name for name in schema.names if f"`{name}`" not in page] == []
