"""Witness: the runner as a command on notebooks that misbehave; message, exit status and files are looked at."""

import re

import pytest

from companion.ledger.runner import sync

RUN = ("run", "_build/sync/01_one.ipynb", "_build/t/01_one.ipynb", "_build/t/01_one.json")
SMOKE = ("-p", "profile", "smoke")


@pytest.fixture
def chapter(copy):
    """Change the first chapter's source, synchronise it, return the project."""

    def prepare(old=None, new=None):
        if old is not None:
            copy.edit("notebooks/01_one.py", old, new)
        sync(copy.root / "notebooks/01_one.py", copy.root / "_build/sync/01_one.ipynb")
        return copy

    return prepare


def test_an_unknown_parameter_is_an_error_that_lists_the_allowed_ones(chapter):
    done = chapter().runner(*RUN, "-p", "profil", "smoke")
    assert done.returncode == 1
    assert "error: 01_one has no parameter profil; its parameters cell allows profile, seed" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "count"),
    [
        ('# %% tags=["parameters"]', "# %%", 0),
        ("# %%\nimport os", '# %% tags=["parameters"]\nimport os', 2),
    ],
)
def test_there_is_exactly_one_parameters_cell(chapter, old, new, count):
    done = chapter(old, new).runner(*RUN, *SMOKE)
    assert done.returncode == 1
    assert f'01_one has {count} cells tagged "parameters", expected exactly one' in done.stdout


def test_records_are_demanded(chapter):
    project = chapter("ledger.close()", "pass")
    done = project.runner(*RUN, *SMOKE)
    assert done.returncode == 1
    assert "01_one ended without records; its last cell has to call ledger.close()" in done.stdout
    assert [p.name for p in (project.root / "_build/t").iterdir()] == ["01_one.failed.ipynb"]


def test_records_of_another_profile_are_refused(chapter):
    done = chapter("profile=profile", 'profile="cpu"').runner(*RUN, *SMOKE)
    assert done.returncode == 1
    assert "01_one left the records of chapter 01_one, profile cpu; expected 01_one, smoke" in done.stdout


def test_the_wall_limit_covers_the_whole_chapter(chapter, tmp_path):
    project = chapter()
    done = project.runner(*RUN, *SMOKE, "--limit", "4", HOLD=str(tmp_path / "kernel"))
    assert done.returncode == 1
    assert 'passed its wall limit of 4 s in the cell that begins `if "HOLD" in os.environ:`' in done.stdout
    assert [p.name for p in (project.root / "_build/t").iterdir()] == ["01_one.failed.ipynb"]


def test_a_dead_kernel_is_said_so(chapter):
    done = chapter("ledger.close()", "os._exit(9)").runner(*RUN, *SMOKE)
    assert done.returncode == 1
    assert "the kernel died in the cell that begins `os._exit(9)`" in done.stdout


def test_equal_sources_give_equal_notebooks(chapter):
    project = chapter()
    mine, pipeline = project.root / "_build/mine.ipynb", project.root / "_build/sync/01_one.ipynb"
    assert project.runner("sync", "notebooks/01_one.py", "_build/mine.ipynb").returncode == 0
    assert mine.read_bytes() == pipeline.read_bytes()
    assert re.search(rb'"outputs": \[\]', mine.read_bytes())
