"""The pipeline's budgets: make reproduce with nothing to do, a whole book build, its size; smoke profile."""

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Measurement, seconds, summary
from companion.ledger import paths
from companion.ledger.records import Results

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build" / "smoke"
SLOW = "the budget is of two quiet cores; next: the seconds beside each of the chapter's records say where they go"
LONGER = {("cpu", "06_flat_minima"): 600}  # it trains transformers


def call(*words: str) -> None:
    """Run a script of the workflow without showing its output."""
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)


def book() -> None:
    """Build the book from nothing but executed chapters."""
    shutil.rmtree(BUILD / "book", ignore_errors=True)
    call("workflow/build_book.py", "smoke")


def measure() -> list[Measurement]:
    """Brings the smoke profile up to date first; chapters' own times come from the stamps of their last runs."""
    call("workflow/reproduce.py", "reproduce", "--profile", "smoke")
    idle = seconds(lambda: call("workflow/reproduce.py", "reproduce", "--profile", "smoke"), n=5, warm=0)
    building = seconds(book, n=3, warm=0)
    size = sum(file.stat().st_size for file in (BUILD / "html").rglob("*") if file.is_file()) / 1e6
    rows = [
        summary(
            "make reproduce, nothing changed",
            idle,
            "s",
            goal=(None, 10),
            missed="the engine looks at every input; next: fewer of them",
        ),
        summary(
            "book from executed chapters, nothing cached",
            building,
            "s",
            goal=(None, 30),
            missed="Sphinx reads and writes every page; next: fewer signs in drawings",
        ),
        summary(
            "size of the HTML",
            [size],
            "MB",
            goal=(None, 12),
            missed="formulas and drawings; next: fewer digits in drawings",
        ),
    ]
    for profile, budget in (("smoke", 30), ("cpu", 480)):
        for file in sorted((ROOT / "results" / profile).glob("*.json")):
            stamp = Results.read(paths.results_file(profile, file.stem)).stamp
            most = LONGER.get((profile, file.stem), budget)
            memory = stamp["peak_memory_bytes"] / 1e9
            wall, note = [stamp["wall_seconds"]], f"stamp of {stamp['started'][:10]}, {stamp['threads']} threads"
            rows.append(summary(f"{file.stem}, {profile}", wall, "s", note, goal=(None, most), missed=SLOW))
            rows.append(
                summary(
                    f"{file.stem}, {profile}, peak memory",
                    [memory],
                    "GB",
                    goal=(None, 6),
                    missed="next: smaller blocks of the largest matrix",
                )
            )
    return rows
