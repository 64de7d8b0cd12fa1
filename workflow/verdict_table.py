"""Collect what the chapters recorded, decide, print one table. Runs nothing.

``python workflow/verdict_table.py PROFILE OUT.json RECORDS.json...`` writes the collected ledger; the driver uses the
functions.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from companion.ledger import paths
from companion.ledger.records import RecordError, Results
from companion.ledger.verdicts import Row, Verdict, moved, rows

COLOURS = {
    Verdict.REPRODUCED: "green",
    Verdict.CONTRADICTED: "bold red",
    Verdict.UNRESOLVED: "yellow",
    Verdict.NOT_RUN: "dim",
}


def chapters() -> list[str]:
    """Names of all chapters, from the notebooks' sources."""
    return sorted(path.stem for path in (paths.ROOT / "notebooks").glob("[0-9][0-9]_*.py"))


def collect(files: Iterable[Path]) -> tuple[dict[str, Results], list[str]]:
    """Results by chapter, each read from its file, and one sentence for each file that holds none."""
    found, problems = {}, []
    for file in files:
        try:
            found[file.stem] = Results.read(file)
        except RecordError as error:
            problems.append(f"{file.stem}: {error}")
    return found, problems


def write(profile: str, file: Path, records: Iterable[Path]) -> None:
    """Write the ledger of a profile, verdicts included, as a whole or not at all."""
    found, problems = collect(records)
    if problems:
        raise RecordError("; ".join(problems))
    table = rows(profile, found)
    document = {
        "schema": 1,
        "profile": profile,
        "verdicts": dict(Counter(str(row.verdict) for row in table)),
        "claims": [
            {
                "id": row.claim.id,
                "expected": row.expected,
                "measured": row.measured,
                "verdict": str(row.verdict),
                "gate_failed": row.gate_failed,
                "missing": row.missing,
                "seconds": row.seconds,
            }
            for row in table
        ],
    }
    partial = file.with_name(f".{file.name}.part")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


def reasons(table: list[Row]) -> list[str]:
    """Why the run fails, a sentence a row; empty when it does not."""
    sentences = []
    for row in table:
        if row.missing:
            what = row.claim.id if row.record is None else f"{row.claim.control}, the control of {row.claim.id},"
            sentences.append(f"missing record: {what} was not recorded")
        elif row.gate_failed and row.verdict is Verdict.CONTRADICTED:
            sentences.append(f"gated contradiction: {row.claim.id} expects {row.expected}, measured {row.measured}")
        elif row.gate_failed:
            sentences.append(f"failed control: {row.claim.control} has to break {row.claim.id} and does not")
    return sentences


def deviations(profile: str, found: dict[str, Results]) -> list[str]:
    """How the run differs from the committed reference run, in sentences."""
    if _git("rev-parse", "--verify", "HEAD") is None:
        return ["no reference run to compare with: this is not a git checkout"]
    sentences, compared = [], 0
    for name, mine in found.items():
        text = _git("show", f"HEAD:./results/{profile}/{name}.json")
        if text is None:
            continue
        compared += 1
        try:
            sentences += [f"moved: {sentence}" for sentence in moved(mine, Results.parse(text, f"HEAD:{name}.json"))]
        except (ValueError, TypeError) as error:  # a claim has changed its kind, or the file its schema
            sentences.append(f"{name}: the committed reference run cannot be compared with this one ({error})")
    if not compared:
        return [f"no reference run to compare with: none is committed for the {profile} profile"]
    return sentences or [f"no number left the reference run's interval ({compared} of {len(found)} chapters have one)"]


def show(profile: str, found: dict[str, Results], table: list[Row], *, everything: bool) -> None:
    """Print the table; published numbers that this profile does not run are folded into one line unless asked for."""
    console = Console(width=None if sys.stdout.isatty() else max(100, shutil.get_terminal_size((120, 40)).columns))
    grid = Table(title=f"Verdicts, profile {profile}", title_justify="left")
    for heading in ("claim", "expected", "measured", "verdict"):
        grid.add_column(heading, overflow="fold")
    grid.add_column("seconds", justify="right")
    folded = 0
    for row in table:
        if row.verdict is Verdict.NOT_RUN and not row.missing and not everything:
            folded += 1
            continue
        verdict = "missing" if row.missing else str(row.verdict) + (" (fails the run)" if row.gate_failed else "")
        colour = "bold red" if row.gate_failed else COLOURS[row.verdict]
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        grid.add_row(row.claim.id, escape(row.expected), escape(row.measured), f"[{colour}]{verdict}[/]", seconds)
    console.print(grid)
    counts = Counter(str(row.verdict) for row in table)
    wall = sum(run.stamp.get("wall_seconds", 0.0) for run in found.values())
    summary = ", ".join(f"{counts[str(verdict)]} {verdict}" for verdict in Verdict if counts[str(verdict)])
    console.print(f"{len(table)} claims: {summary or 'none'}; the chapters took {wall:.0f} s", highlight=False)
    if folded:
        console.print(
            f"not listed: {folded} that this profile does not run (make verify ALL=1 lists them)", highlight=False
        )


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
