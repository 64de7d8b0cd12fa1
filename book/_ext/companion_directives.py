"""Directives of the ledger: a chapter's claims, and the whole ledger page."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from companion_ledger import (
    CHAPTERS,
    Ledger,
    anchor,
    badge,
    ledger_link,
    open_ledger,
    unit,
    verdict_badge,
)
from companion_numbers import measured, number_nodes
from companion_tables import box, cell, details, table
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from companion.ledger.records import Record, Results
from companion.ledger.verdicts import Row, Verdict


class LedgerDirective(SphinxDirective):
    """What the directives share."""

    def run(self) -> list[nodes.Node]:
        """Print the directive; a missing file or an unknown name stops the build."""
        try:
            return self.show(open_ledger(self.env))
        except (ExtensionError, KeyError) as error:
            raise ExtensionError(f"{self.env.docname}, line {self.lineno}: {{{self.name}}}: {error}") from error

    def show(self, ledger: Ledger) -> list[nodes.Node]:
        """The directive's nodes."""
        raise NotImplementedError

    def inline(self, text: str) -> list[nodes.Node]:
        """Text of a claims file, with its mathematics and roles."""
        found, messages = self.state.inline_text(text, self.lineno)
        return [*found, *messages]

    def source(self, row: Row) -> list[nodes.Node]:
        """Paper and locator."""
        paper = "This companion" if row.claim.paper == "companion" else f"{{cite:t}}`{row.claim.paper}`"
        return self.inline(f"{paper}, {row.claim.locator}")

    def name_cell(self, row: Row, *, target: bool) -> list[nodes.Node]:
        """The claim's id and what it says; on the ledger page also the anchor that badges point at."""
        name: nodes.Node = nodes.literal("", row.claim.id)
        if target:
            name = nodes.inline("", "", name, ids=[anchor(row.claim.id)])
        else:
            name = ledger_link(self.env.docname, row.claim.id, name)
        paragraphs = cell(name, classes=["claim-id"]) + cell(*self.inline(row.claim.says))
        paragraphs += cell(*self.source(row), classes=["claim-source"])
        return paragraphs + (cell(*self.inline(row.claim.note), classes=["claim-note"]) if row.claim.note else [])

    def measured_cell(self, row: Row) -> list[nodes.Node]:
        """What was measured, and what the control gave."""
        result = cell(*number_nodes(row.measured)) if row.record is not None else cell(nodes.Text("not run here"))
        if row.claim.control is not None:
            value = "not run here" if row.control_record is None else _record_text(row.control_record)
            words: list[nodes.Node] = [nodes.Text("control: "), *number_nodes(value)]
            if row.claim.control_says:
                words += [nodes.Text(" ("), *self.inline(row.claim.control_says), nodes.Text(")")]
            result += cell(*words, classes=["claim-control"])
        return result

    def claims(self, found: list[Row], *, target: bool = False) -> nodes.Node:
        """Table of the claims that this book measures itself."""
        lines = [
            [
                self.name_cell(row, target=target),
                cell(*self.inline(row.claim.quantity), classes=["claim-quantity"])
                + cell(*number_nodes(row.expected), nodes.Text(unit(row.claim))),
                self.measured_cell(row),
                cell(verdict_badge(row)) + cell(badge(row.claim.evidence, row.claim.evidence)),
            ]
            for row in found
        ]
        return table(["Claim", "Expected", "Measured here", "Verdict, evidence"], lines, ["claims-table"])

    def published(self, found: list[Row], *, target: bool = False) -> nodes.Node:
        """Table of the numbers that papers print."""
        lines = []
        for row in found:
            printed = row.claim.published or {}
            lines.append(
                [
                    self.name_cell(row, target=target),
                    cell(*number_nodes(f"{printed['value']}{unit(row.claim)}")),
                    cell(*self.inline(str(printed["setting"]))),
                    self.measured_cell(row),
                    cell(verdict_badge(row)),
                ]
            )
        return table(["Claim", "Printed", "Setting", "Measured here", "Verdict"], lines, ["published-table"])


def _record_text(record: Record) -> str:
    return measured(record.value, record.interval if not isinstance(record.value, list) else None)  # pyright: ignore


def profile_note(ledger: Ledger) -> list[nodes.Node]:
    """Which profile the numbers are from, and when it ran."""
    days = sorted({run.stamp["started"][:10] for run in ledger.results.values()})
    when = f", run on {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
    return [nodes.inline("", f"profile {ledger.profile}{when}", classes=["ledger-profile"])]


def split(found: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows that a run here can decide, and the rows of published numbers."""
    return (
        [row for row in found if row.claim.evidence != "published"],
        [row for row in found if row.claim.evidence == "published"],
    )


def counts(found: list[Row]) -> list[nodes.Node]:
    """Badges with the number of rows for each verdict."""
    tally = Counter("missing" if row.missing else row.verdict.value for row in found)
    kinds = [verdict.value for verdict in Verdict] + ["missing"]
    shown: list[nodes.Node] = []
    for kind in kinds:
        if tally[kind]:
            shown += [badge(kind, f"{tally[kind]} {kind}"), nodes.Text(" ")]
    return shown


class ClaimsTable(LedgerDirective):
    """``{claims-table} spectral``: a chapter's claims, the published numbers folded below."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {
        "only": directives.unchanged_required,
        "published": lambda text: directives.choice(text, ("folded", "open", "none")),
    }

    def show(self, ledger: Ledger) -> list[nodes.Node]:
        """The table, or the part of it that ``:only:`` names."""
        found = ledger.topic(self.arguments[0])
        if "only" in self.options:
            found = [ledger.row(name) for name in self.options["only"].split()]
        ours, printed = split(found)
        result: list[nodes.Node] = [cell(*counts(found), *profile_note(ledger), classes=["ledger-counts"])[0]]
        result += [self.claims(ours)] if ours else []
        how = self.options.get("published", "folded")
        if printed and how != "none":
            title = f"Numbers that the papers print ({len(printed)})"
            result += details(title, [self.published(printed)], is_open=how == "open")
        return [box("ledger-box", *result)]


class LedgerPage(LedgerDirective):
    """``{ledger}``: every topic's claims, with the anchors that verdict badges point at."""

    def show(self, ledger: Ledger) -> list[nodes.Node]:
        """Counts first, then chapter by chapter."""
        lines, sections = [], []
        runs = sorted(ledger.results.values(), key=lambda results: results.chapter)
        for run in runs:
            found = ledger.topic(run.topic)
            lines.append([self.chapter(run), *_tally(found)])
            sections.append(self.section(run, found))
        if len(runs) > 1:
            lines.append([cell(nodes.strong("", "All")), *_tally(list(ledger.rows.values()))])
        head = table(["Chapter", *(verdict.value for verdict in Verdict)], lines, ["counts-table"])
        return [*cell(*profile_note(ledger), classes=["ledger-counts"]), head, *sections]

    def chapter(self, run: Results) -> list[nodes.Node]:
        """The chapter's title, linked."""
        return cell(*self.inline(f"{{doc}}`/{CHAPTERS}/{run.chapter}`"))

    def section(self, run: Results, found: list[Row]) -> nodes.section:
        """One chapter's section: its own claims, then the published numbers."""
        ours, printed = split(found)
        number = run.chapter.partition("_")[0].lstrip("0")
        section = nodes.section(ids=[f"claims-{run.topic}"], names=[f"claims-{run.topic}"])
        section += nodes.title("", f"Claims of chapter {number}")
        section += self.chapter(run)
        if ours:
            section += self.claims(ours, target=True)
        if printed:
            section += nodes.rubric("", "Numbers that the papers print")
            section += self.published(printed, target=True)
        return section


def _tally(found: list[Row]) -> list[list[nodes.Node]]:
    tally = Counter(row.verdict for row in found)
    return [cell(nodes.Text(str(tally[verdict]))) for verdict in Verdict]
