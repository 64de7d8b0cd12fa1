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
        summary("make reproduce, nothing changed", idle, "s", "budget 10 s"),
        summary("book from executed chapters, nothing cached", building, "s", "budget 30 s"),
        summary("size of the HTML", [size], "MB", "budget 12 MB"),
    ]
    for profile, budget in (("smoke", 30), ("cpu", 480)):
        for file in sorted((ROOT / "results" / profile).glob("*.json")):
            stamp = Results.read(paths.results_file(profile, file.stem)).stamp
            memory = stamp["peak_memory_bytes"] / 1e9
            rows.append(summary(f"{file.stem}, {profile}", [stamp["wall_seconds"]], "s", f"budget {budget} s"))
            rows.append(summary(f"{file.stem}, {profile}, peak memory", [memory], "GB", "budget 6 GB"))
    return rows
