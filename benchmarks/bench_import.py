"""How long a fresh interpreter takes to import all of companion.theory (budget: 3 s)."""

import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Measurement, seconds, summary

ROOT = Path(__file__).resolve().parents[1]


def measure() -> list[Measurement]:
    """Fresh interpreters, beside one that imports torch only."""
    names = [path.stem for path in (ROOT / "companion/theory").iterdir() if path.stem[0].isalpha()]
    theory = ", ".join(f"companion.theory.{name}" for name in names)

    def importing(what: str) -> list[float]:
        return seconds(lambda: subprocess.run([sys.executable, "-c", f"import {what}"], cwd=ROOT, check=True), n=7)

    return [
        summary("import companion.theory.*", importing(theory), "s", "budget 3 s"),
        summary("import torch", importing("torch"), "s", "what of it is torch"),
    ]
