"""How long a fresh interpreter takes to import all of companion.theory."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Measurement, paired, summary

ROOT = Path(__file__).resolve().parents[1]


def measure() -> list[Measurement]:
    """Fresh interpreters, beside one that imports torch only."""
    names = [path.stem for path in (ROOT / "companion/theory").iterdir() if path.stem[0].isalpha()]
    theory = ", ".join(f"companion.theory.{name}" for name in names)

    def importing(what: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", f"import {what}"], cwd=ROOT, check=True)

    found = paired({"ours": importing(theory), "torch": importing("torch")}, n=7)
    why = "torch alone takes most of it; next: scipy's parts imported where they are called"
    return [
        summary("import companion.theory.*", found["ours"], "s", goal=(None, 3.0), missed=why),
        summary("import torch", found["torch"], "s", "what of it is torch"),
    ]
