"""Witness: the tables of correspondences, read from their chapters; functions are looked up and tests are found."""

import ast
import importlib
import re
from pathlib import Path
from typing import NamedTuple

import jupytext
import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLES = {"04_message_passing": "tab-correspondence", "06_flat_minima": "tab-flat-statements"}
OPEN = "changing the edges"  # graph rewiring: named in the abstract, unread


class Row(NamedTuple):
    """One line of the table."""

    component: str
    statements: list[str]
    functions: list[str]
    tests: list[str]


def table(source: str, name: str) -> str:
    """The list-table of that name, without its fences."""
    found = [
        block for block in re.findall(r"^```\{list-table\}.*?^```$", source, re.M | re.S) if f":name: {name}" in block
    ]
    assert len(found) == 1, f"{len(found)} tables are named {name}"
    return found[0]


def rows(block: str) -> list[Row]:
    """Its rows below the header."""
    _, header, *others = re.split(r"^\* - ", block, flags=re.M)
    columns = header.count("\n  - ") + 1
    parsed = []
    for text in others:
        cells = re.split(r"\n  - ", text.removesuffix("```").rstrip())
        assert len(cells) == columns, text
        last = cells[-1]
        code = re.findall(r"`([^`]+)`", re.sub(r"\{[a-z:]+\}`[^`]*`", "", last))
        tests = [name for name in code if "::" in name]
        statements = re.findall(r"\{(?:eq|prf:ref)\}`([^`]+)`", last)
        parsed.append(Row(cells[0], statements, [c for c in code if c not in tests], tests))
    return parsed


def lookup(name: str) -> object:
    """`module.function` of companion.theory."""
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(f"companion.theory.{module}"), function)


def source_of(name: str) -> str:
    """Source of `file::test` or `file::Class::test` in tests/theory."""
    file, *path = name.split("::")
    source = (ROOT / "tests/theory" / file).read_text(encoding="utf-8")
    node: ast.AST = ast.parse(source)
    for part in path:
        kinds = ast.FunctionDef | ast.ClassDef
        (node,) = (n for n in ast.iter_child_nodes(node) if isinstance(n, kinds) and n.name == part)
    assert isinstance(node, ast.FunctionDef)
    return ast.get_source_segment(source, node) or ""


@pytest.fixture(scope="module", params=sorted(TABLES))
def correspondence(request) -> list[Row]:
    cells = jupytext.read(ROOT / f"notebooks/{request.param}.py", fmt="py:percent").cells
    return rows(table("\n\n".join(c.source for c in cells if c.cell_type == "markdown"), TABLES[request.param]))


def test_every_row_has_a_statement_a_function_and_a_test_but_the_open_one(correspondence):
    assert len(correspondence) > 12
    for row in correspondence:
        expected = 0 if row.component == OPEN else 1
        assert [len(found) for found in row[1:]] == 3 * [expected], row
    assert [row.component for row in correspondence].count(OPEN) <= 1


def test_every_function_exists_and_says_what_it_is(correspondence):
    for row in correspondence:
        for name in row.functions:
            assert callable(lookup(name)), name
            assert lookup(name).__doc__, name


def test_every_test_exists_and_speaks_of_its_function(correspondence):
    for row in correspondence:
        for name, test in zip(row.functions, row.tests, strict=True):
            assert name.split(".")[-1] in source_of(test), f"{test} does not mention {name}"


class TestTheReaderItself:
    """Controls: a table as it should be, and tables that are not."""

    GOOD = (
        "```{list-table} Caption\n:name: tab-x\n\n* - what\n  - here\n  - where\n"
        "* - one\n  - a `b`\n  - {eq}`eq-one`\\\n    `graph.PositivePairGraph`\\\n    `test_a.py::test_b`\n```"
    )

    def test_it_reads(self):
        (row,) = rows(table(self.GOOD, "tab-x"))
        assert row == ("one", ["eq-one"], ["graph.PositivePairGraph"], ["test_a.py::test_b"])
        (row,) = rows(table(self.GOOD.replace("{eq}`eq-one`", "{prf:ref}`thm-one`"), "tab-x"))
        assert row.statements == ["thm-one"]

    def test_it_misses_nothing(self):
        with pytest.raises(AssertionError, match="0 tables"):
            table(self.GOOD, "tab-y")
        with pytest.raises(AssertionError):
            rows(self.GOOD.replace("  - a `b`\n", ""))

    @pytest.mark.parametrize("name", ["graph.nothing", "nothing.graph"])
    def test_what_does_not_exist_is_not_found(self, name):
        with pytest.raises((AttributeError, ModuleNotFoundError)):
            lookup(name)
        with pytest.raises(ValueError, match="unpack"):
            source_of("test_graph.py::test_nothing")
