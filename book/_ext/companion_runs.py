"""Directives of a run: what a chapter cost, and the stamp it left."""

from __future__ import annotations

from companion_directives import LedgerDirective, profile_note
from companion_ledger import CHAPTERS, Ledger
from companion_numbers import duration, size
from companion_tables import box, cell, definition_table, details, table
from docutils import nodes
from sphinx.errors import ExtensionError

from companion.ledger.records import Results


def machine(run: Results) -> tuple[str, str]:
    """Device with its threads, and processor with its platform."""
    stamp = run.stamp
    threads = f"{stamp['threads']} thread{'s' if stamp['threads'] != 1 else ''}"
    return f"{stamp['device']}, {threads}", f"{stamp['processor']}, {stamp['platform']}"


class RunDirective(LedgerDirective):
    """What cost card and stamp share: the chapter named by the argument."""

    required_arguments = 1

    def results(self, ledger: Ledger) -> Results:
        """The chapter's results.

        Raises:
            ExtensionError: the book has no such chapter.
        """
        chapter = self.arguments[0]
        if chapter not in ledger.results:
            raise ExtensionError(f"no chapter {chapter!r}; chapters: {', '.join(ledger.results) or 'none'}")
        return ledger.results[chapter]


class CostCard(RunDirective):
    """``{cost-card} 01_spectral_clustering``: what the run took, and the two downloads."""

    def show(self, ledger: Ledger) -> list[nodes.Node]:
        """Seconds, memory, device, profile; links to the executed and to the percent notebook."""
        run = self.results(ledger)
        stamp = run.stamp
        facts = [
            ("profile", run.profile),
            ("run time", duration(stamp["wall_seconds"])),
            ("peak memory", size(stamp["peak_memory_bytes"])),
            ("device", machine(run)[0]),
        ]
        shown = [
            box("cost-fact", *cell(nodes.inline("", key, classes=["cost-key"]), nodes.Text(value)))
            for key, value in facts
        ]
        up = "../" * self.env.docname.count("/") + "_sources"
        links = " ".join(
            f'<a class="cost-download" href="{up}/{CHAPTERS}/{run.chapter}.{ending}" download>{text}</a>'
            for ending, text in (("ipynb", "executed notebook, pictures left out (.ipynb)"), ("py", "source (.py)"))
        )
        download = nodes.raw("", f'<p class="cost-links">Download: {links}</p>', format="html")
        return [box("cost-card", *shown, download)]


class CostTable(LedgerDirective):
    """``{cost-table}``: what each chapter took in the run that made this book."""

    def show(self, ledger: Ledger) -> list[nodes.Node]:
        """Chapter, run time, peak memory, machine."""
        lines = []
        for run in sorted(ledger.results.values(), key=lambda results: results.chapter):
            stamp = run.stamp
            facts = [duration(stamp["wall_seconds"]), size(stamp["peak_memory_bytes"]), *machine(run)]
            chapter = cell(*self.inline(f"{{doc}}`/{CHAPTERS}/{run.chapter}`"))
            lines.append([chapter, *(cell(nodes.Text(fact)) for fact in facts)])
        head = ["Chapter", "Run time", "Peak memory", "Device", "Machine"]
        return [*cell(*profile_note(ledger), classes=["ledger-counts"]), table(head, lines, ["cost-table"])]


class Stamp(RunDirective):
    """``{stamp} 01_spectral_clustering``: provenance of the page's numbers, and how to make them again."""

    def show(self, ledger: Ledger) -> list[nodes.Node]:
        """Commit, versions, machine, threads, seed, times, and the command."""
        run = self.results(ledger)
        stamp = run.stamp
        commit = (stamp["commit"] or "outside git")[:12] + (" with local changes" if stamp["dirty"] else "")
        facts = [
            ("Commit", commit),
            ("Source hash", stamp["source_hash"][:16]),
            ("Profile, seed", f"{run.profile}, {stamp['seed']}"),
            ("Device", machine(run)[0]),
            ("Machine", machine(run)[1]),
            ("Python", stamp["python"]),
            ("Packages", ", ".join(f"{name} {version}" for name, version in stamp["packages"].items())),
            ("Started", stamp["started"].replace("T", " ").replace("+00:00", " UTC")),
            ("Run time, peak memory", f"{duration(stamp['wall_seconds'])}, {size(stamp['peak_memory_bytes'])}"),
        ]
        number = run.chapter.partition("_")[0]
        command = f"make chapter C={number} PROFILE={run.profile}"
        body = [definition_table([(key, value) for key, value in facts if value], ["stamp-table"])]
        again = cell(nodes.Text("Run this page again: "), nodes.literal("", command), classes=["stamp-again"])
        return [box("stamp", *again, *details("What made the numbers on this page", body))]
