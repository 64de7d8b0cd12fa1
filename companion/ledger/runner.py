"""Run one chapter: percent script to notebook, notebook through papermill, records into place.

``python -m companion.ledger.runner sync notebooks/01_x.py _build/sync/01_x.ipynb`` and
``python -m companion.ledger.runner run _build/sync/01_x.ipynb OUT.ipynb OUT.json -p profile smoke -p seed 0``.

papermill executes the cells; what it leaves open is closed here: kernels talk over Unix sockets in a private directory
(TCP ports race when several start), an unknown parameter is an error, the chapter as a whole has a wall limit, both
outputs appear only after everything has succeeded, and the partial notebook of a failed run is kept under another name.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from traitlets.config import Config

from companion.ledger import paths, records
from companion.ledger.watch import Watch

START_SECONDS = 120  # a kernel on a busy machine
SOCKET_PATH = 80  # bytes; Unix sockets end at 104 (macOS) or 108 (Linux), and the file name needs some of them
TRACEBACK_LINES = 25
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class ChapterError(ValueError):
    """A chapter cannot be run, or its run failed; the message says which, where and why."""


class KernelManager(AsyncKernelManager):
    """Kernels that die with the process that runs the chapter, even if that is killed outright."""

    async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: Any) -> None:
        if sys.platform == "linux":  # elsewhere ipykernel's own watch over its parent has to do
            kw["preexec_fn"] = _die_with_parent
        await super()._async_launch_kernel(kernel_cmd, **kw)


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def sync(script: Path, notebook: Path) -> None:
    """Write the notebook of one percent script, without outputs.

    Args:
        script: ``notebooks/NN_name.py``, jupytext py:percent.
        notebook: the .ipynb to write, as a whole or not at all. Equal scripts give equal bytes.

    Raises:
        ChapterError: no script there.
    """
    if not script.is_file():
        raise ChapterError(f"no notebook source {script}; chapters stand in notebooks/NN_name.py")
    nb = jupytext.read(script, fmt="py:percent")
    for i, cell in enumerate(nb.cells):
        cell["id"] = f"cell-{i}"
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.parent.mkdir(parents=True, exist_ok=True)
    partial = notebook.with_name(f".{notebook.name}.part")
    nbformat.write(nb, partial)
    partial.replace(notebook)


def allowed_parameters(nb: NotebookNode, name: str) -> tuple[str, ...]:
    """The names that the notebook's one ``parameters`` cell assigns.

    Args:
        nb: the notebook.
        name: what to call it in messages.

    Raises:
        ChapterError: no parameters cell, or more than one.
    """
    cells = [cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ChapterError(
            f'{name} has {len(cells)} cells tagged "parameters", expected exactly one: `# %% tags=["parameters"]`'
        )
    statements = ast.parse(cells[0].source).body
    targets = [target for node in statements if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in statements if isinstance(node, ast.AnnAssign)]
    return tuple(target.id for target in targets if isinstance(target, ast.Name))


def run(
    notebook: Path,
    executed: Path,
    results: Path,
    parameters: Mapping[str, Any],
    *,
    limit: float | None = None,
) -> None:
    """Execute a notebook and put its records and its executed copy into place, or neither.

    Args:
        notebook: the synchronised .ipynb.
        executed: where the executed notebook goes.
        results: where the records go that the notebook writes by ``ledger.close()``.
        parameters: values for names that its parameters cell assigns, ``profile`` among them.
        limit: wall limit of the whole chapter in seconds; none if not given.

    Raises:
        ChapterError: an unknown parameter, a failing cell, the wall limit, or no (or foreign) records. The partial
            notebook is kept beside `executed` as ``NAME.failed.ipynb``.
    """
    name = notebook.stem
    nb = nbformat.read(notebook, as_version=4)
    allowed = allowed_parameters(nb, name)
    unknown = [key for key in parameters if key not in allowed]
    if unknown:
        listed = ", ".join(allowed)
        raise ChapterError(f"{name} has no parameter {', '.join(unknown)}; its parameters cell allows {listed}")
    for directory in {executed.parent, results.parent}:
        directory.mkdir(parents=True, exist_ok=True)
    for left in executed.parent.glob(f".{name}.run-*"):  # of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    failed = executed.with_name(f"{name}.failed.ipynb")
    failed.unlink(missing_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{name}.run-", dir=executed.parent)).resolve()
    try:
        done = _execute(nb, work, parameters, limit=limit, name=name)
        _check_records(work / "records.json", name, parameters)
        nbformat.write(_hide_injected(done), work / "executed.ipynb")
        (work / "records.json").replace(results)
        (work / "executed.ipynb").replace(executed)
    except ChapterError as error:
        if (work / "partial.ipynb").is_file():
            (work / "partial.ipynb").replace(failed)
            raise ChapterError(f"{error}\npartial notebook: {failed}") from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _execute(
    nb: NotebookNode, work: Path, parameters: Mapping[str, Any], *, limit: float | None, name: str
) -> NotebookNode:
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import execute_notebook

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # whatever goes wrong is said once, below
    sockets = _socket_directory()
    deadline = None if limit is None else time.monotonic() + limit
    running: list[NotebookNode] = []
    cells = [i for i, cell in enumerate(nb.cells) if cell.cell_type == "code"]
    os.environ.update(
        COMPANION_RECORDS=str(work / "records.json"),
        COMPANION_PROGRESS=str(work / "progress.jsonl"),
        PYTHONPATH=os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")])),
        PYTHONHASHSEED="0",
        IPYTHONDIR=str(sockets / "ipython"),  # nobody's start-up files, nobody's history
        JUPYTER_RUNTIME_DIR=str(sockets),
    )
    manager = Config({"KernelManager": {"transport": "ipc", "ip": str(sockets / "k")}})
    with Watch(f"{name} ({parameters.get('profile', '-')})", work / "progress.jsonl", len(cells) + 1) as watch:

        def began(cell: NotebookNode, cell_index: int) -> None:
            running[:] = [cell]
            watch.cell()

        def remaining(cell: NotebookNode) -> int | None:
            return None if deadline is None else max(1, round(deadline - time.monotonic()))

        try:
            return execute_notebook(
                nb,
                work / "partial.ipynb",
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=START_SECONDS,
                cwd=paths.ROOT,
                kernel_manager_class=KernelManager,
                config=manager,
                timeout_func=remaining,
                on_cell_execute=began,
            )
        except PapermillExecutionError as error:
            trace = "\n".join(ESCAPES.sub("", "\n".join(error.traceback or [])).splitlines()[-TRACEBACK_LINES:])
            raise ChapterError(
                f"{trace}\n\n{name} failed {_where(error.source)}\n{error.ename}: {error.evalue}".lstrip()
            ) from error
        except CellTimeoutError as error:
            raise ChapterError(f"{name} passed its wall limit of {limit:g} s {_where(running[0].source)}") from error
        except DeadKernelError as error:
            where = _where(running[0].source) if running else "before its first cell"
            raise ChapterError(f"{name}: the kernel died {where}; the usual reason is too little memory") from error
        finally:
            shutil.rmtree(sockets, ignore_errors=True)


def _socket_directory() -> Path:
    """A private directory whose path is short enough for a Unix socket."""
    directory = Path(tempfile.mkdtemp(prefix="companion-"))
    if len(os.fsencode(directory)) > SOCKET_PATH:
        directory.rmdir()
        raise ChapterError(
            f"{directory.parent} is too long a path for the Unix sockets that kernels talk over; "
            f"set TMPDIR to one of at most {SOCKET_PATH - len(directory.name) - 1} bytes"
        )
    return directory


def _check_records(file: Path, name: str, parameters: Mapping[str, Any]) -> None:
    if not file.is_file():
        raise ChapterError(f"{name} ended without records; its last cell has to call ledger.close()")
    found = records.Results.read(file)
    wanted = (name, parameters.get("profile", found.profile))
    if (found.chapter, found.profile) != wanted:
        raise ChapterError(
            f"{name} left the records of chapter {found.chapter}, profile {found.profile}; "
            f"expected {wanted[0]}, {wanted[1]}: see its call of ledger.begin"
        )


def _hide_injected(nb: NotebookNode) -> NotebookNode:
    """Keep the injected parameters in the file and out of the page; the stamp names profile and seed."""
    for cell in nb.cells:
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            cell.metadata["tags"] = [*tags, "remove-cell"]
    return nb


def _where(source: str) -> str:
    first = next((line.strip() for line in source.splitlines() if line.strip()), "")
    return f"in the cell that begins `{first}`"


def _value(text: str) -> Any:
    """A parameter from the command line: a Python literal if it is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 with one message on stderr when a chapter fails."""
    parser = argparse.ArgumentParser(prog="companion.ledger.runner", description="Run one chapter of the book.")
    commands = parser.add_subparsers(dest="command", required=True)
    syncing = commands.add_parser("sync", help="percent script to notebook")
    syncing.add_argument("script", type=Path)
    syncing.add_argument("notebook", type=Path)
    running = commands.add_parser("run", help="execute a notebook")
    running.add_argument("notebook", type=Path)
    running.add_argument("executed", type=Path)
    running.add_argument("results", type=Path)
    running.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    running.add_argument("--limit", type=float, help="wall limit in seconds")
    options = parser.parse_args(arguments)
    try:
        if options.command == "sync":
            sync(options.script, options.notebook)
        else:
            values = {key: _value(text) for key, text in options.parameter}
            run(options.notebook, options.executed, options.results, values, limit=options.limit)
    except (ChapterError, records.RecordError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
