"""Witness: the real engine on a miniature project; what re-runs, what resumes, what fails, is observed from outside."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def pull(project, chapter):
    """A reference run from elsewhere, as a pull brings it: the build folder holds another one. The file, its bytes."""
    file = project.root / "results/smoke" / f"{chapter}.json"
    text = file.read_text()
    assert '"seconds": ' in text
    file.write_text(text.replace('"seconds": ', '"seconds": 1'))
    return file, file.read_bytes()


def test_first_run_prints_the_verdicts_and_the_front_page(finished):
    project, first = finished
    assert first.returncode == 0, first.stdout
    assert first.stdout.count("reproduced") >= 2
    page = project.root / "_build/smoke/html/index.html"
    assert f"front page: {page}" in first.stdout
    assert page.is_file()
    assert (page.parent / "book/chapters/01_one.html").is_file()
    assert "not listed: 2 that this profile does not run" in first.stdout
    assert "not a git checkout" in first.stdout
    ledger = (project.root / "_build/smoke/ledger.json").read_text()
    assert '"verdict": "reproduced"' in ledger


def test_executed_notebook_hides_the_injected_cell_only(finished):
    project, _ = finished
    text = (project.root / "_build/smoke/chapters/01_one.ipynb").read_text()
    assert text.count('"injected-parameters"') == text.count('"remove-cell"') == 1
    assert 'profile = \\"smoke\\"' in text


def test_second_run_does_nothing_and_says_so(finished):
    project, _ = finished
    before = {p: p.stat().st_mtime_ns for p in (project.root / "_build/smoke").rglob("*") if p.is_file()}
    second = project.call("reproduce")
    assert second.returncode == 0
    assert "nothing to do: every chapter is up to date" in second.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (project.root / "_build/smoke").rglob("*") if p.is_file()}


def test_new_dates_alone_rerun_nothing(copy):
    for part in ("notebooks", "companion", "claims", "requirements", "book", "workflow"):
        for file in (copy.root / part).rglob("*"):
            os.utime(file)
    assert copy.planned() == {}


BOTH = {"01_one", "02_two"}


@pytest.mark.parametrize(
    ("name", "old", "new", "chapters", "book"),
    [
        ("notebooks/01_one.py", "# # Chapter 1", "# # Chapter One", {"01_one"}, True),
        ("companion/theory/one.py", "1.0 *", "1.5 *", {"01_one"}, True),
        ("companion/theory/two.py", "2.0 *", "2.5 *", {"02_two"}, True),  # imports by `from . import`
        ("companion/theory/shared.py", "1.0", "1.1", BOTH, True),
        ("companion/ledger/records.py", "SCHEMA = 1", "SCHEMA = 1  # one", BOTH, True),
        ("claims/one.toml", "10.0", "11.0", {"01_one"}, True),
        ("requirements/core.txt", "numpy==", "numpy ==", BOTH, True),
        ("requirements/book.txt", "myst-nb==", "myst-nb ==", set(), True),
        ("book/index.md", "A book.", "A better book.", set(), True),
        ("workflow/chapters.toml", "seed = 0", "seed = 1", BOTH, True),
        ("requirements/test.txt", "pytest==", "pytest ==", set(), False),
        ("workflow/chapters.toml", "limit = 600 ", "limit = 601 ", set(), False),
    ],
)
def test_a_change_reruns_exactly_its_cone(finished, name, old, new, chapters, book):
    project, _ = finished
    file = project.root / name
    text, stat = file.read_text(), file.stat()
    try:
        project.edit(name, old, new)
        plan = project.planned()
    finally:
        file.write_text(text)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert plan.get("run", set()) == chapters
    assert ("book" in plan) == book


def test_an_unimported_file_is_in_no_cone(copy):
    (copy.root / "companion/theory/unused.py").write_text("X = 1\n")
    assert copy.planned() == {}


def test_a_changed_file_is_really_run_again_and_moves_against_the_reference(copy):
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (copy.root / ".gitignore").write_text("/_build/\n/.snakemake/\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "reference"]):
        subprocess.run([*git, *words], cwd=copy.root, check=True, capture_output=True)
    untouched = (copy.root / "_build/smoke/chapters/02_two.json").stat().st_mtime_ns
    assert "no number left the reference run's interval (2 of 2" in copy.call("verify").stdout
    copy.edit("companion/theory/one.py", "1.0 *", "12.0 *")
    done = copy.call("chapter", "--chapter", "01")
    assert done.returncode == 1
    assert "gated contradiction: one.number expects < 10, measured 12" in done.stdout
    assert "moved: one.number: contradicted with 12, the reference run says reproduced" in done.stdout
    assert (copy.root / "_build/smoke/chapters/02_two.json").stat().st_mtime_ns == untouched
    assert copy.call("verify").returncode == 1


def test_killed_in_mid_chapter_the_next_call_finishes_with_the_same_records(copy, finished, tmp_path):
    published, before = pull(copy, "02_two")
    copy.edit("notebooks/02_two.py", "# # Chapter 2", "# # Chapter Two")
    hold = tmp_path / "kernel"
    first = subprocess.Popen(
        copy.command("reproduce"),
        cwd=copy.root,
        env=copy.environment(HOLD=str(hold)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: hold.is_file() and hold.read_text() != "")
    kernel = int(hold.read_text())
    assert published.read_bytes() == before

    second = copy.call("reproduce")
    assert second.returncode == 1
    assert f"error: another call works in this checkout (make reproduce, process {first.pid})" in second.stdout

    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    wait_for(lambda: not alive(kernel), 20)
    assert not (copy.root / "_build/smoke/chapters/02_two.json").exists()
    assert published.read_bytes() == before

    third = copy.call("reproduce")
    assert third.returncode == 0, third.stdout
    whole, _ = finished

    def numbers(project):
        return [(r["id"], r["value"], r["interval"]) for r in project.results("02_two")["records"]]

    assert numbers(copy) == numbers(whole)
    assert list((copy.root / "_build/smoke/chapters").glob(".*.run-*")) == []
    assert "nothing to do" in copy.call("reproduce").stdout


def test_told_to_stop_it_stops_at_once(copy, tmp_path):
    published, before = pull(copy, "02_two")
    copy.edit("notebooks/02_two.py", "# # Chapter 2", "# # Chapter Two")
    hold = tmp_path / "kernel"
    call = subprocess.Popen(
        copy.command("chapter", "--chapter", "02"),
        cwd=copy.root,
        env=copy.environment(HOLD=str(hold)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    wait_for(lambda: hold.is_file() and hold.read_text() != "")
    call.terminate()
    said, _ = call.communicate(timeout=30)
    assert call.returncode == 130
    assert "stopped; the next call continues" in said
    wait_for(lambda: not alive(int(hold.read_text())), 20)
    assert not (copy.root / "_build/smoke/chapters/02_two.json").exists()
    assert published.read_bytes() == before
    assert sorted(file.name for file in published.parent.iterdir()) == ["01_one.json", "02_two.json"]


def test_a_failing_cell_fails_the_run_and_leaves_the_others_alone(copy):
    published, before = pull(copy, "01_one")
    copy.edit("companion/theory/two.py", "2.0 *", "2.5 *")
    copy.edit("notebooks/01_one.py", 'ledger.record("one.broken", 100.0)', "1 / 0")
    done = copy.call("reproduce")
    assert done.returncode == 1
    assert '01_one failed in the cell that begins `ledger.record("one.number", number() + seed)`' in done.stdout
    assert "ZeroDivisionError: division by zero" in done.stdout
    assert "FAILED  failed chapter: 01_one" in done.stdout
    assert "two.number" in done.stdout
    assert "one.number │" not in done.stdout  # no verdict from the run before
    kept = copy.root / "_build/smoke/chapters/01_one.failed.ipynb"
    assert "ZeroDivisionError" in kept.read_text()
    assert not kept.with_name("01_one.ipynb").exists()
    assert published.read_bytes() == before
    assert copy.results("02_two")["records"][0]["value"] == 2.5
    verified = copy.call("verify")
    assert verified.returncode == 1
    assert "failed chapter: 01_one" in verified.stdout


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        ("claims/one.toml", "below = 10.0", "below = 0.5", "gated contradiction: one.number expects < 0.5, measured 1"),
        ("claims/one.toml", "below = 10.0", "below = 1000.0", "failed control: one.broken has to break one.number"),
        ("claims/one.toml", '"one.number"', '"one.other"', "missing record: one.other was not recorded"),
        ("results/smoke/01_one.json", '"schema"', '"skema"', "01_one: 01_one.json is not a whole results file"),
    ],
)
def test_verify_fails_without_running_anything(finished, name, old, new, sentence):
    project, _ = finished
    file = project.root / name
    text, stat = file.read_text(), file.stat()
    assert project.call("verify").returncode == 0
    try:
        project.edit(name, old, new)
        done = project.call("verify")
    finally:
        file.write_text(text)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert done.returncode == 1
    assert sentence in done.stdout


def test_a_missing_results_file_fails_verify_and_is_published_again(copy):
    (copy.root / "results/smoke/01_one.json").unlink()
    assert "no results file 01_one.json" in copy.call("verify").stdout
    copy.edit("results/smoke/02_two.json", '"value": 2.0', '"value": 3.0')
    done = copy.call("reproduce")
    assert done.returncode == 0, done.stdout
    assert "cells" not in done.stdout  # no chapter ran
    assert copy.results("02_two")["records"][0]["value"] == 2.0
    assert copy.results("01_one")["records"][0]["value"] == 1.0


def test_a_pulled_reference_gives_way_to_a_finished_run_only(copy):
    published, before = pull(copy, "02_two")
    copy.edit("notebooks/02_two.py", "import os\n", "import os(\n")  # nothing can run, the build folder's run is stale
    assert copy.call("reproduce").returncode == 1
    assert published.read_bytes() == before
    copy.edit("notebooks/02_two.py", "import os(\n", "import os\n")
    assert copy.call("reproduce").returncode == 0
    assert published.read_bytes() == (copy.root / "_build/smoke/chapters/02_two.json").read_bytes() != before


def test_building_the_book_touches_no_results(copy):
    published, before = pull(copy, "02_two")
    copy.edit("book/index.md", "A book.", "A better book.")
    done = copy.call("book")
    assert done.returncode == 0, done.stdout
    assert published.read_bytes() == before


def test_the_book_is_built_strictly_and_never_from_a_failed_build(copy):
    copy.edit("book/index.md", "A book.", "A book with a [broken link](nowhere.md).")
    for _ in range(2):  # an incremental second build would not read the page again, hence not warn
        done = copy.call("book")
        assert done.returncode == 1
        assert "nowhere.md" in done.stdout
    copy.edit("book/index.md", "with a [broken link](nowhere.md)", "mended")
    mended = copy.call("book")
    assert mended.returncode == 0, mended.stdout
    assert "mended" in (copy.root / "_build/smoke/html/book/index.html").read_text()


def test_the_book_is_not_built_from_chapters_that_never_ran(copy):
    shutil.rmtree(copy.root / "_build/smoke/chapters")
    done = copy.call("book")
    assert done.returncode == 1
    assert "error: not executed: 01_one, 02_two; call make reproduce PROFILE=smoke" in done.stdout


def test_a_chapter_that_does_not_exist_is_named(finished):
    project, _ = finished
    done = project.call("chapter", "--chapter", "09")
    assert done.returncode == 2
    assert "which chapter? C=NN out of 01_one, 02_two" in done.stdout
