"""Witness: what a real one-node Slurm says of its jobs, and the records of a run without Slurm."""

import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workflow import one_node_slurm
from tests.workflow.conftest import Project, make
from tests.workflow.one_node_slurm import Cluster, wait_for

PLUGIN = "snakemake_executor_plugin_slurm"
CHAPTERS = ("01_one", "02_two")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    missing = [*one_node_slurm.missing(), *([] if importlib.util.find_spec(PLUGIN) else [PLUGIN])]
    if missing:
        expected = os.environ.get("CI") == "true" and os.geteuid() == 0 and Path("/etc/debian_version").is_file()
        absent = pytest.fail if expected else pytest.skip
        absent(f"not installed: {', '.join(missing)}; workflow/slurm.sh and make .venv/.slurm install them")
    with one_node_slurm.running() as cluster:
        yield cluster


def miniature(root: Path) -> Project:
    """A miniature whose Slurm profile has two of its examples uncommented, and asks for states more often."""
    project = make(root)
    profile = "workflow/profiles/slurm/config.yaml"
    project.edit(profile, '  # slurm_partition: "gpu"', '  slurm_partition: "gpu"')
    project.edit(profile, "  # gpu: 1 ", "  gpu: 1 ")
    project.edit(profile, "status-checks: 20", "status-checks: 1")
    return project


@contextlib.contextmanager
def calling(project: Project, cluster: Cluster, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A call of the driver in the background; its output goes to the file `said` of the project."""
    with (project.root / "said").open("wb") as said:
        call = subprocess.Popen(
            project.command(*arguments, "--executor", "slurm"),
            cwd=project.root,
            env=project.environment(**cluster.variables, **variables),
            stdout=said,
            stderr=said,
        )
        try:
            yield call
        finally:
            call.terminate()
            call.wait(60)


@dataclass(frozen=True)
class Story:
    """A whole run on the cluster in which both chapters are cancelled in mid-run."""

    project: Project
    code: int
    said: str
    jobs: dict[str, list[dict[str, str]]]  # by chapter


@pytest.fixture(scope="module")
def story(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Story:
    project, hold = miniature(tmp_path_factory.mktemp("slurm")), tmp_path_factory.mktemp("hold")
    said = project.root / "said"
    with calling(project, cluster, "reproduce", HOLD=str(hold)) as call:
        holding = [hold / name for name in CHAPTERS]
        wait_for(lambda: call.poll() is not None or all(map(Path.exists, holding)), 120, said.read_text)
        assert call.poll() is None, said.read_text()
        for job in cluster.jobs():
            cluster.ask("scancel", job["JobId"])
        wait_for(lambda: call.poll() is not None, 240, lambda: f"{cluster.jobs()}\n{said.read_text()}")
    jobs = {name: [job for job in cluster.jobs() if job["Chapter"] == name] for name in CHAPTERS}
    return Story(project, call.returncode, said.read_text(), jobs)


def measured(results: dict[str, object]) -> list[dict[str, object]]:
    """The records without the time that they took."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in results["records"]]


@pytest.mark.slurm
def test_what_the_scheduler_kills_runs_again_and_leaves_the_records_of_a_local_run(story, finished):
    assert story.code == 0, story.said
    assert "front page: " in story.said
    for jobs in story.jobs.values():
        assert [job["JobState"] for job in jobs] == ["CANCELLED", "COMPLETED"]
    local, _ = finished
    for name in CHAPTERS:
        there, here = (measured(project.results(name)) for project in (story.project, local))
        assert there == here
        assert len(here) == 2


@pytest.mark.slurm
def test_what_a_chapter_needs_reaches_slurm(story):
    for job in (job for jobs in story.jobs.values() for job in jobs):
        assert job["NumCPUs"] == "1"
        assert job["MinMemoryNode"] in ("6000M", "6G")
        assert job["TimeLimit"] == "00:15:00"  # the wall limit of 600 s, and five minutes to say that it has passed
        assert job["Partition"] == "gpu"
        assert job["TresPerJob"] == "gres:gpu:1"
        assert job["Requeue"] == "1"


@pytest.mark.slurm
def test_a_second_call_does_nothing(story, cluster):
    before = len(cluster.jobs())
    done = story.project.call("reproduce", "--executor", "slurm", **cluster.variables)
    assert done.returncode == 0, done.stdout
    assert "nothing to do: every chapter is up to date" in done.stdout
    assert len(cluster.jobs()) == before


@pytest.mark.slurm
def test_jobs_of_a_killed_call_are_named_and_not_run_beside(story, cluster):
    words = ["--parsable", "--mem=10", "--job-name", "companion_x", "--output", "/dev/null", "--wrap", "sleep 600"]
    elsewhere = cluster.ask("sbatch", "--chdir", "/", *words).strip()
    assert "nothing to do" in story.project.call("reproduce", "--executor", "slurm", **cluster.variables).stdout
    left = cluster.ask("sbatch", "--chdir", str(story.project.root), *words).strip()
    done = story.project.call("reproduce", "--executor", "slurm", **cluster.variables)
    cluster.ask("scancel", left, elsewhere)
    wait_for(lambda: not cluster.ask("squeue", "--noheader"), 30, cluster.logs)
    assert done.returncode == 2
    assert f"still work in this checkout; scancel {left}, then call again" in done.stdout


@pytest.mark.slurm
def test_told_to_stop_it_cancels_its_jobs(story, cluster, tmp_path):
    story.project.edit("notebooks/02_two.py", "# # Chapter 2", "# # Chapter Two")
    with calling(story.project, cluster, "chapter", "--chapter", "02", HOLD=str(tmp_path)) as call:
        wait_for(lambda: call.poll() is not None or (tmp_path / "02_two").exists(), 120, cluster.logs)
        assert call.poll() is None, (story.project.root / "said").read_text()
        assert cluster.jobs()[-1]["JobState"] == "RUNNING"
    assert call.returncode == 130
    assert "stopped; the next call continues" in (story.project.root / "said").read_text()
    wait_for(lambda: cluster.jobs()[-1]["JobState"] == "CANCELLED", 30, cluster.logs)


def test_without_slurm_one_sentence_says_so(finished):
    project, _ = finished
    done = project.call("reproduce", "--executor", "slurm", PATH="/nowhere")
    assert done.returncode == 2
    sentence = "error: EXECUTOR=slurm needs sbatch and squeue on the PATH; call it on a login node of the cluster\n"
    assert done.stdout == sentence


def attempts(project: Project, cell: str, marks: Path) -> subprocess.CompletedProcess[str]:
    """Run chapter 1 with retries, as the Slurm profile has them, but here; each attempt leaves a letter in `marks`."""
    mark = f"Path({str(marks)!r}).open('a').write('x')"
    project.edit("notebooks/01_one.py", 'ledger.record("one.broken", 100.0)', f"{mark}\n{cell}")
    target = "_build/smoke/chapters/01_one.json"
    engine = [sys.executable, "-m", "snakemake", "-s", "workflow/Snakefile", "--config", "profile=smoke"]
    return subprocess.run(
        [*engine, "--cores", "1", "--nolock", "--rerun-incomplete", "--retries", "2", "--", target],
        cwd=project.root,
        env=project.environment(COMPANION_STARTED=str(project.root / "_build/.started")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_a_chapter_that_fails_by_itself_is_not_run_again(copy, tmp_path):
    (copy.root / "_build/smoke/chapters/01_one.failed.ipynb").touch()  # of an earlier call
    time.sleep(0.02)
    done = attempts(copy, "1 / 0", tmp_path / "marks")
    assert done.returncode == 1
    assert done.stdout.count("01_one failed by itself in the attempt before and is not run again\n") == 2
    assert (tmp_path / "marks").read_text() == "x"


def test_a_chapter_that_is_killed_runs_again_even_after_a_failure_in_an_earlier_call(copy, tmp_path):
    failed = copy.root / "_build/smoke/chapters/01_one.failed.ipynb"
    failed.touch()
    time.sleep(0.02)
    marks = tmp_path / "marks"
    once = f"if Path({str(marks)!r}).read_text() == 'x': os.kill(os.getppid(), 9)"
    done = attempts(copy, f'{once}\nledger.record("one.broken", 100.0)', marks)
    assert done.returncode == 0, done.stdout
    assert marks.read_text() == "xx"
