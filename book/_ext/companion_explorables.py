"""The directive of explorables: a drawing that the reader moves, in plain JavaScript, without kernel or network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

FOLDER = "explorables"
SCRIPT = re.compile(r'(<script src=")(?=[\w-]+\.js")')


class Explorable(SphinxDirective):
    """``{explorable} staircase``: a numbered figure around ``_static/explorables/staircase.html``.

    The directive's body is the caption, ``:name:`` the figure's label. The fragment names its scripts as they lie
    beside it, so that it also opens by itself; here they get the page's path to the static files.
    """

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"name": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """The figure; an unknown name or a missing caption stops the build."""
        file = self.fragment(self.arguments[0])
        up = "../" * self.env.docname.count("/") + f"_static/{FOLDER}/"
        html = SCRIPT.sub(rf"\g<1>{up}", file.read_text(encoding="utf-8"))
        caption, messages = self.state.inline_text(" ".join(self.content), self.lineno)
        figure = nodes.figure("", nodes.raw("", html, format="html"), nodes.caption("", "", *caption))
        self.add_name(figure)
        return [figure, *messages]

    def fragment(self, name: str) -> Path:
        """The file of an explorable.

        Raises:
            ExtensionError: no static folder has it, or the directive has no caption.
        """
        where = f"{self.env.docname}, line {self.lineno}: {{explorable}}"
        folders = [Path(self.env.app.confdir, path, FOLDER) for path in self.config.html_static_path]
        files = {file.stem: file for folder in folders for file in sorted(folder.glob("*.html"))}
        if name not in files:
            raise ExtensionError(f"{where}: no explorable {name!r}; there are {', '.join(files) or 'none'}")
        if not self.content:
            raise ExtensionError(f"{where} {name} has no caption; its body is one")
        return files[name]
