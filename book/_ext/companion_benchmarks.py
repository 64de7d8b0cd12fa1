"""Directives of speed and scale: what was measured, and what a GPU should take, from the folder ``benchmarks``."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from math import log10
from typing import Any

from companion_ledger import CHAPTERS, badge
from companion_numbers import number_nodes, plain
from companion_tables import Cell, cell, details, table
from docutils import nodes
from sphinx.domains.std import StandardDomain
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from companion.ledger import paths

Entry = dict[str, Any]
SUMMED = ("networks", "updates", "operations", "besides", "hours")  # of rows that are joined
TITLES = {"ntk": "Tangent kernels", "spectral_loss": "The spectral loss"}


class BenchmarkDirective(SphinxDirective):
    """What the directives share: a file of the folder ``benchmarks``, on which the page then depends."""

    has_content = False

    def document(self, name: str) -> dict[str, Any]:
        """What the file holds.

        Raises:
            ExtensionError: the file is missing or broken.
        """
        file = paths.ROOT / "benchmarks" / name
        self.env.note_dependency(str(file))
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            where = f"{self.env.docname}, line {self.lineno}: {{{self.name}}}"
            raise ExtensionError(f"{where}: benchmarks/{name} cannot be read: {error}") from error


def met(entry: Entry) -> bool | None:
    """Whether a row's ratio, else its median, lies within its goal; None where there is no goal.

    >>> met({"median": 3, "ratio": 5, "goal": [4, None]}), met({"median": 3, "goal": [None, 2]}), met({"median": 1})
    (True, False, None)
    """
    least, most = entry.get("goal") or (None, None)
    if least is None and most is None:
        return None
    value = entry["median"] if entry.get("ratio") is None else entry["ratio"]
    return (least is None or value >= least) and (most is None or value <= most)


def aim(entry: Entry) -> str:
    r"""A row's goal in words: ``≥ 4``, ``≤ 10 s``, or nothing.

    >>> aim({"unit": "s", "ratio": 5.0, "goal": [4, None]}), aim({"unit": "s", "goal": [None, 10]}), aim({"unit": "s"})
    ('≥ 4\u202f×', '≤ 10\u202fs', '')
    """
    least, most = entry.get("goal") or (None, None)
    unit = "\u202f×" if entry.get("ratio") is not None else f"\u202f{entry['unit']}"
    bounds = [f"{sign} {plain(bound)}" for sign, bound in (("≥", least), ("≤", most)) if bound is not None]
    return ", ".join(bounds) + unit * bool(bounds)


class SpeedTables(BenchmarkDirective):
    """``{speed-tables}``: every record, a section each with the label ``record-NAME``."""

    def run(self) -> list[nodes.Node]:
        """Sections, from the newest run of each benchmark."""
        return [self.section(name, record) for name, record in self.document("records.json").items()]

    def section(self, name: str, record: dict[str, Any]) -> nodes.section:
        """What was measured, on what machine, the rows, and why a goal is missed."""
        label, title = f"record-{name.replace('_', '-')}", titled(name)
        section = nodes.section(ids=[label], names=[label])
        std = self.env.get_domain("std")
        assert isinstance(std, StandardDomain)
        std.anonlabels[label] = self.env.docname, label
        std.labels[label] = self.env.docname, label, title
        section += [nodes.title("", title), *cell(nodes.Text(record["measures"]))]
        section += [*cell(nodes.Text(_machine(record)), classes=["speed-machine"]), rows_table(record["rows"])]
        reasons = [entry for entry in record["rows"] if met(entry) is False and entry.get("missed")]
        if reasons:
            items = [nodes.list_item("", *cell(nodes.Text(f"{e['what']}: {e['missed']}"))) for e in reasons]
            section += [*cell(nodes.Text("Where a goal is missed:")), nodes.bullet_list("", *items)]
        return section


def _machine(record: dict[str, Any]) -> str:
    known = record["machine"]
    threads = known.get("threads", "?")
    where = [record["date"], f"{known.get('processor', 'processor unknown')}, {threads} threads"]
    where += [known["device"]] * (known.get("device", "cpu") != "cpu")
    where += [f"{key} {value}" for key, value in known.items() if key == "torch" or key.endswith(("product", "copy"))]
    return "; ".join(where)


def rows_table(entries: list[Entry]) -> nodes.table:
    """A record's rows; columns that nothing would stand in are left out."""
    columns = {
        "What": [_named(entry) for entry in entries],
        "Measured": [_measured(entry) for entry in entries],
        "Against its peer": [_compared(entry) for entry in entries],
        "Goal": [_goal(entry) for entry in entries],
        "Floor": [_floor(entry) for entry in entries],
    }
    shown = {head: found for head, found in columns.items() if any(found)}
    lines = [[_labelled(head, found[i]) for head, found in shown.items()] for i in range(len(entries))]
    return table(list(shown), lines, ["records-table"])


def _labelled(head: str, content: list[nodes.Node]) -> Cell:
    """On a phone, where rows are cards, a cell says what it holds."""
    said = [] if head == "What" or not content else cell(nodes.Text(head), classes=["phone-label"])
    return [*said, *content]


def _named(entry: Entry) -> list[nodes.Node]:
    return cell(nodes.Text(entry["what"])) + _small(entry.get("note") or "")


def _measured(entry: Entry) -> list[nodes.Node]:
    spread = (
        f"{plain(entry['low'])} to {plain(entry['high'])}, n\u00a0=\u00a0{entry['n']}"
        if entry["n"] > 1
        else "n\u00a0=\u00a01"
    )
    return cell(*number_nodes(f"{plain(entry['median'])}\u202f{entry['unit']}")) + _small(spread)


def _compared(entry: Entry) -> list[nodes.Node]:
    if entry.get("ratio") is None:
        return []
    return cell(nodes.Text(f"{plain(entry['ratio'])}\u202f×")) + _small(entry.get("peer") or "")


def _goal(entry: Entry) -> list[nodes.Node]:
    found = met(entry)
    if found is None:
        return []
    return cell(nodes.Text(aim(entry) + " "), badge(*(("met", "met") if found else ("missed", "missed"))))


def _floor(entry: Entry) -> list[nodes.Node]:
    if not entry.get("floor"):
        return []
    away = f"{plain(entry['median'] / entry['floor'])} times it; {entry.get('floor_says', '')}"
    return cell(*number_nodes(f"{plain(entry['floor'])}\u202f{entry['unit']}")) + _small(away.rstrip("; "))


def _small(text: str) -> list[nodes.Node]:
    return cell(*number_nodes(text), classes=["claim-source"]) if text else []


class SpeedFigure(BenchmarkDirective):
    """``{speed-figure}`` with a caption: each ratio as a bar on a logarithmic axis, its goal as a mark.

    A drawing made of the page's own text, so that it can be read on a phone; nothing where no row has a ratio.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The figure."""
        records = self.document("records.json").items()
        entries = [
            {**entry, "title": titled(name)}
            for name, record in records
            for entry in record["rows"]
            if entry.get("ratio")
        ]
        if not entries:
            return []
        caption = html.escape(" ".join(self.content))
        rows = "".join(bars(entries))
        text = f'<figure class="speed">{rows}<figcaption><p>{caption}</p></figcaption></figure>'
        return [nodes.raw("", text, format="html")]


def titled(name: str) -> str:
    """The title of a benchmark's section."""
    return TITLES.get(name, name.replace("_", " ").capitalize())


def bars(entries: list[Entry]) -> Iterable[str]:
    """One line of HTML a row, the axis, and the titles that the rows name."""
    marks = [bound for entry in entries for bound in entry.get("goal") or () if bound]
    values = [entry["ratio"] for entry in entries] + marks
    low, high = log10(min(*values, 0.8)), log10(1.3 * max(*values, 10))

    def place(value: float) -> float:
        return 100 * (log10(value) - low) / (high - low)

    ticks = "".join(
        f'<i class="speed-tick" style="left:{place(10**k):.1f}%"><b>{10**k:,}\u202f×</b></i>'
        for k in range(int(high) + 1)
    )
    yield f'<div class="speed-row speed-axis"><span></span><span class="speed-track">{ticks}</span></div>'
    title = ""
    for entry in entries:
        if entry.get("title", "") != title:
            title = entry["title"]
            yield f'<div class="speed-title">{html.escape(title)}</div>'
        ends = sorted((place(1.0), place(entry["ratio"])))
        kind = {None: "", True: " speed-met", False: " speed-missed"}[met(entry)]
        goals = [bound for bound in entry.get("goal") or () if bound]
        goal = "".join(f'<i class="speed-goal" style="left:{place(bound):.1f}%"></i>' for bound in goals)
        peer = f" <small>against {html.escape(entry['peer'])}</small>" if entry.get("peer") else ""
        bar = f'<i class="speed-bar" style="left:{ends[0]:.1f}%;width:{ends[1] - ends[0]:.1f}%"></i>'
        yield f'<div class="speed-row{kind}"><span>{html.escape(entry["what"])}{peer} '
        yield f"<b>{plain(entry['ratio'])}\u202f×</b></span>"
        yield f'<span class="speed-track" aria-hidden="true">{bar}{goal}</span></div>'


class GpuProfile(BenchmarkDirective):
    """``{gpu-profile}``: networks, time and memory of the gpu profile by chapter, and below, folded, by network."""

    def run(self) -> list[nodes.Node]:
        """Two tables and where the hours come from; all of it estimates."""
        found = self.document("gpu_profile.json")
        groups: dict[tuple[int, bool], list[Entry]] = {}
        for entry in found["jobs"]:
            groups.setdefault((entry["chapter"], entry["data"] == "ImageNet-100"), []).append(entry)
        names = {path.name[:2]: path.stem for path in (paths.ROOT / "notebooks").glob("[0-9][0-9]_*.py")}
        lines = []
        for (number, _), jobs in sorted(groups.items()):
            link = f"{number}. {{doc}}`/{CHAPTERS}/{names[f'{number:02}']}`"
            chapter, messages = self.state.inline_text(link, self.lineno)
            facts = {
                "Chapter": cell(*chapter, *messages),
                "Networks": cell(nodes.Text(str(sum(job["networks"] for job in jobs)))),
                "Data": cell(nodes.Text(", ".join(dict.fromkeys(job["data"] for job in jobs)))),
                "Time, estimated": cell(nodes.Text(hours(sum(job["hours"] for job in jobs)))),
                "Memory, at least": cell(nodes.Text(gib(max(job["gib"] for job in jobs)))),
            }
            lines.append(facts)
        whole = _labelled_table([_job(job) for job in _joined(found["jobs"])])
        return [_labelled_table(lines), *details("Network by network", [whole])]


def hours(value: float) -> str:
    """An estimate in words, no more exact than it is.

    >>> hours(0.1), hours(2.56), hours(51.4)
    ('6 min', '2.6 h', '51 h')
    """
    return f"{60 * value:.0f} min" if value < 1 else f"{value:.1f} h" if value < 10 else f"{value:.0f} h"


def gib(value: float) -> str:
    """Memory in GiB.

    >>> gib(0.84), gib(59.8)
    ('0.8 GiB', '60 GiB')
    """
    return f"{value:.1f} GiB" if value < 10 else f"{value:.0f} GiB"


def _labelled_table(lines: list[dict[str, list[nodes.Node]]]) -> nodes.table:
    first, *others = lines[0]
    cells = [[line[first], *(_labelled(head, line[head]) for head in others)] for line in lines]
    return table(list(lines[0]), cells, ["gpu-table"])


def _joined(jobs: list[Entry]) -> list[Entry]:
    """The same networks on sets of the same size are one row."""
    found: dict[tuple[Any, ...], Entry] = {}
    for job in jobs:
        key = tuple(job[name] for name in ("chapter", "network", "updates", "gib", "hours", "command"))
        if key not in found:
            found[key] = job
            continue
        sums = {name: found[key][name] + job[name] for name in SUMMED}
        found[key] = found[key] | sums | {"data": f"{found[key]['data']}, {job['data']}"}
    return list(found.values())


def _job(job: Entry) -> dict[str, list[nodes.Node]]:
    many = f"{job['networks']} networks, " if job["networks"] > 1 else ""
    operations = f"{job['operations'] + job['besides']:.1e}".replace("e+", "e")
    name = cell(nodes.Text(job["network"]), classes=["gpu-name"])
    return {
        "Networks": name + (cell(nodes.literal("", job["command"])) if job["command"] else []),
        "Data": cell(nodes.Text(job["data"])),
        "Updates, batch": cell(nodes.Text(f"{many}{job['updates']:,} updates of {job['batch']:,}")),
        "Operations": cell(*number_nodes(operations)),
        "Time, estimated": cell(nodes.Text(hours(job["hours"])))
        + _small("rate assumed" if job["assumed"] else "rate measured"),
        "Memory, at least": cell(nodes.Text(gib(job["gib"]))),
    }
