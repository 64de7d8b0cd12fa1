"""Witness: the installed packages' own metadata, against the pins in requirements/ and in environment.yml."""

import importlib.metadata
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HOUSE = Path(__file__).resolve().parents[1]
FILES = ("core", "workflow", "book", "test")
OPTIONAL = ("slurm", "bench")  # installed only by the commands that need them


def pins(name: str) -> dict[str, Requirement]:
    """The pins of one file by canonical name, in the file's order."""
    found = {}
    for line in (HOUSE / "requirements" / f"{name}.txt").read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text:
            requirement = Requirement(text)
            found[canonicalize_name(requirement.name)] = requirement
    return found


def here(requirement: Requirement, extras: frozenset[str] = frozenset()) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})


def test_conda_users_get_the_very_same_pins():
    sections = yaml.safe_load((HOUSE / "environment.yml").read_text())["dependencies"]
    (listed,) = (section["pip"] for section in sections if isinstance(section, dict))
    assert listed == [*(f"-r requirements/{name}.txt" for name in FILES), "-e ."]
    makefile = (HOUSE / "Makefile").read_text()
    (installed,) = re.findall(r"^PINS := \$\(addprefix requirements/,(.*)\)$", makefile, re.MULTILINE)
    assert installed.split() == [f"{name}.txt" for name in FILES]


@pytest.mark.parametrize("name", [*FILES, *OPTIONAL])
def test_every_requirement_is_one_exact_version(name):
    for requirement in pins(name).values():
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        assert "*" not in specifier.version


def test_no_package_is_pinned_twice():
    names = [package for name in (*FILES, *OPTIONAL) for package in pins(name)]
    assert sorted(names) == sorted(set(names))


def test_the_environment_holds_what_is_pinned():
    for name in FILES:
        for package, requirement in pins(name).items():
            if here(requirement):
                assert requirement.specifier.contains(importlib.metadata.version(package)), package


def test_each_file_is_closed_over_itself_and_the_files_before_it():
    known: set[str] = set()
    for name in FILES:
        mine = pins(name)
        known |= set(mine)
        waiting = [(package, frozenset(pin.extras)) for package, pin in mine.items() if here(pin)]
        while waiting:
            package, extras = waiting.pop()
            for text in importlib.metadata.requires(package) or ():
                needed = Requirement(text)
                if here(needed, extras):
                    target = canonicalize_name(needed.name)
                    assert target in known, f"{package} in {name}.txt needs {text}, which is pinned in no file up to it"
                    if needed.extras and "extra ==" not in text:
                        waiting.append((target, frozenset(needed.extras)))


def test_nothing_is_pinned_that_nothing_needs():
    """Below the line `pulled in by the above` stands only what something above, or in an earlier file, needs."""
    needed = set()
    for name in FILES:
        for package, pin in pins(name).items():
            if here(pin):
                needed |= {canonicalize_name(Requirement(r).name) for r in importlib.metadata.requires(package) or ()}
    for name in FILES:
        _, _, pulled = (HOUSE / "requirements" / f"{name}.txt").read_text().partition("# pulled in by the above")
        for line in pulled.split("\n"):
            if line.strip():
                assert canonicalize_name(Requirement(line).name) in needed, line


def test_an_old_python_is_refused_in_one_line(monkeypatch, capsys):
    build = runpy.run_path(str(HOUSE / "workflow/environment.py"))["main"]
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    with pytest.raises(SystemExit) as stopped:
        build("nowhere", [])
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert message == "error: Python 3.11 or newer is needed, this is 3.9: call make PYTHON=/path/to/python3.11\n"


def test_a_killed_build_starts_afresh(tmp_path, monkeypatch):
    build = runpy.run_path(str(HOUSE / "workflow/environment.py"))["main"]
    created = []

    def create(target, log):
        created.append(target)
        (tmp_path / "env").mkdir(exist_ok=True)

    monkeypatch.setitem(build.__globals__, "create", create)
    monkeypatch.setitem(build.__globals__, "run", lambda *_: None)
    target = str(tmp_path / "env")
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / "env/bin/python").touch()
    build(target, [])
    assert created == []
    (tmp_path / "env/.building").touch()
    build(target, [])
    assert created == [target]
    assert not (tmp_path / "env/.building").exists()


def test_help_lists_every_command_of_the_readme():
    done = subprocess.run(["make", "help"], cwd=HOUSE, capture_output=True, text=True, check=True)
    for command in ["reproduce", "test", "book", "serve", "lab", "chapter", "verify", "bench", "clean"]:
        assert re.search(rf"^  {command} +\w", done.stdout, re.MULTILINE), command
