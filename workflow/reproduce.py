"""The driver behind make reproduce, chapter, book and verify: one lock, one engine, one table, one exit code.

Exit code 0: everything asked for is there and nothing gated is contradicted. 1: a chapter failed, a record is missing,
a gated claim is contradicted, a control did not fail, or the book does not build. 2: the call itself makes no sense.
"""

import argparse
import contextlib
import fcntl
import getpass
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout's own package, whatever is installed

import verdict_table  # noqa: E402  (needs the line above)

from companion.ledger import paths  # noqa: E402


def say(text: str) -> None:
    """One line to the user, in order with what the engine's jobs print."""
    print(text, flush=True)


def lock(command: str) -> IO[str] | None:
    """The lock of this checkout, or None when another call holds it (the sentence is printed).

    The engine inherits the open file, so that the lock lives as long as either process does.
    """
    file = ROOT / "_build" / ".lock"
    file.parent.mkdir(exist_ok=True)
    handle = file.open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.seek(0)
        say(f"error: another call works in this checkout ({handle.read().strip() or 'starting'}); wait, or stop it")
        handle.close()
        return None
    handle.truncate(0)
    handle.write(f"{command}, process {os.getpid()}")
    handle.flush()
    return handle


def ask(*command: str) -> str | None:
    """What a command of Slurm prints, or None if it is not there or fails."""
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None
    return None


def unfit(executor: str) -> str | None:
    """Why the executor cannot begin, in one sentence, or None."""
    if executor != "slurm":
        return None
    if not (shutil.which("sbatch") and shutil.which("squeue")):
        return "EXECUTOR=slurm needs sbatch and squeue on the PATH; call it on a login node of the cluster"
    queue = ask("squeue", "--noheader", "--user", getpass.getuser(), "--format", "%i %j %Z")
    if queue is None:
        return "squeue fails: Slurm's controller does not answer, or SLURM_CONF does not name its configuration"
    jobs = [line.strip().split(maxsplit=2) for line in queue.splitlines()]
    left = " ".join(job for job, name, folder in jobs if name.startswith("companion_") and Path(folder) == ROOT)
    return left and f"jobs of a call that was killed still work in this checkout; scancel {left}, then call again"


def engine(
    profile: str, executor: str, targets: Sequence[str], held: IO[str], *, rules: Sequence[str] = ()
) -> tuple[int, bool]:
    """Run Snakemake up to the targets.

    Returns:
        Its exit code, and whether it had anything to do.
    """
    started = ROOT / "_build" / ".started"
    started.unlink(missing_ok=True)
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--config", f"profile={profile}"]
    command += ["--profile", f"workflow/profiles/{executor}"]
    if executor == "slurm" and ask("sacct", "--noheader") is None:
        command += ["--slurm-status-command", "squeue"]  # no accounting here: sacct would never see a job end
    command += ["--allowed-rules", *rules] if rules else []
    command += ["--", *targets]
    environment = dict(os.environ, COMPANION_STARTED=str(started), PYTHONDONTWRITEBYTECODE="1")
    environment["COMPANION_CACHE"] = os.environ.get("XDG_CACHE_HOME", "")  # the jobs get their own back (Snakefile)
    environment["XDG_CACHE_HOME"] = str(ROOT / "_build" / ".cache")  # the engine leaves nothing in the home folder
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, pass_fds=[held.fileno()])

    def stop(*_: object) -> None:
        """On SIGTERM do what Ctrl-C does to all by itself; the engine alone would first finish its jobs."""
        for job in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended by itself meanwhile
                job.terminate()
        process.send_signal(signal.SIGINT)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # it has the signal, too, and tidies up
        code = 130
    return code, started.exists()


def show_job_errors(names: Sequence[str]) -> None:
    """Print what the runner of each failed chapter said in the newest log that Slurm kept of it."""
    folder = ROOT / ".snakemake" / "slurm_logs" / "rule_run"
    for name in names:
        for log in sorted((folder / name).glob("*.log"), key=lambda file: file.stat().st_mtime, reverse=True):
            _, error, text = log.read_text(encoding="utf-8", errors="replace").rpartition("\nerror: ")
            if error:
                say(f"\n{log.relative_to(ROOT)}\nerror: {text.partition(chr(10) + 'RuleException')[0]}\n")
                break
    say(f"the jobs' own output: {folder.relative_to(ROOT)}/CHAPTER/JOB.log")


def publish(profile: str, names: Sequence[str], *, finished: bool) -> None:
    """Put what the chapters' runs left into results/, each file as a whole; one whose run did not finish stays.

    The engine does not do it, since it deletes a file before the job that writes it. When it could not bring all up to
    date (`finished` false), a run older than the published file is left alone: it may be a run of other sources.
    """
    for name in names:
        ours, published = executed(profile, name, "json"), paths.results_file(profile, name)
        if not (ours.is_file() and executed(profile, name, "ipynb").is_file()):
            continue
        if published.is_file():
            older = ours.stat().st_mtime_ns < published.stat().st_mtime_ns
            if (older and not finished) or ours.read_bytes() == published.read_bytes():
                continue
        published.parent.mkdir(parents=True, exist_ok=True)
        partial = published.with_name(f".{published.name}.part")
        shutil.copyfile(ours, partial)
        partial.replace(published)


def executed(profile: str, name: str, suffix: str) -> Path:
    """What a run of a chapter leaves in the build folder."""
    return ROOT / "_build" / profile / "chapters" / f"{name}.{suffix}"


def verdicts(profile: str, names: Sequence[str], *, everything: bool, finished: bool) -> list[str]:
    """Print table and deviations; return why the run fails."""
    broken = [
        name
        for name in names
        if not executed(profile, name, "json").is_file()
        and (not finished or executed(profile, name, "failed.ipynb").is_file())
    ]
    found, problems = verdict_table.collect(paths.results_file(profile, name) for name in names if name not in broken)
    table = verdict_table.rows(profile, found)
    if found:
        verdict_table.show(profile, found, table, everything=everything)
        for sentence in verdict_table.deviations(profile, found):
            say(sentence)
    failures = [f"failed chapter: {name}" for name in broken] + problems + verdict_table.reasons(table)
    for sentence in failures:
        say(f"FAILED  {sentence}")
    return failures


def choose(wanted: str | None) -> list[str]:
    """All chapters, or the one meant by ``01`` or by its full name."""
    names = verdict_table.chapters()
    if wanted is None:
        return names
    return [name for name in names if wanted in (name, name.split("_")[0])]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["reproduce", "chapter", "book", "verify"])
    parser.add_argument("--profile", default="cpu", choices=paths.PROFILES)
    parser.add_argument("--executor", default="local", choices=["local", "slurm"])
    parser.add_argument("--chapter", help="01 or 01_name")
    parser.add_argument("--all", action="store_true", help="list the claims that the profile does not run, too")
    options = parser.parse_args(arguments)
    profile, names = options.profile, choose(options.chapter)
    if not names or (options.command == "chapter" and options.chapter is None):
        say(f"error: which chapter? C=NN out of {', '.join(verdict_table.chapters()) or 'none: notebooks/ is empty'}")
        return 2
    if options.command == "verify":
        return 1 if verdicts(profile, names, everything=options.all, finished=True) else 0
    held = lock(f"make {options.command}")
    if held is None:
        return 1
    if obstacle := unfit(options.executor):
        say(f"error: {obstacle}")
        return 2
    if options.command == "book":
        return build_book(profile, names, options.executor, held)
    targets = ["all"] if options.command == "reproduce" else [f"_build/{profile}/chapters/{n}.json" for n in names]
    code, busy = engine(profile, options.executor, targets, held)
    publish(profile, names, finished=code == 0)
    if code == 130:
        say("stopped; the next call continues")
        return 130
    if code == 0 and not busy:
        say("nothing to do: every chapter is up to date")
    if code != 0:
        shutil.rmtree(ROOT / "_build" / "data", ignore_errors=True)  # so that the next call looks at the data again
    failures = verdicts(profile, names, everything=options.all, finished=code == 0)
    if code != 0 and options.executor == "slurm":
        show_job_errors(names)
    if code != 0:
        say("FAILED  the run did not finish; the reason stands above, and the next call continues")
    elif options.command == "reproduce":
        say(f"front page: {ROOT / '_build' / profile / 'html' / 'index.html'}")
    else:
        say(f"executed notebook: {executed(profile, names[0], 'ipynb')}")
    return 1 if failures or code != 0 else 0


def build_book(profile: str, names: Sequence[str], executor: str, held: IO[str]) -> int:
    """The book from executed chapters, without executing any."""
    missing = [name for name in names if not executed(profile, name, "ipynb").is_file()]
    if missing:
        say(f"error: not executed: {', '.join(missing)}; call make reproduce PROFILE={profile}")
        return 1
    page = ROOT / "_build" / profile / "html" / "index.html"
    code, busy = engine(profile, executor, [str(page.relative_to(ROOT))], held, rules=["book"])
    if code == 0:
        say(f"{'front page' if busy else 'nothing to do; front page'}: {page}")
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
