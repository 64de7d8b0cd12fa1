"""Build the virtual environment from the pins, or say in one line why that is impossible.

Needs nothing but the interpreter that runs it, and is kept plain enough for old ones, so that their users read a
sentence and not a syntax error. A marker stands in the environment while pip works: whoever finds it knows that an
earlier build was killed and starts afresh, so a half-installed package is never taken for a whole one.
"""

import json
import os
import shutil
import subprocess
import sys
import time

OLDEST = (3, 11)
LAB_SETTINGS = {"@jupyterlab/docmanager-extension:plugin": {"defaultViewers": {"python": "Jupytext Notebook"}}}


def fail(message):
    """Print one line and stop."""
    sys.stderr.write("error: " + message + "\n")
    sys.exit(1)


def run(command, log, what, environment=None):
    """Run a command with its output in the log; on failure show the log's end and stop."""
    with open(log, "ab") as out:
        code = subprocess.call(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment)
    if code != 0:
        with open(log, "rb") as text:
            sys.stderr.write(b"\n".join(text.read().splitlines()[-15:]).decode("utf-8", "replace") + "\n")
        fail(f"{what} failed (exit status {code}); the whole output stands in {log}")


def create(target, log):
    """Make an empty environment, by venv or, where that lacks ensurepip (Debian's bare python3), by virtualenv."""
    with open(log, "ab") as out:
        code = subprocess.call([sys.executable, "-m", "venv", "--clear", target], stdout=out, stderr=subprocess.STDOUT)
    if code == 0:
        return
    shutil.rmtree(target, ignore_errors=True)
    borrowed = target + ".virtualenv"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", borrowed, "virtualenv"]
    run(install, log, "python -m venv, and installing virtualenv in its place,")
    environment = dict(os.environ, PYTHONPATH=borrowed)
    run([sys.executable, "-m", "virtualenv", "--quiet", target], log, "virtualenv", environment)
    shutil.rmtree(borrowed, ignore_errors=True)


def main(target, requirements):
    """Bring the environment `target` to the pins of the files `requirements`."""
    if sys.version_info < OLDEST:
        wanted, found = (".".join(map(str, version[:2])) for version in (OLDEST, sys.version_info))
        fail(f"Python {wanted} or newer is needed, this is {found}: call make PYTHON=/path/to/python{wanted}")
    marker, log, python = os.path.join(target, ".building"), target + ".log", os.path.join(target, "bin", "python")
    if os.path.exists(log):
        os.remove(log)
    print(f"building {target} from the pins: a few minutes and about 6 GB the first time (output in {log})")
    sys.stdout.flush()
    started = time.time()
    if os.path.exists(marker) or not os.path.exists(python):
        create(target, log)
    open(marker, "w").close()
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    files = [word for name in requirements for word in ("-r", name)]
    run([*pip, "install", "--progress-bar", "off", *files], log, "installing the pins")
    run([*pip, "check"], log, "pip check")
    settings = os.path.join(target, "share", "jupyter", "lab", "settings")
    if not os.path.isdir(settings):
        os.makedirs(settings)
    with open(os.path.join(settings, "overrides.json"), "w") as out:  # JupyterLab opens a percent script as a notebook
        json.dump(LAB_SETTINGS, out)
    os.remove(marker)
    print(f"built {target} in {time.time() - started:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
