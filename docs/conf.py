"""Sphinx: MyST pages by the Diátaxis four, API from docstrings, commands from the command line itself."""

from __future__ import annotations

import warnings
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

import bluesky_ptychonn

project = "bluesky_ptychonn"
author = "bluesky_ptychonn contributors"
copyright = author
version = release = bluesky_ptychonn.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Reconstruct while you scan, and scan only as densely as needed.",
    "fixed_sidebar": True,
    "page_width": "1100px",
}
html_sidebars = {"**": ["about.html", "navigation.html", "searchbox.html"]}
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
autosummary_generate = False
numpydoc_show_class_members = False
warnings.filterwarnings("ignore", "Unknown section Subscriptions", UserWarning)  # ophyd's own Device
autodoc_typehints = "none"  # numpydoc's Parameters say them
autodoc_member_order = "bysource"


class CommandHelp(Directive):
    """Show what ``ptychonn COMMAND --help`` says, so that the page cannot differ from the command."""

    required_arguments = 1
    final_argument_whitespace = True  # commands have commands

    def run(self) -> list[nodes.Node]:
        import typer
        from typer.testing import CliRunner

        from bluesky_ptychonn.cli import app

        app.rich_markup_mode = None
        command: Any = typer.main.get_command(app)
        words = [] if self.arguments[0] == "ptychonn" else self.arguments[0].split()
        said = CliRunner().invoke(app, [*words, "--help"], prog_name=" ".join(["ptychonn"]), env={"COLUMNS": "100"})
        if said.exit_code:
            raise self.error(f"ptychonn {' '.join(words)} --help: {said.output} {command}")
        return [nodes.literal_block(said.output, said.output.strip() + "\n", language="text")]


def setup(app: Any) -> None:
    app.add_directive("command-help", CommandHelp)
