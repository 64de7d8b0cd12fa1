"""A miniature of this project, with real notebooks, a real engine and a real book, small enough to run in seconds."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[2]

CHAPTER = """# ---
# jupyter:
#   jupytext:
#     text_representation: {{extension: .py, format_name: percent}}
# ---

# %% [markdown]
# # Chapter {number}

# %% tags=["parameters"]
profile = "cpu"
seed = 0

# %%
import os
import time
from pathlib import Path

from companion import ledger
from companion.progress import track
from companion.theory.{module} import number

ledger.begin("{name}", claims="{topic}", profile=profile, seed=seed)

# %%
ledger.record("{topic}.number", number() + seed)
ledger.record("{topic}.broken", 100.0)

# %%
if "HOLD" in os.environ:
    held = Path(os.environ["HOLD"])
    held = held / "{name}" if held.is_dir() else held
    if not held.exists():  # once only: the next attempt goes on
        held.write_text(str(os.getpid()))
        for _ in track(range(600), "holding"):
            time.sleep(0.1)

# %%
ledger.close()
"""

CLAIMS = """[[claim]]
id = "{topic}.number"
paper = "companion"
locator = "here"
says = "The number is small."
evidence = "exact"
quantity = "the number"
unit = "1"
expect = {{ below = 10.0 }}
control = "{topic}.broken"
control_says = "a large number"
gates = ["smoke"]

[[claim]]
id = "{topic}.published"
paper = "companion"
locator = "there"
says = "A paper prints one."
evidence = "published"
quantity = "the number"
unit = "1"
expect = {{ above = 0.5 }}
published = {{ value = 1.0, setting = "paper scale" }}
"""

PAGES = {
    "_config.yml": 'title: Toy\nonly_build_toc_files: true\nexecute: {execute_notebooks: "off"}\n',
    "_toc.yml": "format: jb-book\nroot: book/index\nchapters:\n"
    "- file: book/chapters/01_one\n- file: book/chapters/02_two\n",
    "book/index.md": "# Toy\n\nA book.\n",
    "companion/theory/__init__.py": "",
    "companion/theory/shared.py": "SCALE = 1.0\n",
    "companion/theory/one.py": "from companion.theory.shared import SCALE\n\n\ndef number():\n    return 1.0 * SCALE\n",
    "companion/theory/two.py": "from . import shared\n\n\ndef number():\n    return 2.0 * shared.SCALE\n",
    "companion/theory/unused.py": "",
}

DRY = ("-n", "--cores", "1", "--rerun-incomplete", "--nolock", "--quiet", "host")


@dataclass(frozen=True)
class Project:
    """A miniature checkout and its driver."""

    root: Path

    def call(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Call the driver in the smoke profile; output and errors together."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "workflow/reproduce.py", *arguments, "--profile", "smoke"]

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("COMPANION_", "PYTHONPATH", "GIT_", "SLURM_"))}
        return {**kept, "COLUMNS": "140", **variables}

    def runner(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Call the runner of one chapter directly."""
        return subprocess.run(
            [sys.executable, "-m", "companion.ledger.runner", *arguments],
            cwd=self.root,
            env=self.environment(PYTHONPATH=str(self.root), **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def edit(self, name: str, old: str, new: str) -> None:
        file = self.root / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def results(self, chapter: str) -> dict[str, object]:
        return json.loads((self.root / "results/smoke" / f"{chapter}.json").read_text())

    def planned(self) -> dict[str, set[str]]:
        """What the engine would do now: chapters by rule."""
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "-s", "workflow/Snakefile", "--config", "profile=smoke", *DRY],
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        plan: dict[str, set[str]] = {}
        for rule, chapter in re.findall(r"^Job \d+: (\w+)(?: (\w+))?$", done.stdout + done.stderr, re.MULTILINE):
            plan.setdefault(rule, set()).update([chapter] if chapter else [])
        return plan


def make(root: Path) -> Project:
    """Write the miniature; the workflow and the ledger are this checkout's own."""
    shutil.copytree(HOUSE / "workflow", root / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(HOUSE / "companion/ledger", root / "companion/ledger", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("companion/__init__.py", "companion/progress.py"):
        shutil.copyfile(HOUSE / name, root / name)
    shutil.copytree(HOUSE / "requirements", root / "requirements")
    for name, text in PAGES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "notebooks").mkdir()
    (root / "claims").mkdir()
    for number, topic in ((1, "one"), (2, "two")):
        name = f"0{number}_{topic}"
        text = CHAPTER.format(number=number, name=name, topic=topic, module=topic)
        (root / "notebooks" / f"{name}.py").write_text(text)
        (root / "claims" / f"{topic}.toml").write_text(CLAIMS.format(topic=topic))
    project = Project(root)
    project.edit(
        "workflow/chapters.toml", "threads = 2\ncores = 2", "threads = 1\ncores = 1"
    )  # both chapters at a time
    return project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, subprocess.CompletedProcess[str]]:
    """A miniature after its first whole run, and what that run printed. Tests leave it as they found it."""
    project = make(tmp_path_factory.mktemp("finished"))
    return project, project.call("reproduce")


@pytest.fixture
def copy(finished: tuple[Project, object], tmp_path: Path) -> Project:
    """A copy of the finished miniature to change at will, dates included."""
    project, _ = finished
    shutil.copytree(project.root, tmp_path / "copy")
    return Project(tmp_path / "copy")
