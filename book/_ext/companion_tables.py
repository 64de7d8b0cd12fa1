"""Small builders of document nodes: boxes, cells, tables, folded parts."""

from __future__ import annotations

import html
from collections.abc import Sequence

from docutils import nodes

Cell = Sequence[nodes.Node]


def box(name: str, *content: nodes.Node) -> nodes.container:
    """A division with one class."""
    return nodes.container("", *content, classes=[name], is_div=True, design_component=name)


def cell(*content: nodes.Node, classes: Sequence[str] = ()) -> list[nodes.Node]:
    """One paragraph, as the list that a table cell takes."""
    return [nodes.paragraph("", "", *content, classes=list(classes))]


def table(headers: Sequence[str], lines: Sequence[Sequence[Cell]], classes: Sequence[str]) -> nodes.table:
    """A table with a head row; each cell is a list of paragraphs."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in headers), cols=len(headers))
    head = nodes.row("", *(nodes.entry("", nodes.paragraph("", text)) for text in headers))
    body = [nodes.row("", *(nodes.entry("", *content) for content in line)) for line in lines]
    group += [nodes.thead("", head), nodes.tbody("", *body)]
    return nodes.table("", group, classes=list(classes))


def definition_table(facts: Sequence[tuple[str, str]], classes: Sequence[str]) -> nodes.table:
    """A table of names and values without a head row."""
    group = nodes.tgroup("", nodes.colspec(colwidth=1), nodes.colspec(colwidth=1), cols=2)
    lines = [[cell(nodes.strong("", name)), cell(nodes.Text(value))] for name, value in facts]
    group += nodes.tbody("", *(nodes.row("", *(nodes.entry("", *content) for content in line)) for line in lines))
    return nodes.table("", group, classes=list(classes))


def details(title: str, content: Sequence[nodes.Node], *, is_open: bool = False) -> list[nodes.Node]:
    """A folded part in HTML; in other formats its content stands open."""
    start = f'<details class="ledger-details"{" open" if is_open else ""}><summary>{html.escape(title)}</summary>'
    return [nodes.raw("", start, format="html"), *content, nodes.raw("", "</details>", format="html")]
