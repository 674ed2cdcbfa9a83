"""The documentation's site, made by Sphinx: `python -m sphinx -W -q -c docs . build/site`.

The source is the whole repository, so that a link between two files leads to the same place here as
on a disk or in a forge. Pages are plain CommonMark; only docs/api.md needs Sphinx.
"""

import re
from pathlib import Path

from sphinx import addnodes

import maskloom

project = "maskloom"
author = "the authors of maskloom"
version = release = maskloom.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/README"
include_patterns = ["*.md", "docs/**.md", "deploy/**.md", "tests/drills/README.md", "flows/samples/README.md"]
exclude_patterns = [".*", "**/.*", "**/__pycache__", "build", "dist", "*.egg-info"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
suppress_warnings = [
    "myst.header",  # the reference of the recipes skips levels of headings
    "toc.not_included",  # a test says that the first page lists all of docs
]

default_role = "code"  # docstrings write `names` in single quotes
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"

html_theme = "furo"
html_title = "maskloom"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_extra_path = ["site/index.html"]  # leads from the root of the site to its first page
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#17577e", "color-brand-content": "#17577e"},
    "dark_css_variables": {"color-brand-primary": "#7cc4ea", "color-brand-content": "#7cc4ea"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

ROOT = Path(__file__).resolve().parents[1]
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_ENTRY = re.compile(r"^- \[[^]]+\]\(([^)#]+\.md)\)", re.MULTILINE)


def add_contents(_app, docname, source):
    """Give the first page a table of contents: the pages that it lists below each heading."""
    if docname != root_doc:
        return
    _, *parts = _HEADING.split(source[0])
    for caption, text in zip(parts[::2], parts[1::2], strict=True):
        pages = "\n".join(f"/{_place(entry)}" for entry in _ENTRY.findall(text))
        if pages:
            source[0] += f"\n:::{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n:::\n"


def _place(entry):
    """A page's path below the root of the repository, without its suffix."""
    return (ROOT / "docs" / entry).resolve().relative_to(ROOT).with_suffix("").as_posix()


def leave_folders(_app, doctree):
    """Show links to folders, which a site has no pages for, as plain text."""
    here = Path(doctree["source"]).parent
    for link in list(doctree.findall(addnodes.pending_xref)):
        if link["reftype"] == "myst" and (here / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
    app.connect("doctree-read", leave_folders)
    return {"parallel_read_safe": True}
