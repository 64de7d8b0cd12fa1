"""The main job from nothing: a fresh clone's make reproduce, its environment included, and the same call once more.

It takes most of an hour and runs only when named. The clone is of the last commit; it stays, with executed notebooks,
results and book, where COLD_CLONE names a folder that does not exist yet.
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Measurement, summary

SLOW = "the chapters take it, one after the other; next: those of one thread side by side, on cores that allow it"
ROOT = Path(__file__).resolve().parents[1]


def timed(clone: Path, *words: str) -> float:
    """Wall seconds of a command in the clone, as a user calls it: no variables but those of the shell."""
    kept = {key: value for key, value in os.environ.items() if key in ("HOME", "PATH", "LANG", "TMPDIR", "USER")}
    began = time.perf_counter()
    subprocess.run(words, cwd=clone, env=kept, check=True)
    return time.perf_counter() - began


def measure() -> list[Measurement]:
    """Packages and data may lie in pip's and the companion's caches: neither is a matter of this project's speed."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(os.environ.get("COLD_CLONE", f"{folder}/clone"))
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        environment = timed(clone, "make", "env")
        chapters = timed(clone, "make", "reproduce")
        again = [timed(clone, "make", "reproduce") for _ in range(3)]
    return [
        summary("environment from the pins", [environment], "s", "packages from pip's cache where it has them"),
        summary("make reproduce, environment there", [chapters], "s", "all chapters in cpu, ledger, book"),
        summary("make reproduce, cold", [environment + chapters], "s", "both", goal=(None, 45 * 60), missed=SLOW),
        summary(
            "make reproduce, nothing changed",
            again,
            "s",
            "the cpu profile",
            goal=(None, 10),
            missed="the engine looks at every input; next: fewer of them",
        ),
    ]
