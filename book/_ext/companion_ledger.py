"""The ledger as the pages read it, and the roles that print it: numbers and verdicts come from the run, never typed.

Every page that uses one depends on the claims files and on the records that lie beside the executed notebooks, so it is
built again when one of them changes. A missing file or an id that no claims file knows stops the build.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from companion_numbers import measured, number_nodes
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxRole
from sphinx.util.nodes import make_refnode

from companion.ledger import paths
from companion.ledger.claims import Claim
from companion.ledger.records import Record, Results
from companion.ledger.verdicts import Row, rows

CHAPTERS = "book/chapters"
LEDGER_PAGE = "book/ledger"
CLAIM = "companion-claim"
EVIDENCE_HELP = {
    "exact": "finite problem in float64: holds to rounding",
    "statistical": "confidence interval over independent runs",
    "trend": "an ordering or a slope",
    "published": "a number that a paper prints, at the paper's scale",
}


@dataclass(frozen=True)
class Ledger:
    """The whole ledger of one profile, as the pages need it."""

    profile: str
    results: dict[str, Results]
    rows: dict[str, Row]

    def row(self, name: str) -> Row:
        """The row of a claim.

        Raises:
            ExtensionError: no claims file of a chapter in the book has this id.
        """
        if name not in self.rows:
            raise ExtensionError(f"no claim {name!r}; {self._near(name, list(self.rows))}")
        return self.rows[name]

    def record(self, name: str) -> Record | None:
        """The record of a claim or of a control; None when this profile did not run it."""
        controls = {row.claim.control: row.control_record for row in self.rows.values() if row.claim.control}
        if name in controls:
            return controls[name]
        if name not in self.rows:
            raise ExtensionError(f"no claim or control {name!r}; {self._near(name, [*self.rows, *controls])}")
        return self.rows[name].record

    def topic(self, topic: str) -> list[Row]:
        """The rows of one topic, in the order of its claims file."""
        found = [row for row in self.rows.values() if row.claim.topic == topic]
        if not found:
            known = ", ".join(sorted({row.claim.topic for row in self.rows.values()})) or "none"
            raise ExtensionError(f"no claims of topic {topic!r} in this book; topics there: {known}")
        return found

    @staticmethod
    def _near(name: str, known: list[str]) -> str:
        topic = name.partition(".")[0]
        same = sorted(other for other in known if other.partition(".")[0] == topic)
        return f"claims/{topic}.toml has {', '.join(same) or 'none of this topic'}"


def chapters(env: BuildEnvironment) -> list[str]:
    """Names of the chapters in the book, in order."""
    return sorted(name.rpartition("/")[2] for name in env.found_docs if name.startswith(f"{CHAPTERS}/"))


def records_file(profile: str, chapter: str) -> Path:
    """Path of the records that the run of a chapter left together with the executed notebook, the page."""
    return paths.ROOT / "_build" / profile / "chapters" / f"{chapter}.json"


def open_ledger(env: BuildEnvironment) -> Ledger:
    """Read claims and results, and note that the page being read depends on them.

    Raises:
        ExtensionError: a chapter's results or claims are missing or broken; the message names the file.
    """
    profile = env.config.companion_profile
    for file in sorted((paths.ROOT / "claims").glob("*.toml")):
        env.note_dependency(str(file))
    try:
        results = {}
        for chapter in chapters(env):
            file = records_file(profile, chapter)
            env.note_dependency(str(file))
            results[chapter] = Results.read(file)
        return Ledger(profile, results, {row.claim.id: row for row in rows(profile, results)})
    except ValueError as error:
        raise ExtensionError(f"the ledger of profile {profile!r} cannot be read: {error}") from error


def badge(kind: str, text: str, title: str = "") -> nodes.inline:
    """A small label; its meaning is in its words, its colour only helps."""
    return nodes.inline("", text, classes=["ledger-badge", f"badge-{kind.replace(' ', '-')}"], title=title)


def unit(claim: Claim) -> str:
    """The unit as it follows a number; nothing for a pure number."""
    return "" if claim.unit == "1" else f"\u202f{claim.unit}"


def verdict_badge(row: Row) -> nodes.inline:
    """The verdict, or that the record is missing."""
    return badge("missing", "record missing") if row.missing else badge(row.verdict.value, row.verdict.value)


class LedgerRole(SphinxRole):
    """What the three roles share: the ledger, and an error that names page and line."""

    def ledger(self) -> Ledger:
        """The ledger, with the page noted as depending on it."""
        return open_ledger(self.env)

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Print the role; an unknown id stops the build."""
        try:
            return self.show(self.ledger(), self.text.strip()), []
        except (ExtensionError, ValueError, IndexError) as error:
            where = f"{self.env.docname}, line {self.lineno}"
            raise ExtensionError(f"{where}: {{{self.name}}}`{self.text}`: {error}") from error

    def show(self, ledger: Ledger, text: str) -> list[nodes.Node]:
        """The role's nodes."""
        raise NotImplementedError


class MeasuredRole(LedgerRole):
    """``{measured}`id|style|part```: a number of the run."""

    def show(self, ledger: Ledger, text: str) -> list[nodes.Node]:
        """The number, with its interval when there is one."""
        name, *options = [part.strip() for part in text.split("|")]
        record = ledger.record(name)
        if record is None:
            return [nodes.inline("", "not run", classes=["measured", "measured-not-run"])]
        value, interval, style, with_interval = record.value, record.interval, "", True
        for option in options:
            if option == "value":
                with_interval = False
            elif option.lstrip("-").isdigit():
                if not isinstance(value, list):
                    raise ValueError(f"{name} is one number, not a list; leave |{option} out")
                index = int(option)
                value, interval = value[index], interval[index] if interval else None
            else:
                style = option
        shown = measured(value, interval, style, with_interval=with_interval)  # pyright: ignore[reportArgumentType]
        return [nodes.inline("", "", *number_nodes(shown), classes=["measured"])]


class VerdictRole(LedgerRole):
    """``{verdict}`id```: the verdict, linked to its line of the ledger page."""

    def show(self, ledger: Ledger, text: str) -> list[nodes.Node]:
        """The badge in a link."""
        return [ledger_link(self.env.docname, ledger.row(text).claim.id, verdict_badge(ledger.row(text)))]


class PublishedRole(LedgerRole):
    """``{published}`id```: the number that a paper prints, as its claims file quotes it."""

    def show(self, ledger: Ledger, text: str) -> list[nodes.Node]:
        """The number and its unit, unrounded."""
        claim = ledger.row(text).claim
        if claim.published is None:
            raise ValueError(f"{text} quotes no published number")
        return [nodes.inline("", "", *number_nodes(f"{claim.published['value']}{unit(claim)}"), classes=["measured"])]


class EvidenceRole(LedgerRole):
    """``{evidence}`id```: the kind of evidence."""

    def show(self, ledger: Ledger, text: str) -> list[nodes.Node]:
        """The badge."""
        kind = ledger.row(text).claim.evidence
        return [badge(kind, kind, EVIDENCE_HELP[kind])]


def anchor(name: str) -> str:
    """Id of a claim's line on the ledger page."""
    return f"claim-{name.replace('.', '-')}"


def ledger_link(docname: str, name: str, content: nodes.Node) -> nodes.Node:
    """A link to a claim's line on the ledger page; `resolve_link` makes it when all pages are known."""
    return addnodes.pending_xref("", content, refdoc=docname, refdomain="", reftype=CLAIM, reftarget=name)


def resolve_link(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Node) -> Any:
    """Turn a link to a claim into one to the ledger page; a book without that page keeps the bare words."""
    if node["reftype"] != CLAIM:
        return None
    if LEDGER_PAGE not in env.found_docs:
        return content
    return make_refnode(app.builder, node["refdoc"], LEDGER_PAGE, anchor(node["reftarget"]), content)
